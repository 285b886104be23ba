"""Segment video frames into superpixels with the composite model, and draw overlays."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lib import cli
from lib.cli.inference import add_inference_args, plan_given_images, segment_inputs
from lib.files.atomic import real_path
from lib.inference.images import RunSummary
from lib.inference.video import VideoSummary
from lib.optflow.archive import FlowArchive
from lib.optflow.lookup import AUTO, FlowOfFrame, flows_of_images
from lib.runtime.errors import InputError

DEMO_DIR = cli.REPO_ROOT / "demo"
DEMO_IMAGE = DEMO_DIR / "clip" / "00001.jpg"
DEMO_FLOW = DEMO_DIR / "optflow_dis_clip.h5"


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    add_inference_args(parser, demo_image=DEMO_IMAGE)
    parser.add_argument(
        "--save_flow",
        help="write a picture of the flow, in any common format; for several images as in --out",
    )
    parser.add_argument(
        "--optflow_data",
        type=Path,
        metavar="FILE|FOLDER|auto",
        help="flow archive of the video, from estimate_optflow.py; for images of several videos, the folder "
        "of their archives; or auto, which estimates the flow and is the default with --video",
    )
    parser.add_argument(
        "--optflow_data_fr_idx",
        type=int,
        metavar="N",
        help="frame index of a single image in its video, from 0; default: its position among the images of "
        "its folder",
    )
    cli.add_shared(parser, "optflow_method", "comp_model_weights")
    cli.add_optflow_args(parser, trained=True)
    return parser


def main(argv: Sequence[str] | None = None) -> RunSummary | VideoSummary:
    args = build_parser().parse_args(argv)
    jobs = plan_given_images(args, partial(_find_flows, args))
    is_archived = args.video is not None and args.optflow_data not in (None, Path(AUTO))
    archive = FlowArchive(args.optflow_data) if is_archived else None
    return segment_inputs(args, cli.load_composite(args), jobs, archive=archive)


def _find_flows(args: argparse.Namespace, images: Sequence[Path]) -> list[FlowOfFrame]:
    optflow_data = args.optflow_data
    is_bare = optflow_data is None and args.optflow_data_fr_idx is None
    if is_bare and [real_path(image) for image in images] == [DEMO_IMAGE]:
        optflow_data = DEMO_FLOW
    if optflow_data is None:
        raise InputError(
            "--optflow_data must be given: a flow archive, a folder of archives, or auto, which estimates "
            "the flow between the images of a folder"
        )
    return flows_of_images(
        images,
        optflow_data,
        frame_idx=args.optflow_data_fr_idx,
        method=args.optflow_method,
        reader=cli.image_reader(args),
    )


if __name__ == "__main__":
    cli.run(main)
