"""Training loop: interruption, resumption, divergence, log and checkpoints."""

import json
import math
import os
import signal
from contextlib import nullcontext

import pytest
import torch

from helpers import LineFit, WaitingCalls, in_thread
from lib.files.atomic import atomic_path
from lib.losses import RECONSTRUCTION_LOSSES, imitation_loss
from lib.network.inputs import InputScales, model_input
from lib.runtime.device import resolve_precision
from lib.runtime.errors import InputError, RunError, TooLargeError
from lib.runtime.signals import stop_flag
from lib.training import Recipe, RunSettings
from lib.training.recipe import CountRange
from lib.training.run import _load_on_device, _make_loss_function
from lib.training.run_folder import RunFolder, Validation, find_resumable, has_best_model, prepare_run_folder
from lib.training.trainer import Trainer, TrainingState, learning_rate_share
from lib.training.weight_average import WeightAverage
from lib.weights import read_checkpoint
from model import CompositeSSNModel, SSNModel

N_STEPS = 10

INTERVALS = {"test_interval": 4, "log_interval": 3, "save_interval": 100}


def make_batches(first_step=0):
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(4, 3, generator=generator) for _ in range(N_STEPS)]
    return batches[first_step:]


def run(
    out_dir,
    state,
    *,
    batches=None,
    score_of=float,
    compute_losses=None,
    **intervals,
):
    out_dir.mkdir(exist_ok=True)
    validated = []

    def default_losses(batch):
        assert state.model.training
        residual = state.model(batch) - batch.sum(1)
        return {"fit": residual.square().mean(), "size": 0.01 * state.model.weight.square().sum()}

    def validate():
        validated.append(state.step)
        assert not state.average.model.training
        score = score_of(state.step)
        return Validation(score, {"asa": score}, {})

    run_folder = RunFolder(
        out_dir,
        {"model_args": {}},
        state.weights(),
        state.progress(),
        n_kept=2,
    )

    settings = RunSettings(**{**INTERVALS, **intervals})
    trainer = Trainer(state, settings, compute_losses or default_losses, validate, run_folder)
    with stop_flag.set_by_signals():
        trainer.run(make_batches(state.step) if batches is None else batches)
    run_folder.close()
    return validated


def make_state(**changes):
    settings = {"n_steps": N_STEPS, "learning_rate": 0.1, "ema_decay": 0, "max_grad_norm": math.inf}
    return TrainingState(LineFit(), Recipe(batch_size=4, **{**settings, **changes}))


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
        assert line["lr"] == pytest.approx(0.1 * learning_rate_share(line["step"] - 1, N_STEPS, 0.1))
        assert line["images_per_s"] > 0
        assert 0 <= line["loader_share"] < 1
        assert line["grad_norm"] > 0
    assert [(line["step"], line["asa"]) for line in log if "score" in line] == [
        (4, 4.0),
        (8, 8.0),
        (10, 10.0),
    ]


@pytest.mark.parametrize(
    ("n_steps", "seconds", "is_new", "expected"),
    [
        # 4 crops a step.
        (
            500_000,
            5.0,
            True,
            ["499994 steps to go at about 4.0 crops/s take about 138.9 hours", "`recipe` cpu or "],
        ),
        (500_000, 5.0, False, ["about 138.9 hours on this CPU; a lower `n_steps` shortens it"]),
        (
            5200,
            5.0,
            True,
            ["5194 steps to go at about 4.0 crops/s take about 1.4 hours on this CPU; a lower"],
        ),
        (500_000, 0.02, True, []),
    ],
)
def test_long_run_on_a_cpu_says_how_long(n_steps, seconds, is_new, expected, caplog):
    state = make_state(n_steps=n_steps)
    state.step = 6
    trainer = Trainer(state, RunSettings(), compute_losses=None, validate_model=None, run_folder=None)
    trainer._warn_if_long(seconds, is_new=is_new)
    assert len(caplog.messages) == bool(expected)
    for part in expected:
        assert part in caplog.messages[0]


@pytest.mark.parametrize(("stop_at", "n_warnings"), [(5, 0), (6, 1), (10, 1)])
def test_time_is_estimated_once_after_the_first_steps(tmp_path, monkeypatch, caplog, stop_at, n_warnings):
    monkeypatch.setattr("lib.training.trainer._LONG_HOURS", 0.0)
    run(tmp_path, make_state(n_steps=stop_at))
    assert sum("steps to go" in message for message in caplog.messages) == n_warnings


