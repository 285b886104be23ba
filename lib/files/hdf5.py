"""Open HDF5 files, and write them completely or not at all.

A full disk raises an error; with HDF5 alone it crashes.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py

from lib.files.atomic import atomic_path
from lib.runtime.errors import InputError, is_out_of_memory


class HDF5Writing(NamedTuple):
    """HDF5 file that is being written."""

    file: h5py.File
    raise_failed_write: Callable[[], None]  # raises the error of an earlier write; call it in long loops


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to read from; raises `InputError` if it is damaged, also in the block."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # damaged files make h5py raise many kinds of errors
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path} is not a readable HDF5 file ({error})") from error


@contextmanager
def write_hdf5(path: Path) -> Iterator[HDF5Writing]:
    """Open an HDF5 file under a temporary name, and rename it to `path` if the block succeeds.

    A failed write, for example on a full disk, raises `RunError`.
    """
    with atomic_path(path) as temporary, _EnduringFile(temporary, "w+") as storage:
        with h5py.File(storage, "w") as file:
            yield HDF5Writing(file, storage.raise_failed_write)
        storage.raise_failed_write()


class _EnduringFile(io.FileIO):
    """File that stores the error of a failed write and then ignores all writes.

    HDF5 crashes the process if it cannot finish a file. Here it always can.
    """

    _error: OSError | None = None

    def write(self, content: memoryview) -> int:
        remaining = memoryview(content).cast("B")
        while remaining and self._error is None:
            try:
                remaining = remaining[super().write(remaining) :]
            except OSError as error:
                self._error = error
        return len(content)

    def truncate(self, size: int) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size

    def raise_failed_write(self) -> None:
        if self._error is not None:
            raise self._error
