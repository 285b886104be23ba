"""Types of options: refused values, ranges and dataclasses."""

import argparse

import pytest

from lib.cli.dataclass_options import add_fields, read_fields
from lib.cli.types import (
    count_range,
    existing_dir,
    non_negative_float,
    non_negative_int,
    number,
    parse_auto_bool,
    parse_bool,
    port_int,
    positive_float,
    positive_int,
)
from lib.training.recipe import CountRange, Recipe, RunSettings


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_bool, "yes"),
        (parse_auto_bool, "automatic"),
        (positive_int, "0"),
        (positive_int, "-4"),
        (positive_int, "2.5"),
        (non_negative_int, "-1"),
        (positive_float, "0"),
        (non_negative_float, "nan"),
        (non_negative_float, "inf"),
        (non_negative_float, "ten"),
        (number(float, low=0, below=1), "1"),
        (number(float, low=0, below=1), "-0.1"),
        (number(float, low=0, high=1), "1.01"),
        (number(float, low=0, high=1), "nan"),
        (port_int, "0"),
        (port_int, "70000"),
        (number(int, low=0, below=2**63), "-1"),
        (count_range, "500-50"),
        (count_range, "50-"),
        (count_range, "0-50"),
        (existing_dir, "/no/such/folder"),
    ],
)
def test_bad_values_are_refused(parse, text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


def test_limits_that_are_included():
    assert [number(float, low=0, high=1)(text) for text in ("0", "1")] == [0, 1]


@pytest.mark.parametrize(("text", "expected"), [("100", (100, 100)), ("50-500", (50, 500)), ("7-7", (7, 7))])
def test_count_range(text, expected):
    assert count_range(text) == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Recipe(n_annotations=1)),
        (["--nspix=7", "--lr=1"], Recipe(n_spixels=CountRange(7, 7), learning_rate=1, n_annotations=1)),
    ],
)
def test_options_build_a_dataclass(argv, expected):
    parser = argparse.ArgumentParser()
    add_fields(parser, Recipe, n_annotations=1)
    assert read_fields(parser.parse_args(argv), Recipe) == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "auto"),
        (["--data_on_device"], True),
        (["--data_on_device=false"], False),
        (["--data_on_device=Auto"], "auto"),
    ],
)
def test_option_of_three_values(argv, expected):
    parser = argparse.ArgumentParser()
    add_fields(parser, RunSettings, "data_on_device")
    assert parser.parse_args(argv).data_on_device == expected


def test_recipe_round_trips_through_plain_types():
    recipe = Recipe(learning_rate=0.1 + 0.2, n_spixels=CountRange(3, 9))
    assert type(recipe.to_plain()["n_spixels"]) is tuple
    assert Recipe.from_plain(recipe.to_plain()) == recipe


def test_settings_that_an_older_checkpoint_lacks_are_off():
    plain = Recipe().to_plain()
    for name in ("color_jitter", "patch_jitter"):
        del plain[name]
    assert Recipe.from_plain(plain) == Recipe(color_jitter=0, patch_jitter=0)
