"""What the types of options refuse."""

import argparse

import pytest

from lib.cli.types import (
    count_range,
    existing_dir,
    non_negative_float,
    non_negative_int,
    parse_bool,
    port_int,
    positive_float,
    positive_int,
    seed_int,
    share_float,
)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_bool, "yes"),
        (positive_int, "0"),
        (positive_int, "-4"),
        (positive_int, "2.5"),
        (non_negative_int, "-1"),
        (positive_float, "0"),
        (non_negative_float, "nan"),
        (non_negative_float, "inf"),
        (non_negative_float, "ten"),
        (share_float, "1"),
        (share_float, "-0.1"),
        (port_int, "0"),
        (port_int, "70000"),
        (seed_int, "-1"),
        (count_range, "500-50"),
        (count_range, "50-"),
        (count_range, "0-50"),
        (existing_dir, "/no/such/folder"),
    ],
)
def test_bad_values_are_refused(parse, text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


@pytest.mark.parametrize(("text", "expected"), [("100", (100, 100)), ("50-500", (50, 500)), ("7-7", (7, 7))])
def test_count_range(text, expected):
    assert count_range(text) == expected
