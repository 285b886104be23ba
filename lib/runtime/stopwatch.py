"""Timing of the stages of a computation."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Sum of seconds per stage; stages may run in several threads.

    A CUDA device is synchronized at the end of stages that use it.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # for copies: a lock has none
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @contextmanager
    def stage(self, name: str, *, on_device: bool = False) -> Iterator[None]:
        """Add the time of a block to a stage; `on_device` marks a block that computes on the device."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if on_device and self._device is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        return ", ".join(
            f"{name} {100 * seconds / total:.0f} % ({seconds:.2f} s)"
            for name, seconds in self.seconds.items()
        )
