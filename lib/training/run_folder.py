"""The folder of a training run: its checkpoints, its log, its curves."""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.files.atomic import atomic_path, name_failed_write, prepare_out_dir, remove_leftovers
from lib.runtime.errors import DamagedFileError, InputError
from lib.training.curves import draw_training_curves
from lib.training.tensorboard_log import TensorBoardLog
from lib.weights import read_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

BEST_MODEL, LAST_MODEL, LOG = "best_model.pth", "last_model.pth", "log.jsonl"
CURVES, TENSORBOARD = "curves.png", "tensorboard"

_PERIODIC = "checkpoint_{step:08d}.pth"
_PERIODIC_NAME = re.compile(r"checkpoint_(\d{8,})\.pth")


class Validation(NamedTuple):
    """What a validation found."""

    score: float  # chooses the best model, higher is better
    figures: dict[str, float]  # all figures, by name
    pictures: dict[str, np.ndarray]  # (H, W, 3) uint8, by name


class RunFolder:
    """Writes the files of a run; its checkpoints are complete at any moment, whatever kills the run.

    Parameters
    ----------
    folder : Path
        A folder that can be written to; see `prepare_run_folder`.
    description : dict
        What the checkpoints say about the model: "model_args", "input_args" and so on.
    weights, progress : mapping
        The state that the run starts from. That of a run which goes on becomes `last_model.pth` first; then
        what the log and the periodic checkpoints hold beyond it is dropped.
    n_kept : int
        Periodic checkpoints to keep.
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
        remove_leftovers(folder)
        if first_step > 0:
            self.save_last(weights, progress)
        for path, step in _periodic_checkpoints(folder):
            if step > first_step:
                path.unlink()
        self._log = [
            entry
            for entry in _read_log(folder / LOG)
            if 0 < entry["step"] <= (validated_step if "score" in entry else first_step)
        ]
        with atomic_path(folder / LOG) as temporary:
            temporary.write_text("".join(f"{json.dumps(entry)}\n" for entry in self._log))
        self._tensorboard = TensorBoardLog(folder / TENSORBOARD, first_step=first_step)

    def close(self) -> None:
        """Close the files that are kept open."""
        self._tensorboard.close()

    def add_interval(self, step: int, figures: Mapping[str, float]) -> None:
        """Log what training came to in the steps up to `step`."""
        self._write_log({"step": step, **figures})
        self._tensorboard.scalars(step, figures, group="train")

    def add_validation(self, step: int, validation: Validation) -> None:
        """Log a validation, and draw the curves anew."""
        figures = {"score": validation.score, **validation.figures}
        self._write_log({"step": step, **figures})
        self._tensorboard.scalars(step, figures, group="validation")
        for name, picture in validation.pictures.items():
            self._tensorboard.picture(step, name, picture)
        draw_training_curves(self._log, self.folder / CURVES)

    def save_best(self, weights: Mapping[str, Any], *, step: int, score: float) -> None:
        """Write `best_model.pth`, without the state of the run."""
        save_checkpoint(
            {"weights": weights, **self.description, "step": step, "score": score}, self.folder / BEST_MODEL
        )

    def save_last(self, weights: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write `last_model.pth`, from which the run can go on."""
        save_checkpoint({"weights": weights, **self.description, **progress}, self.folder / LAST_MODEL)

    def save_periodic(self, weights: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint named after its step, and remove those that are too many."""
        path = self.folder / _PERIODIC.format(step=progress["step"])
        save_checkpoint({"weights": weights, **self.description, **progress}, path)
        for older, _ in _periodic_checkpoints(self.folder)[self.n_kept :]:
            older.unlink()

    def _write_log(self, entry: dict[str, float]) -> None:
        self._log.append(entry)
        path = self.folder / LOG
        with name_failed_write(path), path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def prepare_run_folder(folder: Path, *, is_resumed: bool, overwrite: bool = False) -> None:
    """Make the folder of a run, and find out now whether it can be written to.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    is_resumed : bool
        Whether the run in it goes on.
    overwrite : bool
        Whether a new run may replace one that has no best model yet.

    Raises
    ------
    InputError
        If it cannot, or if a new run would overwrite an earlier one.
    """
    precious = (BEST_MODEL,) if overwrite else (BEST_MODEL, LAST_MODEL, LOG)
    found = _periodic_checkpoints(folder) or any((folder / name).exists() for name in precious)
    if found and not is_resumed:
        way_out = "" if overwrite else "continue it with --resume auto, or "
        raise InputError(f"--out_dir {folder} holds an earlier run: {way_out}choose another folder")
    prepare_out_dir(folder)


def has_best_model(folder: Path, *, validated_step: int) -> bool:
    """Whether a folder has the best model of a run that is validated up to a step, not of later ones.

    Raises
    ------
    InputError
        If the file is there, but cannot be read for a reason outside of it.
    """
    path = folder / BEST_MODEL
    try:
        return path.exists() and read_checkpoint(path).get("step", 0) <= validated_step
    except DamagedFileError:
        return False


def find_resumable(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is not damaged; None if there is none at all.

    Raises
    ------
    InputError
        If there are some, all of them damaged, or one cannot be read for a reason outside of it.
    """
    periodic = [path for path, _ in _periodic_checkpoints(folder)]
    paths = [path for path in (folder / LAST_MODEL, *periodic) if path.exists()]
    for path in paths:
        try:
            read_checkpoint(path)
        except DamagedFileError as error:
            logger.warning("%s; looking for an earlier one", error)
        else:
            return path
    if paths:
        raise InputError(f"--resume auto: none of the checkpoints in {folder} can be read")
    return None


def _periodic_checkpoints(folder: Path) -> list[tuple[Path, int]]:
    """Those of `save_periodic` with their steps, newest first."""
    names = {path: _PERIODIC_NAME.fullmatch(path.name) for path in folder.glob("checkpoint_*")}
    found = [(path, int(match[1])) for path, match in names.items() if match]
    return sorted(found, key=lambda checkpoint: checkpoint[1], reverse=True)


def _read_log(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    return [_read_entry(line) for line in path.read_text().splitlines()]


def _read_entry(line: str) -> dict[str, float]:
    try:
        entry = json.loads(line)
        return {**entry, "step": entry["step"]}
    except (ValueError, KeyError, TypeError):
        return {"step": math.inf}  # a line that a crash cut short
