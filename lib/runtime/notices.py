"""Choose what is shown in a run: notices once, quiet runs, no warnings of other libraries."""

import logging
import warnings
from collections.abc import Hashable
from threading import Event, Lock

from lib.runtime.ranks import is_first_rank

RESULT = 25  # level of a log line between INFO and WARNING: a result, which quiet runs log too
logging.addLevelName(RESULT, "RESULT")

quiet = Event()  # set by a script to log only results, warnings and errors, and to show no progress

_logged: set[Hashable] = set()
_lock = Lock()  # several threads read images


def log_once(logger: logging.Logger, key: Hashable, message: str, *args: object) -> None:
    """Log a message, unless one with the same key was logged since the start of the run."""
    with _lock:
        is_new = key not in _logged
        _logged.add(key)
    if is_new:
        logger.warning(message, *args)


def is_shown(record: logging.LogRecord) -> bool:
    """Log filter that leaves out information in a quiet run."""
    return record.levelno >= RESULT or not quiet.is_set()


def hides_progress() -> bool | None:
    """Return `disable` of a progress bar: True in a quiet run and on ranks above 0, None elsewhere.

    With None, tqdm shows the bar on a terminal only.
    """
    return True if quiet.is_set() or not is_first_rank() else None


def silence_readers() -> None:
    """Switch off warnings and the log of Pillow about files, as our errors name the file and the reason."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def forget_logged() -> None:
    """Start a new run: everything is logged again."""
    _logged.clear()
