"""Test temporary names of files in writing."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.files.atomic import (
    _host,
    atomic_path,
    check_output_file,
    prepare_out_dir,
    remove_leftovers,
    write_together,
)
from lib.runtime.errors import InputError

NAMES = [
    "a.png",
    "x" * 251 + ".png",
    "\u00e4" * 126 + ".h5",
    os.fsdecode(b"caf\xe9.png"),
    "a\nb.png",
    "12:30.png",
]


LEAVE = """
import os, sys
from pathlib import Path
from lib.files.atomic import atomic_path
for name in sys.argv[1:]:
    atomic_path(Path(name)).__enter__().write_text("x")
print(os.getpid())
sys.stdout.flush()
os._exit(1)
"""


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_written(name, tmp_path):
    path = tmp_path / name
    with atomic_path(path) as temporary:
        assert temporary.suffix == path.suffix
        temporary.write_text("x")
    assert path.read_text() == "x"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_ended_processes_are_removed(tmp_path):
    paths = [tmp_path / name for name in NAMES]
    ended = subprocess.run([sys.executable, "-c", LEAVE, *paths], stdout=subprocess.PIPE, text=True).stdout
    assert len(list(tmp_path.glob(f".*.partial-*-{ended.strip()}-*"))) == len(NAMES)
    (tmp_path / f".a.partial-0123abcd-{ended.strip()}-ffff.png").touch()  # of another computer
    (tmp_path / ".partial-notes.txt").touch()
    with atomic_path(tmp_path / "b.png") as temporary:
        temporary.write_text("x")
        prepare_out_dir(tmp_path)
        assert temporary.exists()
    kept = [f".a.partial-0123abcd-{ended.strip()}-ffff.png", ".partial-notes.txt", "b.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


WRITE = """
import sys, time
from pathlib import Path
from lib.files.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("whole")
    print(temporary, flush=True)
    input()
"""


def test_files_of_a_living_process_stay_whatever_its_number(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    command = [sys.executable, "-c", WRITE, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        temporary = Path(process.stdout.readline().strip())
        monkeypatch.setattr("lib.files.atomic._is_running", lambda process: False)  # seen from a container
        remove_leftovers(tmp_path)
        assert temporary.read_text() == "whole"
        with pytest.raises(
            InputError, match=rf"`overlay` {path} is being written by process {process.pid}; wait"
        ):
            check_output_file("overlay", path, (".mp4",))
        check_output_file("overlay", tmp_path / "b.mp4", (".mp4",))
        process.communicate("\n")
    assert path.read_text() == "whole"
    check_output_file("overlay", path, (".mp4",))


def test_leftover_that_cannot_be_judged_does_not_hinder(tmp_path, monkeypatch):
    """Without locks, the number of an ended process may be in use again."""
    path = tmp_path / "a.mp4"
    with atomic_path(path) as temporary:
        name = temporary.name
    (tmp_path / name).touch()
    monkeypatch.setattr("lib.files.locks.fcntl", None)
    check_output_file("overlay", path, (".mp4",))
    assert (tmp_path / name).exists()


def test_leftovers_are_removed_while_they_are_locked(tmp_path, monkeypatch):
    """Otherwise a process that has just made the file, and waits for the lock, would lose it."""
    leftover, original = tmp_path / f".a.partial-{_host()}-1-ffff.txt", fcntl.flock
    leftover.touch()
    existed = []

    def flock(file, mode):
        if mode == fcntl.LOCK_UN:
            existed.append(leftover.exists())
        return original(file, mode)

    monkeypatch.setattr("fcntl.flock", flock)
    remove_leftovers(tmp_path)
    assert existed == [False]


def test_processes_of_one_number_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)  # as in two containers
    path = tmp_path / "a.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert path.read_text() == "first"


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.txt", []
    monkeypatch.setattr("os.fsync", lambda file: synced.append((os.fstat(file).st_size, path.exists())))
    with atomic_path(path) as temporary:
        temporary.write_text("content")
    write_together({path: lambda to: to.write_text("new")})
    assert synced == [(7, False), (3, True)]


def test_long_names_that_differ_have_different_temporaries(tmp_path):
    paths = [tmp_path / f"{'x' * 250}{idx}.png" for idx in range(2)]
    write_together({path: lambda to, text=path.name: to.write_text(text) for path in paths})
    assert [path.read_text() for path in paths] == [path.name for path in paths]
