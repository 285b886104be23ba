"""How long stages take."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lib.runtime.stopwatch import Stopwatch


def test_stages_add_up():
    stopwatch = Stopwatch()

    def sleep(seconds):
        with stopwatch.stage("asleep"):
            time.sleep(seconds)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(sleep, 4 * [0.02]))
    with pytest.raises(KeyError), stopwatch.stage("failing"):
        raise KeyError
    assert list(stopwatch.seconds) == ["asleep", "failing"]
    assert stopwatch.seconds["asleep"] >= 0.08
    assert str(stopwatch).startswith("asleep 100 % (0.")
