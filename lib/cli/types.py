"""Types of options: what the text of an option is read as, and what is told if it cannot be."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lib.training.recipe import CountRange

Number = TypeVar("Number", int, float)


def parse_bool(text: str) -> bool:
    """Read True or False, in any case."""
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return lowered == "true"


def positive_int(text: str) -> int:
    """Read an integer of at least 1."""
    return _read_number(text, int, lambda value: value >= 1, "an integer of at least 1")


def non_negative_int(text: str) -> int:
    """Read an integer of at least 0."""
    return _read_number(text, int, lambda value: value >= 0, "an integer of at least 0")


def port_int(text: str) -> int:
    """Read the number of a TCP port."""
    return _read_number(text, int, lambda value: 0 < value < 2**16, "an integer from 1 to 65535")


def seed_int(text: str) -> int:
    """Read an integer that PyTorch and NumPy both take as a seed."""
    return _read_number(text, int, lambda value: 0 <= value < 2**63, "an integer from 0 to 2**63 - 1")


def positive_float(text: str) -> float:
    """Read a finite number above 0."""
    return _read_number(text, float, lambda value: 0 < value < math.inf, "a number above 0")


def non_negative_float(text: str) -> float:
    """Read a finite number of at least 0."""
    return _read_number(text, float, lambda value: 0 <= value < math.inf, "a number of at least 0")


def share_float(text: str) -> float:
    """Read a number of at least 0 and below 1."""
    return _read_number(text, float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def count_range(text: str) -> CountRange:
    """Read an integer of at least 1, or two with a hyphen between them."""
    low, hyphen, high = text.partition("-")
    counts = CountRange(positive_int(low), positive_int(high if hyphen else low))
    if counts.low > counts.high:
        raise argparse.ArgumentTypeError(f"expected the lower end of a range first, got {text!r}")
    return counts


def existing_dir(text: str) -> Path:
    """Read the path of a folder that exists."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {text}")
    return path


def _read_number(
    text: str, kind: type[Number], is_allowed: Callable[[Number], bool], expected: str
) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_allowed(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
