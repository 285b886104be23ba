"""Stop flag for Ctrl-C and SIGTERM, and signals in worker processes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# By signal: its default handler.
STOP_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

# Seconds in which a second SIGTERM is the same request: a cluster signals all processes, and torchrun
# forwards the signal to its ranks. A shorter time could end a rank that is still saving.
_SAME_REQUEST = 5.0


class Stop(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, the signal `number`, requested a stop."""

    def __init__(self, number: int) -> None:
        self.number = number


class StopFlag:
    """Stop request that loops poll between steps, images and frames; only scripts let signals set it."""

    def __init__(self) -> None:
        self._number: int | None = None  # of the signal
        self._time = 0.0

    def raise_if_set(self) -> None:
        """Raise `Stop` if a signal has set the flag."""
        if self._number is not None:
            raise Stop(self._number)

    @contextmanager
    def set_by_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM set the flag in this block; works in the main thread only.

        A second signal has its default effect, so Ctrl-C can interrupt a save that hangs.
        """
        before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._number = None

    def _handle(self, number: int, frame: object) -> None:
        if self._number is None:
            self._number, self._time = number, time.monotonic()
        elif number == signal.SIGINT or time.monotonic() - self._time > _SAME_REQUEST:
            signal.signal(number, STOP_SIGNALS[number])
            os.kill(os.getpid(), number)


stop_flag = StopFlag()  # one per process, because signals go to processes


@contextmanager
def blocked_stop_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM in processes spawned here, until they call `start_worker`."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker() -> None:
    """Let only the main process stop this worker, and end the worker when the main process ends.

    Terminals and clusters signal all processes of a group. This worker ignores such signals, because the
    main process may need it to finish its current work.
    """
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # also discards a blocked signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # only the main process sends it from here on
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
