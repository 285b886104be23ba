"""Score the composite model on DAVIS 2017; compare its base model and other methods."""

import argparse
from collections.abc import Sequence
from functools import partial

from lib import cli
from lib.cli.evaluation import add_evaluation_args, check_video_args, davis_set, evaluate_models
from lib.datasets.davis import DAVISDataset
from lib.evaluation.loop import Run
from lib.evaluation.summary import Summary
from lib.evaluation.video import VideoSummary
from lib.weights import check_base_of_composite
from model import N_FLOW_CHANNELS


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "davis2017_root", "davis_optflow_folder", required=True)
    cli.add_shared(parser, "davis_split", default="test")
    cli.add_shared(parser, "optflow_method", "comp_model_weights")
    cli.add_optflow_args(parser, trained=True)
    add_evaluation_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, dict[Run, Summary | VideoSummary]]:
    args = build_parser().parse_args(argv)
    check_video_args(args)
    dataset = DAVISDataset(
        args.davis2017_root,
        args.davis_split,
        optflow_folder=args.davis_optflow_folder,
        optflow_method=args.optflow_method,
        max_frames=args.max_frames,
    )
    base, composite = cli.load_base(args), cli.load_composite(args)
    check_base_of_composite(base, args.base_model_weights, composite, args.comp_model_weights)
    models = {
        "base": (args.base_model_weights, base),
        "composite": (args.comp_model_weights, composite),
    }
    load = partial(cli.load_for_use, n_iter=args.niter, n_extra_channels=N_FLOW_CHANNELS)
    return evaluate_models(args, models, [davis_set(dataset, args.davis_split)], load)


if __name__ == "__main__":
    cli.run(main)
