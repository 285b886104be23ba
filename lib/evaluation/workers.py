"""Worker processes that compute metrics while the main process runs the network."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from lib.runtime.signals import start_worker
from lib.runtime.workers import usable_workers


@contextmanager
def metric_workers(n_workers: int) -> Iterator[Executor]:
    """Open an executor of `n_workers` processes, at most one per core; 0 computes in this process."""
    if n_workers == 0:
        yield _InProcessExecutor()
        return
    with ProcessPoolExecutor(usable_workers(n_workers), initializer=start_worker) as executor:
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


class _InProcessExecutor(Executor):
    """Executor that runs each call at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **kwargs))
        return future
