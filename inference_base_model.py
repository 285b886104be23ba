"""Cut images, or the frames of a video, into superpixels with the base model, and draw them."""

import argparse
import logging
import time
from collections.abc import Sequence

from lib import cli
from lib.checkpoint import NO_NETWORK, load_base_model
from lib.distributed import n_ranks, on_first_rank
from lib.errors import InputError
from lib.image_run import RunSummary, segment_files
from lib.inference import Segmenter
from lib.inference_options import (
    add_many_images_args,
    add_output_args,
    add_video_args,
    check_needs,
    choose_batch_size,
    is_single_image,
    log_superpixels,
    overlay_style,
    plan_jobs,
    report,
    segment_given_video,
)
from lib.precision import resolve_precision
from lib.stopwatch import Stopwatch
from lib.video import VideoSummary

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    sources = parser.add_mutually_exclusive_group()
    add_many_images_args(parser, sources, demo_image=cli.REPO_ROOT / "demo" / "cat.jpg")
    add_video_args(parser, sources)
    add_output_args(parser, several=True)
    cli.add_base_weights_arg(parser)
    cli.add_spixel_args(parser, trained=True)
    cli.add_device_arg(parser)
    cli.add_precision_arg(parser, default="fp32")
    cli.add_bool(parser, "--profile", default=False, help="tell how long each stage took")
    return parser


def main(argv: Sequence[str] | None = None) -> RunSummary | VideoSummary:
    args = build_parser().parse_args(argv)
    check_needs(args)
    jobs = plan_jobs(args) if args.video is None else []
    if args.save_features and str(args.base_model_weights) == NO_NETWORK:
        raise InputError(f"--save_features {args.save_features}: without a network nothing is learned")
    device = cli.resolve_device(args.device)
    loaded = load_base_model(args.base_model_weights, n_learned_features=args.deepfdim, n_iter=args.niter)
    scales = cli.choose_scales(loaded.scales, color_scale=args.color_scale, pos_scale=args.pos_scale)
    segmenter = Segmenter(
        loaded.model,
        scales,
        device=device,
        with_bfloat16=resolve_precision(args.precision, device) == "bf16",
        pos_scale_dist=args.pos_scale_dist,
        stopwatch=Stopwatch(device if args.profile else None),
    )

    if args.video is not None:
        video_summary = segment_given_video(args, segmenter)
        if args.profile:
            logger.info("%s", segmenter.stopwatch)
        return video_summary

    if is_single_image(args.image) and n_ranks() == 1 and not args.skip_existing:
        (job,) = jobs
        start = time.perf_counter()
        (superpixels,) = segmenter.cluster(
            [job.read(segmenter)], args.nspix, with_features=args.save_features is not None
        )
        if args.enforce_connectivity:
            superpixels = segmenter.finish(superpixels, args.nspix, exact=args.exact_nspix)
        job.write(segmenter, superpixels, overlay_style(args))
        seconds = time.perf_counter() - start
        log_superpixels(job.image, args.nspix, superpixels, seconds, device, job.files.overlay)
        if args.profile:
            logger.info("%s", segmenter.stopwatch)
        return RunSummary(n_done=1, n_skipped=0, failures=[], seconds=seconds)

    summary = segment_files(
        segmenter,
        jobs,
        args.nspix,
        connected=args.enforce_connectivity,
        exact=args.exact_nspix,
        style=overlay_style(args),
        batch_size=choose_batch_size(args.batchsize, device),
        skip_existing=args.skip_existing,
    )
    if args.profile:
        on_first_rank(lambda: logger.info("%s", segmenter.stopwatch))
    on_first_rank(lambda: report(summary))
    return summary


if __name__ == "__main__":
    cli.run(main)