def test_best_model_is_from_the_best_validation(tmp_path):
    state = make_state()
    run(tmp_path, state, score_of={4: 0.5, 8: 0.9, 10: 0.7}.get)
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
            os.kill(os.getpid(), number)  # in the middle of a step, which must be finished first
        residual = interrupted.model(batch) - batch.sum(1)
        size = 0.01 * interrupted.model.weight.square().sum()
        return {"fit": residual.square().mean(), "size": size}

    # Clusters send SIGTERM when a job's time is up; it ends a run without an error.
    with pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else nullcontext():
        run(tmp_path / "parts", interrupted, compute_losses=losses_with_signal)
    assert not interrupted.is_finished
    assert interrupted.step == stop_at
    last_model = tmp_path / "parts" / "last_model.pth"
    resumed = make_state()
    resumed.restore(read_checkpoint(last_model), last_model)
    assert resumed.step == stop_at
    run(tmp_path / "parts", resumed)

    assert not whole.model.matrix.equal(torch.zeros(3, 2))
    for name, value in whole.model.state_dict().items():
        assert value.equal(resumed.model.state_dict()[name]), name
    assert resumed.best_score == whole.best_score
    ours, theirs = (
        [line for line in read_log(tmp_path / name) if "score" in line] for name in ("parts", "whole")
    )
    assert ours == theirs
    logged = [line["step"] for line in read_log(tmp_path / "parts") if "loss" in line]
    assert logged == sorted({3, 4, 6, 8, 9, 10, stop_at})


def test_resumed_run_drops_later_log_lines(tmp_path):
    run(tmp_path, make_state())
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')  # an incomplete line, as after a crash
    resumed = make_state()
    resumed.step = resumed.validated_step = 6
    run(tmp_path, resumed)
    assert [line["step"] for line in read_log(tmp_path)] == [3, 4, 4, 6, 8, 8, 9, 10, 10]


def test_repeated_validation_is_logged_once(tmp_path):
    run(tmp_path, make_state())
    resumed = make_state()
    resumed.step, resumed.validated_step = 8, 4  # killed while writing the validation of step 8
    run(tmp_path, resumed)
    assert [line["step"] for line in read_log(tmp_path) if "score" in line] == [4, 8, 10]


def test_second_signal_interrupts_the_last_save(tmp_path, monkeypatch):
    state = make_state()

    def losses_with_signal(batch):
        if state.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"fit": (state.model(batch) - batch.sum(1)).square().mean()}

    def save_last(self, weights, progress):
        if progress["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the save continued")
        original(self, weights, progress)

    original = RunFolder.save_last
    monkeypatch.setattr(RunFolder, "save_last", save_last)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, state, compute_losses=losses_with_signal)
    assert read_checkpoint(tmp_path / "last_model.pth")["step"] == 4


def test_training_in_a_thread(tmp_path):
    """Train in a thread, as notebooks and servers do; it cannot install signal handlers."""
    state = make_state()
    run_folder = RunFolder(tmp_path, {"model_args": {}}, state.weights(), state.progress(), n_kept=2)
    trainer = Trainer(
        state,
        RunSettings(**INTERVALS),
        lambda batch: {"fit": (state.model(batch) - batch.sum(1)).square().mean()},
        validate_model=None,
        run_folder=run_folder,
    )
    in_thread(trainer.run, make_batches())
    run_folder.close()
    assert state.is_finished


def test_loss_that_is_not_finite_stops_with_its_terms(tmp_path):
    state = make_state()

    def diverging(batch):
        fit = batch.sum() * 0 + state.model.weight.sum()
        return {"fit": fit, "size": fit / 0 if state.step == 4 else fit * 0}

    with pytest.raises(RunError, match=r"step 5 .*loss -?inf, fit .*, size -?inf"):
        run(tmp_path, state, compute_losses=diverging, test_interval=100)
    assert read_checkpoint(tmp_path / "last_model.pth")["step"] == 3


def test_weights_with_nan_are_never_validated(tmp_path):
    state = make_state()

    def diverging(batch):
        return {"fit": state.model.weight.sum() / 0}

    with pytest.raises(RunError, match="step 1 "):
        run(tmp_path, state, compute_losses=diverging, test_interval=2, log_interval=100)
    assert not (tmp_path / "best_model.pth").exists()


