"""Free memory of a device, a check against it, and settings of the memory allocator in the C library."""

import ctypes
import re
import sys
from pathlib import Path

import torch

from lib.runtime.control_groups import free_in_groups
from lib.runtime.errors import TooLargeError

_MEMORY_INFO = Path("/proc/meminfo")

# Parameters of `mallopt` in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1
_LARGEST_IN_OLD_GLIBC = 2**25  # upper limit of _M_MMAP_THRESHOLD in older versions

_CPU = torch.device("cpu")

# Bytes that are never checked: reading the free memory takes up to 0.4 ms, much beside a small image.
_UNCHECKED = 2**26


def keep_freed_memory() -> None:
    """Keep large freed blocks for reuse, instead of returning each to Linux at once.

    Linux clears every page before it hands it out. The network allocates and frees tensors of about 100 MB
    for every image and step. Without this call, clearing takes a tenth to a third of its time. Does nothing
    if the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, _LARGEST):
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_OLD_GLIBC)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes; None if it is unknown, such as on a CPU outside Linux.

    It includes what this process has freed and the allocator keeps for reuse. On a CPU, it is at most what a
    container or a cluster job may still use.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if not _MEMORY_INFO.exists():
        return None
    available = re.search(r"MemAvailable: *(\d+) kB", _MEMORY_INFO.read_text())
    if available is None:  # old kernels, and Windows Subsystem for Linux 1
        return None
    in_groups = free_in_groups()
    free = 1024 * int(available[1])
    return (free if in_groups is None else min(free, in_groups)) + _count_kept_bytes()


class _AllocatorInfo(ctypes.Structure):
    """The struct mallinfo2 in glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks"),
            *("fordblks", "keepcost"),
        )
    ]


def _count_kept_bytes() -> int:
    """Return the bytes of freed blocks that the C library keeps, see `keep_freed_memory`.

    Versions of glibc before 2.33, which cannot say, return large blocks to Linux anyway.
    """
    read_info = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if read_info is None:
        return 0
    read_info.restype = _AllocatorInfo
    return read_info().fordblks


def check_memory(n_bytes: int, what: str, *, device: torch.device = _CPU) -> None:
    """Raise `TooLargeError` if more bytes are needed than a device has free.

    Call it before an allocation whose size is from a file or an option. Linux grants more memory than it has,
    and may then end the process without a message. `what` needs the bytes, in the words of the message. If
    the free memory is unknown, nothing is checked.
    """
    free = _free_if_less(n_bytes, device)
    if free is not None:
        raise TooLargeError(
            f"{what} needs at least {n_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {device}"
        )


def fits_memory(n_bytes: int, *, device: torch.device = _CPU) -> bool:
    """Return False if more bytes are needed than a device has free; True if that is unknown."""
    return _free_if_less(n_bytes, device) is None


def _free_if_less(n_bytes: int, device: torch.device) -> int | None:
    """Return the free memory of a device if it is less than so many bytes, None otherwise or if unknown."""
    free = free_memory(device) if n_bytes > _UNCHECKED else None
    return None if free is None or n_bytes <= free else free
