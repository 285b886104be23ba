"""Run a script as a program: parse options, set up logging, report errors."""

import argparse
import difflib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image

from lib.cli.dataclass_options import with_options
from lib.cli.options import REPO_ROOT
from lib.cli.types import BOOL
from lib.datasets.loaders import is_lost_worker
from lib.runtime.errors import InputError, OtherRankError, RunError, is_out_of_memory
from lib.runtime.memory import free_memory, keep_freed_memory
from lib.runtime.notices import is_shown, quiet, silence_readers
from lib.runtime.ranks import end_process, is_first_rank, joined_ranks
from lib.runtime.signals import Stop, stop_flag
from lib.runtime.workers import LOST_WORKER
from ssn_superpixels import __version__

logger = logging.getLogger(__name__)

# Pixels. Pillow warns above this size and refuses images of twice the size, as a guard against
# decompression bombs. Where the free memory is known, each image is held against it instead.
_LARGEST_SAFE_IMAGE = 2**29


class Parser(argparse.ArgumentParser):
    """Argument parser that shows defaults and reports an error in one line with status 2.

    Every parser has `--version` and `--quiet`. They are no settings of a run: parsed options lack them.
    """

    origin = ""  # in front of errors: the file that the options come from

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
        versions = f"ssn_superpixels {__version__}, torch {torch.__version__}"
        self.add_argument("--version", action="version", version=versions, help="print the versions and exit")
        self.add_argument(
            "--quiet",
            action=_SetQuiet,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            help="log only warnings, errors, and results such as tables of an evaluation; show no progress",
            **BOOL,
        )

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._did_you_mean(unknown)}")
        return parsed

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        args = sys.argv[1:] if args is None else args
        if any(argument == "" or re.fullmatch(r"--\w+=", argument) for argument in args):
            self.error("the value of an option is empty; is a shell variable unset?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        message = _escape(f"{self.origin}{message}", control_characters=True)
        self.exit(2, f"{self.prog}: error: {message}\n" if is_first_rank() else None)

    def _did_you_mean(self, arguments: Sequence[str]) -> str:
        """Return the end of an error message that names the options nearest to unknown ones; may be empty."""
        unknown = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
        known = {option.lstrip("-"): option for option in self._option_string_actions}
        names = [difflib.get_close_matches(option.lstrip("-"), known, n=1) for option in unknown]
        nearest = [known[name] for matches in names for name in matches]
        return f"; did you mean {', '.join(dict.fromkeys(nearest))}?" if nearest else ""


class _SetQuiet(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if values:
            quiet.set()
        else:
            quiet.clear()


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Avoids "(default: None)" if an option is required or its help states the default.
        if action.default is None:
            return action.help
        default = show_default(action.default).replace("%", "%%")
        return super()._get_help_string(action).replace("%(default)s", default)


def show_default(value: Any) -> str:
    """Return the default of an option as text; paths in the repository are relative to its root."""
    values = value if isinstance(value, list) else [value]
    return " ".join(map(_relative, values))


def _relative(value: Any) -> str:
    path = Path(str(value))
    return path.relative_to(REPO_ROOT).as_posix() if path.is_relative_to(REPO_ROOT) else str(value)


class _OutputError(Exception):
    """Standard output is closed, or its disk is full."""


class _OutputHandler(logging.StreamHandler):
    """Log to standard output; if that fails, end the program in place of a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is from logging
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise _OutputError from error
        super().handleError(record)


def run(main: Callable[[], object]) -> NoReturn:
    """Run a script; exit with status 2 after bad input and status 1 after a failed run.

    An error is reported in one line. Under `torchrun` only rank 0 logs; every rank reports its own errors.
    """
    keep_freed_memory()
    silence_readers()
    is_memory_known = free_memory(torch.device("cpu")) is not None
    Image.MAX_IMAGE_PIXELS = None if is_memory_known else _LARGEST_SAFE_IMAGE
    end_process(_exit_status(main, Path(sys.argv[0]).name))


def _exit_status(main: Callable[[], object], program: str) -> int:
    """Run a script, report its error, and return the exit status."""
    try:
        with joined_ranks(), stop_flag.set_by_signals():
            level = logging.INFO if is_first_rank() else logging.ERROR
            handler = _OutputHandler(sys.stdout)
            handler.addFilter(is_shown)
            handler.addFilter(_name_options)
            logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
            main()
    except OtherRankError:
        return 1
    except _OutputError:
        # What is still buffered must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, OSError) as error:
        return _report_error(program, error, 2)
    except RunError as error:
        return _report_error(program, error, 1)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            message = "out of memory; use smaller batches or images, or end other programs on the device"
            return _report_error(program, RunError(message), 1)
        if "InvalidCxxCompiler" in str(error):  # PyTorch looks for the compiler at the first forward pass
            return _report_error(program, InputError("--compile needs a C++ compiler, and none was found"), 2)
        if not is_lost_worker(error):  # PyTorch may raise this one anywhere
            raise
        return _report_error(program, RunError(LOST_WORKER), 1)
    except KeyboardInterrupt as stop:
        # Shell convention: 128 plus the number of the signal that ended the program.
        return 128 + (stop.number if isinstance(stop, Stop) else signal.SIGINT)
    return 0


def _report_error(program: str, error: Exception, status: int) -> int:
    message = str(error).strip() or type(error).__name__
    if message.startswith("Caught ") and "\nOriginal Traceback" in message:
        # An error in a data loader worker arrives as the text of a traceback: its last line is the error.
        message = message.splitlines()[-1]
    message = _escape(message, control_characters=True)
    message = message.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")
    print(f"{program}: error: {with_options(message)}", file=sys.stderr)
    return status


def _name_options(record: logging.LogRecord) -> bool:
    """Log filter that replaces parameters in messages by their options."""
    record.msg, record.args = _escape(with_options(record.getMessage())), None
    return True


def _escape(text: str, *, control_characters: bool = False) -> str:
    """Escape what cannot be printed: bytes of file names that are not UTF-8, and line breaks if wanted."""
    if control_characters:
        text = re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], text)
    return text.encode("utf-8", "backslashreplace").decode()