@pytest.mark.parametrize("damage", ["best_model", "no step"])
def test_unsuitable_checkpoint_is_refused(tmp_path, damage):
    run(tmp_path, make_state())
    name = "best_model.pth" if damage == "best_model" else "last_model.pth"
    checkpoint = read_checkpoint(tmp_path / name)
    if damage == "no step":
        del checkpoint["step"]
    with pytest.raises(InputError, match=rf"`resume` .*{name} .*last_model\.pth"):
        make_state().restore(checkpoint, tmp_path / name)


def test_restore_propagates_out_of_memory(tmp_path, monkeypatch):
    state = make_state()
    checkpoint = {"weights": state.weights(), **state.progress()}

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(state.model, "load_state_dict", fail)
    with pytest.raises(torch.OutOfMemoryError):
        state.restore(checkpoint, tmp_path / "last_model.pth")


@pytest.mark.parametrize("name", ["log.jsonl", "last_model.pth", "best_model.pth", "checkpoint_00000002.pth"])
def test_new_run_never_overwrites_an_earlier_one(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=rf"`out_dir` {tmp_path} .*`resume` auto"):
        prepare_run_folder(tmp_path, is_resumed=False)
    prepare_run_folder(tmp_path, is_resumed=True)
    assert (tmp_path / name).read_text() == "precious"


def test_only_a_run_without_a_best_model_is_replaced(tmp_path):
    for name in ("log.jsonl", "last_model.pth"):
        (tmp_path / name).touch()
    prepare_run_folder(tmp_path, is_resumed=False, overwrite=True)
    (tmp_path / "best_model.pth").touch()
    with pytest.raises(InputError, match=rf"`out_dir` {tmp_path} "):
        prepare_run_folder(tmp_path, is_resumed=False, overwrite=True)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 1000])
def test_learning_rate_rises_then_falls(n_steps):
    shares = [learning_rate_share(step, n_steps, 0.1) for step in range(n_steps + 1)]
    n_warmup = -(-n_steps // 10)
    assert max(shares) == shares[n_warmup - 1] == 1
    assert all(0 < share <= 1 for share in shares[:n_steps])
    assert sorted(shares[:n_warmup]) == shares[:n_warmup]
    assert sorted(shares[n_warmup:], reverse=True) == shares[n_warmup:]
    assert shares[n_steps] == pytest.approx(0) or n_steps == 1


def test_learning_rate_without_warm_up_starts_at_its_peak():
    assert learning_rate_share(0, 10, 0) == 1


def test_gradients_are_clipped(tmp_path):
    lengths = []
    for idx, max_grad_norm in enumerate((0.5, 100)):
        state = make_state(n_steps=1, max_grad_norm=max_grad_norm)
        run(
            tmp_path / str(idx),
            state,
            batches=[torch.tensor([3.0, 4, 0])],
            compute_losses=lambda batch, model=state.model: {"fit": model.weight @ batch},
        )
        assert read_log(tmp_path / str(idx))[0]["grad_norm"] == pytest.approx(5)  # before clipping
        lengths.append(state.model.weight.grad.norm().item())
    assert lengths == pytest.approx([0.5, 5], rel=1e-4)


def test_average_follows_the_weights_and_is_saved(tmp_path):
    state = make_state(ema_decay=0.6)
    seen = []

    def losses(batch):
        seen.append(state.model.weight.detach().clone())
        return {"fit": (batch @ state.model.weight - batch.sum(1)).square().mean()}

    run(tmp_path, state, compute_losses=losses)
    average = torch.zeros(3)
    for step, weight in enumerate([*seen[1:], state.model.weight.detach()], start=1):
        decay = min(0.6, step / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(state.average.model.weight.detach(), average)
    assert not average.equal(state.model.weight)
    last = read_checkpoint(tmp_path / "last_model.pth")
    assert last["weights"]["weight"].equal(state.average.model.weight)
    assert last["last_weights"]["weight"].equal(state.model.weight)


def test_average_includes_batch_norm_statistics():
    model = torch.nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.5)
    model(torch.full((4, 2), 8.0))
    average.update(model, 100)
    torch.testing.assert_close(average.model.running_mean, torch.full((2,), 0.4))  # half of 0.1 * 8
    assert average.model.num_batches_tracked == 1


def test_newest_periodic_checkpoints_are_kept(tmp_path):
    run(tmp_path, make_state(), save_interval=2)
    names = sorted(path.name for path in tmp_path.glob("checkpoint_*"))
    assert names == ["checkpoint_00000008.pth", "checkpoint_00000010.pth"]
    assert read_checkpoint(tmp_path / names[0])["step"] == 8


def test_resumed_run_removes_later_checkpoints(tmp_path):
    run(tmp_path, make_state(), save_interval=2)
    (tmp_path / "checkpoint_00000010_good.pth").touch()
    resumed = make_state()
    resumed.step = resumed.validated_step = 8
    run(tmp_path, resumed, save_interval=9)
    names = sorted(path.name for path in tmp_path.glob("checkpoint_*"))
    assert names == ["checkpoint_00000008.pth", "checkpoint_00000009.pth", "checkpoint_00000010_good.pth"]


def test_run_continues_from_an_earlier_checkpoint(tmp_path):
    run(tmp_path, make_state(), save_interval=4)
    assert not has_best_model(tmp_path, validated_step=4)
    assert has_best_model(tmp_path, validated_step=10)
    checkpoint = tmp_path / "checkpoint_00000004.pth"
    resumed = make_state()
    resumed.restore(read_checkpoint(checkpoint), checkpoint)
    assert resumed.validated_step == 4  # so that the validation is not repeated
    RunFolder(tmp_path, {"model_args": {}}, resumed.weights(), resumed.progress(), n_kept=2).close()
    # If the run is killed now, it must not resume from a later checkpoint.
    assert read_checkpoint(find_resumable(tmp_path))["step"] == 4
    assert [path.name for path in tmp_path.glob("checkpoint_*")] == [checkpoint.name]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (MemoryError(), MemoryError, None),
        (
            OSError(5, "Input/output error"),
            InputError,
            r"last_model.pth .*Input/output error",
        ),
    ],
)
def test_unreadable_checkpoint_is_not_skipped(tmp_path, monkeypatch, error, raised, message):
    def load(*args, **options):
        raise error

    run(tmp_path, make_state(), save_interval=4)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(raised, match=message):
        find_resumable(tmp_path)
    with pytest.raises(raised):
        has_best_model(tmp_path, validated_step=10)


