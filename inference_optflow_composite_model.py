"""Cut a video, or one of its frames, into superpixels with the composite model, and draw them."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from lib import cli
from lib.checkpoint import load_composite_model
from lib.errors import InputError
from lib.images import read_image, read_mask
from lib.inference import Segmenter
from lib.inference_options import (
    add_mask_arg,
    add_output_args,
    add_speed_args,
    add_video_args,
    check_files,
    check_needs,
    default_overlay,
    log_superpixels,
    open_segmenter,
    output_files,
    overlay_style,
    segment_given_video,
    tell_profile,
)
from lib.interruption import StopSignals
from lib.optflow import FlowArchive, FrameFlow
from lib.outputs import write_outputs
from lib.superpixels import Superpixels
from lib.video import VideoSummary
from lib.visualization import draw_flow
from model import N_FLOW_CHANNELS

logger = logging.getLogger(__name__)

DEMO_DIR = cli.REPO_ROOT / "demo"
DEMO_IMAGE = DEMO_DIR / "clip" / "00001.jpg"
AUTO = "auto"  # in place of a flow archive: estimate the flow
DEMO_FLOW, DEMO_FRAME_IDX = DEMO_DIR / "optflow_dis_clip.h5", 1


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument("--image", type=Path, default=DEMO_IMAGE, help="image to segment")
    add_video_args(parser, sources)
    add_mask_arg(parser)
    add_output_args(parser)
    parser.add_argument(
        "--optflow_data",
        type=Path,
        metavar="FILE|auto",
        help="flow archive of the video, as estimate_optflow.py makes them; for a --video, auto, the "
        "default, estimates the flow",
    )
    parser.add_argument(
        "--optflow_data_fr_idx", type=int, metavar="N", help="which frame of its video the image is, from 0"
    )
    parser.add_argument("--save_flow", help="picture of the flow to write, any common format")
    cli.add_composite_weights_arg(parser)
    cli.add_spixel_args(parser, trained=True)
    cli.add_optflow_args(parser, trained=True)
    add_speed_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> Superpixels | VideoSummary:
    args = build_parser().parse_args(argv)
    check_needs(args)
    if args.video is not None:
        archive = None if args.optflow_data in (None, Path(AUTO)) else FlowArchive(args.optflow_data)
        return segment_given_video(args, _open_composite(args), archive=archive)

    optflow_data, frame_idx = args.optflow_data, args.optflow_data_fr_idx
    if args.image.resolve() == DEMO_IMAGE and optflow_data is None and frame_idx is None:
        optflow_data, frame_idx = DEMO_FLOW, DEMO_FRAME_IDX
    if optflow_data is None or frame_idx is None:
        raise InputError("--optflow_data and --optflow_data_fr_idx must be given, both of them")
    outputs = {
        "out": default_overlay(args.out),
        "save_labels": args.save_labels,
        "save_features": args.save_features,
        "save_outlines": args.save_outlines,
    }
    files = check_files(
        image=args.image, mask=args.mask, optflow_data=optflow_data, **outputs, save_flow=args.save_flow
    )
    segmenter = _open_composite(args)

    start = time.perf_counter()
    with StopSignals():
        with segmenter.stopwatch.stage("reading"):
            image_rgb = read_image(args.image)
            mask = read_mask(files["mask"]) if args.mask else None
            frame_flow = _read_flow(optflow_data, frame_idx, image_rgb.shape[:2])
        superpixels = segmenter(
            image_rgb,
            args.nspix,
            extra=frame_flow.flow,
            mask=mask,
            connected=args.enforce_connectivity,
            exact=args.exact_nspix,
            with_features=args.save_features is not None,
        )
        with segmenter.stopwatch.stage("writing"):
            write_outputs(
                superpixels,
                output_files(**outputs),
                style=overlay_style(args),
                more_pictures={files["save_flow"]: draw_flow(frame_flow.flow)} if args.save_flow else None,
            )
    seconds = time.perf_counter() - start
    logger.info("%s, frame %d: %s", optflow_data, frame_idx, _describe(frame_flow))
    log_superpixels(args.image, args.nspix, superpixels, seconds, segmenter.device, files["out"])
    tell_profile(args, segmenter)
    return superpixels


def _open_composite(args: argparse.Namespace) -> Segmenter:
    loaded = load_composite_model(
        args.comp_model_weights,
        n_learned_features=args.deepfdim,
        n_extra_features=args.optflow_deepfdim,
        n_iter=args.niter,
        n_extra_channels=N_FLOW_CHANNELS,
    )
    scales = cli.choose_scales(
        loaded.scales,
        color_scale=args.color_scale,
        pos_scale=args.pos_scale,
        extra_scale=args.optflow_scale,
    )
    return open_segmenter(args, loaded, scales)


def _read_flow(optflow_data: Path, frame_idx: int, frame_shape: tuple[int, int]) -> FrameFlow:
    archive = FlowArchive(optflow_data)
    if archive.frame_shape != frame_shape:
        raise InputError(
            f"the flow in {optflow_data} is {archive.frame_shape[1]}x{archive.frame_shape[0]}, but the image "
            f"is {frame_shape[1]}x{frame_shape[0]}; resize it, or estimate the flow from images of its size"
        )
    return archive.read_frame(frame_idx)


def _describe(frame_flow: FrameFlow) -> str:
    if frame_flow.has_forward and frame_flow.has_backward:
        return "flow to the next and to the previous frame"
    if frame_flow.has_forward:
        return "flow to the next frame only, as this is the first frame"
    return "flow to the previous frame only, as this is the last frame"


if __name__ == "__main__":
    cli.run(main)
