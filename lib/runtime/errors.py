"""Errors that a script reports in one line, without a traceback."""

import difflib
from pathlib import Path

import torch


class InputError(ValueError):
    """A file, folder or setting cannot be used; the message names it and says what was expected.

    The message is one line. Parameter names are in backquotes; a script replaces them with its options. The
    name of the `parameter` at fault is put in front.
    """

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message if parameter is None else f"`{parameter}` {message}")


class DamagedFileError(InputError):
    """The content of a file is damaged; reading it again does not help."""


class TooLargeError(InputError):
    """An input needs more memory than is free; it may fit when other work has ended."""


class RunError(RuntimeError):
    """A run cannot continue, for example because its loss diverges or the disk is full."""


class OtherRankError(Exception):
    """Another rank failed and has reported its error."""


def missing_path(path: Path | str, kind: str) -> InputError:
    """Return the error for a path that a user gave and that is no `kind`, such as "video file".

    The message names the most similar path beside the first part of the path that does not exist.
    """
    return InputError(f"no {kind} {path}{_did_you_mean(Path(path))}")


def _did_you_mean(path: Path) -> str:
    """Return the end of an error message that names the nearest sibling of a missing path; may be empty."""
    if path.exists():
        return ""
    while not path.parent.exists():
        path = path.parent
    try:
        names = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        return ""
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.with_name(nearest[0])}?" if nearest else ""


# In messages of a RuntimeError: from PyTorch's allocator on a CPU, from CUDA if others hold the memory,
# and from libraries that allocate for themselves.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if NumPy, or PyTorch on any device, ran out of memory, or an input is too large for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | TooLargeError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY)
