"""Options of the inference scripts, and functions that segment as the options describe."""

import argparse
import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import ImageColor

from lib.cli.dataclass_options import add_fields, option_name
from lib.cli.options import (
    SEVERAL,
    add_bool,
    add_reading_args,
    add_shared,
    add_spixel_args,
    image_reader,
    open_segmenter,
)
from lib.cli.types import AUTO_BOOL, non_negative_float, positive_int
from lib.files.atomic import check_output_file, real_path
from lib.files.folder_lock import own_folder
from lib.files.images import DEFAULT_READER
from lib.inference.images import ImageJob, RunSummary, segment_files
from lib.inference.jobs import NAME, OUTPUTS, find_output_folders, is_single_image, plan_jobs
from lib.inference.large_images import check_large_outputs
from lib.inference.outputs import (
    LABEL_SUFFIXES,
    NESTED_LABEL_SUFFIXES,
    OVERLAYS,
    ExportStyle,
    OverlayStyle,
)
from lib.inference.segmenter import Segmenter
from lib.inference.video import VideoFiles, VideoSummary, count_ahead, segment_video
from lib.inference.video_files import VIDEO_LABEL_SUFFIXES, VIDEO_SUFFIXES
from lib.inference.video_frames import open_video, read_frames
from lib.optflow.archive import FlowArchive
from lib.optflow.lookup import FlowOfFrame
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError, RunError
from lib.runtime.notices import RESULT, forget_logged
from lib.runtime.ranks import n_ranks, on_first_rank, together
from lib.runtime.stopwatch import Stopwatch
from lib.superpixels.annotations import ANNOTATION_SUFFIXES
from lib.training.recipe import Recipe
from lib.weights import LoadedModel

logger = logging.getLogger(__name__)

_FOR_SEVERAL = f"; a folder, or a name with {NAME}, for several images"  # in the help of options

_CUDA_BATCH_SIZE = 8
_DEFAULT_VIDEO = "results.mp4"
_FOR_IMAGES_ALONE = {
    "simplify": 0,
    "save_annotations": None,
    "annotation_format": None,
    "mask": None,
    "save_features": None,
    "save_flow": None,
    "save_outlines": None,
    "exact_nspix": False,
    "out_of_core": "auto",
    "enforce_connectivity": True,
    "skip_existing": False,
    "batchsize": None,
    "optflow_data_fr_idx": None,
    "optflow_method": None,
}
_FOR_VIDEOS_ALONE = {"temporal": False, "every": 1, "save_lifetimes": None}


def add_inference_args(parser: argparse.ArgumentParser, *, demo_image: Path) -> None:
    """Add the options of inputs, output files, superpixels, device and speed."""
    _add_input_args(parser, demo_image)
    _add_output_args(parser)
    add_spixel_args(parser)
    add_shared(parser, "device")
    add_fields(parser, Recipe, "precision", precision="fp32")
    add_bool(
        parser,
        "--compile",
        help="compile the network with torch.compile, which takes a minute for each image size",
    )
    parser.add_argument(
        "--out_of_core",
        default="auto",
        help="segment images with temporary files beside --out in place of memory, some 90 bytes a pixel; "
        "the same superpixels, more slowly; auto: those that do not fit the free memory, where that is known",
        **AUTO_BOOL,
    )
    add_bool(parser, "--profile", help="log the time of each stage")


def _add_input_args(parser: argparse.ArgumentParser, demo_image: Path) -> None:
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--image",
        **SEVERAL,
        default=[str(demo_image)],
        metavar="IMAGE",
        help="images to segment: files, folders with their subfolders, or patterns such as '*.jpg'",
    )
    sources.add_argument(
        "--video",
        type=Path,
        metavar="FILE|FOLDER",
        help="video to segment: a video file, an animated GIF, WebP or APNG, or a folder of frames",
    )
    parser.add_argument(
        "--mask",
        help="mask image; pixels are left out that are black, transparent or NaN, or of less than half the "
        f"brightness if the mask is a JPEG file{_FOR_SEVERAL}",
    )
    add_reading_args(parser)
    add_bool(
        parser,
        "--skip_existing",
        help="skip images whose outputs all exist; several such runs may share a folder",
    )
    parser.add_argument(
        "--batchsize",
        type=positive_int,
        help=f"number of images of one size in a network batch; default: {_CUDA_BATCH_SIZE} on CUDA, else 1",
    )
    add_bool(
        parser,
        "--temporal",
        help="keep the labels of superpixels from frame to frame of a video, with optical flow",
    )
    parser.add_argument(
        "--every",
        type=positive_int,
        default=1,
        metavar="N",
        help="read only one of N frames of a video, from the first",
    )


