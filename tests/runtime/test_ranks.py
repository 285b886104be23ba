"""Several processes that share the work, as torchrun starts them: on the CPU, with gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import eval_base_model
import train_base_model
from lib.evaluation.journal import SCORES
from lib.weights import read_checkpoint, save_checkpoint

REPO_ROOT = Path(__file__).parents[2]

IN_RANKS = """
import sys
import torch
sys.path[:0] = [{root!r}, {tests!r}]
torch.set_num_threads(1)
from lib import cli
from lib.runtime.ranks import *
from lib.runtime.errors import OtherRankError
from lib.runtime.signals import Stop, stop_flag

def main():
    mine = rank()
    {body}

cli.run(main)
"""


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(*argv, timeout=120):
    """Run two processes; return all that they print."""
    return subprocess.run(
        [*TORCHRUN, *map(str, argv)], capture_output=True, text=True, timeout=timeout, cwd=REPO_ROOT
    )


def run_in_ranks(tmp_path, body):
    script = tmp_path / "script.py"
    script.write_text(
        IN_RANKS.format(
            root=str(REPO_ROOT), tests=str(REPO_ROOT / "tests"), body=body.replace("\n", "\n    ")
        )
    )
    done = torchrun(script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ranks_tell_each_other(tmp_path):
    run_in_ranks(
        tmp_path,
        """
import os, signal
assert n_ranks() == 2 and is_first_rank() == (mine == 0)
assert gather(lambda: mine * 10) == [0, 10]
assert on_first_rank(lambda: f"told by {rank()}") == "told by 0"
assert mean_over_ranks(torch.tensor([mine, 4.0])).tolist() == [0.5, 4.0]

def fail():
    raise KeyError("only here")

for failing in (0, 1):  # an error on one rank ends what all do together
    try:
        together(fail if mine == failing else dict)
    except KeyError:
        assert mine == failing
    except OtherRankError:
        assert mine != failing
    else:
        raise AssertionError

if mine == 1:  # a signal to one rank stops all
    os.kill(os.getpid(), signal.SIGTERM)
try:
    together(stop_flag.raise_if_set)
except Stop as stop:
    assert stop.number == signal.SIGTERM
else:
    raise AssertionError
assert together(lambda: "saves") == "saves"

def stop_or_fail():
    stop_flag.raise_if_set()  # on rank 1
    raise KeyError

try:
    together(stop_or_fail)
except KeyError:
    assert mine == 0
except OtherRankError:
    assert mine == 1
""",
    )


def test_gradients_and_training_equal_one_process_with_the_doubled_batch(tmp_path):
    run_in_ranks(
        tmp_path,
        """
from lib.network.inputs import InputScales, model_input
from lib.losses import compute_loss_terms
from lib.training.trainer import Trainer, TrainingState
from model import SSNModel
from helpers import LineFit

torch.manual_seed(0)
image_lab = 50 * torch.rand(4, 3, 24, 30)
gt_labels = torch.randint(0, 3, (4, 2, 24, 30))

def gradients(model, forward, part):
    model.eval()  # on the CPU, the statistics of batch norm are those of each rank
    model.zero_grad()
    channels = model_input(model, image_lab[part], 12, InputScales(0.3, 5.0))
    output = forward(channels, 12)
    terms = compute_loss_terms(output.assignment, output.labels, gt_labels[part], 3,
                               reconstruction="cross_entropy", compactness=1e-3)
    sum(terms.values()).backward()
    return [weight.grad.clone() for weight in model.parameters()]

model = SSNModel(3)
whole = gradients(model, model, slice(0, 4))
assert max(grad.abs().max() for grad in whole) > 1e-4
shared = gradients(model, data_parallel(model), slice(2 * mine, 2 * mine + 2))
for ours, theirs in zip(shared, whole, strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-8)

def fit(part, wrap, n):
    state = TrainingState(LineFit(), n_steps=5, learning_rate=0.1, ema_decay=0.5, max_grad_norm=1.0)
    forward = wrap(Residual(state.model))
    compute = lambda batch: {"fit": forward(batch[part]).square().mean()}
    trainer = Trainer(state, compute, None, batch_size=n, test_interval=100, log_interval=2,
                      save_interval=100, run_folder=Silent() if is_first_rank() else None)
    trainer.run(batches)
    return state

class Residual(torch.nn.Module):
    def __init__(self, line):
        super().__init__()
        self.line = line
    def forward(self, batch):
        return self.line(batch) - batch.sum(1)

class Silent:
    logged = []
    def add_interval(self, step, figures):
        self.logged.append((step, figures["loss"], figures["fit"]))
    def save_last(self, *args):
        pass

batches = [torch.randn(4, 3) for _ in range(5)]
shared = fit(slice(2 * mine, 2 * mine + 2), data_parallel, 2)
ours, Silent.logged = Silent.logged, []
whole = fit(slice(0, 4), lambda model: model, 4)
for name in ("model", "average"):
    one, other = (state.average.model if name == "average" else state.model for state in (shared, whole))
    torch.testing.assert_close(one.weight, other.weight)
    torch.testing.assert_close(one.matrix, other.matrix)
