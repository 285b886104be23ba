"""The stop flag: set by a first signal, polled by loops; a second signal interrupts."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.runtime import signals
from lib.runtime.signals import Stop, blocked_stop_signals, start_worker, stop_flag

REPO_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_until_it_is_polled(number):
    steps = []

    def work():
        with stop_flag.set_by_signals():
            stop_flag.raise_if_set()
            os.kill(os.getpid(), number)
            steps.append("finished")
            stop_flag.raise_if_set()
            steps.append("after")

    with pytest.raises(Stop) as caught:
        work()
    assert caught.value.number == number
    assert steps == ["finished"]
    stop_flag.raise_if_set()  # not of the next block


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in signals.STOP_SIGNALS]
    with stop_flag.set_by_signals():
        pass
    assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_ctrl_c_interrupts_at_once(first):
    def work():
        with stop_flag.set_by_signals():
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal had no effect")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert not isinstance(caught.value, Stop)


def test_sigterm_from_cluster_and_launcher_is_one_request():
    with stop_flag.set_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stop):
            stop_flag.raise_if_set()


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_a_script_that_hangs(second):
    run = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("hanging_script.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
    )
    assert run.stdout.readline() == "started\n"
    run.send_signal(signal.SIGTERM)
    assert run.stdout.readline() == "stop requested\n"
    run.send_signal(second)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == (130 if second == signal.SIGINT else -signal.SIGTERM)
    assert errors == ""


def start_after_signals(signals_are_sent):
    """Start as a worker once the signals are pending, and check the state of this process."""
    signals_are_sent.wait()
    start_worker()
    stop_flag.raise_if_set()
    assert os.getpgid(0) == os.getpid()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_ignores_signals_that_arrive_while_it_starts(method):
    context = multiprocessing.get_context(method)
    signals_are_sent = context.Event()
    worker = context.Process(target=start_after_signals, args=(signals_are_sent,))
    with stop_flag.set_by_signals(), blocked_stop_signals():
        worker.start()
        for number in signals.STOP_SIGNALS:
            os.kill(worker.pid, number)
    signals_are_sent.set()
    worker.join(timeout=60)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_worker_ends_by_sigterm_of_the_main_process_only():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(theirs,))
    worker.start()
    theirs.close()
    assert ours.recv() == "started"
    os.kill(worker.pid, signal.SIGINT)
    ours.send("job")
    assert ours.recv() == "job"
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == -signal.SIGTERM


def work(connection):
    """Send each message back, as a worker."""
    start_worker()
    connection.send("started")
    while True:
        connection.send(connection.recv())