def _add_output_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        help=f"overlay to write, any common format, .mp4 for a video{_FOR_SEVERAL}; a single image takes an "
        "existing folder or a name that ends in / too; default: "
        f"{OUTPUTS['overlay'].default}, {_DEFAULT_VIDEO} for a video, folder "
        f"{OUTPUTS['overlay'].default_for_many} for several images",
    )
    parser.add_argument(
        "--save_labels",
        help="label map to write: .npy (int32), .png (16 bits), .tif (32 bits; of a GeoTIFF file a GeoTIFF "
        f"in its CRS, with nodata) or .h5, the only format for a video and for --levels{_FOR_SEVERAL}",
    )
    parser.add_argument(
        "--save_features",
        help=f"position-invariant features of pixels and superpixels to write: .npz{_FOR_SEVERAL}",
    )
    parser.add_argument(
        "--save_outlines",
        help="outlines of the superpixels to write: .geojson or .svg in pixels, for labelling tools, or "
        f".gpkg, a GeoPackage in the CRS of the image, with statistics of each band{_FOR_SEVERAL}",
    )
    parser.add_argument(
        "--simplify",
        type=non_negative_float,
        default=0,
        metavar="PIXELS",
        help="simplify the outlines of --save_outlines: no corner of a pixel on them is farther away than "
        "this, in pixels; neighbours still meet",
    )
    parser.add_argument(
        "--save_annotations",
        help="superpixels to write as masks of the category superpixel, for labelling tools: .json (COCO or "
        f"labelme) or .zip (CVAT, at most 255 superpixels){_FOR_SEVERAL}",
    )
    parser.add_argument(
        "--annotation_format",
        choices=ANNOTATION_SUFFIXES,
        help="format of --save_annotations; default: coco for .json, cvat for .zip",
    )
    parser.add_argument(
        "--save_lifetimes",
        type=Path,
        metavar="FILE",
        help="with --temporal: picture of the first and last frame of each label to write, .png",
    )
    parser.add_argument(
        "--overlay",
        choices=OVERLAYS,
        default="boundaries",
        help="draw the borders of the superpixels over the image, or paint each in its mean colour, or tint "
        "each in a colour of its label, which lasts with --temporal",
    )
    parser.add_argument(
        "--boundary_color",
        type=_rgb_color,
        default="yellow",
        metavar="COLOR",
        help="colour of the borders in the overlay: a name, or #rrggbb",
    )
    parser.add_argument(
        "--boundary_width",
        type=positive_int,
        help="width of the borders in the overlay, in pixels; default: by the size of the superpixels; with "
        "--levels, the finest borders are 1 pixel wide, and each coarser level is wider by this, or by 2",
    )
    add_bool(
        parser,
        "--enforce_connectivity",
        default=True,
        help="make superpixels connected; False merges nothing and gives the raw argmax",
    )
    add_bool(
        parser,
        "--exact_nspix",
        help="with --fine_factor 1: merge or split superpixels by size to get exactly --nspix",
    )


def plan_given_images(
    args: argparse.Namespace, flows_of: Callable[[Sequence[Path]], Sequence[FlowOfFrame]] | None = None
) -> list[ImageJob]:
    """Check the options, and plan the files of the images with `plan_jobs`; a video has no jobs.

    Raises
    ------
    InputError
        If an option lacks another one that it needs, or an image or a file cannot be used.
    """
    needing = {
        "levels": args.levels,
        "exact_nspix": args.exact_nspix,
        "save_outlines": args.save_outlines,
        "fine_factor": args.fine_factor not in (None, 1),
        "merge_pos_scale": args.merge_pos_scale is not None,
    }
    for option, is_given in needing.items():
        if is_given and not args.enforce_connectivity:
            raise InputError(f"--{option} needs --enforce_connectivity")
    if args.simplify and not args.save_outlines:
        raise InputError("--simplify needs --save_outlines")
    if args.annotation_format and not args.save_annotations:
        raise InputError("--annotation_format needs --save_annotations")
    if args.merge_pos_scale is not None and args.fine_factor == 1:
        raise InputError("--merge_pos_scale has no effect with --fine_factor 1")
    if args.levels:
        _check_levels(args)
    if args.video is not None:
        return []
    for option, default in _FOR_VIDEOS_ALONE.items():
        if getattr(args, option) != default:
            raise InputError(f"--{option} needs a --video")
    jobs = plan_jobs(
        args.image,
        _given_outputs(args),
        nested=bool(args.levels),
        annotation_format=args.annotation_format,
        mask=args.mask,
        reader=image_reader(args),
        flows_of=flows_of,
    )
    if args.out_of_core is True:
        if flows_of is not None:
            raise InputError("--out_of_core is not possible with optical flow")
        exact = args.exact_nspix and args.fine_factor == 1
        check_large_outputs(jobs[0].files, levels=args.levels or (), exact=exact)
    return jobs


