"""The stop flag: set by a first signal, polled by loops; a second signal interrupts."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
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


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_a_script_that_hangs(second, tmp_path):
    script = tmp_path / "hang.py"
    script.write_text(
        "import time\n"
        "from lib import cli\n"
        "from lib.runtime import signals\n"
        "signals._SAME_REQUEST = 0.2\n"
        "def main():\n"
        "    print('saving', flush=True)\n"
        "    time.sleep(600)\n"
        "cli.run(main)\n"
    )
    run = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
    )
    assert run.stdout.readline() == "saving\n"
    run.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert run.poll() is None
    run.send_signal(second)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == (130 if second == signal.SIGINT else -signal.SIGTERM)
    assert errors == ""


def _is_there(_):
    time.sleep(0.1)
    return os.getpgid(0) == os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_start_and_live_through_signals_to_the_group(method):
    """Signals to the process group arrive while workers start, and while they work."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals.STOP_SIGNALS}
    context = multiprocessing.get_context(method)
    try:
        with (
            stop_flag.set_by_signals(),
            ProcessPoolExecutor(2, context, initializer=start_worker) as pool,
        ):
            with blocked_stop_signals():
                futures = [pool.submit(_is_there, idx) for idx in range(4)]
                children = [child.pid for child in multiprocessing.active_children()]
                for number in signals.STOP_SIGNALS:
                    for child in children:
                        if os.getpgid(child) != child:
                            os.kill(child, number)
            assert [future.result() for future in futures] == 4 * [(True, set())]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
