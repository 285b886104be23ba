"""Folders that one run owns: others are refused, a killed one does not hinder."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

import eval_base_model
import inference_base_model
import train_base_model
from helpers import SHORT_TRAINING, fails_with
from lib.files.atomic import atomic_path, remove_leftovers
from lib.files.folder_lock import LOCK, own_folder
from lib.runtime.errors import InputError

OWNER = """
import sys, time
from pathlib import Path
from lib.files.atomic import atomic_path, remove_leftovers
from lib.files.folder_lock import own_folder
with own_folder(Path(sys.argv[1]), shared="shared" in sys.argv):
    print("owned", flush=True)
    time.sleep(60)
"""


@contextmanager
def other_process(folder, *options):
    """A process that owns a folder."""
    command = [sys.executable, "-c", OWNER, str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "owned\n"
        yield process
        process.kill()


@pytest.fixture
def owner(tmp_path):
    """A process that owns the folder `run`."""
    with other_process(tmp_path / "run") as process:
        yield process


def test_second_process_is_refused_until_the_first_is_killed(owner, tmp_path):
    with (
        pytest.raises(InputError, match=f"run is in use by process {owner.pid} on .* since 20"),
        own_folder(tmp_path / "run"),
    ):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with own_folder(tmp_path / "run"):
        assert f"process {os.getpid()} " in (tmp_path / "run" / LOCK).read_text()
    assert list((tmp_path / "run").iterdir()) == []


def test_folder_is_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), own_folder(tmp_path):
            raise ZeroDivisionError


def test_scripts_refuse_a_folder_in_use(owner, bsds_root, base_weights, tmp_path, capsys):
    data = [f"--bsds_root={bsds_root}", f"--out_dir={tmp_path / 'run'}"]
    for script, more in (
        (train_base_model.main, SHORT_TRAINING),
        (eval_base_model.main, [f"--base_model_weights={base_weights}", "--nspix=24", "--device=cpu"]),
    ):
        error = fails_with(script, [*data, *more], capsys)
        assert f"--out_dir {tmp_path / 'run'} is in use by process {owner.pid} " in error
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_refused_processes_leave_the_name_of_the_owner(owner, tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match=f"process {owner.pid} "), own_folder(tmp_path / "run"):
            pass


def test_processes_that_share_a_folder_exclude_others(tmp_path):
    folder = tmp_path / "run"
    with other_process(folder, "shared") as first:
        with own_folder(folder, shared=True):
            pass
        assert (folder / LOCK).exists()  # the first process holds it still
        with (
            pytest.raises(InputError, match=r"run is in use by runs that share it, the last of them process"),
            own_folder(folder),
        ):
            pass
        first.kill()
        first.wait()
        with own_folder(folder):
            pass
    assert list(folder.iterdir()) == []


def test_owner_excludes_processes_that_would_share(owner, tmp_path):
    with (
        pytest.raises(InputError, match=f"`labels` .*run is in use by process {owner.pid} "),
        own_folder(tmp_path / "run", shared=True, parameter="labels"),
    ):
        pass


def infer(image, *argv):
    return inference_base_model.main(
        ["--base_model_weights=none", "--nspix=24", "--device=cpu", f"--image={image}", *argv]
    )


def test_inference_owns_the_folders_that_it_fills(bsds_root, tmp_path, capsys):
    images, folder = bsds_root / "BSDS500/data/images/test", tmp_path / "run"
    argv = [f"--out={tmp_path / 'overlays'}", f"--save_labels={folder}"]
    with other_process(folder) as owner:
        for more in ([], ["--skip_existing"]):
            error = fails_with(lambda argv: infer(images, *argv), [*argv, *more], capsys)
            assert f"--save_labels {folder} is in use by process {owner.pid} " in error
        assert infer(images / "100.jpg", f"--out={folder / 'a.png'}").n_measured > 1
    with other_process(folder, "shared"):
        assert infer(images, *argv, "--skip_existing").n_done == 2
        error = fails_with(lambda argv: infer(images, *argv), argv, capsys)
        assert f"--save_labels {folder} is in use by runs that share it" in error
    assert infer(images, *argv, f"--save_outlines={folder}").n_done == 2
    names = {"a.png", "100.npy", "101.npy", "100.geojson", "101.geojson"}
    assert {path.name for path in folder.iterdir()} == names


def test_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(file, mode):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    with own_folder(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked ([Errno {errno.ENOLCK}] no locks here)" in caplog.text
    assert list(tmp_path.iterdir()) == []
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
        remove_leftovers(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "x"


def test_platform_without_locks(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lib.files.locks.fcntl", None)
    with own_folder(tmp_path), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert f"{tmp_path} cannot be locked" in caplog.text
