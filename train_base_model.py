"""Train the base model, which sees colour and position, on BSDS500."""

import argparse
from collections.abc import Sequence

import torch

from lib import cli
from lib.datasets.bsds import BSDSDataset
from lib.features import InputScales
from lib.training import TrainingState
from lib.training_run import run_training
from model import SSNModel


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--bsds_root", type=cli.existing_dir, required=True, help="folder that holds BSDS500/"
    )
    cli.add_davis_args(parser, default_split="val")
    cli.add_bool(parser, "--eval_on_davis", default=False, help="validate on DAVIS too")
    cli.add_iou_arg(parser)
    cli.add_training_args(parser)
    cli.add_spixel_args(parser, trained=False)
    cli.add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> TrainingState:
    args = cli.parse_training_args(build_parser(), argv)
    device = cli.resolve_device(args.device)
    train_set = BSDSDataset(args.bsds_root, "train")
    validation_sets = {"bsds_val": BSDSDataset(args.bsds_root, "val")}
    if args.eval_on_davis:
        validation_sets["davis"] = cli.open_davis(args.davis2017_root, args.davis_split)

    torch.manual_seed(args.seed)
    cli.log_options(args)
    return run_training(
        SSNModel(args.deepfdim, n_iter=args.niter),
        InputScales(args.color_scale, args.pos_scale),
        cli.read_recipe(args),
        train_set=train_set,
        validation_sets=validation_sets,
        score="bsds_val_asa",
        description={"options": cli.options_as_strings(args)},
        **cli.run_settings(args, device),
    )


if __name__ == "__main__":
    cli.run(main)
