"""Check values that were read from a file: a test of the value, and the expected value in words."""

import math
import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from torch import Tensor

from lib.runtime.errors import DamagedFileError

_MAX_SHOWN = 80  # characters of a value in an error message


class Expected(NamedTuple):
    """Values that a file may hold."""

    is_valid: Callable[[Any], bool]
    words: str


FLAG = Expected(lambda value: isinstance(value, bool), "True or False")
TEXTS_BY_NAME = Expected(
    lambda value: (
        isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
    ),
    "texts by name",
)


def number(
    kind: type[int] | type[float],
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Expected:
    """Return the numbers of at least `low`, at most `high`, above `above` and below `below`.

    Integers fit 64 bits. A float may be stored as an integer, but is finite. A bool is no number: it is an
    instance of int, but not of type int.
    """
    kinds = (int,) if kind is int else (int, float)
    largest = 2**63 - 1 if kind is int else sys.float_info.max
    limits = {"of at least": low, "of at most": high, "above": above, "below": below}
    bounds = " and ".join(f"{word} {limit}" for word, limit in limits.items() if math.isfinite(limit))
    return Expected(
        lambda value: (
            type(value) in kinds
            and -largest <= value <= largest
            and low <= value <= high
            and above < value < below
        ),
        f"{'an integer' if kind is int else 'a finite number'} {bounds}".rstrip(),
    )


def one_of(choices: Collection[str]) -> Expected:
    """Return the texts `choices`."""
    return Expected(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


def check_value(name: str, value: Any, expected: Expected) -> None:
    """Raise `DamagedFileError` unless a value is expected; `name` has its file and its field."""
    if not expected.is_valid(value):
        raise DamagedFileError(f"{name} must be {expected.words}, got {show(value)}")


def show(value: Any) -> str:
    """Return the start of a value's representation, in one line; of tensors the type, shape and layout."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}, {value.layout}, on {value.device}"
    try:
        return " ".join(repr(value).split())[:_MAX_SHOWN]
    except ValueError:  # Python does not print integers of thousands of digits
        return f"a very large {type(value).__name__}"
