"""Command lines of the scripts: the only place, beside the scripts, that knows the name of an option."""

from lib.cli.options import (
    DEFAULT_BASE_WEIGHTS,
    DEFAULT_COMPOSITE_WEIGHTS,
    REPO_ROOT,
    add_base_weights_arg,
    add_bool,
    add_composite_weights_arg,
    add_davis_args,
    add_davis_split_arg,
    add_device_arg,
    add_optflow_args,
    add_optflow_folder_args,
    add_optflow_method_arg,
    add_spixel_args,
    choose_scales,
    log_options,
    open_davis,
    options_as_strings,
)
from lib.cli.program import Parser, run

__all__ = [
    "DEFAULT_BASE_WEIGHTS",
    "DEFAULT_COMPOSITE_WEIGHTS",
    "REPO_ROOT",
    "Parser",
    "add_base_weights_arg",
    "add_bool",
    "add_composite_weights_arg",
    "add_davis_args",
    "add_davis_split_arg",
    "add_device_arg",
    "add_optflow_args",
    "add_optflow_folder_args",
    "add_optflow_method_arg",
    "add_spixel_args",
    "choose_scales",
    "log_options",
    "open_davis",
    "options_as_strings",
    "run",
]
