"""Ctrl-C and SIGTERM, taken at a moment that suits the work at hand."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar, NoReturn, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(KeyboardInterrupt):
    """Ctrl-C or SIGTERM."""

    def __init__(self, number: int) -> None:
        self.number = number  # of the signal


class StopSignals:
    """Turns the first SIGINT or SIGTERM into `Stop`, but not inside a `deferred` block.

    Further ones are ignored, so that what a `Stop` leads to, such as a last checkpoint, is not cut short.

    Parameters
    ----------
    polled : bool
        Never raise of its own accord: the signal waits until `take_pending` or `raise_pending` asks for it.
    """

    _active: ClassVar[list[Self]] = []  # signal handlers are the process's, and so is this list

    def __init__(self, *, polled: bool = False) -> None:
        self._n_deferring = int(polled)
        self._pending: int | None = None
        self._has_stopped = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        self._active.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._active.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block, and those it lies in, finish before a signal takes effect."""
        self._n_deferring += 1
        try:
            yield
        finally:
            self._n_deferring -= 1
        if self._pending is not None and self._n_deferring == 0:
            self._raise(self._take())

    @classmethod
    def deferred_if_active(cls) -> AbstractContextManager[None]:
        """A `deferred` block of the instance in force; without one, the block is an ordinary one."""
        return cls._active[-1].deferred() if cls._active else nullcontext()

    @classmethod
    def take_pending(cls) -> int | None:
        """Number of the signal that the instance in force has not raised yet; it will not raise it then."""
        return cls._active[-1]._take() if cls._active else None

    def raise_pending(self) -> None:
        """Raise `Stop` if a signal waits."""
        number = self._take()
        if number is not None:
            self._raise(number)

    @classmethod
    def stop(cls, number: int) -> NoReturn:
        """Raise `Stop` for a signal that another process took."""
        if cls._active:
            cls._active[-1]._raise(number)
        raise Stop(number)

    def _raise(self, number: int) -> NoReturn:
        self._has_stopped, self._pending = True, None
        raise Stop(number)

    def _take(self) -> int | None:
        number, self._pending = self._pending, None
        return number

    def _handle(self, number: int, frame: object) -> None:
        if self._has_stopped:
            return
        if self._n_deferring > 0:
            self._pending = number
        else:
            self._raise(number)


@contextmanager
def blocked_stop_signals() -> Iterator[None]:
    """Keep SIGINT and SIGTERM from processes started in the block, until `leave_stop_signals` in them."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stop_signals() -> None:
    """Leave to the main process what a terminal or a cluster sends to all processes of a group.

    For a worker process, which could otherwise be gone before the main one has finished what it is at. The
    main process can still end this one.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        return
    os.setpgid(0, 0)
    while signal.sigpending() & set(STOP_SIGNALS):  # sent while this process started
        signal.sigwait(STOP_SIGNALS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def start_worker() -> None:
    """Tie this worker process to the main one: that alone stops it, and it ends with that one."""
    leave_stop_signals()
    end_with_main_process()


def end_with_main_process() -> None:
    """End this worker process as soon as the main one is gone, however that ended."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
