"""Score the composite model on DAVIS 2017; compare its base model and other methods."""

import argparse
from collections.abc import Sequence
from functools import partial

from lib import cli
from lib.cli.evaluation import (
    add_evaluation_args,
    compared_methods,
    davis_set,
    evaluation_settings,
    network_method,
)
from lib.cli.types import existing_dir
from lib.datasets.davis import DAVISDataset
from lib.evaluation.loop import Run
from lib.evaluation.run import run_evaluation
from lib.evaluation.summary import Summary
from lib.runtime.device import resolve_device
from lib.weights import BASE, COMPOSITE, check_base_of_composite
from model import N_FLOW_CHANNELS


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--davis2017_root", type=existing_dir, required=True, help="folder that contains DAVIS/"
    )
    cli.add_davis_split_arg(parser, default_split="test")
    cli.add_optflow_folder_args(parser)
    cli.add_base_weights_arg(parser)
    cli.add_composite_weights_arg(parser)
    cli.add_spixel_args(parser, swept=True)
    cli.add_optflow_args(parser, trained=True)
    add_evaluation_args(parser)
    cli.add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, dict[Run, Summary]]:
    args = build_parser().parse_args(argv)
    device = resolve_device(args.device)
    dataset = DAVISDataset(
        args.davis2017_root,
        args.davis_split,
        optflow_folder=args.davis_optflow_folder,
        optflow_method=args.optflow_method,
    )
    base = cli.load_for_use(
        args.base_model_weights, kind=BASE, n_learned_features=args.deepfdim, n_iter=args.niter
    )
    composite = cli.load_for_use(
        args.comp_model_weights,
        kind=COMPOSITE,
        n_learned_features=args.deepfdim,
        n_extra_features=args.optflow_deepfdim,
        n_iter=args.niter,
        n_extra_channels=N_FLOW_CHANNELS,
    )
    check_base_of_composite(base, args.base_model_weights, composite, args.comp_model_weights)
    methods = [
        network_method("base", args.base_model_weights, base, args, device),
        network_method("composite", args.comp_model_weights, composite, args, device),
    ]
    load = partial(cli.load_for_use, n_iter=args.niter, n_extra_channels=N_FLOW_CHANNELS)
    methods += compared_methods(args, device, load, [method.name for method in methods])
    return run_evaluation(
        methods, [davis_set(dataset, args.davis_split)], **evaluation_settings(args, device)
    )


if __name__ == "__main__":
    cli.run(main)