def _given_outputs(args: argparse.Namespace) -> dict[str, str | None]:
    return {kind: getattr(args, option_name(kind), None) for kind in OUTPUTS}


def _check_levels(args: argparse.Namespace) -> None:
    """Raise `InputError` if a level is repeated, or another option does not fit `--levels`."""
    if len(set(args.levels)) < len(args.levels):
        raise InputError(f"--levels {' '.join(map(str, args.levels))}: a level is repeated")
    if args.fine_factor == 1:
        raise InputError("--levels needs a --fine_factor above 1")
    if args.exact_nspix:
        raise InputError("--exact_nspix does not go with --levels, whose numbers are exact")
    labels = args.save_labels or ""
    is_file = not (labels.endswith(os.sep) or Path(labels).is_dir())
    if is_file and Path(labels).suffix.lower() in set(LABEL_SUFFIXES) - set(NESTED_LABEL_SUFFIXES):
        raise InputError(f"--save_labels {labels}: with --levels, use a name that ends in .h5")


def segment_inputs(
    args: argparse.Namespace,
    loaded: LoadedModel,
    jobs: Sequence[ImageJob],
    *,
    archive: FlowArchive | None = None,
) -> RunSummary | VideoSummary:
    """Segment the images or the video that the options name, and log the result.

    `jobs` are from `plan_given_images`. `archive` has the flow of the video; without it, needed flow is
    estimated.

    Raises
    ------
    InputError
        If the device, the precision, the video or a single image cannot be used, or options do not fit.
    RunError
        If files cannot be written, or one of several images failed.
    """
    forget_logged()
    device = resolve_device(args.device)
    stopwatch = Stopwatch(device if args.profile else None)
    segmenter = open_segmenter(args, loaded, device, stopwatch=stopwatch)
    if args.compile:
        if not segmenter.learns_features:
            raise InputError("--compile needs a network")
        loaded.model.compile_network()
    style = OverlayStyle(args.overlay, args.boundary_color, args.boundary_width)
    if args.video is None:
        return _segment_images(args, segmenter, jobs, style)
    return _segment_video(args, segmenter, archive, style)


def _segment_images(
    args: argparse.Namespace, segmenter: Segmenter, jobs: Sequence[ImageJob], style: OverlayStyle
) -> RunSummary:
    levels = sorted(args.levels or [])
    with ExitStack() as stack:
        # All ranks check the outputs before one of them writes.
        folders = together(lambda: find_output_folders(args.image, _given_outputs(args)))
        for kind, folder in folders.items():
            stack.enter_context(own_folder(folder, shared=args.skip_existing, parameter=kind))
        summary = segment_files(
            segmenter,
            jobs,
            max(levels, default=args.nspix),
            levels=levels,
            connected=args.enforce_connectivity,
            exact=args.exact_nspix,
            style=style,
            export=ExportStyle(args.simplify, args.annotation_format),
            batch_size=args.batchsize or (_CUDA_BATCH_SIZE if segmenter.device.type == "cuda" else 1),
            skip_existing=args.skip_existing,
            out_of_core=args.out_of_core,
        )
    if not is_single_image(args.image) or n_ranks() > 1 or args.skip_existing:
        _log_profile(args, segmenter)
        if args.profile:
            share = 100 * summary.seconds_waited / summary.seconds
            text = "%.0f %% of the time waiting for reading and writing"
            on_first_rank(lambda: logger.log(RESULT, text, share))
        on_first_rank(lambda: _report(summary))
        return summary
    for failure in summary.failures:
        raise failure.error
    if jobs[0].flow is not None:
        logger.info("%s", jobs[0].flow)
    counts = f"{args.nspix} superpixels requested, {summary.n_measured} measured"
    if levels:
        counts = f"levels of {', '.join(map(str, levels))} superpixels"
    logger.info(
        "%s: %s, %.2f s on %s, overlay in %s",
        jobs[0].image,
        counts,
        summary.seconds,
        segmenter.device,
        jobs[0].files.overlay,
    )
    _log_profile(args, segmenter)
    return summary


