"""Options of the training scripts; a resumed run takes the options of its checkpoint."""

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lib.cli.dataclass_options import add_fields, option_name, read_fields
from lib.cli.options import add_feature_args, add_merge_args, choose_merging, options_as_strings
from lib.cli.types import positive_int
from lib.files.folder_lock import own_folder
from lib.files.values import TEXTS_BY_NAME, check_value
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError
from lib.runtime.ranks import on_first_rank
from lib.superpixels.merge_settings import MergeSettings
from lib.training.recipe import Recipe, RunSettings, check_resumed
from lib.training.run import run_training
from lib.training.run_folder import find_resumable
from lib.training.trainer import TrainingState
from lib.weights import read_checkpoint

logger = logging.getLogger(__name__)

# Options that may change when a run is resumed, because they affect neither the score nor a training step.
# Exceptions: a new train_iter changes the learning rate, which continues on the curve of the new length.
# data_on_device resizes colours in CIELAB instead of RGB.
_FREE_ON_RESUME = {
    "choose_settings",
    "compile",
    "data_on_device",
    "davis2017_root",
    "davis_optflow_folder",
    "davis_split",
    "device",
    "eval_on_davis",
    "keep",
    "log_interval",
    "nworkers",
    "resume",
    "save_interval",
    "test_interval",
    "train_iter",
}

# Folders that may have moved when a run is resumed. An unset option must stay unset, and a set one set.
_MOVABLE = {"bsds_root", "data_root", "teacher", "val_data_root"}

_SEVERAL_VALUES = {"bands", "bsds_splits", "value_range"}  # options whose value is a list

AUTO = "auto"  # value of --resume: find the last checkpoint

_NOT_GIVEN = object()


NamedRecipes = Mapping[str, Mapping[str, Any]]  # values of options, by the name of the recipe


def add_training_args(
    parser: argparse.ArgumentParser, recipes: NamedRecipes, *, n_annotations: int, trained: bool
) -> None:
    """Add the options of a training run.

    With `trained`, unset options of the base model are read from its weight file.
    """
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=recipes,
        help="values of options that train the shipped weights, see docs/training.md; options that are given "
        "too replace them",
    )
    add_fields(group, Recipe, n_annotations=n_annotations)
    add_fields(group, RunSettings)
    group.add_argument(
        "--resume",
        metavar="FILE|auto",
        help="checkpoint of a run to continue; it supplies the options that are not given. auto uses the "
        "last checkpoint in --out_dir, or starts a new run if none exists. In evaluation, --resume is a flag",
    )
    group = parser.add_argument_group("superpixels")
    if not trained:
        group.add_argument(
            "--val_niter",
            type=positive_int,
            default=7,  # see docs/training.md
            help="clustering iterations in validation; the weight file stores them as default for inference",
        )
    start = "from --base_model_weights" if trained else "from --init_weights or built in"
    add_merge_args(group, default=f"by --val_nspix, {start}. For validation, and stored in the weight file")
    add_feature_args(group, trained=trained)


def parse_training_args(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    recipes: NamedRecipes,
    *,
    required: Sequence[str] = (),
) -> argparse.Namespace:
    """Parse the options of a training script; unset options come from the recipe or the resumed checkpoint.

    A resumed run continues in the folder of its checkpoint, even if that folder was moved.

    Raises
    ------
    InputError
        If an option contradicts the checkpoint.
    """
    defaults = vars(parser.parse_args([]))
    given = _parse(parser, argv, defaults)
    if given.get("resume") == AUTO:
        folder = given.get("out_dir", defaults["out_dir"])
        given["resume"] = on_first_rank(lambda: find_resumable(folder)) or AUTO
    args = argparse.Namespace(**{**defaults, **recipes.get(given.get("recipe"), {}), **given})
    resume = resumed_from(args)
    if resume:
        stored = _read_options(parser, resume, defaults, given)
        ours = {name: value for name, value in given.items() if name not in _FREE_ON_RESUME}
        check_resumed(_resolved(ours), _resolved({**defaults, **stored}), resume)
        args = argparse.Namespace(**{**defaults, **stored, **given})
    missing = [f"--{name}" for name in required if getattr(args, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return args


def resumed_from(args: argparse.Namespace) -> Path | None:
    """Return the checkpoint that the run continues from; None for a new run."""
    return None if args.resume in (None, AUTO) else Path(args.resume)


def train_as_given(
    args: argparse.Namespace,
    model: nn.Module,
    scales: InputScales,
    merging: MergeSettings,
    *,
    description: Mapping[str, Any] | None = None,
    **data: Any,
) -> TrainingState:
    """Log the options and run the training that they describe.

    Options replace `merging`, which comes from the weights that training starts from. `data` are arguments of
    `run_training`.
    """
    options = options_as_strings(args)
    logger.info("options: %s", " ".join(f"{name}={value}" for name, value in options.items()))
    with own_folder(args.out_dir):
        return run_training(
            model,
            scales,
            read_fields(args, Recipe),
            read_fields(args, RunSettings, with_loader=not getattr(args, "synthetic_data", False)),
            merging=choose_merging(merging, args),
            description={**(description or {}), "options": options},
            resume=resumed_from(args),
            overwrite=args.resume == AUTO,
            **data,
        )


def _parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, defaults: dict[str, Any]
) -> dict[str, Any]:
    """Return the options given in `argv`, without defaults."""
    not_given = argparse.Namespace(**dict.fromkeys(defaults, _NOT_GIVEN))
    args = parser.parse_args(argv, not_given)
    return {name: value for name, value in vars(args).items() if value is not _NOT_GIVEN}


def _read_options(
    parser: argparse.ArgumentParser, path: Path, defaults: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Return the options stored in a checkpoint, updated with given options that may change."""
    checkpoint = read_checkpoint(path)
    if "last_weights" not in checkpoint or "options" not in checkpoint:
        raise InputError(
            f"{path} holds weights only, not a training run; use a last_model.pth", parameter="resume"
        )
    check_value(f"{path}: options", checkpoint["options"], TEXTS_BY_NAME)
    options = {**checkpoint["options"], "out_dir": path.parent}
    options |= {name: given[name] for name in given.keys() & options.keys() & (_FREE_ON_RESUME | _MOVABLE)}
    unknown = sorted(options.keys() - defaults.keys())
    if unknown:
        found = f"--{unknown[0]}={options[unknown[0]]}"
        raise InputError(f"{path} is from another model or version: it has {found}", parameter="resume")
    arguments = [argument for name, value in options.items() for argument in _as_arguments(name, str(value))]
    parser.origin = f"{path}: "
    stored = _parse(parser, arguments, defaults)
    parser.origin = ""
    if "recipe" in checkpoint:  # older checkpoints hold these values in their options
        recipe = vars(Recipe.from_plain(checkpoint["recipe"], f"{path}: recipe"))
        stored |= {option_name(name): value for name, value in recipe.items()}
    return stored


def _as_arguments(name: str, value: str) -> list[str]:
    """Return the command line of an option that was stored as a string."""
    if name in _SEVERAL_VALUES:
        return [f"--{name}", *re.findall(r"[^\[\]', ]+", value)]
    return [f"--{name}={value}"]


def _resolved(options: dict[str, Any]) -> dict[str, Any]:
    """Return options that can be compared: absolute paths, no unset options."""
    return {
        name: value.resolve() if isinstance(value, Path) else value
        for name, value in options.items()
        if value is not None
    }
