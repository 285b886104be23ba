"""Keep two runs from writing to one folder."""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from lib.files.atomic import prepare_out_dir
from lib.files.locks import locked
from lib.runtime.errors import InputError
from lib.runtime.ranks import on_first_rank

logger = logging.getLogger(__name__)

LOCK = ".lock"  # file in the folder that names the process; it exists while the folder is in use


@contextmanager
def own_folder(folder: Path, *, shared: bool = False, parameter: str = "out_dir") -> Iterator[None]:
    """Own a folder during a block; the first rank owns it for all.

    A missing folder is made, and removed if it is empty at the end, as after an error in the input.
    The operating system frees the folder when the process ends, even if it is killed. On file systems without
    locks, a warning is logged.

    Parameters
    ----------
    folder : Path
        Folder to own.
    shared : bool
        Own it together with other processes that share it.
    parameter : str
        Name of the folder in errors.

    Raises
    ------
    InputError
        If another process owns the folder, or it cannot be written to.
    """
    with ExitStack() as stack:
        on_first_rank(lambda: stack.enter_context(_owned(folder, shared, parameter)))
        yield


@contextmanager
def _owned(folder: Path, shared: bool, parameter: str) -> Iterator[None]:
    is_new = not folder.exists()
    prepare_out_dir(folder, parameter=parameter)
    path = folder / LOCK
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, shared=shared, temporary=True))
            owner = f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M}"
            path.write_text(f"runs that share it, the last of them {owner}" if shared else owner)
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by {_read_owner(path)}; wait for it, or choose another folder",
                parameter=parameter,
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s); start no second run in it", folder, error)
        try:
            yield
        finally:
            stack.close()
            if is_new:
                with suppress(OSError):  # not empty
                    folder.rmdir()


def _read_owner(path: Path) -> str:
    try:
        return path.read_text().strip() or "another process"
    except OSError:  # it has just ended
        return "another process"
