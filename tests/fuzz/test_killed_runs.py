"""Kill scripts at random moments; `pytest tests/fuzz --fuzz 50` kills each 50 times."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import translated_frames, write_frames

PROGRAM = Path(__file__).with_name("killed_runs.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.usefixtures("bsds_root", "base_weights", "pyav")
def test_the_run_after_killed_ones_leaves_the_files_of_an_undisturbed_run(tmp_path, pytestconfig):
    write_frames(tmp_path / "frames", [frame[:64, :80] for frame in translated_frames(6, 1, 2)])
    n_kills = pytestconfig.getoption("--fuzz") or 3
    program = subprocess.run(
        [sys.executable, PROGRAM, str(n_kills)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])},
        capture_output=True,
        text=True,
    )
    assert program.returncode == 0, program.stderr
    n_killed = dict(part.split("=") for part in program.stdout.splitlines()[-1].split())
    assert set(n_killed) == {"folder", "evaluation", "flow", "video"}
    assert 0 < sum(map(int, n_killed.values())) <= 4 * n_kills  # a run may end before it is killed
