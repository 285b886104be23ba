"""Build options from dataclass fields; hold the table from parameter names to option names."""

import argparse
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from lib.cli.types import AUTO_BOOL, BOOL, count_range, number
from lib.datasets.resident import AutoBool
from lib.training.recipe import CountRange

Settings = TypeVar("Settings")

# Option names without dashes, for parameters whose option is named differently.
_OPTIONS = {
    "annotations": "save_annotations",
    "batch_size": "batchsize",
    "compiled": "compile",
    "exact": "exact_nspix",
    "extra_scale": "optflow_scale",
    "features": "save_features",
    "flow": "save_flow",
    "frame_idx": "optflow_data_fr_idx",
    "images": "image",
    "ignore_background": "eval_iou_ignore_background",
    "labels": "save_labels",
    "lifetimes": "save_lifetimes",
    "learning_rate": "lr",
    "n_annotations": "nannotations",
    "n_extra_features": "optflow_deepfdim",
    "n_iter": "niter",
    "n_kept": "keep",
    "n_learned_features": "deepfdim",
    "n_spixels": "nspix",
    "n_steps": "train_iter",
    "n_workers": "nworkers",
    "outlines": "save_outlines",
    "overlay": "out",
    "val_n_spixels": "val_nspix",
}

_TYPES = {
    bool: BOOL,
    AutoBool: AUTO_BOOL,
    CountRange: {"type": count_range, "metavar": "N|LOW-HIGH"},
    Path: {"type": Path},
    str: {},
}


def option_name(parameter: str) -> str:
    """Return the option name of a parameter, without dashes."""
    return _OPTIONS.get(parameter, parameter)


def with_options(message: str) -> str:
    """Replace parameters in backquotes by their options."""
    return re.sub(r"`([a-z]\w*)`", lambda match: f"--{option_name(match[1])}", message)


def add_fields(group: argparse._ActionsContainer, cls: type, *names: str, **defaults: Any) -> None:
    """Add an option for each dataclass field with a help text, or for the fields `names` only.

    The metadata of a field holds "help", and "choices" or the limits of `number`. `defaults` replace the
    defaults of fields.
    """
    for field in fields(cls):
        limits = dict(field.metadata)
        text = limits.pop("help", None)
        if text is None or (names and field.name not in names):
            continue
        if "choices" in limits:
            kind = limits
        else:
            kind = _TYPES.get(field.type) or {"type": number(field.type, **limits)}
        default = defaults.get(field.name, field.default)
        assert default is not MISSING, field.name
        option = f"--{option_name(field.name)}"
        group.add_argument(option, default=default, help=with_options(text), **kind)


def read_fields(args: argparse.Namespace, cls: type[Settings], **others: Any) -> Settings:
    """Build a dataclass from the options of `add_fields` and values for its other fields."""
    given = {
        field.name: getattr(args, option_name(field.name))
        for field in fields(cls)
        if "help" in field.metadata
    }
    return cls(**given, **others)
