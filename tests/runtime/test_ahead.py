"""A pipeline of threads gives the same items and errors as a loop."""

import threading
import time
from contextlib import closing
from itertools import islice

import pytest

from lib.runtime.ahead import read_ahead

N_AHEAD = 2
SECONDS = 20  # that a test waits at most for what should happen at once

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Source:
    """Squares, with a record of the threads and of the end; may fail before an item."""

    def __init__(self, n_items, *, fails_at=None):
        self.n_items = n_items
        self.fails_at = fails_at
        self.n_taken = 0
        self.threads = set()
        self.is_closed = False
        self.has_taken = [threading.Event() for _ in range(n_items)]

    def read(self):
        try:
            for idx in range(self.n_items):
                self.threads.add(threading.get_ident())
                if idx == self.fails_at:
                    raise ZeroDivisionError
                self.n_taken += 1
                self.has_taken[idx].set()
                yield idx**2
        finally:
            self.threads.add(threading.get_ident())
            self.is_closed = True


@pytest.mark.parametrize("n_ahead", [0, 1, 5])
@pytest.mark.parametrize("n_items", [0, 1, 2, 20])
def test_items_come_in_order(n_items, n_ahead):
    assert list(read_ahead(iter(range(n_items)), n_ahead)) == list(range(n_items))


def test_none_ahead_needs_no_thread():
    source = Source(9)
    with closing(read_ahead(source.read(), 0)) as items:
        assert list(islice(items, 3)) == [0, 1, 4]
    assert (source.is_closed, source.n_taken, source.threads) == (True, 3, {threading.get_ident()})


def test_one_other_thread_reads_and_closes():
    source = Source(9)
    assert list(read_ahead(source.read(), N_AHEAD)) == [idx**2 for idx in range(9)]
    assert source.is_closed
    assert len(source.threads) == 1
    assert source.threads != {threading.get_ident()}


def test_reading_goes_on_beside_the_caller_up_to_the_limit():
    source = Source(9)
    with closing(read_ahead(source.read(), N_AHEAD)) as items:
        for idx in range(4):
            assert next(items) == idx**2
            assert source.has_taken[idx + N_AHEAD].wait(SECONDS)  # while this thread is at an earlier item
            assert source.n_taken == idx + N_AHEAD + 1


def test_error_is_raised_after_the_items_before():
    source = Source(9, fails_at=4)
    seen = []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the items before are checked
        for item in read_ahead(source.read(), N_AHEAD):
            seen.append(item)
    assert seen == [0, 1, 4, 9]
    assert source.is_closed


def test_early_end_closes_the_source_in_its_thread():
    source = Source(9)
    with closing(read_ahead(source.read(), N_AHEAD)) as items:
        assert list(islice(items, 3)) == [0, 1, 4]
    assert source.is_closed
    assert source.n_taken <= 3 + N_AHEAD
    assert len(source.threads) == 1


def test_thread_finishes_only_the_item_it_is_at():
    def read():
        for idx in range(9):
            if idx == 3:
                has_begun.set()
                assert is_ending.wait(SECONDS)
                time.sleep(0.1)  # until the end has begun
            taken.append(idx)
            yield idx

    taken = []
    has_begun, is_ending = threading.Event(), threading.Event()
    with closing(read_ahead(read(), N_AHEAD)) as items:
        assert list(islice(items, 3)) == [0, 1, 2]
        assert has_begun.wait(SECONDS)
        is_ending.set()
    assert taken == [0, 1, 2, 3]


def test_stages_in_a_row_close_from_the_last_to_the_first():
    source = Source(9)

    def double(items):
        with closing(read_ahead(items, N_AHEAD)) as ahead:
            for item in ahead:
                yield 2 * item

    with closing(read_ahead(double(source.read()), N_AHEAD)) as items:
        assert list(islice(items, 3)) == [0, 2, 8]
    assert source.is_closed
