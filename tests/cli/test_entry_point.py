"""Parsing of options and reporting of errors."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from lib import cli
from lib.cli.types import existing_dir
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError, RunError
from lib.runtime.notices import RESULT, hides_progress, quiet
from lib.runtime.workers import usable_workers
from ssn_superpixels import __version__


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], False),
        (["--flag"], True),
        (["--flag", "True"], True),
        (["--flag", "False"], False),
        (["--flag=false"], False),
    ],
)
def test_flags_work_with_and_without_a_value(argv, expected):
    parser = cli.Parser("test")
    cli.add_bool(parser, "--flag", default=False, help="a flag")
    assert parser.parse_args(argv).flag is expected


def test_option_error_is_one_line_with_status_2(capsys):
    parser = cli.Parser("test")
    cli.add_spixel_args(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--nspix", "0"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "argument --nspix" in error
    assert "'0'" in error


def test_line_breaks_in_option_errors_are_escaped(capsys):
    parser = cli.Parser("test")
    parser.add_argument("--root", type=existing_dir)
    with pytest.raises(SystemExit):
        parser.parse_args(["--root=two\nlines"])
    assert capsys.readouterr().err.endswith("no folder two\\nlines\n")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("no image file cat.jpg"), 2, "no image file cat.jpg"),
        (InputError("5 is too many", parameter="n_spixels"), 2, ": error: --nspix 5 is too many"),
        (
            pickle.loads(pickle.dumps(InputError("x: fewer `n_workers`", parameter="out_dir"))),
            2,
            "--out_dir x: fewer --nworkers",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 2, "x.txt"),
        (RunError("the loss of step 3 is not finite"), 1, "step 3"),
        (MemoryError(), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "out of memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), 1, "end other programs"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 1, "out of memory"),
        (
            RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. "),
            1,
            "worker process",
        ),
        (
            InputError(
                "Caught InputError in DataLoader worker process 0.\nOriginal Traceback:\n"
                "  File ...\nlib.runtime.errors.InputError: a.mat holds no annotation\n"
            ),
            2,
            ": error: a.mat holds no annotation",
        ),
    ],
)
def test_errors_end_in_one_line(error, status, message, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == status
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed


def test_workers_are_limited_to_the_cores_of_the_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert usable_workers(4) == 1


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_bugs_keep_their_traceback(kind):
    def main():
        raise kind("not the user's fault")

    with pytest.raises(kind, match="not the user's fault"):
        cli.run(main)


def test_device_auto_uses_cuda_if_available():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", f"cuda:{torch.cuda.device_count()}"])
def test_unavailable_device_is_refused(name):
    with pytest.raises(InputError, match=f"`device` {name}"):
        resolve_device(name)


@pytest.mark.parametrize("argv", [["--image", ""], ["--image="]])
def test_empty_value_is_refused(argv, capsys):
    parser = cli.Parser("")
    parser.add_argument("--image")
    with pytest.raises(SystemExit):
        parser.parse_args(argv)
    assert "empty" in capsys.readouterr().err


def test_version_is_that_of_the_package_and_of_torch(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.Parser("").parse_args(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"ssn_superpixels {__version__}, torch {torch.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([], ["step 1", "ASA 0.9", "old --out_dir"]),
        (["--quiet"], ["ASA 0.9", "old --out_dir"]),
        (["--quiet", "--quiet=False"], ["step 1", "ASA 0.9", "old --out_dir"]),
    ],
)
def test_quiet_run_logs_results_and_warnings(argv, shown, monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    hidden = []

    def main():
        assert vars(cli.Parser("").parse_args(argv)) == {}
        logging.info("step 1")
        logging.log(RESULT, "ASA 0.9")
        logging.warning("old `out_dir`")
        hidden.append(hides_progress())

    try:
        with pytest.raises(SystemExit) as caught:
            cli.run(main)
    finally:
        quiet.clear()
    assert caught.value.code == 0
    assert capsys.readouterr().out.splitlines() == shown
    assert hidden == [None if "step 1" in shown else True]


@pytest.mark.parametrize(
    ("argv", "end"),
    [
        (["--nspx", "300"], "unrecognized arguments: --nspx 300; did you mean --nspix?\n"),
        (["--pos-scale=3"], "unrecognized arguments: --pos-scale=3; did you mean --pos_scale?\n"),
        (["-nspix", "3", "--nitr=2"], "; did you mean --nspix, --niter?\n"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate\n"),
        (["cat.jpg"], "unrecognized arguments: cat.jpg\n"),
    ],
)
def test_unknown_option_names_the_nearest(argv, end, capsys):
    parser = cli.Parser("")
    cli.add_spixel_args(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(end)


def test_help_shows_paths_in_the_repository_relative_to_it():
    parser = cli.Parser("")
    cat = cli.REPO_ROOT / "demo" / "cat.jpg"
    parser.add_argument("--image", default=[str(cat), "100%.png"], help="images")
    parser.add_argument("--weights", default=cat, help="a file")
    parser.add_argument("--out", default=Path("/o"), help="a folder")
    text = " ".join(parser.format_help().split())
    assert "images (default: demo/cat.jpg 100%.png)" in text
    assert "a file (default: demo/cat.jpg)" in text
    assert "a folder (default: /o)" in text
