"""Keep two runs from writing to one folder."""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lib.files.atomic import prepare_out_dir
from lib.runtime.errors import InputError
from lib.runtime.ranks import is_first_rank, on_first_rank

logger = logging.getLogger(__name__)

LOCK = ".lock"  # file in the folder that names the process; it exists while the folder is in use


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Own a folder during a block; the first rank owns it for all.

    A missing folder is made, and removed if it is empty at the end, as after an error in the input.
    The operating system frees the folder when the process ends, even if it is killed. On file systems without
    locks, a warning is logged.

    Raises
    ------
    InputError
        If another process owns the folder, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    is_new = not folder.exists()
    on_first_rank(lambda: _acquire(lock, folder))
    try:
        yield
    finally:
        if is_first_rank() and lock.is_locked:
            (folder / LOCK).unlink(missing_ok=True)  # before it is free: then the file may be another's
            lock.release()
            if is_new:
                with suppress(OSError):  # not empty
                    folder.rmdir()


def _acquire(lock: FileLock, folder: Path) -> None:
    prepare_out_dir(folder)
    path = folder / LOCK
    try:
        lock.acquire(timeout=0)
        path.write_text(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M}\n")
    except Timeout:
        raise InputError(
            f"{folder} is in use by {_read_owner(path)}; wait for it, or choose another folder",
            parameter="out_dir",
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s); start no second run in it", folder, error)


def _read_owner(path: Path) -> str:
    try:
        return path.read_text().strip() or "another process"
    except OSError:  # Windows lets no other process read a locked file
        return "another process"