def _report(summary: RunSummary) -> None:
    """Log one line for each failed image, and a summary line; raise `RunError` if an image failed."""
    for failure in summary.failures:
        logger.error("%s", failure)
    logger.info(
        "%d images segmented, %d skipped, %d failed, %.2f images/s",
        summary.n_done,
        summary.n_skipped,
        len(summary.failures),
        summary.n_done / summary.seconds,
    )
    if summary.failures:
        raise RunError(f"{len(summary.failures)} of the images failed")


def _segment_video(
    args: argparse.Namespace, segmenter: Segmenter, archive: FlowArchive | None, style: OverlayStyle
) -> VideoSummary:
    for option, default in _FOR_IMAGES_ALONE.items():
        if getattr(args, option, default) != default:
            raise InputError(f"--{option} is for images, not for a --video")
    if args.temporal and args.fine_factor == 1:
        raise InputError("--temporal makes tracks by merging, which --fine_factor 1 turns off")
    if args.save_lifetimes and not args.temporal:
        raise InputError("--save_lifetimes needs --temporal")
    if archive and args.every > 1:
        raise InputError(
            f"--every {args.every}: {archive.path} has the flow between all frames; with --optflow_data "
            "auto, it is estimated"
        )
    if n_ranks() > 1:
        raise InputError("a --video is segmented by a single process")
    files = VideoFiles(
        Path(args.out or _DEFAULT_VIDEO),
        Path(args.save_labels) if args.save_labels else None,
        args.save_lifetimes,
    )
    kinds = (VIDEO_SUFFIXES, VIDEO_LABEL_SUFFIXES, (".png",))
    for name, path, suffixes in zip(files._fields, files, kinds, strict=True):
        if path:
            check_output_file(name, path, suffixes)
    flow = archive.path if archive else None
    outputs = {"out": files.overlay, "save_labels": files.labels, "save_lifetimes": files.lifetimes}
    _check_distinct({"video": args.video, "optflow_data": flow, **outputs})
    reader = image_reader(args)
    reader.check()
    if reader != DEFAULT_READER and not args.video.is_dir():
        raise InputError(
            "--value_range and --bands are for images and folders of frames, not for video files"
        )
    if files.lifetimes and real_path(args.video) in real_path(files.lifetimes).parents:
        raise InputError(f"--save_lifetimes {files.lifetimes}: the picture would be a frame of the --video")
    video = open_video(args.video, every=args.every, reader=reader)
    with_flow = args.temporal or segmenter.model.n_extra_channels > 0
    levels = sorted(args.levels or [])
    start = time.perf_counter()
    summary = segment_video(
        segmenter,
        read_frames(video, archive, with_flow=with_flow, n_ahead=count_ahead(segmenter.device)),
        max(levels, default=args.nspix),
        files=files,
        levels=levels,
        style=style,
        tracked=args.temporal,
        frame_rate=video.frame_rate,
        n_frames=len(video),
    )
    counts = f"levels of {', '.join(map(str, levels))} superpixels"
    if not levels:
        counts = f"{args.nspix} superpixels requested, {summary.n_measured:.1f} measured"
    tracks = ""
    if args.temporal:
        tracks = f", {summary.n_tracks} tracks of {summary.mean_life:.1f} frames in the mean"
    logger.info(
        "%s: %d frames, %s%s, %.2f frames/s on %s, overlay in %s",
        args.video,
        summary.n_frames,
        counts,
        tracks,
        summary.n_frames / (time.perf_counter() - start),
        segmenter.device,
        files.overlay,
    )
    _log_profile(args, segmenter)
    return summary


def _log_profile(args: argparse.Namespace, segmenter: Segmenter) -> None:
    if args.profile:
        on_first_rank(lambda: logger.log(RESULT, "%s", segmenter.stopwatch))


def _check_distinct(files: Mapping[str, Path | None]) -> None:
    paths = {name: path for name, path in files.items() if path is not None}
    for (name, path), (other_name, other_path) in itertools.combinations(paths.items(), 2):
        if real_path(path) == real_path(other_path):
            raise InputError(f"--{name} and --{other_name} are the same file, {path}")


def _rgb_color(text: str) -> tuple[int, int, int]:
    """Read the name of a colour, or #rrggbb."""
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected the name of a colour or #rrggbb, got {text!r}") from None