assert shared.n_samples == 20
if mine == 0:
    assert len(ours) == 3
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(Silent.logged))
""",
    )


def test_rank_exits_without_interpreter_teardown(tmp_path):
    # Threads of gloo may outlive the process group; they must not meet an interpreter that is torn down.
    printed = run_in_ranks(
        tmp_path,
        """
import atexit

class Remains:
    def __del__(self):
        print("torn down", flush=True)

global remains
remains = Remains()
atexit.register(print, "in order")
""",
    )
    assert printed.count("in order") == 2
    assert "torn down" not in printed


def common_argv(bsds_root, out_dir):
    return [
        f"--bsds_root={bsds_root}",
        f"--out_dir={out_dir}",
        "--train_iter=4",
        "--log_interval=1",
        "--test_interval=2",
        "--batchsize=2",
        "--nworkers=0",
        "--nspix=24",
        "--val_nspix=24",
        "--deepfdim=3",
        "--niter=2",
        "--val_niter=2",
        "--device=cpu",
    ]


def test_signal_to_all_ranks_saves_the_last_step(bsds_root, tmp_path):
    argv = [
        *common_argv(bsds_root, tmp_path / "run"),
        "--train_iter=100000",
        "--log_interval=100000",
        "--test_interval=100000",
    ]
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
        if "ranks: 2;" in line:
            time.sleep(3)
            os.killpg(run.pid, signal.SIGTERM)  # to the launcher, which passes it on, and to the ranks
    run.wait(timeout=60)
    stopped = [line for line in printed if line.startswith("stopped at step ")]
    assert len(stopped) == 1, "".join(printed)
    step = read_checkpoint(tmp_path / "run" / "last_model.pth")["step"]
    assert stopped[0].startswith(f"stopped at step {step};")
    assert step > 0


def test_training_and_evaluation_in_ranks(bsds_root, tmp_path):
    out_dir = tmp_path / "run"
    argv = common_argv(bsds_root, out_dir)
    done = torchrun("train_base_model.py", *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ranks: 2;") == 1  # one rank tells
    last = read_checkpoint(out_dir / "last_model.pth")
    assert (last["step"], last["n_samples"]) == (4, 16)
    log = [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 2, 3, 4, 4]

    weights = out_dir / "best_model.pth"
    evaluation = [
        f"--bsds_root={bsds_root}",
        "--bsds_split=val",
        f"--base_model_weights={weights}",
        "--nspix=24",
        "--nworkers=0",
        "--device=cpu",
    ]
    best_step = read_checkpoint(weights)["step"]
    (validation,) = (line for line in log if "score" in line and line["step"] == best_step)
    (alone,) = eval_base_model.main(evaluation)["BSDS500 val"].values()
    for metric in ("asa", "boundary_recall", "mean_iou", "n_spixels"):
        assert validation[f"bsds_val_{metric}"] == alone.mean[metric], metric

    # Resumed with another number of ranks, the run goes on after the samples of all ranks.
    save_checkpoint({**last, "step": 3, "n_samples": 12, "validated_step": 2}, out_dir / "last_model.pth")
    state = train_base_model.main([f"--resume={out_dir / 'last_model.pth'}"])
    assert (state.step, state.n_samples) == (4, 14)

    tables = []
    for name, launch in (("two", torchrun), ("one", run_alone)):
        done = launch("eval_base_model.py", *evaluation, f"--out_dir={tmp_path / name}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("BSDS500 val: ASA") == 1
        tables.append((tmp_path / name / SCORES).read_text())
    assert tables[0] == tables[1]
    assert tables[0].count("\n") == 7  # three images with two annotations, and the head


def run_alone(*argv):
    return subprocess.run(
        [sys.executable, *map(str, argv)], capture_output=True, text=True, timeout=120, cwd=REPO_ROOT
    )


def test_a_broken_file_on_one_rank_ends_all(bsds_root, tmp_path):
    path = bsds_root / "BSDS500/data/images/val/101.jpg"  # scored by the second rank
    path.write_bytes(path.read_bytes()[:-200])  # its header tells nothing
    done = torchrun("train_base_model.py", *common_argv(bsds_root, tmp_path / "run"), timeout=60)
    assert done.returncode != 0
    assert done.stderr.count("101.jpg is not a readable image") == 1
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]


def test_images_are_shared_by_the_ranks(bsds_root, tmp_path):
    photos = bsds_root / "BSDS500/data/images"  # nine images
    (photos / "val/101.jpg").write_bytes(b"broken")
    done = torchrun(
        "inference_base_model.py",
        f"--image={photos}",
        "--base_model_weights=none",
        "--nspix=24",
        f"--out={tmp_path / 'overlays'}",
        "--device=cpu",
    )
    assert done.returncode != 0
    assert done.stdout.count("101.jpg is not a readable image") == 1
    assert done.stdout.count("8 images segmented, 0 skipped, 1 failed") == 1
    assert done.stderr.count("inference_base_model.py: error: 1 of the images failed") == 1
    assert len(list((tmp_path / "overlays").rglob("*.png"))) == 8