def test_newest_undamaged_checkpoint_is_resumed(tmp_path):
    assert find_resumable(tmp_path) is None
    run(tmp_path, make_state(), save_interval=4)
    assert find_resumable(tmp_path) == tmp_path / "last_model.pth"
    for name, next_one in (
        ("last_model.pth", "checkpoint_00000008.pth"),
        ("checkpoint_00000008.pth", "checkpoint_00000004.pth"),
    ):
        (tmp_path / name).write_bytes(b"cut short")
        assert find_resumable(tmp_path) == tmp_path / next_one
    (tmp_path / "checkpoint_00000004.pth").unlink()
    with pytest.raises(InputError, match=rf"`resume` auto.*{tmp_path}"):
        find_resumable(tmp_path)


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    with atomic_path(tmp_path / "last_model.pth") as temporary:
        temporary.write_bytes(b"half")
        no_process = str(2**30)
        temporary.with_name(temporary.name.replace(str(os.getpid()), no_process)).write_bytes(b"half")
    for name in (".gitkeep", ".notes.2024.txt"):
        (tmp_path / name).touch()
    prepare_run_folder(tmp_path, is_resumed=True)
    assert {path.name for path in tmp_path.glob(".*")} == {".gitkeep", ".notes.2024.txt"}


def test_failed_batch_keeps_earlier_steps(tmp_path):
    def batches():
        yield from make_batches()[:5]
        raise InputError("image 6 is broken")

    whole = make_state()
    run(tmp_path / "whole", whole)
    parts = make_state()
    with pytest.raises(InputError, match="image 6 is broken"):
        run(tmp_path / "parts", parts, batches=batches(), test_interval=100, log_interval=100)
    last_model = tmp_path / "parts" / "last_model.pth"
    resumed = make_state()
    resumed.restore(read_checkpoint(last_model), last_model)
    assert resumed.step == 5
    run(tmp_path / "parts", resumed)
    assert resumed.model.weight.equal(whole.model.weight)


def test_resumed_run_writes_the_periodic_checkpoint_it_was_stopped_before(tmp_path):
    def stop(*args):
        raise KeyboardInterrupt

    stopped = make_state()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stopped, score_of=stop, save_interval=4)
    assert not (tmp_path / "checkpoint_00000004.pth").exists()
    resumed = make_state()
    resumed.restore(read_checkpoint(tmp_path / "last_model.pth"), tmp_path / "last_model.pth")
    assert resumed.step == 4
    run(tmp_path, resumed, save_interval=4)
    assert read_checkpoint(tmp_path / "checkpoint_00000004.pth")["validated_step"] == 4


SMALL_SCALES = InputScales(0.3, 10.0, 2.0)


