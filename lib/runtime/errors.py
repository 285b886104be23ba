"""Errors that end a script in one line: the user's files or settings are at fault."""

import torch


class InputError(ValueError):
    """A file, folder or setting cannot be used; the message names it and says what was expected.

    Parameters
    ----------
    message : str
        One line. Names of parameters stand in backquotes; a script shows its options instead.
    parameter : str, optional
        Parameter at fault, which begins the message. `message` goes on with its value.
    """

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message if parameter is None else f"`{parameter}` {message}")


class DamagedFileError(InputError):
    """The content of a file is not as it should be, however often it is read."""


class RunError(RuntimeError):
    """A run cannot go on for a reason in its data or settings, such as a diverging loss."""


class OtherRankError(Exception):
    """Another rank failed and has reported its error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if NumPy, or PyTorch on any device, ran out of memory."""
    is_of_torch_on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return is_of_torch_on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)
