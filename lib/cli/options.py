"""Define the options that several scripts share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lib import weights
from lib.cli.dataclass_options import option_name
from lib.cli.types import BOOL, existing_dir, non_negative_float, number, positive_float, positive_int
from lib.datasets.davis import DAVISDataset
from lib.files.images import ImageReader
from lib.inference import Segmenter
from lib.network.inputs import DEFAULT_COLOR_SCALE, DEFAULT_OPTFLOW_SCALE, DEFAULT_POS_SCALE, InputScales
from lib.runtime.device import resolve_precision
from lib.runtime.errors import InputError
from lib.superpixels.merge_settings import MergeSettings
from model import N_FLOW_CHANNELS

REPO_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_BASE_WEIGHTS = weights.shipped_weights(weights.BASE)
DEFAULT_COMPOSITE_WEIGHTS = weights.shipped_weights(weights.COMPOSITE)

_SHARED = {
    "base_model_weights": {
        "default": DEFAULT_BASE_WEIGHTS,
        "metavar": "FILE",
        "help": "weight file of the base model; 'none' clusters colour and position without a network",
    },
    "comp_model_weights": {
        "default": DEFAULT_COMPOSITE_WEIGHTS,
        "metavar": "FILE",
        "help": "weight file of the composite model",
    },
    "ignore_label": {
        "type": number(int),
        "metavar": "LABEL",
        "help": "label in the maps of --data_root that is void, neither scored nor trained on, such as 255; "
        "default: none",
    },
    "davis2017_root": {"type": existing_dir, "help": "folder that contains DAVIS/"},
    "davis_split": {
        "help": "DAVIS videos to score: train, val, test, or a text file with one video per line"
    },
    "davis_optflow_folder": {
        "type": existing_dir,
        "help": "folder of optflow_<method>_<video>.h5 files from estimate_optflow.py",
    },
    "optflow_method": {
        "help": "flow method to use, if the folder holds archives of several methods: dis, gma, ..."
    },
    "device": {"default": "auto", "help": "auto, cpu or cuda[:N]; auto uses CUDA if it is available"},
}


class _AppendUnique(argparse.Action):
    """Collect the values of an option in a list without duplicates; a repeated option appends."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        earlier = getattr(namespace, self.dest)
        if earlier is not None and earlier is not self.default:
            values = [*earlier, *values]
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


SEVERAL = {"nargs": "+", "action": _AppendUnique}  # arguments of an option with several values


def add_shared(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add options of the table above; `changes`, such as `default`, replace arguments of them all."""
    for name in names:
        parser.add_argument(f"--{name}", **{**_SHARED[name], **changes})


def add_bool(
    group: argparse._ActionsContainer, name: str, *, default: bool | None = False, help: str
) -> None:
    """Add a boolean option: the bare flag means True; it also takes True or False."""
    group.add_argument(name, default=default, help=help, **BOOL)


def add_reading_args(group: argparse._ActionsContainer, *, of: str = "images") -> None:
    """Add the options of reading images; `of` says in words which images these are."""
    group.add_argument(
        "--value_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help=f"values of {of} of more than 8 bits that become black and white; values beyond are clipped. "
        "Floats need it; default for integers: 0 to the largest number of the fewest bits, of 8, 10, 12, 14 "
        "and 16, that hold the values of an image",
    )
    group.add_argument(
        "--bands",
        type=positive_int,
        nargs="+",
        metavar="BAND",
        help=f"bands of {of} to read, from 1: red, green and blue, such as 4 3 2, or one of grey; opacity is "
        "ignored then. Images of more bands, such as satellite images, need it",
    )


def image_reader(args: argparse.Namespace) -> ImageReader:
    """Return the settings of reading that the options of `add_reading_args` describe."""
    value_range, bands = (values and tuple(values) for values in (args.value_range, args.bands))
    return ImageReader(value_range, bands)


def add_spixel_args(parser: argparse.ArgumentParser, *, swept: bool = False) -> None:
    """Add the options of a trained model's superpixels; unset ones are read from its weight file.

    With `swept`, `--nspix` and `--pos_scale` accept several values. Otherwise `--levels` is added too.
    """
    group = parser.add_argument_group("superpixels")
    counts = group.add_mutually_exclusive_group()
    counts.add_argument(
        "--nspix",
        type=positive_int,
        default=[200] if swept else 200,
        help="requested number of superpixels"
        + (", one or several" if swept else "")
        + "; training also accepts a range",
        **(SEVERAL if swept else {}),
    )
    if not swept:
        counts.add_argument(
            "--levels",
            type=positive_int,
            nargs="+",
            action="extend",
            metavar="N",
            help="numbers of superpixels of nested levels, in place of --nspix; a superpixel lies in one of "
            "the next coarser level. --out shows the borders of all levels, and --save_labels writes all; "
            "--save_features, --save_outlines, --save_annotations and --overlay mean_colors use the finest",
        )
    group.add_argument(
        "--niter",
        type=positive_int,
        help="clustering iterations; default: --val_niter of the training, from the weight file, else "
        f"{weights.DEFAULT_N_ITER}",
    )
    group.add_argument(
        "--pos_scale_dist",
        type=positive_float,
        default=1.0,
        help="factor of the position in the distances only, on top of --pos_scale; higher is more compact",
    )
    add_merge_args(group, default="by --nspix, from the weights")
    add_feature_args(group, trained=True, swept=swept)


def add_merge_args(group: argparse._ActionsContainer, *, default: str) -> None:
    """Add the options of merged superpixels; `default` says in words where unset ones come from."""
    group.add_argument(
        "--fine_factor",
        type=number(float, low=1),
        help="superpixels to segment for each requested one; neighbours are then merged to exactly the "
        "requested number. 1 merges nothing, as in the paper, and gives about that number; default: "
        f"{default}",
    )
    group.add_argument(
        "--merge_pos_scale",
        type=non_negative_float,
        help=f"factor of the position in the merges; higher is more compact; default: {default}",
    )


def add_feature_args(group: argparse._ActionsContainer, *, trained: bool, swept: bool = False) -> None:
    """Add the options of the clustered features; `--color_scale` and `--pos_scale` default to None.

    With `trained`, unset options are read from a weight file. `swept` as in `add_spixel_args`.
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
        default=None if trained else weights.DEFAULT_N_LEARNED_FEATURES,
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
        default=None if trained else weights.DEFAULT_N_EXTRA_FEATURES,
        help="learned flow features per pixel" + ("; default: from the weight file" if trained else ""),
    )


