"""Hide lines that libraries in C print about a damaged file, as our errors name the file and the reason."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

_STDERR = 2

_lock = Lock()  # several threads read images
_n_hiding = 0
_shown: int | None = None  # copy of standard error while it is hidden


@contextmanager
def native_output_hidden() -> Iterator[None]:
    """Discard standard error of the whole process in this block; use it only around a decoder.

    libtiff, and libpng in OpenCV, write there directly. If standard error is closed, nothing changes.
    """
    _hide()
    try:
        yield
    finally:
        _show()


def _hide() -> None:
    global _n_hiding, _shown
    with _lock:
        _n_hiding += 1
        if _n_hiding > 1:
            return
        with suppress(OSError):
            _shown = os.dup(_STDERR)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), _STDERR)


def _show() -> None:
    global _n_hiding, _shown
    with _lock:
        _n_hiding -= 1
        if _n_hiding == 0 and _shown is not None:
            os.dup2(_shown, _STDERR)
            os.close(_shown)
            _shown = None
