"""Cut images, or the frames of a video, into superpixels with the base model, and draw them."""

import argparse
import time
from collections.abc import Sequence

from lib import cli
from lib.checkpoint import NO_NETWORK, load_base_model
from lib.distributed import n_ranks, on_first_rank
from lib.errors import InputError
from lib.image_run import RunSummary, segment_files
from lib.inference_options import (
    add_many_images_args,
    add_output_args,
    add_speed_args,
    add_video_args,
    check_needs,
    choose_batch_size,
    is_single_image,
    log_superpixels,
    open_segmenter,
    overlay_style,
    plan_jobs,
    report,
    segment_given_video,
    tell_profile,
)
from lib.interruption import StopSignals
from lib.video import VideoSummary


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    sources = parser.add_mutually_exclusive_group()
    add_many_images_args(parser, sources, demo_image=cli.REPO_ROOT / "demo" / "cat.jpg")
    add_video_args(parser, sources)
    add_output_args(parser, several=True)
    cli.add_base_weights_arg(parser)
    cli.add_spixel_args(parser, trained=True)
    add_speed_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> RunSummary | VideoSummary:
    args = build_parser().parse_args(argv)
    check_needs(args)
    jobs = plan_jobs(args) if args.video is None else []
    if args.save_features and str(args.base_model_weights) == NO_NETWORK:
        raise InputError(f"--save_features {args.save_features}: without a network nothing is learned")
    loaded = load_base_model(args.base_model_weights, n_learned_features=args.deepfdim, n_iter=args.niter)
    scales = cli.choose_scales(loaded.scales, color_scale=args.color_scale, pos_scale=args.pos_scale)
    segmenter = open_segmenter(args, loaded, scales)

    if args.video is not None:
        return segment_given_video(args, segmenter)

    if is_single_image(args.image) and n_ranks() == 1 and not args.skip_existing:
        (job,) = jobs
        start = time.perf_counter()
        with StopSignals():
            (superpixels,) = segmenter.cluster(
                [job.read(segmenter)], args.nspix, with_features=args.save_features is not None
            )
            if args.enforce_connectivity:
                superpixels = segmenter.finish(superpixels, args.nspix, exact=args.exact_nspix)
            job.write(segmenter, superpixels, overlay_style(args))
        seconds = time.perf_counter() - start
        log_superpixels(job.image, args.nspix, superpixels, seconds, segmenter.device, job.files.overlay)
        tell_profile(args, segmenter)
        return RunSummary(n_done=1, n_skipped=0, failures=[], seconds=seconds)

    summary = segment_files(
        segmenter,
        jobs,
        args.nspix,
        connected=args.enforce_connectivity,
        exact=args.exact_nspix,
        style=overlay_style(args),
        batch_size=choose_batch_size(args.batchsize, segmenter.device),
        skip_existing=args.skip_existing,
    )
    tell_profile(args, segmenter)
    on_first_rank(lambda: report(summary))
    return summary


if __name__ == "__main__":
    cli.run(main)
