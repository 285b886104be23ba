"""How the C library manages the memory of a program."""

import ctypes
import sys

# Parameters of `mallopt` in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1
_LARGEST_OF_OLD = 2**25  # what older versions of glibc take at most as the threshold of blocks of their own


def keep_freed_memory() -> None:
    """Keep large blocks that are freed, for those to come, instead of giving each back to Linux at once.

    Linux clears every page before it gives it out again. The network makes and drops tensors of some 100 MB
    for every image and every step, and without this spends a tenth to a third of its time on that. Does
    nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, _LARGEST):
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
