"""The training loop: interruption, resumption, divergence, and what it writes."""

import json
import os
import signal

import pytest
import torch

from lib.checkpoint import read_checkpoint
from lib.errors import InputError, RunError
from lib.training import TrainingState, learning_rate_share, prepare_run_dir, train

N_STEPS = 10


class LineFit(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))


def make_batches(first_step=0):
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(4, 3, generator=generator) for _ in range(N_STEPS)]
    return batches[first_step:]


def run(out_dir, state, *, scores=None, compute_losses=None, test_interval=4, log_interval=3):
    out_dir.mkdir(exist_ok=True)
    validated = []

    def default_losses(batch):
        assert state.model.training
        residual = batch @ state.model.weight - batch.sum(1)
        return {"fit": residual.square().mean(), "size": 0.01 * state.model.weight.square().sum()}

    def validate():
        validated.append(state.step)
        assert not state.model.training
        score = scores[len(validated) - 1] if scores else float(state.step)
        return score, {"asa": score}

    train(
        state,
        make_batches(state.step),
        compute_losses or default_losses,
        validate,
        batch_size=4,
        test_interval=test_interval,
        log_interval=log_interval,
        out_dir=out_dir,
        description={"model_args": {}},
    )
    return validated


def make_state():
    return TrainingState(LineFit(), n_steps=N_STEPS, learning_rate=0.1)


def read_log(out_dir):
    return [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]


def test_log_has_a_line_per_interval_and_per_validation(tmp_path):
    validated = run(tmp_path, make_state())
    assert validated == [4, 8, 10]
    log = read_log(tmp_path)
    training = [line for line in log if "loss" in line]
    assert [line["step"] for line in training] == [3, 4, 6, 8, 9, 10]
    for line in training:
        assert line["loss"] == pytest.approx(line["fit"] + line["size"], rel=1e-5)
        assert line["lr"] == pytest.approx(0.1 * learning_rate_share(line["step"] - 1, N_STEPS))
        assert line["images_per_s"] > 0
    assert [(line["step"], line["asa"]) for line in log if "score" in line] == [
        (4, 4.0),
        (8, 8.0),
        (10, 10.0),
    ]


def test_best_model_is_that_of_the_best_validation(tmp_path):
    state = make_state()
    run(tmp_path, state, scores=[0.5, 0.9, 0.7])
    best, last = read_checkpoint(tmp_path / "best_model.pth"), read_checkpoint(tmp_path / "last_model.pth")
    assert (best["step"], best["score"]) == (8, 0.9)
    assert (last["step"], last["best_score"]) == (10, 0.9)
    assert last["weights"]["weight"].equal(state.model.weight)
    assert not best["weights"]["weight"].equal(state.model.weight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop_at", [2, 4, 7])
def test_interrupted_and_resumed_run_equals_uninterrupted(tmp_path, number, stop_at):
    whole = make_state()
    run(tmp_path / "whole", whole)

    interrupted = make_state()

    def losses_with_signal(batch):
        if interrupted.step == stop_at - 1:
            os.kill(os.getpid(), number)  # in the middle of a step: it must be finished first
        residual = batch @ interrupted.model.weight - batch.sum(1)
        size = 0.01 * interrupted.model.weight.square().sum()
        return {"fit": residual.square().mean(), "size": size}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", interrupted, compute_losses=losses_with_signal)
    assert interrupted.step == stop_at
    last_model = tmp_path / "parts" / "last_model.pth"
    resumed = make_state()
    resumed.restore(read_checkpoint(last_model), last_model)
    assert resumed.step == stop_at
    run(tmp_path / "parts", resumed)

    assert resumed.model.weight.equal(whole.model.weight)
    assert resumed.best_score == whole.best_score
    ours, theirs = (
        [line for line in read_log(tmp_path / name) if "score" in line] for name in ("parts", "whole")
    )
    assert ours == theirs
    logged = [line["step"] for line in read_log(tmp_path / "parts") if "loss" in line]
    assert logged == sorted({3, 4, 6, 8, 9, 10, stop_at})


def test_signal_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path, make_state())
    assert signal.getsignal(signal.SIGTERM) is before


def test_log_is_cut_back_to_the_step_that_is_resumed(tmp_path):
    run(tmp_path, make_state())
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')  # what a crash leaves
    resumed = make_state()
    resumed.step = resumed.validated_step = 6
    run(tmp_path, resumed)
    assert [line["step"] for line in read_log(tmp_path)] == [3, 4, 4, 6, 8, 8, 9, 10, 10]


def test_loss_that_is_not_finite_stops_with_its_terms(tmp_path):
    state = make_state()

    def diverging(batch):
        fit = batch.sum() * 0 + state.model.weight.sum()
        return {"fit": fit, "size": fit / 0 if state.step == 4 else fit * 0}

    with pytest.raises(RunError, match=r"loss of step 5 is not finite: loss -?inf, fit .*, size -?inf"):
        run(tmp_path, state, compute_losses=diverging, test_interval=100)
    assert read_checkpoint(tmp_path / "last_model.pth")["step"] == 3


def test_validation_never_sees_weights_that_a_nan_went_through(tmp_path):
    state = make_state()

    def diverging(batch):
        return {"fit": state.model.weight.sum() / 0}

    with pytest.raises(RunError, match="step 1 is not finite"):
        run(tmp_path, state, compute_losses=diverging, test_interval=2, log_interval=100)
    assert not (tmp_path / "best_model.pth").exists()


@pytest.mark.parametrize("damage", ["best_model", "no step", "other model"])
def test_resuming_from_something_else_is_refused(tmp_path, damage):
    run(tmp_path, make_state())
    name = "best_model.pth" if damage == "best_model" else "last_model.pth"
    checkpoint = read_checkpoint(tmp_path / name)
    if damage == "no step":
        del checkpoint["step"]
    elif damage == "other model":
        checkpoint["weights"] = {"bias": torch.zeros(3)}
    with pytest.raises(InputError, match=rf"--resume .*{name} does not hold .*use its last_model\.pth"):
        make_state().restore(checkpoint, tmp_path / name)


@pytest.mark.parametrize("name", ["log.jsonl", "last_model.pth", "best_model.pth"])
def test_a_new_run_never_overwrites_an_earlier_one(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(
        InputError, match=r"holds an earlier run: continue it with --resume .*last_model\.pth"
    ):
        prepare_run_dir(tmp_path, is_resumed=False)
    prepare_run_dir(tmp_path, is_resumed=True)
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 1000])
def test_learning_rate_rises_then_falls(n_steps):
    shares = [learning_rate_share(step, n_steps) for step in range(n_steps + 1)]
    n_warmup = -(-n_steps // 10)
    assert max(shares) == shares[n_warmup - 1] == 1
    assert all(0 < share <= 1 for share in shares[:n_steps])
    assert sorted(shares[:n_warmup]) == shares[:n_warmup]
    assert sorted(shares[n_warmup:], reverse=True) == shares[n_warmup:]
    assert shares[n_steps] == pytest.approx(0) or n_steps == 1
