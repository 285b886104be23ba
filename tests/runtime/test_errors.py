"""Messages of errors."""

import pytest

from lib.runtime.errors import missing_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("photos/cta.jpg", "no image file {tmp}/photos/cta.jpg; did you mean {tmp}/photos/cat.jpg?"),
        ("foto/cat.jpg", "no image file {tmp}/foto/cat.jpg; did you mean {tmp}/photos?"),
        ("photos/zebra", "no image file {tmp}/photos/zebra"),
        ("photos", "no image file {tmp}/photos"),
        ("photos/cat.jpg/cat.jpg", "no image file {tmp}/photos/cat.jpg/cat.jpg"),
    ],
)
def test_missing_path_names_the_nearest_one(tmp_path, given, message):
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / "photos" / name).touch()
    assert str(missing_path(tmp_path / given, "image file")) == message.format(tmp=tmp_path)


def test_relative_path_stays_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pth").touch()
    assert str(missing_path("modl.pth", "weight file")) == "no weight file modl.pth; did you mean model.pth?"
