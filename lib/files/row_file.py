"""Arrays that are larger than the memory, in temporary files."""

import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from lib.runtime.errors import InputError, RunError


class RowFile:
    """Array (C, H, W) in a temporary file, written and read in rows of each channel.

    The file has no name, so it is gone when it is closed or when the process ends, in whatever way. Close it
    or use it as a context. A failed write, for example on a full disk, raises `RunError`.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: np.dtype | type) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._folder = folder
        with _failed_write(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, `close` closes it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with _failed_write(self._folder):  # what is still buffered may not fit the disk
            self._file.close()

    def write(self, start: int, values: np.ndarray) -> None:
        """Write rows of values (C, n_rows, W) from the row `start` on."""
        with _failed_write(self._folder):
            for channel, rows in enumerate(np.asarray(values, self.dtype)):
                self._seek(channel, start)
                self._file.write(np.ascontiguousarray(rows).data.cast("B"))

    def read(self, start: int, stop: int, *, buffer: np.ndarray | None = None) -> np.ndarray:
        """Read the rows from `start` to `stop` - 1, (C, n_rows, W).

        If a flat `buffer` of the dtype is given, the result is its start.
        """
        n_channels, _, width = self.shape
        n_values = n_channels * (stop - start) * width
        buffer = np.empty(n_values, self.dtype) if buffer is None else buffer[:n_values]
        values = buffer.reshape(n_channels, stop - start, width)
        for channel, rows in enumerate(values):
            self._seek(channel, start)
            n_bytes = self._file.readinto(rows.data.cast("B"))
            assert n_bytes == rows.nbytes, "rows are read before they are written"
        return values

    def _seek(self, channel: int, row: int) -> None:
        _, height, width = self.shape
        self._file.seek((channel * height + row) * width * self.dtype.itemsize)


@contextmanager
def mapped_in_file(bands: Iterable[np.ndarray], shape: tuple[int, ...], folder: Path) -> Iterator[np.ndarray]:
    """Write bands of rows of an array, uint8, to a temporary file, and yield the array as a memory map.

    The file is as that of `RowFile`. Pages that are read take memory as long as nothing else needs it.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        with _failed_write(folder):
            for band in bands:
                file.write(np.ascontiguousarray(band, np.uint8).data)
            file.flush()
        yield np.memmap(file, np.uint8, mode="c", shape=shape)


@contextmanager
def _failed_write(folder: Path) -> Iterator[None]:
    """Turn an error of the operating system into a `RunError` that names the folder."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write a temporary file in {folder} ({error.strerror or error})") from error


def check_disk(n_bytes: float, folder: Path, what: str) -> None:
    """Raise `InputError` if a folder has less free space; `what` needs it, in the words of the message."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        gigabytes = math.ceil(n_bytes / 1e8) / 10
        raise InputError(
            f"{what} needs {gigabytes:.1f} GB for temporary files in {folder}, {free / 1e9:.1f} GB are free"
        )
