"""Segment images or video frames into superpixels with the base model, and draw overlays."""

import argparse
from collections.abc import Sequence

from lib import cli
from lib.cli.inference import add_inference_args, plan_given_images, segment_inputs
from lib.inference.images import RunSummary
from lib.inference.video import VideoSummary
from lib.runtime.errors import InputError
from lib.weights import NO_NETWORK


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    add_inference_args(parser, demo_image=cli.REPO_ROOT / "demo" / "cat.jpg")
    cli.add_shared(parser, "base_model_weights")
    return parser


def main(argv: Sequence[str] | None = None) -> RunSummary | VideoSummary:
    args = build_parser().parse_args(argv)
    jobs = plan_given_images(args)
    if args.save_features and str(args.base_model_weights) == NO_NETWORK:
        raise InputError(
            f"--save_features {args.save_features}: the method without a network has no learned features"
        )
    return segment_inputs(args, cli.load_base(args), jobs)


if __name__ == "__main__":
    cli.run(main)
