"""Checks of values that were read from files."""

import math

import pytest
import torch

from lib.files.values import check_value, number, show
from lib.runtime.errors import DamagedFileError


@pytest.mark.parametrize(
    ("expected", "valid", "invalid"),
    [
        (number(int), (0, -(2**63) + 1, 2**63 - 1), (2**63, -(2**63), 1.0, True, "1", None)),
        (number(int, low=1, below=3), (1, 2), (0, 3)),
        (number(float), (0, -1.5, 1e308), (math.nan, math.inf, -math.inf, 10**400, True, 1j)),
        (number(float, above=0), (1e-300, 2), (0, -1)),
    ],
)
def test_numbers(expected, valid, invalid):
    for value in valid:
        check_value("a", value, expected)
    for value in invalid:
        with pytest.raises(DamagedFileError, match=f"^a must be {expected.words}, got "):
            check_value("a", value, expected)


def test_values_are_shown_in_a_short_line():
    assert show("a\nb") == r"'a\nb'"
    assert show("x" * 1000) == "'" + 79 * "x"
    assert show(torch.zeros(2, 3)) == "torch.float32 of shape (2, 3), torch.strided, on cpu"
    assert show(10**5000) == "a very large int"
