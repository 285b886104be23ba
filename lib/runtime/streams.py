"""Work of two threads on one GPU, without waiting for each other.

A GPU does the work of one stream in order. A thread that reads a result waits for all earlier work in its
stream, so that two threads need a stream each.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """Stream of a second thread, which continues the work of the first one; does nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> torch.cuda.Event | None:
        """Return an event after all work that the calling thread has started."""
        if self._stream is None:
            return None
        return torch.cuda.current_stream(self._stream.device).record_event()

    @contextmanager
    def after(self, event: torch.cuda.Event | None, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Work in this stream in the block, on `tensors` that are complete after `event`."""
        if self._stream is None:
            yield
            return
        self._stream.wait_event(event)
        for tensor in tensors:  # the memory is not given to the first thread before this stream is done
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield
