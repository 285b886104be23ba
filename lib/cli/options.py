"""Options that several scripts share."""

import argparse
import logging
from pathlib import Path

from lib.cli.types import existing_dir, non_negative_float, parse_bool, positive_float, positive_int
from lib.datasets.davis import DAVISDataset
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError
from lib.weights import (
    DEFAULT_COLOR_SCALE,
    DEFAULT_N_EXTRA_FEATURES,
    DEFAULT_N_ITER,
    DEFAULT_N_LEARNED_FEATURES,
    DEFAULT_OPTFLOW_SCALE,
    DEFAULT_POS_SCALE,
    LoadedModel,
    expect,
    load_model,
)

logger = logging.getLogger(__name__)

REPO_ROOT = Path(__file__).resolve().parents[2]


DEFAULT_BASE_WEIGHTS = REPO_ROOT / "trained_models" / "best_model.pth"


DEFAULT_COMPOSITE_WEIGHTS = REPO_ROOT / "trained_models" / "best_composite_model.pth"


class _Distinct(argparse.Action):
    """Keeps a list of values, each once; a repeated option adds to them."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        earlier = getattr(namespace, self.dest)
        if earlier is not None and earlier is not self.default:
            values = [*earlier, *values]
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


SEVERAL = {"nargs": "+", "action": _Distinct}  # of an option that takes several values


def add_bool(group: argparse._ActionsContainer, name: str, *, default: bool | None, help: str) -> None:
    """Add a flag that works alone and with an explicit True or False."""
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
        "--device", default="auto", help="auto, cpu or cuda[:N]; auto takes CUDA where there is one"
    )


def add_spixel_args(parser: argparse.ArgumentParser, *, swept: bool = False) -> None:
    """Add the options of a trained model's superpixels; what is left out is up to its weight file.

    With `swept`, `--nspix` and `--pos_scale` take several values.
    """
    group = parser.add_argument_group("superpixels")
    group.add_argument(
        "--nspix",
        type=positive_int,
        default=[200] if swept else 200,
        help="requested number of superpixels"
        + (", one or several" if swept else "")
        + "; training takes a range too",
        **(SEVERAL if swept else {}),
    )
    group.add_argument(
        "--niter",
        type=positive_int,
        help="iterations of the clustering, as training sets them with --val_niter; default: what the weight "
        f"file says, else {DEFAULT_N_ITER}",
    )
    group.add_argument(
        "--pos_scale_dist",
        type=positive_float,
        default=1.0,
        help="factor of the position in the distances alone, beside --pos_scale; higher is more compact",
    )
    add_feature_args(group, trained=True, swept=swept)


def add_feature_args(group: argparse._ActionsContainer, *, trained: bool, swept: bool = False) -> None:
    """Add the options of the features that are clustered; the defaults of the weights are None.

    With `trained`, what is left out is up to a weight file. With `swept`, `--pos_scale` takes several values.
    """
    otherwise = "; default: what the weight file says, else {}" if trained else ""
    group.add_argument(
        "--color_scale",
        type=non_negative_float,
        help="weight of the Lab colour" + otherwise.format(DEFAULT_COLOR_SCALE),
    )
    group.add_argument(
        "--pos_scale",
        type=non_negative_float,
        help="weight of the position; higher is more compact"
        + (", one or several" if swept else "")
        + otherwise.format(DEFAULT_POS_SCALE),
        **(SEVERAL if swept else {}),
    )
    group.add_argument(
        "--deepfdim",
        type=positive_int,
        default=None if trained else DEFAULT_N_LEARNED_FEATURES,
        help="learned features per pixel" + ("; default: what the weight file says" if trained else ""),
    )


def add_optflow_args(parser: argparse.ArgumentParser, *, trained: bool) -> None:
    """Add the options of the composite model's second network; `trained` as for `add_feature_args`."""
    otherwise = f"; default: what the weight file says, else {DEFAULT_OPTFLOW_SCALE}" if trained else ""
    group = parser.add_argument_group("optical flow")
    group.add_argument(
        "--optflow_scale",
        type=non_negative_float,
        default=None if trained else DEFAULT_OPTFLOW_SCALE,
        help="weight of the optical flow, per pixel of motion" + otherwise,
    )
    group.add_argument(
        "--optflow_deepfdim",
        type=positive_int,
        default=None if trained else DEFAULT_N_EXTRA_FEATURES,
        help="learned features of the flow per pixel"
        + ("; default: what the weight file says" if trained else ""),
    )


def add_optflow_folder_args(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that name the flow archives of DAVIS videos."""
    parser.add_argument(
        "--davis_optflow_folder",
        type=existing_dir,
        required=required,
        help="folder of optflow_<method>_<video>.h5, as estimate_optflow.py makes them",
    )
    add_optflow_method_arg(parser)


def add_optflow_method_arg(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses among archives of one video."""
    parser.add_argument(
        "--optflow_method",
        help="whose flow to take, if the folder holds that of several methods: dis, gma, ...",
    )


def add_davis_args(parser: argparse.ArgumentParser, *, default_split: str) -> None:
    """Add the options that name DAVIS videos."""
    parser.add_argument("--davis2017_root", type=existing_dir, help="folder that holds DAVIS/")
    add_davis_split_arg(parser, default_split=default_split)


def add_davis_split_arg(parser: argparse.ArgumentParser, *, default_split: str) -> None:
    """Add `--davis_split`."""
    parser.add_argument(
        "--davis_split",
        default=default_split,
        help="DAVIS videos to score: train, val, test, or a text file with one video a line",
    )


def open_davis(root: Path | None, split: str) -> DAVISDataset:
    """Open the DAVIS videos that the options name.

    Raises
    ------
    InputError
        If `--davis2017_root` was left out, or the data set cannot be opened.
    """
    if root is None:
        raise InputError("--eval_on_davis needs --davis2017_root")
    return DAVISDataset(root, split)


def add_base_weights_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--base_model_weights`, by default the weights that come with the repo."""
    parser.add_argument(
        "--base_model_weights",
        default=DEFAULT_BASE_WEIGHTS,
        metavar="FILE",
        help="weights of the base model; 'none' clusters colour and position without a network",
    )


def add_composite_weights_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--comp_model_weights`, by default the weights that come with the repo."""
    parser.add_argument(
        "--comp_model_weights",
        default=DEFAULT_COMPOSITE_WEIGHTS,
        metavar="FILE",
        help="weights of the composite model",
    )


def load_for_use(path: Path | str, *, n_iter: int | None, **expected: int | str | None) -> LoadedModel:
    """Load a weight file, check what `lib.weights.expect` checks, and set the iterations if given."""
    loaded = expect(load_model(path), path, **expected)
    if n_iter is not None:
        loaded.model.n_iter = n_iter
    return loaded


def choose_scales(trained: InputScales, **given: float | None) -> InputScales:
    """Input scales to use: those given on the command line, else those the model was trained with."""
    return trained._replace(**{name: value for name, value in given.items() if value is not None})


def options_as_strings(args: argparse.Namespace) -> dict[str, str]:
    """Options of a run, as a checkpoint keeps them; unset ones are left out."""
    return {name: str(value) for name, value in sorted(vars(args).items()) if value is not None}


def log_options(args: argparse.Namespace) -> None:
    """Tell with which options a script runs."""
    logger.info(
        "options: %s", " ".join(f"{name}={value}" for name, value in options_as_strings(args).items())
    )
