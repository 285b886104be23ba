"""Write HDF5 files completely or not at all. A full disk raises an error; with HDF5 alone it crashes."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py

from lib.files.atomic import atomic_path


class HDF5Writing(NamedTuple):
    """HDF5 file that is being written."""

    file: h5py.File
    raise_failed_write: Callable[[], None]  # raises the error of an earlier write; call it in long loops


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
