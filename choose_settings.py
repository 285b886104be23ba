"""Choose the position scale, iterations and merges of a weight file on validation images, and store them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib import cli
from lib.cli.types import existing_dir
from lib.datasets.base import FileDataset
from lib.datasets.bsds import BSDSDataset
from lib.datasets.davis import DAVISDataset
from lib.datasets.folder import FolderDataset
from lib.evaluation.settings_choice import ChosenSettings, choose_and_store
from lib.files.atomic import check_output_file
from lib.inference import Segmenter
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.weights import COMPOSITE, NO_NETWORK, LoadedModel, load_model


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="weight file of a base or composite model; its settings are where the search starts",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="weight file to write; default: replace --weights"
    )
    data = parser.add_argument_group("validation images; give exactly one, with images that did not train")
    data.add_argument("--bsds_root", type=existing_dir, help="folder that contains BSDS500/; val is used")
    data.add_argument("--data_root", type=existing_dir, help="folder of your own images with label maps")
    cli.add_shared(data, "davis2017_root")
    cli.add_shared(parser, "davis_optflow_folder", "optflow_method", "device")
    parser.add_argument(
        "--davis_split",
        default="val",
        help="DAVIS videos to choose by: train, val, or a text file with one video per line",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> ChosenSettings:
    args = build_parser().parse_args(argv)
    if str(args.weights) == NO_NETWORK:
        raise InputError(f"--weights {NO_NETWORK}: expected a weight file to store the settings in")
    loaded = load_model(args.weights)
    if args.out:
        check_output_file("out", args.out, (".pth",))
    else:
        check_output_file("weights", args.weights, (args.weights.suffix.lower(),))
    device = resolve_device(args.device)
    return choose_and_store(
        Segmenter(loaded.model, loaded.scales, device=device, merging=loaded.merging),
        open_data(args, loaded),
        args.weights,
        figure="mean_iou" if args.davis2017_root else "asa",
        out=args.out,
    )


def open_data(args: argparse.Namespace, loaded: LoadedModel) -> FileDataset:
    """Open the validation images that the options choose; a composite model needs the flow of its frames."""
    if sum(source is not None for source in (args.bsds_root, args.data_root, args.davis2017_root)) != 1:
        raise InputError("give one of --bsds_root, --data_root and --davis2017_root")
    if loaded.kind == COMPOSITE and not (args.davis2017_root and args.davis_optflow_folder):
        raise InputError(
            f"{args.weights} holds a composite model: give --davis2017_root and --davis_optflow_folder"
        )
    if args.bsds_root:
        return BSDSDataset(args.bsds_root, "val")
    if args.data_root:
        return FolderDataset(args.data_root)
    return DAVISDataset(
        args.davis2017_root,
        args.davis_split,
        optflow_folder=args.davis_optflow_folder if loaded.kind == COMPOSITE else None,
        optflow_method=args.optflow_method,
    )


if __name__ == "__main__":
    cli.run(main)
