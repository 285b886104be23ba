"""The errors that end a script in one line: they mean that the user's files or settings are at fault."""

import torch


class InputError(ValueError):
    """A file, folder or option cannot be used; the message says which, and what was expected."""


class DamagedFileError(InputError):
    """The content of a file is not what it should be, however often it is read."""


class RunError(RuntimeError):
    """A run cannot go on for a reason that lies in its data or settings, such as a diverging loss."""


class OtherRankError(Exception):
    """Another process of a distributed run failed, and has told why."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether NumPy, or PyTorch on any device, found no memory."""
    is_of_torch_on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return is_of_torch_on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)
