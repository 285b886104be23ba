"""Writing HDF5 files that are never half there, and outliving a full disk, which HDF5 itself does not."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py

from lib.files.atomic import atomic_path


class HDF5Writing(NamedTuple):
    """A file that is being written.

    Attributes
    ----------
    file : h5py.File
        The file.
    raise_failed_write : callable
        Raises the OSError of a write that failed; to be called now and then.
    """

    file: h5py.File
    raise_failed_write: Callable[[], None]


@contextmanager
def write_hdf5(path: Path) -> Iterator[HDF5Writing]:
    """Write a file under a temporary name, which becomes `path` when the block ends without an error.

    Raises
    ------
    RunError
        If writing fails, say because the disk is full.
    """
    with atomic_path(path) as temporary, _EnduringFile(temporary, "w+") as storage:
        with h5py.File(storage, "w") as file:
            yield HDF5Writing(file, storage.raise_failed_write)
        storage.raise_failed_write()


class _EnduringFile(io.FileIO):
    """A file that remembers a failed write, say to a full disk, and goes on as if nothing had happened.

    HDF5 crashes the process when it cannot finish a file.
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
