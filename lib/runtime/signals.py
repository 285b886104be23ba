"""Stop flag for Ctrl-C and SIGTERM, polled between steps, images and frames; worker processes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}  # defaults

# In seconds. A cluster sends SIGTERM to all processes, and torchrun passes it on to its ranks: a second one
# within this time is the same request. Shorter would end a rank that is still saving.
_SAME_REQUEST = 5.0


class Stop(KeyboardInterrupt):
    """Ctrl-C or SIGTERM requested a stop.

    Parameters
    ----------
    number : int
        Number of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number


class StopFlag:
    """Request to stop, which the loops of the library poll; only scripts let signals set it."""

    def __init__(self) -> None:
        self._number: int | None = None  # of the signal
        self._time = 0.0

    def raise_if_set(self) -> None:
        """Raise `Stop` if a signal requested it.

        Raises
        ------
        Stop
        """
        if self._number is not None:
            raise Stop(self._number)

    @contextmanager
    def set_by_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM set the flag; for the main thread of a script.

        A second signal has its default effect, so that a save that hangs can be interrupted.
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


stop_flag = StopFlag()  # of this process, as signals are


@contextmanager
def blocked_stop_signals() -> Iterator[None]:
    """Keep SIGINT and SIGTERM from processes spawned in the block, until `start_worker` in them."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker() -> None:
    """Tie this worker process to the main one: only that one stops it, and it ends with that one.

    Signals that a terminal or a cluster sends to all processes of a group have no effect here: the main
    process finishes its work at hand, which may need this worker.
    """
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # also drops one that is blocked
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from the main process
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
