"""The course of a training run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from lib.files.atomic import name_failed_write
from lib.runtime.errors import InputError


class TensorBoardLog:
    """Writes figures and pictures to a folder that TensorBoard shows; they are on the disk at once.

    Every instance begins a file of its own, so that a resumed run adds one to those of its folder.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    first_step : int
        Steps that are done, 0 for a new run. TensorBoard hides what an earlier run left of later steps.

    Raises
    ------
    InputError
        If the package tensorboard is missing.
    RunError
        If the folder cannot be written to; so do the methods.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # slow: only for those who write
        except ImportError as error:
            raise InputError(
                "the log for TensorBoard needs a package that is missing: pip install tensorboard"
            ) from error
        self._folder = folder
        with name_failed_write(folder):
            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)  # the first step to hide
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def scalars(self, step: int, figures: Mapping[str, float], *, group: str) -> None:
        """Write figures of a step, as `group`/name: "train/loss", say."""
        with name_failed_write(self._folder):
            for name, value in figures.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
            self._writer.flush()

    def picture(self, step: int, name: str, image_rgb: np.ndarray) -> None:
        """Write a picture of a step, without loss; shape (H, W, 3), uint8."""
        with name_failed_write(self._folder):
            self._writer.add_image(name, image_rgb, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        with name_failed_write(self._folder):
            self._writer.close()
