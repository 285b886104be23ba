"""Several processes that share the work, as torchrun starts them: on the CPU, with gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import eval_base_model
import train_base_model
from lib.evaluation.journal import SCORES
from lib.weights import read_checkpoint, save_checkpoint
from ranks.scripts import evaluation_argv, training_argv

REPO_ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

pytestmark = pytest.mark.slow


def run_in_ranks(program, folder):
    """Run a program of `tests/ranks` in two processes."""
    return subprocess.run(
        [*TORCHRUN, "-m", f"ranks.{program}"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{REPO_ROOT}{os.pathsep}{REPO_ROOT / 'tests'}"},
    )


def test_ranks_agree_and_train_as_one_process(tmp_path):
    """Run `ranks.checks`, and check that both ranks exit without the teardown of the interpreter.

    Threads of gloo may outlive the process group, and would abort a process that is torn down.
    """
    done = run_in_ranks("checks", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("exits in order") == 2
    assert "torn down" not in done.stdout


def test_signal_to_all_ranks_saves_the_last_step(bsds_root, tmp_path):
    argv = [*training_argv(bsds_root, tmp_path / "run"), "--train_iter=100000", "--test_interval=100000"]
    run = subprocess.Popen(
        [*TORCHRUN, "train_base_model.py", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPO_ROOT,
        start_new_session=True,
    )
    printed = []
    for line in run.stdout:
        printed.append(line)
        if line.startswith("step 3/"):
            os.killpg(run.pid, signal.SIGTERM)  # to the launcher, which passes it on, and to the ranks
    run.wait(timeout=60)
    stopped = [line for line in printed if line.startswith("stopped at step ")]
    assert len(stopped) == 1, "".join(printed)
    step = read_checkpoint(tmp_path / "run" / "last_model.pth")["step"]
    assert stopped[0].startswith(f"stopped at step {step};")
    assert step >= 3


def test_scripts_in_ranks(bsds_root, tmp_path, monkeypatch):
    """Run `ranks.scripts`, and compare its files with the results of a single process."""
    shutil.copytree(bsds_root, tmp_path / "broken")
    bsds_root.rename(tmp_path / "whole")
    path = tmp_path / "broken/BSDS500/data/images/val/101.jpg"  # rank 1 scores it
    path.write_bytes(path.read_bytes()[:-200])  # the header stays as it is
    done = run_in_ranks("scripts", tmp_path)
    monkeypatch.chdir(tmp_path)
    check_training(done)
    check_evaluation(done)
    check_resume_by_one_process()
    check_inference(done)
    check_end_by_a_broken_image(done)


def check_training(done):
    assert done.stdout.count("ranks: 2;") == 2, done.stdout + done.stderr  # two runs; only rank 0 logs
    last = read_checkpoint(Path("run/last_model.pth"))
    assert (last["step"], last["n_samples"]) == (4, 16)
    assert [line["step"] for line in read_log()] == [1, 2, 2, 3, 4, 4]


def check_evaluation(done):
    assert done.stdout.count("BSDS500 val: ASA") == 1
    (alone,) = eval_base_model.main(evaluation_argv("one_process"))["BSDS500 val"].values()
    best_step = read_checkpoint(Path("run/best_model.pth"))["step"]
    (validation,) = (line for line in read_log() if "score" in line and line["step"] == best_step)
    for metric in ("asa", "boundary_recall", "mean_iou", "n_spixels"):
        assert validation[f"bsds_val_{metric}"] == alone.mean[metric], metric
    table = Path("two_ranks", SCORES).read_text()
    assert table == Path("one_process", SCORES).read_text()
    assert table.count("\n") == 7  # three images with two annotations, and the head


def read_log():
    return [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]


def check_resume_by_one_process():
    """Check that a run resumed on one rank continues after the samples of both ranks."""
    last_model = Path("run/last_model.pth")
    checkpoint = {**read_checkpoint(last_model), "step": 3, "n_samples": 12, "validated_step": 2}
    save_checkpoint(checkpoint, last_model)
    state = train_base_model.main([f"--resume={last_model}"])
    assert (state.step, state.n_samples) == (4, 14)


def check_inference(done):
    assert done.stdout.count("101.jpg is not a readable image") == 1
    assert done.stdout.count("8 images segmented, 0 skipped, 1 failed") == 1
    assert len(list(Path("overlays").rglob("*.png"))) == 8


def check_end_by_a_broken_image(done):
    assert done.returncode != 0
    assert done.stderr.count("101.jpg is not a readable image") == 1
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]
