"""Worker processes: how many there may be, and what is told of a lost one."""

import os

LOST_WORKER = "a worker process crashed or was killed; fewer `n_workers` need less memory"


def usable_workers(n_workers: int) -> int:
    """At most one worker a core that this process may use: more are slower, and PyTorch warns of them.

    Their number changes no sample.
    """
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(n_workers, n_cores or 1)
