"""The training loop: steps, log, validation, checkpoints, interruption, on one or several ranks."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lib.runtime.errors import InputError, RunError, is_out_of_memory
from lib.runtime.ranks import is_first_rank, mean_over_ranks, n_ranks, on_first_rank, together
from lib.runtime.signals import Stop, StopSignals
from lib.training.optimizers import build_optimizers
from lib.training.run_folder import LAST_MODEL, RunFolder, Validation
from lib.training.weight_average import WeightAverage

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """All that a run has to remember between two steps.

    There is no state of a random generator among it: what a step draws depends on the run's seed, the step
    and the number of samples before it alone.
    """

    model: nn.Module
    n_steps: int
    learning_rate: float  # peak
    optimizer: str = "muon"  # see build_optimizers
    warmup_share: float = 0.1  # of all steps
    ema_decay: float = 0.0  # see WeightAverage
    max_grad_norm: float = math.inf
    step: int = 0
    n_samples: int = 0  # seen by all ranks
    validated_step: int = 0
    best_score: float = -math.inf
    average: WeightAverage = field(init=False)
    optimizers: list[torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        self.average = WeightAverage(self.model, self.ema_decay)
        self.optimizers = build_optimizers(self.optimizer, self.model, self.learning_rate)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done and the last one is validated."""
        return self.step == self.validated_step == self.n_steps

    @property
    def current_learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.learning_rate * learning_rate_share(self.step, self.n_steps, self.warmup_share)

    def trained_weights(self) -> list[nn.Parameter]:
        """The weights that training moves."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights: those to validate and to use."""
        return self.average.model.state_dict()

    def progress(self) -> dict[str, Any]:
        """What a checkpoint needs beside `weights` to continue exactly."""
        return {
            "last_weights": self.model.state_dict(),
            "step": self.step,
            "n_samples": self.n_samples,
            "validated_step": self.validated_step,
            "best_score": self.best_score,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        InputError
            If it is of another model, holds weights without the state of a run, or is beyond the last step.
        """
        try:
            self.average.model.load_state_dict(checkpoint["weights"])
            self.model.load_state_dict(checkpoint["last_weights"])
            for optimizer, progress in zip(self.optimizers, checkpoint["optimizers"], strict=True):
                optimizer.load_state_dict(progress)
            self.step = checkpoint["step"]
            self.n_samples = checkpoint["n_samples"]
            self.validated_step = checkpoint["validated_step"]
            self.best_score = checkpoint["best_score"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"--resume {path} does not hold the state of a run of this model and version; "
                f"use its {LAST_MODEL}"
            ) from error
        if self.step > self.n_steps:
            raise InputError(f"--train_iter {self.n_steps} is below the {self.step} steps of --resume {path}")


def learning_rate_share(step: int, n_steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    Rises linearly over the first `warmup_share` of the run, then falls to zero along half a cosine.
    """
    n_warmup = math.ceil(warmup_share * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def train(
    state: TrainingState,
    batches: Iterable[Any],
    compute_losses: Callable[[Any], dict[str, Tensor]],
    validate: Callable[[], Validation] | None,
    *,
    batch_size: int,
    test_interval: int,
    log_interval: int,
    save_interval: int,
    run_folder: RunFolder | None,
) -> None:
    """Train from `state.step` to `state.n_steps`.

    Logs a line per `log_interval` steps, before a validation, and for it, and saves the state of the run
    with every such line. Ctrl-C and SIGTERM save it after the step at hand; SIGTERM, by which clusters tell
    that the time is up, then ends the function as if training were done.

    Parameters
    ----------
    state : TrainingState
        Changed in place.
    batches : iterable
        The batches of this rank that remain, on any device.
    compute_losses : callable
        Maps a batch to the weighted terms of the loss, whose sum is minimised.
    validate : callable, optional
        Validates the averaged weights; its best score chooses the best model. Called on all ranks.
    batch_size : int
        Samples in the batch of a rank.
    test_interval, log_interval, save_interval : int
        Steps between two validations, between two lines of the log, and between two checkpoints that are kept
        beside the last state.
    run_folder : RunFolder, optional
        Where to write to; the first rank needs one.

    Raises
    ------
    RunError
        If the loss is not finite. The state on disk is that of the last line of the log.
    KeyboardInterrupt
        On Ctrl-C, after saving.
    Exception
        Whatever `batches` raises, after saving.
    """
    interval = _Interval(batch_size * n_ranks())

    def report() -> None:
        if not interval.terms_of_steps:
            return

        def log_and_save() -> None:
            run_folder.add_interval(state.step, figures)
            run_folder.save_last(state.weights(), state.progress())

        with signals.deferred():
            figures = interval.close(state.step)
            on_first_rank(log_and_save)
        shown = {name: f"{value:.3g}" for name, value in figures.items()}
        progress.set_postfix(shown, refresh=False)
        details = " ".join(f"{name} {value}" for name, value in shown.items())
        logger.info("step %d/%d %s", state.step, state.n_steps, details)

    def validate_if_due() -> None:
        is_due = state.step % test_interval == 0 or state.step == state.n_steps
        if not is_due or state.validated_step == state.step:
            return
        report()  # which never lets weights through that a NaN has reached
        validation = validate() if validate else None

        def log_and_save() -> None:
            if validation:
                run_folder.add_validation(state.step, validation)
                if is_best:
                    run_folder.save_best(state.weights(), step=state.step, score=validation.score)
            run_folder.save_last(state.weights(), state.progress())

        with signals.deferred():
            state.validated_step = state.step
            is_best = validation is not None and validation.score > state.best_score
            if is_best:
                state.best_score = validation.score
            on_first_rank(log_and_save)
        interval.restart()

    def save_periodic_if_due() -> None:
        if state.step == 0 or state.step % save_interval:
            return
        report()
        with signals.deferred():
            on_first_rank(lambda: run_folder.save_periodic(state.weights(), state.progress()))

    def next_batch() -> Any:
        try:
            return together(lambda: interval.wait_for(remaining))
        except Exception:  # a file that cannot be read, say
            report()  # the steps so far are whole
            raise

    def step_once() -> None:
        batch = next_batch()
        interval.learning_rate = state.current_learning_rate
        interval.terms_of_steps.append(_train_step(state, compute_losses, batch))
        state.n_samples += batch_size * n_ranks()

    is_hidden = None if is_first_rank() else True  # None: shown on a terminal
    progress = tqdm(total=state.n_steps, initial=state.step, desc="training", unit="step", disable=is_hidden)
    with progress, logging_redirect_tqdm(), StopSignals(polled=n_ranks() > 1) as signals:
        try:
            validate_if_due()  # a run may have been stopped between a step and what is due after it
            save_periodic_if_due()
            interval.restart()
            with signals.deferred():
                remaining = iter(batches)  # may start worker processes
            while state.step < state.n_steps:
                # Neither the receipt of a batch from a worker nor a step may be cut short.
                with signals.deferred():
                    step_once()
                progress.update()
                if state.step % log_interval == 0:
                    report()
                validate_if_due()
                save_periodic_if_due()
        except Stop as stop:
            report()
            if state.step > 0:
                logger.info("stopped at step %d; continue with --resume auto", state.step)
            if stop.number != signal.SIGTERM:
                raise


def _train_step(
    state: TrainingState, compute_losses: Callable[[Any], dict[str, Tensor]], batch: Any
) -> dict[str, Tensor]:
    """One step of the optimizer; returns the terms of the loss, and the loss, still on the device."""
    state.model.train()
    terms = compute_losses(batch)
    loss = torch.stack(list(terms.values())).sum()
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(state.trained_weights(), state.max_grad_norm)
    learning_rate = state.current_learning_rate
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    state.step += 1
    state.average.update(state.model, state.step)
    terms = {name: term.detach() for name, term in terms.items()}
    return {"loss": loss.detach(), **terms, "grad_norm": grad_norm}


class _Interval:
    """The loss terms and the time since the last line of the log."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size  # of all ranks
        self.restart()

    def restart(self) -> None:
        """Forget everything and start the clock."""
        self.terms_of_steps: list[dict[str, Tensor]] = []
        self.learning_rate = math.nan  # of the last step
        self.start = time.perf_counter()
        self.loader_seconds = 0.0

    def wait_for(self, batches: Iterator[Any]) -> Any:
        """Receive the next batch, and count the time it takes."""
        start = time.perf_counter()
        batch = next(batches)
        self.loader_seconds += time.perf_counter() - start
        return batch

    def close(self, last_step: int) -> dict[str, float]:
        """Return the mean of each term over the steps and the ranks, and the speed; start again.

        The terms are fetched from the device here, all at once.

        Raises
        ------
        RunError
            If a step's loss is not finite, with its terms.
        """
        names = list(self.terms_of_steps[0])
        values = torch.stack([torch.stack(list(terms.values())) for terms in self.terms_of_steps])
        values = mean_over_ranks(values).cpu()
        on_first_rank(lambda: _check_finite(names, values, last_step))
        means = dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        seconds = time.perf_counter() - self.start
        figures = {
            **means,
            "lr": self.learning_rate,
            "images_per_s": len(values) * self.batch_size / seconds,
            "loader_share": self.loader_seconds / seconds,
        }
        self.restart()
        return figures


def _check_finite(names: Sequence[str], values: Tensor, last_step: int) -> None:
    """Raise a `RunError` if a value is not finite, of (steps, terms) up to `last_step`."""
    is_bad = ~values.isfinite().all(dim=1)
    if is_bad.any():
        first_bad = int(is_bad.nonzero()[0])
        terms = zip(names, values[first_bad].tolist(), strict=True)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in terms)
        step = last_step - len(values) + 1 + first_bad
        raise RunError(f"the loss of step {step} is not finite: {shown}; a lower --lr may help")
