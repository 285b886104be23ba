"""Training loop: steps, log, validation, checkpoints and stopping, on one or several ranks."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lib.files.values import Expected, check_value, number
from lib.runtime.errors import InputError, RunError
from lib.runtime.notices import hides_progress
from lib.runtime.ranks import mean_over_ranks, n_ranks, on_first_rank, together
from lib.runtime.signals import Stop, stop_flag
from lib.training.optimizers import build_optimizers, check_optimizer_state
from lib.training.recipe import Recipe, RunSettings
from lib.training.run_folder import LAST_MODEL, RunFolder, Validation
from lib.training.weight_average import WeightAverage
from lib.weights import check_tensors

logger = logging.getLogger(__name__)

_N_TIMED_STEPS = 5  # after the first one, which is slower
_LONG_HOURS = 1.0  # a run on a CPU that takes longer says so at its start

# Entries of a checkpoint that hold the numbers of a run.
_PROGRESS = {
    **dict.fromkeys(("step", "n_samples", "validated_step"), number(int, low=0)),
    "best_score": Expected(
        lambda value: type(value) in (int, float) and value < math.inf, "a number, or -inf before the first"
    ),
}


@dataclass
class TrainingState:
    """State of a run between two steps.

    It holds no random state: the random choices of a step depend only on seed, step and number of samples
    seen so far.
    """

    model: nn.Module
    recipe: Recipe
    step: int = 0
    n_samples: int = 0  # seen so far, over all ranks
    validated_step: int = 0
    best_score: float = -math.inf

    def __post_init__(self) -> None:
        self.average = WeightAverage(self.model, self.recipe.ema_decay)
        self.optimizers = build_optimizers(self.recipe.optimizer, self.model, self.recipe.learning_rate)

    @property
    def is_finished(self) -> bool:
        """True if all steps are done and the last one is validated."""
        return self.step == self.validated_step == self.recipe.n_steps

    def trained_weights(self) -> list[nn.Parameter]:
        """Return the weights that require a gradient."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights; validation and inference use them."""
        return self.average.model.state_dict()

    def progress(self) -> dict[str, Any]:
        """Return the checkpoint entries needed in addition to `weights` to continue the run exactly."""
        return {
            "last_weights": self.model.state_dict(),
            "step": self.step,
            "n_samples": self.n_samples,
            "validated_step": self.validated_step,
            "best_score": self.best_score,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint; nothing changes if it is refused.

        Raises
        ------
        InputError
            If the checkpoint belongs to another model, holds weights only or values that no run has, or is
            past the last step.
        """
        absent = [name for name in self.progress() if name not in checkpoint]
        if absent:
            raise InputError(
                f"{path} does not hold a run of this version, as it lacks {absent[0]}; use its {LAST_MODEL}",
                parameter="resume",
            )
        try:
            self._check(checkpoint, path)
        except InputError as error:
            raise InputError(str(error), parameter="resume") from error
        self.average.model.load_state_dict(checkpoint["weights"])
        self.model.load_state_dict(checkpoint["last_weights"])
        for optimizer, progress in zip(self.optimizers, checkpoint["optimizers"], strict=True):
            settings = optimizer.state_dict()["param_groups"]  # of this version
            optimizer.load_state_dict({"state": progress["state"], "param_groups": settings})
        for name in _PROGRESS:
            setattr(self, name, checkpoint[name])
        n_steps = self.recipe.n_steps
        if self.step > n_steps:
            raise InputError(
                f"{n_steps} is below the {self.step} steps of `resume` {path}", parameter="n_steps"
            )

    def _check(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        for name, expected in _PROGRESS.items():
            check_value(f"{path}: {name}", checkpoint[name], expected)
        step = checkpoint["step"]
        check_value(f"{path}: validated_step", checkpoint["validated_step"], number(int, below=step + 1))
        for name in ("weights", "last_weights"):
            check_tensors(checkpoint[name], self.model.state_dict(), f"{path}: {name}")
        states = checkpoint["optimizers"]
        check_value(f"{path}: optimizers", states, Expected(lambda value: isinstance(value, list), "a list"))
        if len(states) != len(self.optimizers):
            raise InputError(f"{path}: optimizers are of another recipe, or of another version")
        for idx, (optimizer, state) in enumerate(zip(self.optimizers, states, strict=True)):
            check_optimizer_state(optimizer, state, f"{path}: optimizers[{idx}]", is_new=step == 0)


def learning_rate_share(step: int, n_steps: int, warmup_share: float) -> float:
    """Return the learning rate of a step as a share of the peak; steps count from 0.

    It rises linearly over the first `warmup_share` of the run, then falls to zero along half a cosine.
    """
    n_warmup = math.ceil(warmup_share * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


@dataclass
class Trainer:
    """Train a model with log lines, validations and checkpoints; every rank builds and runs a trainer.

    `compute_losses` returns the weighted loss terms of a batch, by name; their sum is minimised.
    `validate_model` validates the averaged weights on all ranks; the highest score chooses the best model.
    """

    state: TrainingState  # changed in place
    settings: RunSettings  # for the intervals
    compute_losses: Callable[[Any], dict[str, Tensor]]
    validate_model: Callable[[], Validation] | None
    run_folder: RunFolder | None  # required on rank 0, None on other ranks

    def __post_init__(self) -> None:
        self._interval = _Interval()
        self._progress = tqdm(
            total=self.state.recipe.n_steps,
            initial=self.state.step,
            desc="training",
            unit="step",
            disable=hides_progress(),
        )

    def run(self, batches: Iterable[Any]) -> None:
        """Train from `state.step` to the last step, on the remaining batches of this rank.

        If the stop flag is set, the current step is finished and the state is saved. Clusters send SIGTERM
        when a job's time is up: after it, `run` returns without an error.

        Raises
        ------
        RunError
            If the loss is not finite. The state on disk is from the last log line.
        Stop
            On Ctrl-C, after saving.
        Exception
            Any error that `batches` raises, after saving.
        """
        with self._progress, logging_redirect_tqdm():
            try:
                self._log_validate_save()  # needed if the run was stopped between a step and its validation
                self._interval = _Interval()
                start = 0.0
                for n_taken, batch in enumerate(self._receive(iter(batches)), 1):
                    self.step(batch)
                    if n_taken == 1:
                        start = time.perf_counter()
                    elif n_taken == 1 + _N_TIMED_STEPS:
                        self._warn_if_long(time.perf_counter() - start, is_new=self.state.step == n_taken)
                    self._log_validate_save()
            except Stop as stop:
                self.log_interval()
                if self.state.step > 0:
                    logger.info("stopped at step %d; continue with `resume` auto", self.state.step)
                if stop.number != signal.SIGTERM:
                    raise

    def step(self, batch: Any) -> None:
        """Take one step: compute losses and gradients, update weights and their average."""
        state, recipe = self.state, self.state.recipe
        state.model.train()
        terms = self.compute_losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(state.trained_weights(), recipe.max_grad_norm)
        share = learning_rate_share(state.step, recipe.n_steps, recipe.warmup_share)
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * recipe.learning_rate
            optimizer.step()
        state.step += 1
        state.n_samples += recipe.batch_size * n_ranks()
        state.average.update(state.model, state.step)
        terms = {name: term.detach() for name, term in terms.items()}
        self._interval.terms_of_steps.append({"loss": loss.detach(), **terms, "grad_norm": grad_norm})
        self._interval.learning_rate = share * recipe.learning_rate
        self._progress.update()

    def log_interval(self) -> None:
        """Log the steps since the last line and save the run."""
        if not self._interval.terms_of_steps:
            return
        step, recipe = self.state.step, self.state.recipe
        figures = self._interval.figures(step, recipe.batch_size * n_ranks())
        self._interval = _Interval()
        on_first_rank(lambda: self.run_folder.add_interval(step, figures))
        self.save()
        shown = {name: f"{value:.3g}" for name, value in figures.items()}
        self._progress.set_postfix(shown, refresh=False)
        details = " ".join(f"{name} {value}" for name, value in shown.items())
        logger.info("step %d/%d %s", step, recipe.n_steps, details)

    def validate(self) -> None:
        """Validate the averaged weights; save the run, and the model if it is the best so far."""
        self.log_interval()  # raises if a loss is not finite, so that broken weights are never validated
        state = self.state
        validation = self.validate_model() if self.validate_model else None
        state.validated_step = state.step
        if validation:
            on_first_rank(lambda: self.run_folder.add_validation(state.step, validation))
            if validation.score > state.best_score:
                best = {"step": state.step, "score": validation.score}
                on_first_rank(lambda: self.run_folder.save_best(state.weights(), **best))
                state.best_score = validation.score
        self.save()
        self._interval = _Interval()

    def save(self) -> None:
        """Save the state of the run as `last_model.pth`."""
        on_first_rank(lambda: self.run_folder.save_last(self.state.weights(), self.state.progress()))

    def _warn_if_long(self, seconds: float, *, is_new: bool) -> None:
        """Log how long the rest of a run takes on a CPU, if that is long; `_N_TIMED_STEPS` took `seconds`."""
        recipe = self.state.recipe
        n_left = recipe.n_steps - self.state.step
        hours = n_left * seconds / _N_TIMED_STEPS / 3600
        if hours < _LONG_HOURS or self.state.trained_weights()[0].device.type != "cpu":
            return
        crops_per_s = _N_TIMED_STEPS * recipe.batch_size * n_ranks() / seconds
        way_out = "a lower `n_steps`"
        if is_new and recipe.n_steps == Recipe.n_steps:  # the default is for a GPU
            way_out = f"`recipe` cpu or {way_out}"
        figures = n_left, crops_per_s, hours, way_out
        text = "%d steps to go at about %.1f crops/s take about %.1f hours on this CPU; %s shortens it"
        on_first_rank(lambda: logger.warning(text, *figures))

    def _log_validate_save(self) -> None:
        """Log, validate and save if the step count requires it."""
        state, settings = self.state, self.settings
        if state.step % settings.log_interval == 0:
            self.log_interval()
        is_test_step = state.step % settings.test_interval == 0 or state.step == state.recipe.n_steps
        if is_test_step and state.validated_step != state.step:
            self.validate()
        if state.step > 0 and state.step % settings.save_interval == 0:
            self.log_interval()
            on_first_rank(lambda: self.run_folder.save_periodic(state.weights(), state.progress()))

    def _receive(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the remaining batches; if one rank stops or fails, all ranks raise."""
        while self.state.step < self.state.recipe.n_steps:
            try:
                batch = together(lambda: self._next(batches))
            except Exception:  # such as an unreadable file; the steps so far are complete
                self.log_interval()
                raise
            yield batch

    def _next(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, and add the waiting time to the interval."""
        stop_flag.raise_if_set()
        start = time.perf_counter()
        batch = next(batches)
        self._interval.loader_seconds += time.perf_counter() - start
        return batch


@dataclass
class _Interval:
    """Loss terms and time since the last log line."""

    terms_of_steps: list[dict[str, Tensor]] = field(default_factory=list)  # they stay on the device
    learning_rate: float = math.nan  # of the last step
    loader_seconds: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def figures(self, last_step: int, batch_size: int) -> dict[str, float]:
        """Return the speed and the mean of each term over steps and ranks; raise if a term is not finite.

        All terms are copied from the device at once. `batch_size` is the sum over all ranks.
        """
        names = list(self.terms_of_steps[0])
        values = torch.stack([torch.stack(list(terms.values())) for terms in self.terms_of_steps])
        values = mean_over_ranks(values).cpu()
        on_first_rank(lambda: _check_finite(names, values, last_step))
        seconds = time.perf_counter() - self.start
        return {
            **dict(zip(names, values.mean(dim=0).tolist(), strict=True)),
            "lr": self.learning_rate,
            "images_per_s": len(values) * batch_size / seconds,
            "loader_share": self.loader_seconds / seconds,
        }


def _check_finite(names: Sequence[str], values: Tensor, last_step: int) -> None:
    """Raise `RunError` if any value is not finite; `values` has shape (steps, terms)."""
    is_bad = ~values.isfinite().all(dim=1)
    if is_bad.any():
        first_bad = int(is_bad.nonzero()[0])
        terms = zip(names, values[first_bad].tolist(), strict=True)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in terms)
        step = last_step - len(values) + 1 + first_bad
        raise RunError(f"the loss of step {step} is not finite: {shown}; a lower `learning_rate` may help")
