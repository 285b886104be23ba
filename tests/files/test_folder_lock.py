"""Folders that one run owns: others are refused, a killed one does not hinder."""

import os
import signal
import subprocess
import sys

import pytest

import eval_base_model
import train_base_model
from helpers import SHORT_TRAINING, fails_with
from lib.files.folder_lock import LOCK, own_folder
from lib.runtime.errors import InputError

OWNER = """
import sys, time
from pathlib import Path
from lib.files.folder_lock import own_folder
with own_folder(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """A process that owns the folder `run`."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "owned\n"
        yield process
        process.kill()


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


def test_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def acquire(lock, timeout):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with own_folder(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked (no locks here)" in caplog.text
