"""Command lines of the scripts. Only this package and the scripts know the names of options."""

from lib.cli.entry_point import Parser, run
from lib.cli.options import (
    DEFAULT_BASE_WEIGHTS,
    REPO_ROOT,
    add_bool,
    add_optflow_args,
    add_reading_args,
    add_shared,
    add_spixel_args,
    choose_scales,
    image_reader,
    load_base,
    load_composite,
    load_for_use,
    open_davis,
)

__all__ = [
    "DEFAULT_BASE_WEIGHTS",
    "REPO_ROOT",
    "Parser",
    "add_bool",
    "add_optflow_args",
    "add_reading_args",
    "add_shared",
    "add_spixel_args",
    "choose_scales",
    "image_reader",
    "load_base",
    "load_composite",
    "load_for_use",
    "open_davis",
    "run",
]
