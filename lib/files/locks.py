"""Locks on files, which the operating system frees when their process ends, even if it is killed."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def locked(
    path: Path, *, shared: bool = False, waits: bool = False, temporary: bool = False
) -> Iterator[None]:
    """Lock a file during a block; a missing file is made. Several processes may hold a `shared` lock.

    With `temporary`, the last process that holds the lock removes the file. With `waits`, wait for the lock.

    Raises
    ------
    BlockingIOError
        If another process holds the lock, or another block of this process.
    OSError
        If the file cannot be opened, or the file system or the platform has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if waits else fcntl.LOCK_NB)
    file = _open_locked(path, mode)
    try:
        yield
    finally:
        if temporary and _is_alone(file):
            path.unlink(missing_ok=True)  # before it is free: then the file may be another's
        fcntl.flock(file, fcntl.LOCK_UN)  # also for forked processes, which share the open file
        os.close(file)


def _open_locked(path: Path, mode: int) -> int:
    while True:
        file, is_new = _open_or_create(path)
        try:
            fcntl.flock(file, mode)
            if os.fstat(file).st_nlink:
                return file
        except BaseException as error:
            os.close(file)
            if is_new and not isinstance(error, BlockingIOError):  # no locks
                path.unlink(missing_ok=True)
            raise
        os.close(file)  # its last owner removed the file in between


def _open_or_create(path: Path) -> tuple[int, bool]:
    """Open a file to read and write; return its descriptor, and True if it is new."""
    flags = os.O_RDWR | os.O_CREAT
    try:
        return os.open(path, flags | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, flags, 0o666), False


def _is_alone(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
