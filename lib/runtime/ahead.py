"""Overlap of the stages of a pipeline that handles one item after the other."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_END = object()


def read_ahead(source: Iterator[T], n_ahead: int) -> Iterator[T]:
    """Yield the items of an iterator, while one thread takes up to `n_ahead` later ones from it.

    With 0, there is no thread. An error of the iterator is raised at its place, after all earlier items. A
    caller that stops early closes the generator, see `contextlib.closing`. The thread then finishes the item
    it is at, closes the iterator and ends, before the generator does.
    """
    if n_ahead == 0:
        yield from source
        return
    with ThreadPoolExecutor(1) as thread:
        taken = deque(thread.submit(next, source, _END) for _ in range(n_ahead))
        try:
            while (item := taken.popleft().result()) is not _END:
                taken.append(thread.submit(next, source, _END))
                yield item
        finally:
            for future in taken:
                future.cancel()
            if isinstance(source, Generator):
                thread.submit(source.close).result()
