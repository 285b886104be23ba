"""Define the options that several scripts share."""

import argparse
import logging
from pathlib import Path

from lib.cli.types import existing_dir, non_negative_float, parse_bool, positive_float, positive_int
from lib.datasets.davis import DAVISDataset
from lib.network.inputs import (
    DEFAULT_COLOR_SCALE,
    DEFAULT_OPTFLOW_SCALE,
    DEFAULT_POS_SCALE,
    InputScales,
)
from lib.runtime.errors import InputError
from lib.weights import (
    DEFAULT_N_EXTRA_FEATURES,
    DEFAULT_N_ITER,
    DEFAULT_N_LEARNED_FEATURES,
    LoadedModel,
    expect,
    load_model,
)

logger = logging.getLogger(__name__)

REPO_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_BASE_WEIGHTS = REPO_ROOT / "trained_models" / "best_model.pth"
DEFAULT_COMPOSITE_WEIGHTS = REPO_ROOT / "trained_models" / "best_composite_model.pth"


class _AppendUnique(argparse.Action):
    """Collect the values of an option in a list without duplicates; a repeated option appends."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        earlier = getattr(namespace, self.dest)
        if earlier is not None and earlier is not self.default:
            values = [*earlier, *values]
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


SEVERAL = {"nargs": "+", "action": _AppendUnique}  # arguments of an option with several values


def add_bool(group: argparse._ActionsContainer, name: str, *, default: bool | None, help: str) -> None:
    """Add a boolean option: the bare flag means True; it also takes True or False."""
    group.add_argument(
        name,
        type=parse_bool,
        nargs="?",
        const=True,
        default=default,
        metavar="True|False",
        help=help,
    )


def add_device_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--device`; `resolve_device` reads it."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu or cuda[:N]; auto uses CUDA if it is available"
    )


def add_spixel_args(parser: argparse.ArgumentParser, *, swept: bool = False) -> None:
    """Add the options of a trained model's superpixels; unset ones are read from its weight file.

    With `swept`, `--nspix` and `--pos_scale` accept several values.
    """
    group = parser.add_argument_group("superpixels")
    group.add_argument(
        "--nspix",
        type=positive_int,
        default=[200] if swept else 200,
        help="requested number of superpixels"
        + (", one or several" if swept else "")
        + "; training also accepts a range",
        **(SEVERAL if swept else {}),
    )
    group.add_argument(
        "--niter",
        type=positive_int,
        help="clustering iterations; default: --val_niter of the training, from the weight file, else "
        f"{DEFAULT_N_ITER}",
    )
    group.add_argument(
        "--pos_scale_dist",
        type=positive_float,
        default=1.0,
        help="factor of the position in the distances only, on top of --pos_scale; higher is more compact",
    )
    add_feature_args(group, trained=True, swept=swept)


def add_feature_args(group: argparse._ActionsContainer, *, trained: bool, swept: bool = False) -> None:
    """Add the options of the clustered features; `--color_scale` and `--pos_scale` default to None.

    With `trained`, unset options are read from a weight file. With `swept`, `--pos_scale` accepts several
    values.
    """
    default = "; default: from the weight file, else {}" if trained else ""
    group.add_argument(
        "--color_scale",
        type=non_negative_float,
        help="weight of the Lab colour in the clustering" + default.format(DEFAULT_COLOR_SCALE),
    )
    group.add_argument(
        "--pos_scale",
        type=non_negative_float,
        help="weight of the position in the clustering; higher is more compact"
        + (", one or several" if swept else "")
        + default.format(DEFAULT_POS_SCALE),
        **(SEVERAL if swept else {}),
    )
    group.add_argument(
        "--deepfdim",
        type=positive_int,
        default=None if trained else DEFAULT_N_LEARNED_FEATURES,
        help="learned features per pixel" + ("; default: from the weight file" if trained else ""),
    )


def add_optflow_args(parser: argparse.ArgumentParser, *, trained: bool) -> None:
    """Add the options of the composite model's flow network; `trained` as in `add_feature_args`."""
    default = f"; default: from the weight file, else {DEFAULT_OPTFLOW_SCALE}" if trained else ""
    group = parser.add_argument_group("optical flow")
    group.add_argument(
        "--optflow_scale",
        type=non_negative_float,
        default=None if trained else DEFAULT_OPTFLOW_SCALE,
        help="weight of the optical flow in the clustering, per pixel of motion" + default,
    )
    group.add_argument(
        "--optflow_deepfdim",
        type=positive_int,
        default=None if trained else DEFAULT_N_EXTRA_FEATURES,
        help="learned flow features per pixel" + ("; default: from the weight file" if trained else ""),
    )


def add_optflow_folder_args(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that choose the flow archives of DAVIS videos."""
    parser.add_argument(
        "--davis_optflow_folder",
        type=existing_dir,
        required=required,
        help="folder of optflow_<method>_<video>.h5 files from estimate_optflow.py",
    )
    add_optflow_method_arg(parser)


def add_optflow_method_arg(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses among the flow archives of one video."""
    parser.add_argument(
        "--optflow_method",
        help="flow method to use, if the folder holds archives of several methods: dis, gma, ...",
    )


def add_davis_args(parser: argparse.ArgumentParser, *, default_split: str) -> None:
    """Add the options that choose DAVIS videos."""
    parser.add_argument("--davis2017_root", type=existing_dir, help="folder that contains DAVIS/")
    add_davis_split_arg(parser, default_split=default_split)


def add_davis_split_arg(parser: argparse.ArgumentParser, *, default_split: str) -> None:
    """Add `--davis_split`."""
    parser.add_argument(
        "--davis_split",
        default=default_split,
        help="DAVIS videos to score: train, val, test, or a text file with one video per line",
    )


def open_davis(root: Path | None, split: str) -> DAVISDataset:
    """Open the DAVIS videos that the options choose.

    Raises
    ------
    InputError
        If `--davis2017_root` is missing, or the dataset cannot be opened.
    """
    if root is None:
        raise InputError("--eval_on_davis needs --davis2017_root")
    return DAVISDataset(root, split)


def add_base_weights_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--base_model_weights`; the default is the published weight file."""
    parser.add_argument(
        "--base_model_weights",
        default=DEFAULT_BASE_WEIGHTS,
        metavar="FILE",
        help="weight file of the base model; 'none' clusters colour and position without a network",
    )


def add_composite_weights_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--comp_model_weights`; the default is the published weight file."""
    parser.add_argument(
        "--comp_model_weights",
        default=DEFAULT_COMPOSITE_WEIGHTS,
        metavar="FILE",
        help="weight file of the composite model",
    )


def load_for_use(path: Path | str, *, n_iter: int | None, **expected: int | str | None) -> LoadedModel:
    """Load a weight file, check it with `lib.weights.expect`, and set the iterations if given."""
    loaded = expect(load_model(path), path, **expected)
    if n_iter is not None:
        loaded.model.n_iter = n_iter
    return loaded


def choose_scales(trained: InputScales, **given: float | None) -> InputScales:
    """Return the input scales: from the command line if given, else from training."""
    return trained._replace(**{name: value for name, value in given.items() if value is not None})


def options_as_strings(args: argparse.Namespace) -> dict[str, str]:
    """Return the options of a run as strings, for a checkpoint; unset options are left out."""
    return {name: str(value) for name, value in sorted(vars(args).items()) if value is not None}


def log_options(args: argparse.Namespace) -> None:
    """Log the options of a script."""
    logger.info(
        "options: %s", " ".join(f"{name}={value}" for name, value in options_as_strings(args).items())
    )
