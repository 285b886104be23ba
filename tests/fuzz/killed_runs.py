"""Kill scripts at random moments, complete each, and compare its files with those of an undisturbed run.

`tests/fuzz/test_killed_runs.py` starts this program in a folder that holds `frames`, `BSR` and `base.pth`. It
imports the scripts once and forks, as a start takes seconds.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import estimate_optflow
import eval_base_model
import inference_base_model
from lib import cli

_MODEL = ("--base_model_weights=base.pth", "--nspix=24", "--device=cpu")

# By name: the script, its inputs and settings, and its outputs in a folder.
SCRIPTS = {
    "folder": (
        inference_base_model.main,
        ("--image=frames", "--skip_existing", *_MODEL),
        ("--out={out}", "--save_labels={out}"),
    ),
    "evaluation": (
        eval_base_model.main,
        ("--bsds_root=BSR", "--nworkers=0", "--resume", *_MODEL),
        ("--out_dir={out}",),
    ),
    "flow": (
        estimate_optflow.main,
        ("--frames=frames", "--preset=ultrafast", "--nworkers=0"),
        ("--out_dir={out}",),
    ),
    "video": (
        inference_base_model.main,
        ("--video=frames", *_MODEL),
        ("--out={out}/overlay.mp4", "--save_labels={out}/labels.h5"),
    ),
}

_WITH_TIMES = ("results.json", "run.json", "scores.jsonl", "seconds.csv", "summary.csv", "summary.md")


def prepare(name: str, out: Path) -> Callable[[], object]:
    """Return a run of a script into a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    main, inputs, outputs = SCRIPTS[name]
    return lambda: main([*inputs, *(option.replace("{out}", str(out)) for option in outputs)])


def start(run: Callable[[], object]) -> int:
    """Start a run in a forked process, without output; return the process number."""
    process = os.fork()
    if process == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
        cli.run(run)
    return process


def exit_status(process: int) -> int:
    """Wait for the end of a process; return its status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def seconds_to_complete(run: Callable[[], object]) -> float:
    begin = time.monotonic()
    status = exit_status(start(run))
    if status != 0:
        sys.exit(f"a run that was not killed ended with status {status}")
    return time.monotonic() - begin


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder by name; nothing of those that hold times."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: b"" if path.name in _WITH_TIMES else path.read_bytes() for path in files}


def kill_runs(name: str, n_kills: int) -> int:
    """Kill a script so often, then complete it; return how many of the runs had not ended before."""
    undisturbed, killed = Path("undisturbed", name), Path("killed", name)
    prepare(name, undisturbed)()  # imports what the script needs only later
    seconds = seconds_to_complete(prepare(name, Path("timed", name)))
    run, draw, n_killed = prepare(name, killed), random.Random(0), 0
    for _ in range(n_kills):
        process = start(run)
        time.sleep(draw.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        if exit_status(process) == 0:
            prepare(name, killed)
        else:
            n_killed += 1
    seconds_to_complete(run)
    expected, found = contents(undisturbed), contents(killed)
    differ = [file for file in expected | found if expected.get(file) != found.get(file)]
    if differ:
        sys.exit(f"{name}: files differ after killed runs: {differ}")
    return n_killed


if __name__ == "__main__":
    torch.set_num_threads(1)  # more would not survive the fork
    print(*(f"{name}={kill_runs(name, int(sys.argv[1]))}" for name in SCRIPTS))
