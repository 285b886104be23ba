"""Script that hangs after a first signal requested a stop, as a save to a lost disk does.

`tests/runtime/test_signals.py` starts this program.
"""

import time

from lib import cli
from lib.runtime import signals


def main():
    print("started", flush=True)
    while True:
        time.sleep(0.01)
        try:
            signals.stop_flag.raise_if_set()
        except signals.Stop:
            break
    print("stop requested", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    signals._SAME_REQUEST = 0.0  # seconds; each further signal is a new request
    cli.run(main)
