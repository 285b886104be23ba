"""Labels of whole videos that other software wrote: an HDF5 file or a folder of PNG files per video."""

from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from lib.datasets.folder import open_label_map
from lib.files.frames import list_in_order
from lib.files.hdf5 import open_hdf5
from lib.runtime.errors import InputError

DATASET = "labels"


class LabelVolume(Protocol):
    """Labels (T, H, W) of a video, read frame by frame."""

    path: Path
    n_frames: int

    def read(self, frame_idx: int, shape: tuple[int, int]) -> np.ndarray:
        """Return the labels of a frame, (H, W) integers of at least 0.

        Raises `InputError` that names the file if they have another shape or cannot be read.
        """


def open_label_volume(folder: Path, video: str) -> LabelVolume:
    """Open the labels of a video in a folder of label volumes.

    Expects one of these for every video::

        <folder>/<video>.h5         HDF5 file with a dataset `labels`, (T, H, W) integers
        <folder>/<video>/00000.png  a PNG with one channel of 8 or 16 bits for each frame, in order

    Raises `InputError` if neither or both exist, or the HDF5 file has another content.
    """
    file, frame_folder = folder / f"{video}.h5", folder / video
    if file.is_file() and frame_folder.is_dir():
        raise InputError(f"{folder} holds the labels of {video} twice: {file.name} and {video}/")
    if file.is_file():
        return HDF5Labels(file)
    if frame_folder.is_dir():
        return PNGLabels(frame_folder)
    raise InputError(f"{folder} lacks the labels of {video}: {file.name}, or {video}/00000.png, ...")


class HDF5Labels:
    """Label volume in an HDF5 file; every read opens the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(self.path) as file:
            if not isinstance(file.get(DATASET), h5py.Dataset):
                raise InputError(
                    f"{path} lacks the dataset {DATASET}; it holds {', '.join(file) or 'nothing'}"
                )
            shape, dtype = file[DATASET].shape, file[DATASET].dtype
            if len(shape) != 3 or dtype.kind not in "iu":
                raise InputError(f"{DATASET} of {path} must be (T, H, W) integers, got {dtype} of {shape}")
        self.n_frames = shape[0]
        self.frame_shape = shape[1:]

    def read(self, frame_idx: int, shape: tuple[int, int]) -> np.ndarray:
        """Return the labels of a frame; see `LabelVolume`."""
        if self.frame_shape != shape:
            raise InputError(f"{DATASET} of {self.path} are {self.frame_shape}, but the frames are {shape}")
        with open_hdf5(self.path) as file:
            labels = file[DATASET][frame_idx]
        if labels.min() < 0:
            raise InputError(f"{self.path}: frame {frame_idx} holds the negative label {labels.min()}")
        return labels


class PNGLabels:
    """Label volume as a folder of PNG files, one for each frame, in the order of their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = list_in_order(path, (".png",))
        self.n_frames = len(self._files)

    def read(self, frame_idx: int, shape: tuple[int, int]) -> np.ndarray:
        """Return the labels of a frame; see `LabelVolume`."""
        with open_label_map(self._files[frame_idx], shape) as opened:
            return np.array(opened, dtype=np.int64)
