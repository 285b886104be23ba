"""Folder of a training run: checkpoints, log and curves."""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.files.atomic import atomic_path, name_failed_write, prepare_out_dir
from lib.files.values import Expected, check_value, number
from lib.runtime.errors import DamagedFileError, InputError
from lib.training.curves import draw_training_curves
from lib.weights import read_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

BEST_MODEL, LAST_MODEL, LOG = "best_model.pth", "last_model.pth", "log.jsonl"
CURVES, TENSORBOARD = "curves.png", "tensorboard"

_PERIODIC = "checkpoint_{step:08d}.pth"
_PERIODIC_NAME = re.compile(r"checkpoint_(\d{8,})\.pth")


class Validation(NamedTuple):
    """Result of a validation."""

    score: float  # chooses the best model, higher is better
    figures: dict[str, float]  # all figures, by name
    pictures: dict[str, np.ndarray]  # (H, W, 3) uint8, by name


class RunFolder:
    """Writer of a run's files; its checkpoints are complete even if the run is killed.

    The folder is from `prepare_run_folder`. Checkpoints hold `description`: "model_args", "input_args" and so
    on. `weights` and `progress` are the state that the run starts from. For a resumed run it is saved as
    `last_model.pth` first; afterwards log lines and checkpoints of later steps are removed.
    """

    def __init__(
        self,
        folder: Path,
        description: Mapping[str, Any],
        weights: Mapping[str, Any],
        progress: Mapping[str, Any],
        *,
        n_kept: int,
    ) -> None:
        self.folder = folder
        self.description = description
        self.n_kept = n_kept
        first_step, validated_step = progress["step"], progress["validated_step"]
        log = read_log(folder)
        if first_step > 0:
            self.save_last(weights, progress)
        for path, step in _periodic_checkpoints(folder):
            if step > first_step:
                path.unlink()
        self._log = [
            entry
            for entry in log
            if 0 < entry["step"] <= (validated_step if "score" in entry else first_step)
        ]
        with atomic_path(folder / LOG) as temporary:
            temporary.write_text("".join(f"{json.dumps(entry)}\n" for entry in self._log))
        self._tensorboard = _open_tensorboard(folder / TENSORBOARD, first_step)

    def close(self) -> None:
        """Close the TensorBoard events file."""
        if self._tensorboard:
            with name_failed_write(self.folder / TENSORBOARD):
                self._tensorboard.close()

    def add_interval(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the means over the steps since the last line, up to `step`."""
        self._write(step, "train", figures, {})

    def add_validation(self, step: int, validation: Validation) -> None:
        """Log a validation and redraw the curves."""
        figures = {"score": validation.score, **validation.figures}
        self._write(step, "validation", figures, validation.pictures)
        draw_training_curves(self._log, self.folder / CURVES)

    def save_best(self, weights: Mapping[str, Any], *, step: int, score: float) -> None:
        """Write `best_model.pth`, without the state of the run."""
        save_checkpoint(
            {"weights": weights, **self.description, "step": step, "score": score}, self.folder / BEST_MODEL
        )

    def save_last(self, weights: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write `last_model.pth`, the state to resume the run from."""
        save_checkpoint({"weights": weights, **self.description, **progress}, self.folder / LAST_MODEL)

    def save_periodic(self, weights: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint named after its step; delete all but the newest `n_kept`."""
        path = self.folder / _PERIODIC.format(step=progress["step"])
        save_checkpoint({"weights": weights, **self.description, **progress}, path)
        for older, _ in _periodic_checkpoints(self.folder)[self.n_kept :]:
            older.unlink()

    def _write(
        self, step: int, group: str, figures: Mapping[str, float], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Append a line to the log, and add figures and pictures to TensorBoard."""
        # JSON has no NaN, but a metric without any value has the score NaN.
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._log.append({"step": step, **finite})
        path = self.folder / LOG
        with name_failed_write(path), path.open("a") as file:
            file.write(json.dumps(self._log[-1]) + "\n")
        if self._tensorboard is None:
            return
        with name_failed_write(self.folder / TENSORBOARD):
            for name, value in figures.items():
                self._tensorboard.add_scalar(f"{group}/{name}", value, step)
            for name, picture in pictures.items():
                self._tensorboard.add_image(name, picture, step, dataformats="HWC")
            self._tensorboard.flush()


def _open_tensorboard(folder: Path, first_step: int) -> Any:
    """Return a `SummaryWriter` that discards events after `first_step`; None if TensorBoard cannot run."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # slow import, only rank 0 needs it
    except ImportError:
        logger.info("no TensorBoard curves: pip install tensorboard adds them")
        return None
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        logger.info("no TensorBoard curves: the name of the folder is not UTF-8")
        return None
    with name_failed_write(folder):
        writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        writer.flush()
    return writer


def prepare_run_folder(folder: Path, *, is_resumed: bool, overwrite: bool = False) -> None:
    """Create the folder of a run and check that it is writable.

    With `overwrite`, a new run may replace a run that has no best model yet.

    Raises
    ------
    InputError
        If the folder is not writable, or a new run would overwrite an earlier one.
    """
    protected = (BEST_MODEL,) if overwrite else (BEST_MODEL, LAST_MODEL, LOG)
    found = _periodic_checkpoints(folder) or any((folder / name).exists() for name in protected)
    if found and not is_resumed:
        advice = "" if overwrite else "continue it with `resume` auto, or "
        raise InputError(f"{folder} holds an earlier run: {advice}choose another folder", parameter="out_dir")
    prepare_out_dir(folder)


def has_best_model(folder: Path, *, validated_step: int) -> bool:
    """Return True if a folder has a best model, and it is not from after `validated_step`.

    Raises
    ------
    InputError
        If the file exists and may be intact, but cannot be read, say after a disk error.
    """
    path = folder / BEST_MODEL
    if not path.exists():
        return False
    try:
        step = read_checkpoint(path).get("step", 0)
    except DamagedFileError:
        return False
    check_value(f"{path}: step", step, number(int, low=0))
    return step <= validated_step


def find_resumable(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint of a run; None if no checkpoint exists.

    Raises
    ------
    InputError
        If all checkpoints are damaged, or one may be intact but cannot be read, say after a disk error.
    """
    periodic = [path for path, _ in _periodic_checkpoints(folder)]
    paths = [path for path in (folder / LAST_MODEL, *periodic) if path.exists()]
    for path in paths:
        try:
            read_checkpoint(path)
        except DamagedFileError as error:
            logger.warning("%s; trying an earlier checkpoint", error)
        else:
            return path
    if paths:
        raise InputError(f"auto: no checkpoint in {folder} can be read", parameter="resume")
    return None


def _periodic_checkpoints(folder: Path) -> list[tuple[Path, int]]:
    """Return the periodic checkpoints with their steps, newest first."""
    matches = {path: _PERIODIC_NAME.fullmatch(path.name) for path in folder.glob("checkpoint_*")}
    steps = {path: int(match[1]) for path, match in matches.items() if match}
    return sorted(steps.items(), key=lambda checkpoint: checkpoint[1], reverse=True)


def read_log(folder: Path) -> list[dict[str, float | None]]:
    """Read the log of a run; a last line that a crash cut short is left out. Without a log, return no lines.

    Raises
    ------
    InputError
        If the log cannot be read, or another line is damaged.
    """
    path = folder / LOG
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # the last one is empty or cut short
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    return [_read_entry(line, f"line {idx} of {path}") for idx, line in enumerate(lines, 1)]


def _read_entry(line: bytes, name: str) -> dict[str, float | None]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{name} is damaged; remove it to continue without it") from error
    check_value(name, entry, _LOG_ENTRY)
    return entry


def _is_log_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and number(int, low=0).is_valid(value.get("step"))
        and all(figure is None or number(float).is_valid(figure) for figure in value.values())
    )


_LOG_ENTRY = Expected(_is_log_entry, "numbers by name, with a step of at least 0")
