"""Log what concerns many files once in a run, and switch off the warnings of other libraries."""

import logging
import warnings
from collections.abc import Hashable
from threading import Lock

_logged: set[Hashable] = set()
_lock = Lock()  # several threads read images


def log_once(logger: logging.Logger, key: Hashable, message: str, *args: object) -> None:
    """Log a message, unless one with the same key was logged since the start of the run."""
    with _lock:
        is_new = key not in _logged
        _logged.add(key)
    if is_new:
        logger.warning(message, *args)


def silence_readers() -> None:
    """Switch off warnings and the log of Pillow about files, as our errors name the file and the reason."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def forget_logged() -> None:
    """Start a new run: everything is logged again."""
    _logged.clear()