def make_small_training(device, model=None, teacher=None, **recipe):
    """Return a trainer of a model, or of a small composite, and a batch as a loader yields it."""
    model = (model or CompositeSSNModel(3, 2)).to(device, memory_format=torch.channels_last)
    settings = {"n_spixels": CountRange(12, 12), "n_iter": 2, "batch_size": 2, "n_steps": 3}
    state = TrainingState(model, Recipe(**{**settings, **recipe}))
    batch = {
        "image_lab": 100 * torch.rand(2, 3, 20, 31),
        "extra": torch.randn(2, 4, 20, 31),
        "gt_labels": torch.randint(0, 5, (2, 2, 20, 31)),
        "n_labels": torch.tensor([5, 5]),
    }
    if device.type == "cuda":
        batch = {name: value.pin_memory() for name, value in batch.items()}
    with_bfloat16 = resolve_precision("auto", device) == "bf16"
    compute_losses = _make_loss_function(state, SMALL_SCALES, device, teacher, with_bfloat16=with_bfloat16)
    trainer = Trainer(state, RunSettings(**INTERVALS), compute_losses, validate_model=None, run_folder=None)
    return trainer, batch


def test_data_stays_with_the_loader_if_another_program_takes_the_memory(monkeypatch, caplog):
    """Before images are read, the memory is only estimated."""

    def fail(*args, **options):
        raise error(message)

    monkeypatch.setattr("lib.training.run.load_resident", fail)
    cuda = torch.device("cuda", 0)
    settings = {choice: RunSettings(**INTERVALS, data_on_device=choice) for choice in ("auto", True)}
    error, message = TooLargeError, "needs at least 9.0 GB"
    assert _load_on_device(None, [], settings["auto"], cuda) is None
    with pytest.raises(TooLargeError):
        _load_on_device(None, [], settings[True], cuda)
    caplog.clear()
    error, message = RuntimeError, "CUDA error: out of memory"
    assert _load_on_device(None, [], settings["auto"], cuda) is None
    text = "training data stays with the loader: cuda:0 has too little free memory by now"
    assert caplog.messages == [text]
    with pytest.raises(RuntimeError, match="out of memory"):
        _load_on_device(None, [], settings[True], cuda)
    message = "CUDA error: an illegal memory access"
    with pytest.raises(RuntimeError, match="illegal"):
        _load_on_device(None, [], settings["auto"], cuda)


def test_imitation_compares_learned_features_of_the_same_input():
    cpu = torch.device("cpu")
    student, teacher = SSNModel(3, n_mid_channels=8), SSNModel(3, padding_mode="replicate").eval()
    trainer, batch = make_small_training(
        cpu, student, teacher, precision="fp32", n_spixels=CountRange(24, 24)
    )
    student.train()
    channels = model_input(student, batch["image_lab"], 24, SMALL_SCALES)
    learned = student.encode(channels).base[:, :3], teacher.encode(channels).base[:, :3]
    terms = trainer.compute_losses(batch)
    assert list(terms) == ["reconstruction", "position", "imitation"]
    torch.testing.assert_close(terms["imitation"], imitation_loss(*learned))


def test_teacher_is_imitated_and_stays_as_it_is(device):
    teacher = SSNModel(3).to(device).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = SSNModel(3, n_mid_channels=8)
    trainer, batch = make_small_training(device, student, teacher, n_steps=20)
    imitation = []
    for _ in range(10):
        imitation.append(trainer.compute_losses(batch)["imitation"].item())
        trainer.step(batch)
    assert imitation[-1] < 0.7 * imitation[0]
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    assert not any(weight.grad is not None for weight in teacher.parameters())


@pytest.mark.parametrize("loss", RECONSTRUCTION_LOSSES)
def test_step_reads_no_values_from_the_device(loss):
    trainer, batch = make_small_training(torch.device("cpu"), teacher=SSNModel(3).eval(), loss=loss)
    with WaitingCalls() as calls:
        trainer.step(batch)
    assert calls.names == ["__int__"]  # the largest label of the batch, which is not on the GPU yet


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", RECONSTRUCTION_LOSSES)
def test_step_does_not_wait_for_the_gpu(loss):
    cuda = torch.device("cuda")
    trainer, batch = make_small_training(cuda, teacher=SSNModel(3).to(cuda).eval(), loss=loss)
    trainer.step(batch)  # builds the grid and the states of the optimizers
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(batch)
        with pytest.raises(RuntimeError, match="synchron"):
            trainer.state.model.feature_extract_optflow.output_conv[0].bias.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
