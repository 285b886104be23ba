"""Kill a script at random moments, run it to its end, and compare its folder with one of an undisturbed run.

`tests/fuzz/test_killed_runs.py` starts this program. It imports the scripts once and forks, as a start takes
seconds.
"""

import importlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lib import cli

_WITH_TIMES = ("results.json", "run.json", "scores.jsonl", "seconds.csv", "summary.csv", "summary.md")


def start(run: Callable[[], object]) -> int:
    """Start a script in a forked process, without output; return the process number."""
    process = os.fork()
    if process == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
        cli.run(run)
    return process


def exit_status(process: int) -> int:
    """Wait for the end of a process; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def seconds_to_complete(run: Callable[[], object]) -> float:
    begin = time.monotonic()
    status = exit_status(start(run))
    if status != 0:
        sys.exit(f"an undisturbed run ended with status {status}")
    return time.monotonic() - begin


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder by name; nothing of those that hold times."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: b"" if path.name in _WITH_TIMES else path.read_bytes() for path in files}


def main(n_kills: int, folder: Path, script: str, options: list[str]) -> None:
    """Print the number of killed runs; report files that differ from an undisturbed run."""
    torch.set_num_threads(1)  # more would not survive the fork
    script_main = importlib.import_module(script).main

    def prepare(name: str) -> Callable[[], object]:
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return lambda: script_main([option.replace("{out}", str(out)) for option in options])

    prepare("undisturbed")()  # imports what the script needs only later
    seconds = seconds_to_complete(prepare("timed"))
    run, draw, n_killed = prepare("killed"), random.Random(0), 0
    for _ in range(n_kills):
        process = start(run)
        time.sleep(draw.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        if exit_status(process) == 0:
            prepare("killed")
        else:
            n_killed += 1
    seconds_to_complete(run)
    expected, found = contents(folder / "undisturbed"), contents(folder / "killed")
    differ = [name for name in expected | found if expected.get(name) != found.get(name)]
    if differ:
        sys.exit(f"files differ after killed runs: {differ}")
    print(n_killed)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
