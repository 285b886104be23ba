"""Train the base model, which reads colour and position, on BSDS500 or on your own images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from lib import cli
from lib.cli.training import add_training_args, parse_training_args, resumed_from, train_as_given
from lib.cli.types import existing_dir
from lib.datasets.bsds import BSDSDataset
from lib.datasets.folder import FolderDataset, hold_out
from lib.datasets.synthetic import SyntheticDataset
from lib.files.images import DEFAULT_READER
from lib.network.convolution import PADDING_MODES
from lib.network.inputs import DEFAULT_COLOR_SCALE, InputScales
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.slic.iteration import DISTANCES
from lib.superpixels.merge_settings import MergeSettings
from lib.training.trainer import TrainingState
from lib.weights import BASE, NO_NETWORK, expect, load_model
from model import SSNModel

N_SYNTHETIC_IMAGES = 100

START_SCALES = InputScales(DEFAULT_COLOR_SCALE, 5.0)  # see docs/training.md; bare weight files imply 10


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    data = parser.add_argument_group("training data; give exactly one")
    data.add_argument("--bsds_root", type=existing_dir, help="folder that contains BSDS500/")
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
    add_training_args(parser, n_annotations=4, trained=False)
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
    cli.add_shared(parser, "device")
    return parser


def main(argv: Sequence[str] | None = None) -> TrainingState:
    args = parse_training_args(build_parser(), argv)
    device = resolve_device(args.device)
    train_set, validation_sets = open_data(args)
    if args.eval_on_davis:
        validation_sets["davis"] = cli.open_davis(args)

    torch.manual_seed(args.seed)
    model = SSNModel(
        args.deepfdim,
        n_iter=args.val_niter,
        distance=args.distance,
        sees_position=args.sees_position,
        padding_mode=args.padding_mode,
    )
    scales, merging = START_SCALES, MergeSettings()
    resume = resumed_from(args)
    if resume:
        merging = load_model(resume).merging
    elif args.init_weights:
        if str(args.init_weights) == NO_NETWORK:
            raise InputError(f"--init_weights {NO_NETWORK}: expected a weight file to start from")
        start = expect(
            load_model(args.init_weights), args.init_weights, kind=BASE, n_learned_features=args.deepfdim
        )
        for name in ("distance", "sees_position", "padding_mode"):
            ours, theirs = getattr(model, name), getattr(start.model, name)
            if ours != theirs:
                raise InputError(
                    f"--{name} {ours} contradicts {theirs} of --init_weights {args.init_weights}"
                )
        model.load_state_dict(start.model.state_dict())
        scales, merging = start.scales, start.merging
    scales = cli.choose_scales(scales, args)
    args.color_scale, args.pos_scale = scales.color_scale, scales.pos_scale  # stored in checkpoints
    return train_as_given(
        args,
        model,
        scales,
        merging,
        train_set=train_set,
        validation_sets=validation_sets,
        score=f"{next(iter(validation_sets))}_asa",
        device=device,
    )


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
        return BSDSDataset(args.bsds_root, "train"), {"bsds_val": BSDSDataset(args.bsds_root, "val")}
    if args.synthetic_data:
        return SyntheticDataset(N_SYNTHETIC_IMAGES), {"synthetic": SyntheticDataset(1)}
    options = {"ignore_label": args.ignore_label, "reader": reader}
    data = FolderDataset(args.data_root, **options)
    if args.val_data_root:
        return data, {"val": FolderDataset(args.val_data_root, parameter="val_data_root", **options)}
    train_set, val_set = hold_out(data)
    return train_set, {"val": val_set}


if __name__ == "__main__":
    cli.run(main)
