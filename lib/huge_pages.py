"""Large memory pages for the tensors of a program."""

import os


def use_huge_pages() -> None:
    """Let PyTorch ask Linux for pages of 2 MiB, where the user has not decided; call before the first tensor.

    The network makes and drops tensors of some 100 MB, for which the system clears page after page: with small
    ones that is a fifth of its time.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
