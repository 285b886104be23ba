"""Train the composite model on DAVIS 2017: a new network for optical flow on top of a frozen base model."""

import argparse
import logging
from collections.abc import Sequence

import torch

from lib import cli
from lib.cli.training import add_training_args, parse_training_args, resumed_from, train_as_given
from lib.datasets.davis import DAVISDataset, find_frames, read_split
from lib.optflow.archive import find_archives
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.training.recipe import CountRange
from lib.training.trainer import TrainingState
from lib.weights import BASE, COMPOSITE, NO_NETWORK, expect, file_sha256, load_model
from model import N_FLOW_CHANNELS, CompositeSSNModel

# Recipes of the shipped weights; docs/training.md has their cost and their losses.
_SHARED = {"choose_settings": True, "optflow_scale": 1.0, "log_interval": 50}
RECIPES = {
    # 6,000 crops: 40 minutes on two cores with AVX2.
    "cpu": {
        **_SHARED,
        "nspix": CountRange(15, 150),
        "batchsize": 4,
        "train_iter": 1500,
        "test_interval": 1500,
    },
    # 64,000 crops of 256x256, for a GPU.
    "gpu": {
        **_SHARED,
        "nspix": CountRange(25, 250),
        "crop_size": 256,
        "batchsize": 32,
        "train_iter": 2000,
        "test_interval": 1000,
    },
}

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "davis2017_root", help="folder that contains DAVIS/; required")
    cli.add_shared(parser, "davis_optflow_folder", "optflow_method", "base_model_weights", "device")
    parser.add_argument(
        "--davis_train_split",
        default="train",
        help="DAVIS videos to train on: train, val, test, or a text file with one video per line",
    )
    parser.add_argument(
        "--davis_val_split",
        default="val",
        help="DAVIS videos that choose the best model; same values as --davis_train_split",
    )
    add_training_args(parser, RECIPES, n_annotations=1, trained=True)  # DAVIS has one annotation per frame
    cli.add_optflow_args(parser, trained=False)
    return parser


def main(argv: Sequence[str] | None = None) -> TrainingState:
    required = ("davis2017_root", "davis_optflow_folder")  # a resumed run reads them from its checkpoint
    args = parse_training_args(build_parser(), argv, RECIPES, required=required)
    device = resolve_device(args.device)
    splits = {
        "davis_train_split": args.davis_train_split,
        "davis_val_split": args.davis_val_split,
    }
    flow_args = {"optflow_folder": args.davis_optflow_folder, "optflow_method": args.optflow_method}
    # Both splits are checked together, so that one error names all missing videos.
    train_videos, val_videos = (read_split(split, parameter=name) for name, split in splits.items())
    find_frames(
        args.davis2017_root, train_videos + val_videos, named_in=" or ".join(f"--{name}" for name in splits)
    )
    find_archives(args.davis_optflow_folder, train_videos + val_videos, args.optflow_method)
    shared = sorted(set(train_videos) & set(val_videos))
    if shared:
        logger.warning("videos in both --davis_train_split and --davis_val_split: %s", ", ".join(shared))
    train_set, val_set = (
        DAVISDataset(args.davis2017_root, split, parameter=name, **flow_args)
        for name, split in splits.items()
    )

    torch.manual_seed(args.seed)
    if resumed_from(args):
        model, scales, base_sha256, merging = expect(
            load_model(args.resume), args.resume, kind=COMPOSITE, n_extra_channels=N_FLOW_CHANNELS
        )
    else:
        base = expect(
            load_model(args.base_model_weights),
            args.base_model_weights,
            kind=BASE,
            n_learned_features=args.deepfdim,
        )
        if base.kind == NO_NETWORK:
            raise InputError(
                f"--base_model_weights {args.base_model_weights}: the base of a composite needs a network"
            )
        model = CompositeSSNModel.on_top_of(
            base.model, args.optflow_deepfdim, n_extra_channels=N_FLOW_CHANNELS
        )
        scales = cli.choose_scales(base.scales, args)
        merging = base.merging
        base_sha256 = file_sha256(args.base_model_weights)
    return train_as_given(
        args,
        model,
        scales,
        merging,
        train_set=train_set,
        validation_sets={"davis_val": val_set},
        score="davis_val_mean_iou",
        device=device,
        description={"base_sha256": base_sha256},
    )


if __name__ == "__main__":
    cli.run(main)