def open_davis(args: argparse.Namespace, *, max_frames: int | None = None) -> DAVISDataset:
    """Open the DAVIS videos that the options choose; without `--davis2017_root`, raise `InputError`.

    `max_frames` is the number of frames of each video; default: all.
    """
    if args.davis2017_root is None:
        raise InputError("--eval_on_davis needs --davis2017_root")
    return DAVISDataset(args.davis2017_root, args.davis_split, max_frames=max_frames)


def load_for_use(path: Path | str, *, n_iter: int | None, **expected: Any) -> weights.LoadedModel:
    """Load a weight file, check it with `lib.weights.expect`, and set the iterations if given."""
    loaded = weights.expect(weights.load_model(path), path, **expected)
    if n_iter is not None:
        loaded.model.n_iter = n_iter
    return loaded


def load_base(args: argparse.Namespace) -> weights.LoadedModel:
    """Load the base model that the options describe."""
    return load_for_use(
        args.base_model_weights, n_iter=args.niter, kind=weights.BASE, n_learned_features=args.deepfdim
    )


def load_composite(args: argparse.Namespace) -> weights.LoadedModel:
    """Load the composite model that the options describe."""
    return load_for_use(
        args.comp_model_weights,
        n_iter=args.niter,
        kind=weights.COMPOSITE,
        n_learned_features=args.deepfdim,
        n_extra_features=args.optflow_deepfdim,
        n_extra_channels=N_FLOW_CHANNELS,
    )


def open_segmenter(
    args: argparse.Namespace,
    loaded: weights.LoadedModel,
    device: torch.device,
    scale_names: Sequence[str] = InputScales._fields,
    **options: Any,
) -> Segmenter:
    """Return the segmenter of a loaded model with the options of its superpixels; see `choose_scales`."""
    return Segmenter(
        loaded.model,
        choose_scales(loaded.scales, args, scale_names),
        device=device,
        with_bfloat16=resolve_precision(args.precision, device) == "bf16",
        pos_scale_dist=args.pos_scale_dist,
        fine_factor=args.fine_factor,
        merge_pos_scale=args.merge_pos_scale,
        merging=loaded.merging,
        **options,
    )


def choose_scales(
    trained: InputScales, args: argparse.Namespace, names: Sequence[str] = InputScales._fields
) -> InputScales:
    """Return the input scales: `names` from the command line if given, the others from training."""
    given = {name: getattr(args, option_name(name), None) for name in names}
    return trained._replace(**{name: value for name, value in given.items() if value is not None})


def choose_merging(trained: MergeSettings, args: argparse.Namespace) -> MergeSettings:
    """Return the settings of the merges: from the command line, for any number, the others from training."""
    given = {name: getattr(args, name) for name in MergeSettings._fields}
    return trained._replace(**{name: {1: value} for name, value in given.items() if value is not None})


def options_as_strings(args: argparse.Namespace) -> dict[str, str]:
    """Return the options of a run as strings, for a checkpoint; unset options are left out."""
    return {name: str(value) for name, value in sorted(vars(args).items()) if value is not None}
