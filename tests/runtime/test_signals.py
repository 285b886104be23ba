"""Stop signals, taken at a moment that suits the work at hand."""

import os
import signal

import pytest

from lib.runtime.signals import Stop, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_outermost_block(number):
    steps = []

    def work():
        with StopSignals() as signals:
            with signals.deferred():
                with StopSignals.deferred_if_active():
                    os.kill(os.getpid(), number)
                    steps.append("inner")
                steps.append("outer")
            steps.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["inner", "outer"]


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """A test run in the background of a shell inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_outside_of_a_block_takes_effect_at_once():
    def work():
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal had no effect")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_signals_after_the_first_are_ignored():
    with StopSignals() as signals:
        with pytest.raises(Stop) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM


def test_signal_of_another_process_takes_the_place_of_one_that_waits():
    with StopSignals(polled=True):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stop):
            StopSignals.stop(signal.SIGTERM)
        assert StopSignals.take_pending() is None


def test_without_stop_signals_a_block_defers_nothing():
    with StopSignals():
        pass

    def work():
        with StopSignals.deferred_if_active():
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the signal was deferred")

    with pytest.raises(KeyboardInterrupt):
        work()
