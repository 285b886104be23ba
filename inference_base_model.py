"""Segment images or video frames into superpixels with the base model, and draw overlays."""

import argparse
from collections.abc import Sequence

from lib import cli
from lib.cli.inference import (
    add_image_args,
    add_output_args,
    add_speed_args,
    add_video_args,
    check_needs,
    open_segmenter,
    plan_given_images,
    segment_given_images,
    segment_given_video,
)
from lib.inference.images import RunSummary
from lib.inference.video import VideoSummary
from lib.runtime.errors import InputError
from lib.weights import BASE, NO_NETWORK


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    sources = parser.add_mutually_exclusive_group()
    add_image_args(parser, sources, demo_image=cli.REPO_ROOT / "demo" / "cat.jpg")
    add_video_args(parser, sources)
    add_output_args(parser)
    cli.add_base_weights_arg(parser)
    cli.add_spixel_args(parser)
    add_speed_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> RunSummary | VideoSummary:
    args = build_parser().parse_args(argv)
    check_needs(args)
    jobs = plan_given_images(args) if args.video is None else []
    if args.save_features and str(args.base_model_weights) == NO_NETWORK:
        raise InputError(
            f"--save_features {args.save_features}: the method without a network has no learned features"
        )
    loaded = cli.load_for_use(
        args.base_model_weights, kind=BASE, n_learned_features=args.deepfdim, n_iter=args.niter
    )
    scales = cli.choose_scales(loaded.scales, color_scale=args.color_scale, pos_scale=args.pos_scale)
    segmenter = open_segmenter(args, loaded, scales)
    if args.video is not None:
        return segment_given_video(args, segmenter)
    return segment_given_images(args, segmenter, jobs)


if __name__ == "__main__":
    cli.run(main)
