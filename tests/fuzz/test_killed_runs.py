"""Kill scripts at random moments; `pytest tests/fuzz --fuzz 50` kills each 50 times."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import translated_frames, write_frames

TESTS = Path(__file__).parents[1]

SCRIPTS = {
    "folder of images": (
        "inference_base_model",
        "--image={root}/frames",
        "--base_model_weights={weights}",
        "--nspix=24",
        "--device=cpu",
        "--out={out}",
        "--save_labels={out}",
        "--skip_existing",
    ),
    "evaluation": (
        "eval_base_model",
        "--bsds_root={root}/BSR",
        "--base_model_weights={weights}",
        "--nspix=24",
        "--device=cpu",
        "--nworkers=0",
        "--resume",
        "--out_dir={out}",
    ),
    "flow": (
        "estimate_optflow",
        "--frames={root}/frames",
        "--preset=ultrafast",
        "--nworkers=0",
        "--out_dir={out}",
    ),
    "video": (
        "inference_base_model",
        "--video={root}/frames",
        "--base_model_weights={weights}",
        "--nspix=24",
        "--device=cpu",
        "--out={out}/overlay.mp4",
        "--save_labels={out}/labels.h5",
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_run_after_killed_ones_leaves_the_files_of_an_undisturbed_run(
    name, tmp_path, bsds_root, base_weights, pytestconfig
):
    write_frames(tmp_path / "frames", translated_frames(6, 1, 2))
    script, *options = SCRIPTS[name]
    options = [
        option.replace("{root}", str(tmp_path)).replace("{weights}", str(base_weights)) for option in options
    ]
    (tmp_path / "out").mkdir()
    n_kills = pytestconfig.getoption("--fuzz") or 4
    program = subprocess.run(
        [sys.executable, TESTS / "fuzz" / "killed_runs.py", str(n_kills), tmp_path / "out", script, *options],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
    )
    assert program.returncode == 0, program.stderr
    assert 0 < int(program.stdout.split()[-1]) <= n_kills
