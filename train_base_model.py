"""Train the base model, which reads colour and position, on BSDS500 or on your own images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from lib import cli
from lib.cli.training import add_training_args, parse_training_args, resumed_from, train_as_given
from lib.cli.types import existing_dir, positive_int
from lib.datasets.base import hold_out
from lib.datasets.bsds import BSDSDataset
from lib.datasets.folder import FolderDataset
from lib.datasets.synthetic import SyntheticDataset
from lib.files.images import DEFAULT_READER
from lib.network.convolution import PADDING_MODES
from lib.network.inputs import DEFAULT_COLOR_SCALE, InputScales
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.slic.iteration import DISTANCES
from lib.training.narrowing import copy_strongest_channels
from lib.training.recipe import CountRange
from lib.training.trainer import TrainingState
from lib.weights import BASE, NO_NETWORK, LoadedModel, expect, load_model
from model import N_MID_CHANNELS, SSNModel

N_SYNTHETIC_IMAGES = 100
TRAINING_SPLITS = ("train", "val")  # of BSDS500; test is for reporting

# Recipes of the shipped weights; docs/training.md has their cost and their losses.
_SHARED = {"bsds_splits": ["train", "val"], "choose_settings": True, "pos_scale": 10.0, "log_interval": 50}
RECIPES = {
    # 20,800 crops: 3 hours on two cores with AVX2.
    "cpu": {
        **_SHARED,
        "nspix": CountRange(30, 300),
        "batchsize": 4,
        "train_iter": 5200,
        "test_interval": 2600,
    },
    # 256,000 crops: less than 10 minutes on an H100.
    "gpu": {
        **_SHARED,
        "nspix": CountRange(50, 500),
        "crop_size": 256,
        "batchsize": 32,
        "train_iter": 8000,
        "test_interval": 4000,
    },
    # 3,900 crops: half an hour on two cores with AVX2. Starts from channels of its teacher and imitates it.
    "small": {
        **_SHARED,
        "choose_settings": False,  # it keeps its teacher's settings
        "pos_scale": 7.6,
        "n_mid_channels": 32,
        "teacher": cli.DEFAULT_BASE_WEIGHTS,
        "lr": 1.5e-3,
        "warmup_share": 0.05,
        "nspix": CountRange(50, 800),
        "crop_size": 256,
        "batchsize": 3,
        "train_iter": 1300,
        "test_interval": 1300,
    },
}

START_SCALES = InputScales(DEFAULT_COLOR_SCALE, 5.0)  # see docs/training.md; bare weight files imply 10


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    data = parser.add_argument_group("training data; give exactly one")
    data.add_argument("--bsds_root", type=existing_dir, help="folder that contains BSDS500/")
    data.add_argument(
        "--bsds_splits",
        nargs="+",
        choices=TRAINING_SPLITS,
        default=["train"],
        help="splits of BSDS500 to train on: train, which val validates, or train val, of which every tenth "
        "image is held out for validation",
    )
    data.add_argument("--data_root", type=existing_dir, help="folder of your own images with label maps")
    data.add_argument(
        "--val_data_root",
        type=existing_dir,
        help="folder of validation images with label maps; default: every tenth image of --data_root",
    )
    cli.add_shared(data, "ignore_label")
    cli.add_reading_args(data, of="--data_root images")
    cli.add_bool(
        data,
        "--synthetic_data",
        help="repeat one batch of synthetic images, to measure the speed without a data loader",
    )
    cli.add_shared(parser, "davis2017_root")
    cli.add_shared(parser, "davis_split", default="val")
    cli.add_bool(parser, "--eval_on_davis", help="also validate on DAVIS")
    add_training_args(parser, RECIPES, n_annotations=4, trained=False)
    parser.add_argument(
        "--distance",
        choices=DISTANCES,
        default="euclidean",
        help="distance in the clustering; the paper uses squared",
    )
    cli.add_bool(
        parser,
        "--sees_position",
        default=True,
        help="let the network read position in addition to colour, as in the paper",
    )
    parser.add_argument(
        "--padding_mode",
        choices=PADDING_MODES,
        default="zeros",
        help="pixels that convolutions read beyond the border of a crop or image: zeros, as in the paper, or "
        "replicate, which repeats the nearest pixel; stored in the weight file",
    )
    parser.add_argument(
        "--init_weights",
        type=Path,
        metavar="FILE",
        help="weight file of a base model to start from; also the default of --color_scale and --pos_scale. "
        f"Without it: random weights, {START_SCALES.color_scale} and {START_SCALES.pos_scale}",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="weight file of a base model whose learned features the network imitates, in addition to the "
        "loss of the annotations; also the default of --color_scale and --pos_scale",
    )
    parser.add_argument(
        "--n_mid_channels",
        type=positive_int,
        default=N_MID_CHANNELS,
        help="channels of the inner convolutions; the network takes two fifths of the time with 32",
    )
    cli.add_shared(parser, "device")
    return parser


def main(argv: Sequence[str] | None = None) -> TrainingState:
    args = parse_training_args(build_parser(), argv, RECIPES)
    device = resolve_device(args.device)
    train_set, validation_sets = open_data(args)
    if args.eval_on_davis:
        validation_sets["davis"] = cli.open_davis(args)

    torch.manual_seed(args.seed)
    start, teacher = build_model(args)
    scales = cli.choose_scales(start.scales, args)
    args.color_scale, args.pos_scale = scales.color_scale, scales.pos_scale  # stored in checkpoints
    return train_as_given(
        args,
        start.model,
        scales,
        start.merging,
        train_set=train_set,
        validation_sets=validation_sets,
        score=f"{next(iter(validation_sets))}_asa",
        device=device,
        teacher=teacher,
    )


def build_model(args: argparse.Namespace) -> tuple[LoadedModel, SSNModel | None]:
    """Build the model that the options describe, as training starts with it, and load its teacher."""
    model = SSNModel(
        args.deepfdim,
        n_iter=args.val_niter,
        distance=args.distance,
        sees_position=args.sees_position,
        padding_mode=args.padding_mode,
        n_mid_channels=args.n_mid_channels,
    )
    start, teacher = LoadedModel(model, START_SCALES), None
    if args.teacher:
        start = load_base_network(args, "teacher", like=model, shared=("sees_position",))
        teacher = start.model
        if model.n_mid_channels <= teacher.n_mid_channels:
            copy_strongest_channels(model.feature_extract, teacher.feature_extract)
    resume = resumed_from(args)
    if resume:  # which holds the weights, the scales and the settings
        start = start._replace(merging=load_model(resume).merging)
    elif args.init_weights:
        shared = ("distance", "sees_position", "padding_mode", "n_mid_channels")
        start = load_base_network(args, "init_weights", like=model, shared=shared)
        model.load_state_dict(start.model.state_dict())
    return start._replace(model=model), teacher


def load_base_network(
    args: argparse.Namespace, option: str, *, like: SSNModel, shared: Sequence[str]
) -> LoadedModel:
    """Load the base model that an option names; its settings `shared` must be those of the model `like`."""
    path = getattr(args, option)
    if str(path) == NO_NETWORK:
        raise InputError(f"--{option} {NO_NETWORK}: expected a weight file")
    loaded = expect(load_model(path), path, kind=BASE, n_learned_features=args.deepfdim)
    for name in shared:
        ours, theirs = getattr(like, name), getattr(loaded.model, name)
        if ours != theirs:
            raise InputError(f"--{name} {ours} contradicts {theirs} of --{option} {path}")
    return loaded


def open_data(args: argparse.Namespace) -> tuple[Dataset, dict[str, Dataset]]:
    """Open the training set, and the validation sets by name; the first one chooses the best model."""
    sources = [args.bsds_root, args.data_root, args.synthetic_data or None]
    if sum(source is not None for source in sources) != 1:
        raise InputError("give one of --bsds_root, --data_root and --synthetic_data")
    if args.val_data_root and not args.data_root:
        raise InputError("--val_data_root needs --data_root")
    if args.ignore_label is not None and not args.data_root:
        raise InputError("--ignore_label needs --data_root")
    reader = cli.image_reader(args)
    if reader != DEFAULT_READER and not args.data_root:
        raise InputError("--value_range and --bands need --data_root")
    if args.bsds_root:
        return open_bsds(args.bsds_root, args.bsds_splits)
    if args.synthetic_data:
        return SyntheticDataset(N_SYNTHETIC_IMAGES), {"synthetic": SyntheticDataset(1)}
    options = {"ignore_label": args.ignore_label, "reader": reader}
    data = FolderDataset(args.data_root, **options)
    if args.val_data_root:
        return data, {"val": FolderDataset(args.val_data_root, parameter="val_data_root", **options)}
    train_set, val_set = hold_out(data)
    return train_set, {"val": val_set}


def open_bsds(bsds_root: Path, splits: Sequence[str]) -> tuple[BSDSDataset, dict[str, BSDSDataset]]:
    """Open the training set of `splits`, and the images that validate it."""
    if len(set(splits)) < len(splits):
        raise InputError(f"--bsds_splits {' '.join(splits)} names a split twice")
    train_set = BSDSDataset(bsds_root, *splits)
    if "val" not in splits:
        return train_set, {"bsds_val": BSDSDataset(bsds_root, "val")}
    train_set, held_out = hold_out(train_set)
    return train_set, {"bsds_held_out": held_out}


if __name__ == "__main__":
    cli.run(main)
