"""Score the base model's superpixels on BSDS500, DAVIS 2017 or your own images; compare other methods."""

import argparse
from collections.abc import Sequence
from functools import partial

from lib import cli
from lib.cli.evaluation import (
    add_evaluation_args,
    bsds_set,
    compared_methods,
    davis_set,
    evaluation_settings,
    folder_set,
    network_method,
)
from lib.cli.types import existing_dir
from lib.datasets import bsds
from lib.evaluation.loop import Run
from lib.evaluation.run import run_evaluation
from lib.evaluation.summary import Summary
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.weights import BASE, NO_NETWORK


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--bsds_root", type=existing_dir, help="score BSDS500; the folder that contains BSDS500/"
    )
    parser.add_argument("--bsds_split", choices=bsds.SPLITS, default="test", help="BSDS500 split to score")
    parser.add_argument(
        "--data_root", type=existing_dir, help="score your own images; a folder of images with label maps"
    )
    cli.add_davis_args(parser, default_split="test")
    cli.add_bool(
        parser,
        "--eval_on_davis",
        default=None,
        help="score DAVIS; default: True if --davis2017_root is given",
    )
    cli.add_base_weights_arg(parser)
    cli.add_spixel_args(parser, swept=True)
    add_evaluation_args(parser)
    cli.add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, dict[Run, Summary]]:
    args = build_parser().parse_args(argv)
    device = resolve_device(args.device)
    sets = []
    if args.bsds_root:
        sets.append(bsds_set(args.bsds_root, args.bsds_split))
    if args.data_root:
        sets.append(folder_set(args.data_root))
    with_davis = bool(args.davis2017_root) if args.eval_on_davis is None else args.eval_on_davis
    if with_davis:
        sets.append(davis_set(cli.open_davis(args.davis2017_root, args.davis_split), args.davis_split))
    if not sets:
        raise InputError("nothing to score: give --bsds_root, --data_root or --davis2017_root")
    loaded = cli.load_for_use(
        args.base_model_weights, kind=BASE, n_learned_features=args.deepfdim, n_iter=args.niter
    )
    name = "ssn_pix" if str(args.base_model_weights) == NO_NETWORK else "base"
    base = network_method(name, args.base_model_weights, loaded, args, device)
    load = partial(cli.load_for_use, kind=BASE, n_iter=args.niter)
    methods = [base, *compared_methods(args, device, load, [base.name])]
    return run_evaluation(methods, sets, **evaluation_settings(args, device))


if __name__ == "__main__":
    cli.run(main)
