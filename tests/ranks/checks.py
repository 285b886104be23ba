"""Checks that every rank runs: what ranks exchange, data-parallel training, and how a rank exits.

`tests/runtime/test_ranks.py` starts this program under `torchrun`.
"""

import atexit
import os
import signal

import pytest
import torch

from helpers import LineFit
from lib import cli
from lib.losses import compute_loss_terms
from lib.network.inputs import InputScales, model_input
from lib.runtime.errors import OtherRankError
from lib.runtime.ranks import (
    data_parallel,
    gather,
    is_first_rank,
    mean_over_ranks,
    n_ranks,
    on_first_rank,
    rank,
    together,
)
from lib.runtime.signals import Stop, stop_flag
from lib.training import Recipe, RunSettings
from lib.training.trainer import Trainer, TrainingState
from model import SSNModel


class ReportsTeardown:
    def __del__(self):
        print("torn down", flush=True)


reports_teardown = ReportsTeardown()  # released by the teardown of the interpreter


def check_results_of_other_ranks():
    assert n_ranks() == 2
    assert is_first_rank() == (rank() == 0)
    assert gather(lambda: rank() * 10) == [0, 10]
    assert on_first_rank(lambda: f"from rank {rank()}") == "from rank 0"
    assert mean_over_ranks(torch.tensor([rank(), 4.0])).tolist() == [0.5, 4.0]


def check_error_on_one_rank_ends_all():
    def fail():
        raise KeyError

    for failing_rank in range(2):
        is_failing = rank() == failing_rank
        with pytest.raises(KeyError if is_failing else OtherRankError):
            together(fail if is_failing else dict)


def check_signal_to_one_rank_stops_all():
    def stop_or_fail():
        stop_flag.raise_if_set()  # on rank 1
        raise KeyError

    with stop_flag.set_by_signals():
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stop) as caught:
            together(stop_flag.raise_if_set)
        assert caught.value.number == signal.SIGTERM
        assert together(lambda: "saved") == "saved"
        with pytest.raises(KeyError if rank() == 0 else OtherRankError):
            together(stop_or_fail)


def check_gradients_equal_one_process():
    """Compare two ranks with one process that has the doubled batch."""
    image_lab = 50 * torch.rand(4, 3, 24, 30)
    gt_labels = torch.randint(0, 3, (4, 2, 24, 30))

    def gradients(model, forward, part):
        model.eval()  # on the CPU, each rank has its own batch statistics
        model.zero_grad()
        channels = model_input(model, image_lab[part], 12, InputScales(0.3, 5.0))
        output = forward(channels, 12)
        terms = compute_loss_terms(
            output.assignment,
            output.labels,
            gt_labels[part],
            3,
            reconstruction="cross_entropy",
            compactness=1e-3,
        )
        sum(terms.values()).backward()
        return [weight.grad.clone() for weight in model.parameters()]

    model = SSNModel(3)
    alone = gradients(model, model, slice(0, 4))
    assert max(grad.abs().max() for grad in alone) > 1e-4
    shared = gradients(model, data_parallel(model), own_half(4))
    for ours, theirs in zip(shared, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-8)


def check_training_equals_one_process():
    """Compare two ranks with one process that has the doubled batch."""
    batches = [torch.randn(4, 3) for _ in range(5)]
    shared, shared_log = fit(batches, own_half(4), wrap=data_parallel)
    alone, alone_log = fit(batches, slice(0, 4), wrap=lambda model: model)
    assert shared.n_samples == 20
    for ours, theirs in ((shared.model, alone.model), (shared.average.model, alone.average.model)):
        torch.testing.assert_close(ours.weight, theirs.weight)
        torch.testing.assert_close(ours.matrix, theirs.matrix)
    if is_first_rank():
        assert len(shared_log) == 3
        torch.testing.assert_close(torch.tensor(shared_log), torch.tensor(alone_log))


def own_half(n_samples):
    """Slice of a batch that belongs to this rank."""
    size = n_samples // 2
    return slice(rank() * size, (rank() + 1) * size)


def fit(batches, part, *, wrap):
    """Train a line on part of each batch; return the state and the logged steps and losses."""
    recipe = Recipe(n_steps=5, learning_rate=0.1, ema_decay=0.5, batch_size=part.stop - part.start)
    state = TrainingState(LineFit(), recipe)
    forward = wrap(Residual(state.model))
    log = Log()
    trainer = Trainer(
        state,
        RunSettings(log_interval=2),
        lambda batch: {"fit": forward(batch[part]).square().mean()},
        validate_model=None,
        run_folder=log if is_first_rank() else None,
    )
    trainer.run(batches)
    return state, log.rows


class Residual(torch.nn.Module):
    def __init__(self, line):
        super().__init__()
        self.line = line

    def forward(self, batch):
        return self.line(batch) - batch.sum(1)


class Log:
    """Stands in for a run folder."""

    def __init__(self):
        self.rows = []

    def add_interval(self, step, figures):
        self.rows.append((step, figures["loss"], figures["fit"]))

    def save_last(self, *args):
        pass


def main():
    torch.manual_seed(0)
    check_results_of_other_ranks()
    check_error_on_one_rank_ends_all()
    check_signal_to_one_rank_stops_all()
    check_gradients_equal_one_process()
    check_training_equals_one_process()
    atexit.register(print, "exits in order")


if __name__ == "__main__":
    cli.run(main)
