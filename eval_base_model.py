"""Score the base model's superpixels on BSDS500, DAVIS 2017 or your own images; compare other methods."""

import argparse
import re
from collections.abc import Sequence
from functools import partial

from lib import cli
from lib.cli.evaluation import add_evaluation_args, check_video_args, davis_set, evaluate_models
from lib.cli.types import existing_dir
from lib.datasets.bsds import SPLITS, BSDSDataset
from lib.datasets.folder import FolderDataset
from lib.evaluation.loop import Run
from lib.evaluation.protocol import EvaluationSet
from lib.evaluation.summary import Summary
from lib.evaluation.video import VideoSummary
from lib.files.images import DEFAULT_READER
from lib.runtime.errors import InputError
from lib.weights import BASE, NO_NETWORK


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--bsds_root", type=existing_dir, help="score BSDS500; the folder that contains BSDS500/"
    )
    parser.add_argument("--bsds_split", choices=SPLITS, default="test", help="BSDS500 split to score")
    parser.add_argument(
        "--data_root", type=existing_dir, help="score your own images; a folder of images with label maps"
    )
    cli.add_shared(parser, "ignore_label")
    cli.add_reading_args(parser, of="--data_root images")
    cli.add_shared(parser, "davis2017_root")
    cli.add_shared(parser, "davis_split", default="test")
    cli.add_bool(
        parser,
        "--eval_on_davis",
        default=None,
        help="score DAVIS; default: True if --davis2017_root is given",
    )
    add_evaluation_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, dict[Run, Summary | VideoSummary]]:
    args = build_parser().parse_args(argv)
    check_video_args(args)
    sets = open_sets(args)
    name = "ssn_pix" if str(args.base_model_weights) == NO_NETWORK else "base"
    models = {name: (args.base_model_weights, cli.load_base(args))}
    load = partial(cli.load_for_use, kind=BASE, n_iter=args.niter)
    return evaluate_models(args, models, sets, load)


def open_sets(args: argparse.Namespace) -> list[EvaluationSet]:
    """Open the datasets that the options choose; a folder of images gives its name to its dataset."""
    sets = []
    if args.bsds_root:
        dataset = BSDSDataset(args.bsds_root, args.bsds_split)
        sets.append(EvaluationSet(f"BSDS500 {args.bsds_split}", f"bsds500_{args.bsds_split}", dataset))
    if args.ignore_label is not None and not args.data_root:
        raise InputError("--ignore_label needs --data_root")
    reader = cli.image_reader(args)
    if reader != DEFAULT_READER and not args.data_root:
        raise InputError("--value_range and --bands need --data_root")
    if args.data_root:
        name = args.data_root.resolve().name
        file_name = re.sub(r"[^\w.+-]", "_", name)
        dataset = FolderDataset(args.data_root, ignore_label=args.ignore_label, reader=reader)
        sets.append(EvaluationSet(name, file_name, dataset))
    if args.davis2017_root if args.eval_on_davis is None else args.eval_on_davis:
        sets.append(davis_set(cli.open_davis(args, max_frames=args.max_frames), args.davis_split))
    if not sets:
        raise InputError("nothing to score: give --bsds_root, --data_root or --davis2017_root")
    return sets


if __name__ == "__main__":
    cli.run(main)
