"""Limit on worker processes, and the message for one that died."""

import os

LOST_WORKER = "a worker process crashed or was killed; fewer `n_workers` need less memory"


def usable_workers(n_workers: int) -> int:
    """Limit a number of workers to the cores that this process may use.

    More workers are slower, and PyTorch warns about them. The number of workers changes no sample.
    """
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(n_workers, n_cores or 1)
