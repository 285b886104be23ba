"""The training loop: steps, log, validation, checkpoints, interruption."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lib.checkpoint import save_checkpoint
from lib.errors import InputError, RunError
from lib.files import atomic_path, name_failed_write, prepare_out_dir
from lib.interruption import StopSignals

logger = logging.getLogger(__name__)

BEST_MODEL, LAST_MODEL, LOG = "best_model.pth", "last_model.pth", "log.jsonl"

WARMUP_SHARE = 0.1  # of all steps


@dataclass
class TrainingState:
    """All that a run has to remember between two steps.

    There is no state of a random generator among it: what a step draws depends on the run's seed and the
    step alone (`lib.datasets.samples.TrainingCrops`).
    """

    model: nn.Module
    n_steps: int
    learning_rate: float
    step: int = 0
    validated_step: int = 0
    best_score: float = -math.inf
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: torch.optim.lr_scheduler.LRScheduler = field(init=False)

    def __post_init__(self) -> None:
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_share(step, self.n_steps)
        )

    def progress_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights to continue exactly."""
        return {
            "step": self.step,
            "validated_step": self.validated_step,
            "best_score": self.best_score,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        InputError
            If it is of another model, or holds weights without the state of a run.
        """
        try:
            self.model.load_state_dict(checkpoint["weights"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.scheduler.load_state_dict(checkpoint["scheduler"])
            self.step = checkpoint["step"]
            self.validated_step = checkpoint["validated_step"]
            self.best_score = checkpoint["best_score"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"--resume {path} does not hold the state of a run of this model; use its {LAST_MODEL}"
            ) from error


def prepare_run_dir(out_dir: Path, *, is_resumed: bool) -> None:
    """Make the folder of a run, and find out now whether it can be written to.

    Raises
    ------
    InputError
        If not, or if a new run would overwrite an earlier one.
    """
    if not is_resumed and any((out_dir / name).exists() for name in (BEST_MODEL, LAST_MODEL, LOG)):
        raise InputError(
            f"--out_dir {out_dir} holds an earlier run: continue it with "
            f"--resume {out_dir / LAST_MODEL}, or choose another folder"
        )
    prepare_out_dir(out_dir)


def learning_rate_share(step: int, n_steps: int) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    Rises linearly over the first tenth of the run, then falls to zero along half a cosine.
    """
    n_warmup = math.ceil(WARMUP_SHARE * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def train(
    state: TrainingState,
    batches: Iterable[Any],
    compute_losses: Callable[[Any], dict[str, Tensor]],
    validate: Callable[[], tuple[float, dict[str, float]]],
    *,
    batch_size: int,
    test_interval: int,
    log_interval: int,
    out_dir: Path,
    description: dict[str, Any],
) -> None:
    """Train from `state.step` to `state.n_steps`.

    Writes to `out_dir`: `log.jsonl`, a line per `log_interval` steps, before a validation, and for it;
    `last_model.pth`, with every such line; `best_model.pth`, without the state of the run, whenever the
    validation score rises. Ctrl-C and SIGTERM save `last_model.pth` after the step at hand.

    Parameters
    ----------
    state : TrainingState
        Changed in place.
    batches : iterable
        The batches that remain, on any device.
    compute_losses : callable
        Maps a batch to the weighted terms of the loss, whose sum is minimised.
    validate : callable
        Returns the score that chooses the best model, higher is better, and all figures by name.
    batch_size : int
        Images in a batch, for the images per second.
    test_interval, log_interval : int
        Steps between two validations, and between two lines of the log.
    out_dir : Path
        A folder that can be written to.
    description : dict
        What the checkpoints say about the model: "model_args", "input_args" and so on.

    Raises
    ------
    RunError
        If the loss is not finite. The state on disk is that of the last line of the log.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after saving.
    """
    log = _JsonLog(out_dir / LOG, up_to_step=state.step)
    interval = _Interval(batch_size)

    def save(name: str, **content: Any) -> None:
        weights = state.model.state_dict()
        save_checkpoint({"weights": weights, **description, **content}, out_dir / name)

    def report() -> None:
        if not interval.terms_of_steps:
            return
        with signals.deferred():
            figures = interval.close(state.step)
            log.write({"step": state.step, **figures})
            save(LAST_MODEL, **state.progress_dict())
        shown = {name: f"{value:.3g}" for name, value in figures.items()}
        progress.set_postfix(shown, refresh=False)
        details = " ".join(f"{name} {value}" for name, value in shown.items())
        logger.info("step %d/%d %s", state.step, state.n_steps, details)

    def validate_if_due() -> None:
        is_due = state.step % test_interval == 0 or state.step == state.n_steps
        if not is_due or state.validated_step == state.step:
            return
        report()  # which never lets weights through that a NaN has reached
        state.model.eval()
        score, figures = validate()
        with signals.deferred():
            state.validated_step = state.step
            log.write({"step": state.step, "score": score, **figures})
            if score > state.best_score:
                state.best_score = score
                save(BEST_MODEL, step=state.step, score=score)
            save(LAST_MODEL, **state.progress_dict())
        interval.restart()

    progress = tqdm(total=state.n_steps, initial=state.step, desc="training", unit="step", disable=None)
    with progress, logging_redirect_tqdm(), StopSignals() as signals:
        try:
            validate_if_due()  # a run may have been stopped between a step and its validation
            interval.restart()
            with signals.deferred():
                remaining = iter(batches)  # may start worker processes
            while True:
                # Neither the receipt of a batch from a worker nor a step may be cut short.
                with signals.deferred():
                    batch = next(remaining, None)
                    if batch is None:
                        break
                    interval.learning_rate = state.optimizer.param_groups[0]["lr"]
                    interval.terms_of_steps.append(_train_step(state, compute_losses, batch))
                progress.update()
                if state.step % log_interval == 0:
                    report()
                validate_if_due()
        except KeyboardInterrupt:
            report()
            if state.step > 0:
                last_model = out_dir / LAST_MODEL
                logger.info("stopped at step %d; continue with --resume %s", state.step, last_model)
            raise


def _train_step(
    state: TrainingState, compute_losses: Callable[[Any], dict[str, Tensor]], batch: Any
) -> dict[str, Tensor]:
    """One step of the optimizer; returns the terms of the loss, and the loss, still on the device."""
    state.model.train()
    terms = compute_losses(batch)
    loss = torch.stack(list(terms.values())).sum()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    state.scheduler.step()
    state.step += 1
    return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}


class _Interval:
    """The loss terms and the time since the last line of the log."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forget everything and start the clock."""
        self.terms_of_steps: list[dict[str, Tensor]] = []
        self.learning_rate = math.nan  # of the last step
        self.start = time.perf_counter()

    def close(self, last_step: int) -> dict[str, float]:
        """Return the mean of each term, the learning rate and the images per second; start again.

        The terms are fetched from the device here, all at once.

        Raises
        ------
        RunError
            If a step's loss is not finite, with its terms.
        """
        names = list(self.terms_of_steps[0])
        values = torch.stack([torch.stack(list(terms.values())) for terms in self.terms_of_steps]).cpu()
        is_bad = ~values.isfinite().all(dim=1)
        if is_bad.any():
            first_bad = int(is_bad.nonzero()[0])
            terms = zip(names, values[first_bad].tolist(), strict=True)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in terms)
            step = last_step - len(values) + 1 + first_bad
            raise RunError(f"the loss of step {step} is not finite: {shown}; a lower --lr may help")
        means = dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        images_per_s = len(values) * self.batch_size / (time.perf_counter() - self.start)
        figures = {**means, "lr": self.learning_rate, "images_per_s": images_per_s}
        self.restart()
        return figures


class _JsonLog:
    """A file with a JSON object a line, cut back to where a resumed run continues."""

    def __init__(self, path: Path, *, up_to_step: int) -> None:
        self.path = path
        kept = []
        if path.exists() and up_to_step > 0:
            kept = [line for line in path.read_text().splitlines() if _logged_step(line) <= up_to_step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))

    def write(self, entry: dict[str, float]) -> None:
        with name_failed_write(self.path), self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _logged_step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that a crash cut short
