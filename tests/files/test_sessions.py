"""Files of sessions: each is deleted once nobody uses it."""

import tempfile

import pytest

from lib.files.locks import locked
from lib.files.sessions import SessionFiles, temporary_folder
from lib.runtime.errors import InputError


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return SessionFiles(folder, examples=[tmp_path / "demo.jpg"], n_kept=2)


def upload(files, content, name="image.png"):
    folder = files.folder / content
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


def test_end_of_a_session_deletes_its_files_only(files, tmp_path):
    own, shared, example = upload(files, "own"), upload(files, "shared"), tmp_path / "demo.jpg"
    example.write_text("demo")
    for path in (own, shared, example):
        files.open("first", path)
    files.open("second", shared)
    first, second = files.add_result("first"), files.add_result("second")
    (first / "labels.npy").write_text("labels")
    assert files.is_open("first")
    files.close("first")
    assert not files.is_open("first")
    assert set(files.folder.iterdir()) == {shared.parent, second}
    assert shared.exists()
    assert example.exists()
    files.close("second")
    assert list(files.folder.iterdir()) == []
    assert example.exists()


def test_other_files_are_refused(files, tmp_path):
    (tmp_path / "secret.png").write_text("secret")
    link = files.folder / "link.png"
    link.symlink_to(tmp_path / "secret.png")
    for path in (tmp_path / "secret.png", files.folder / ".." / "secret.png", link):
        with pytest.raises(InputError, match="is not an upload"):
            files.open("one", path)
    assert files.add_result("one") is None


def test_equal_uploads_of_different_names(files):
    first, second = upload(files, "same", "first.png"), upload(files, "same", "second.png")
    files.open("first", first)
    files.open("second", second)
    files.close("first")
    assert not first.exists()
    assert second.exists()


def test_newest_results_are_kept(files):
    files.open("one", upload(files, "one"))
    files.open("other", upload(files, "one"))
    other = files.add_result("other")
    results = [files.add_result("one") for _ in range(4)]
    assert [result.exists() for result in results] == [False, False, True, True]
    assert other.exists()


def test_result_of_an_ended_session_is_discarded(files):
    files.open("one", upload(files, "one"))
    files.close("one")
    assert files.add_result("one") is None
    files.open("one", upload(files, "one"))  # the browser connects again
    assert files.add_result("one").exists()


def test_all_sessions_end(files):
    for session in ("first", "second"):
        files.open(session, upload(files, session))
        files.add_result(session)
    files.close_all()
    assert list(files.folder.iterdir()) == []
    assert files.add_result("first") is None


def test_temporary_folder_and_leftovers(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    leftover, in_use, starting, other = (
        tmp_path / name for name in ("page_left", "page_used", "page_starting", "other")
    )
    for folder in (leftover, in_use, starting, other):
        folder.mkdir()
        (folder / "image.png").write_text("image")
    for folder in (leftover, in_use, other):
        (folder / ".lock").touch()
    with locked(in_use / ".lock"):
        with temporary_folder("page_") as folder:
            (folder / "image.png").write_text("image")
            with temporary_folder("page_"):  # a second page does not remove the files of the first
                assert (folder / "image.png").exists()
            assert set(tmp_path.iterdir()) == {folder, in_use, starting, other}
        assert set(tmp_path.iterdir()) == {in_use, starting, other}
    assert (in_use / "image.png").exists()
