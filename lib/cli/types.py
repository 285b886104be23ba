"""argparse types that parse and validate option values."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lib.files import values
from lib.runtime.errors import missing_path
from lib.training.recipe import CountRange

Number = TypeVar("Number", int, float)


def parse_bool(text: str) -> bool:
    """Parse True or False, ignoring case."""
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return lowered == "true"


def parse_auto_bool(text: str) -> bool | str:
    """Parse True, False or auto, ignoring case."""
    if text.lower() == "auto":
        return "auto"
    try:
        return parse_bool(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected auto, True or False, got {text!r}") from None


# Arguments of a boolean option: the bare flag means True.
BOOL = {"type": parse_bool, "nargs": "?", "const": True, "metavar": "True|False"}
AUTO_BOOL = {**BOOL, "type": parse_auto_bool, "metavar": "auto|True|False"}


def number(kind: type[Number], **limits: float) -> Callable[[str], Number]:
    """Return an argparse type for the numbers of `lib.files.values.number`."""
    expected = values.number(kind, **limits)

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not expected.is_valid(value):
            raise argparse.ArgumentTypeError(f"expected {expected.words}, got {text!r}")
        return value

    return read


positive_int = number(int, low=1)
non_negative_int = number(int, low=0)
port_int = number(int, low=1, below=2**16)
positive_float = number(float, above=0)
non_negative_float = number(float, low=0)


def count_range(text: str) -> CountRange:
    """Parse a positive integer, or a range LOW-HIGH of positive integers."""
    low, hyphen, high = text.partition("-")
    counts = CountRange(positive_int(low), positive_int(high if hyphen else low))
    if counts.low > counts.high:
        raise argparse.ArgumentTypeError(f"expected the lower end of a range first, got {text!r}")
    return counts


def existing_dir(text: str) -> Path:
    """Parse the path of an existing folder."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(str(missing_path(text, "folder")))
    return path
