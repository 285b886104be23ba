"""The options of the inference scripts: which images to segment, and which files to make of them."""

import argparse
import glob
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import ImageColor

from lib.checkpoint import LoadedModel
from lib.cli import (
    add_bool,
    add_device_arg,
    add_precision_arg,
    positive_float,
    positive_int,
    resolve_device,
)
from lib.distributed import n_ranks, on_first_rank
from lib.errors import InputError, RunError
from lib.features import InputScales
from lib.files import check_output_file, prepare_out_dir
from lib.frame_flow import FlowOfFrame
from lib.frames import FRAME_SUFFIXES, FrameFolder, VideoFile, list_in_order
from lib.image_run import ImageJob, RunSummary, segment_files
from lib.images import IMAGE_SUFFIXES
from lib.inference import Segmenter
from lib.interruption import StopSignals
from lib.optflow import FlowArchive
from lib.optflow_sources import DEFAULT_PRESET
from lib.outputs import (
    FEATURE_SUFFIXES,
    LABEL_SUFFIXES,
    OUTLINE_SUFFIXES,
    OVERLAYS,
    PICTURE_SUFFIXES,
    OutputFiles,
    OverlayStyle,
)
from lib.precision import resolve_precision
from lib.stopwatch import Stopwatch
from lib.video import (
    VIDEO_LABEL_SUFFIXES,
    VIDEO_SUFFIXES,
    VideoSummary,
    frames_with_estimated_flow,
    frames_with_flow_of,
    frames_without_flow,
    segment_video,
)

logger = logging.getLogger(__name__)

NAME = "{name}"  # in the path of an output: the image's path in the folder that was given, without its suffix

_FOR_SEVERAL = f"; for several images, a folder or a name with {NAME}"  # in the help of options

_CUDA_BATCH_SIZE = 8
_DEFAULT_VIDEO = "results.mp4"
_FOR_IMAGES_ALONE = {
    "mask": None,
    "save_features": None,
    "save_flow": None,
    "save_outlines": None,
    "exact_nspix": False,
    "enforce_connectivity": True,
    "skip_existing": False,
    "batchsize": None,
    "optflow_data_fr_idx": None,
    "optflow_method": None,
}


class _Output(NamedTuple):
    """A kind of file that is written for an image."""

    suffixes: tuple[str, ...]  # which choose the format
    default: str | None  # for a single image; None writes none
    default_for_many: str | None


# By option. The first suffix is that of files in a folder, of which only the folder is given.
_OUTPUTS = {
    "out": _Output(PICTURE_SUFFIXES, "results.png", "results"),
    "save_labels": _Output(LABEL_SUFFIXES, None, None),
    "save_features": _Output(FEATURE_SUFFIXES, None, None),
    "save_outlines": _Output(OUTLINE_SUFFIXES, None, None),
    "save_flow": _Output(PICTURE_SUFFIXES, None, None),
}


def add_output_args(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to write."""
    parser.add_argument(
        "--out",
        help=f"overlay to write, any common format, .mp4 for a video{_FOR_SEVERAL}; default: "
        f"{_OUTPUTS['out'].default}, {_DEFAULT_VIDEO} for a video, folder "
        f"{_OUTPUTS['out'].default_for_many} for several images",
    )
    parser.add_argument(
        "--save_labels",
        help="label map to write: .npy (int32), .png (16 bits), .tif (32 bits) or .h5, which alone holds "
        f"those of a video{_FOR_SEVERAL}",
    )
    parser.add_argument(
        "--save_features",
        help=f"position-invariant features of pixels and superpixels to write: .npz{_FOR_SEVERAL}",
    )
    parser.add_argument(
        "--save_outlines",
        help=f"outlines of the superpixels to write, for labelling tools: .geojson or .svg{_FOR_SEVERAL}",
    )
    parser.add_argument(
        "--overlay",
        choices=OVERLAYS,
        default="boundaries",
        help="draw the borders of the superpixels over the image, or paint each in its mean colour",
    )
    parser.add_argument(
        "--boundary_color",
        type=_rgb_color,
        default="yellow",
        metavar="COLOR",
        help="of the borders: a name, or #rrggbb",
    )
    parser.add_argument("--boundary_width", type=positive_int, default=2, help="of the borders, in pixels")
    add_bool(
        parser,
        "--enforce_connectivity",
        default=True,
        help="make superpixels connected and merge crumbs; False gives the raw argmax",
    )
    add_bool(
        parser,
        "--exact_nspix",
        default=False,
        help="merge or split superpixels until there are exactly --nspix",
    )
    parser.add_argument(
        "--pos_scale_dist",
        type=positive_float,
        default=1.0,
        help="factor of the position in the distances alone, beside --pos_scale; higher is more compact",
    )


def add_video_args(parser: argparse.ArgumentParser, sources: argparse._MutuallyExclusiveGroup) -> None:
    """Add the options for a video, which is one of the sources."""
    sources.add_argument(
        "--video",
        type=Path,
        metavar="FILE|FOLDER",
        help="video to segment: a file, or a folder of its frames",
    )
    add_bool(
        parser,
        "--temporal",
        default=False,
        help="let superpixels of a video keep their label from frame to frame, with the optical flow",
    )


def segment_given_video(
    args: argparse.Namespace, segmenter: Segmenter, *, archive: FlowArchive | None = None
) -> VideoSummary:
    """Segment the video that the options name.

    Parameters
    ----------
    args : Namespace
        Of a parser with the options of the outputs and of a video.
    segmenter : Segmenter
        What segments.
    archive : FlowArchive, optional
        Flow of the video; where it is needed and not given, it is estimated.

    Raises
    ------
    InputError
        If the video cannot be opened, files cannot be written, or options are for images alone.
    """
    for option, default in _FOR_IMAGES_ALONE.items():
        if getattr(args, option, default) != default:
            raise InputError(f"--{option} is for images, not for a --video")
    if n_ranks() > 1:
        raise InputError("a --video is segmented by a single process")
    out = Path(args.out or _DEFAULT_VIDEO)
    labels = Path(args.save_labels) if args.save_labels else None
    check_output_file("--out", out, VIDEO_SUFFIXES)
    if labels:
        check_output_file("--save_labels", labels, VIDEO_LABEL_SUFFIXES)
    _check_distinct(
        {
            "video": args.video,
            "optflow_data": archive.path if archive else None,
            "out": out,
            "save_labels": labels,
        }
    )
    if args.video.is_dir():
        video = FrameFolder(args.video.resolve().name, list_in_order(args.video, FRAME_SUFFIXES))
    else:
        video = VideoFile(args.video.stem, args.video)
    if archive is not None:
        frames = frames_with_flow_of(video, archive)
    elif args.temporal or segmenter.model.n_extra_channels:
        frames = frames_with_estimated_flow(video, DEFAULT_PRESET)
    else:
        frames = frames_without_flow(video)
    start = time.perf_counter()
    summary = segment_video(
        segmenter,
        frames,
        args.nspix,
        overlay_file=out,
        labels_file=labels,
        style=_overlay_style(args),
        tracked=args.temporal,
        frame_rate=video.frame_rate,
        n_frames=len(video),
    )
    follows = summary.share_that_follows
    logger.info(
        "%s: %d frames, %d superpixels requested, %.1f measured, %.2f frames/s on %s%s, overlay in %s",
        args.video,
        summary.n_frames,
        args.nspix,
        summary.n_measured,
        summary.n_frames / (time.perf_counter() - start),
        segmenter.device,
        "" if follows is None else f", labels of {100 * follows:.1f} % of the pixels follow the flow",
        out,
    )
    _tell_profile(args, segmenter)
    return summary


def check_needs(args: argparse.Namespace) -> None:
    """Check that options which need others have them.

    Raises
    ------
    InputError
        If not.
    """
    for option in ("exact_nspix", "save_outlines"):
        if getattr(args, option) and not args.enforce_connectivity:
            raise InputError(f"--{option} needs --enforce_connectivity")
    if args.temporal and args.video is None:
        raise InputError("--temporal needs a --video")


def add_many_images_args(
    parser: argparse.ArgumentParser, sources: argparse._MutuallyExclusiveGroup, *, demo_image: Path
) -> None:
    """Add the options for any number of images, which are one of the sources."""
    sources.add_argument(
        "--image",
        nargs="+",
        default=[str(demo_image)],
        metavar="IMAGE",
        help="images to segment: files, folders with all that is below them, or patterns such as '*.jpg'",
    )
    parser.add_argument(
        "--mask", help=f"picture of the pixels to segment, all that are not black{_FOR_SEVERAL}"
    )
    add_bool(
        parser, "--skip_existing", default=False, help="leave out images of which all files are there already"
    )
    parser.add_argument(
        "--batchsize",
        type=positive_int,
        help="images of one size that go through the network together; default: "
        f"{_CUDA_BATCH_SIZE} on CUDA, else 1",
    )


def add_speed_args(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where and how fast to compute; `open_segmenter` reads them."""
    add_device_arg(parser)
    add_precision_arg(parser, default="fp32")
    add_bool(
        parser,
        "--compile",
        default=False,
        help="compile the network with torch.compile, which takes a minute for every size of images",
    )
    add_bool(parser, "--profile", default=False, help="tell how long each stage took")


def open_segmenter(args: argparse.Namespace, loaded: LoadedModel, scales: InputScales) -> Segmenter:
    """What segments with a loaded model as the options say.

    Raises
    ------
    InputError
        If the device or the precision cannot be had, or there is no network to compile.
    """
    device = resolve_device(args.device)
    segmenter = Segmenter(
        loaded.model,
        scales,
        device=device,
        with_bfloat16=resolve_precision(args.precision, device) == "bf16",
        pos_scale_dist=args.pos_scale_dist,
        stopwatch=Stopwatch(device if args.profile else None),
    )
    if args.compile:
        if not segmenter.learns_features:
            raise InputError("--compile: there is no network to compile")
        loaded.model.compile_network()
    return segmenter


def _tell_profile(args: argparse.Namespace, segmenter: Segmenter) -> None:
    """With `--profile`, tell how long each stage took on the first rank."""
    if args.profile:
        on_first_rank(lambda: logger.info("%s", segmenter.stopwatch))


def _overlay_style(args: argparse.Namespace) -> OverlayStyle:
    """The overlays that the options describe."""
    return OverlayStyle(args.overlay, args.boundary_color, args.boundary_width)


def plan_jobs(
    args: argparse.Namespace,
    flows_of: Callable[[Sequence[Path]], Sequence[FlowOfFrame]] | None = None,
) -> list[ImageJob]:
    """The images that the options name and the files to make of each.

    Parameters
    ----------
    args : Namespace
        Of a parser with the options of images and outputs.
    flows_of : callable, optional
        Finds the flow of images.

    Raises
    ------
    InputError
        If there are no images, a file cannot be written, or two files would be the same.
    """
    is_single = _is_single_image(args.image)
    mask_template = _mask_template(args.mask, is_single=is_single)
    templates = {}
    for option in _OUTPUTS:
        template = _template_of(option, getattr(args, option, None), is_single=is_single)
        if template is not None:
            templates[option] = template
    images = _find_images(args.image, [*templates.values(), *filter(None, [mask_template])])
    jobs = []
    masks = {_filled(mask_template, name).resolve() for _, name in images} if mask_template else set()
    images = [(file, name) for file, name in images if is_single or file.resolve() not in masks]
    if not images:
        raise InputError(f"--image {' '.join(args.image)}: no image but those that --mask names as masks")
    users = {file.resolve(): f"the image {file}" for file, _ in images}
    flows = [None] * len(images) if flows_of is None else flows_of([file for file, _ in images])
    for (file, name), flow in zip(images, flows, strict=True):
        paths = {option: _filled(template, name) for option, template in templates.items()}
        mask = _filled(mask_template, name) if mask_template else None
        if mask:
            users.setdefault(mask.resolve(), f"--mask of {file}")
        for source in flow.files if flow else []:
            users.setdefault(source.resolve(), f"{source}, for the flow of {file},")
        jobs.append(ImageJob(file, _output_files(paths), mask, flow))
    for job in jobs:
        for path in job.files.paths:
            user = f"an output of {job.image}"
            other = users.setdefault(path.resolve(), user)
            if other is not user:
                raise InputError(f"{user} and {other} are the same file, {path}")
    return jobs


def segment_given_images(
    args: argparse.Namespace, segmenter: Segmenter, jobs: Sequence[ImageJob]
) -> RunSummary:
    """Segment the images that the options name, and tell what came of them.

    Parameters
    ----------
    args : Namespace
        Of a parser with the options of images and outputs.
    segmenter : Segmenter
        What segments.
    jobs : sequence of ImageJob
        The images; see `plan_jobs`.

    Raises
    ------
    InputError
        If a single image cannot be used.
    RunError
        If files cannot be written, or one of several images failed.
    """
    if _is_single_image(args.image) and n_ranks() == 1 and not args.skip_existing:
        summary = _segment_single_image(args, segmenter, jobs[0])
        _tell_profile(args, segmenter)
        return summary
    summary = segment_files(
        segmenter,
        jobs,
        args.nspix,
        connected=args.enforce_connectivity,
        exact=args.exact_nspix,
        style=_overlay_style(args),
        batch_size=args.batchsize or (_CUDA_BATCH_SIZE if segmenter.device.type == "cuda" else 1),
        skip_existing=args.skip_existing,
    )
    _tell_profile(args, segmenter)
    on_first_rank(lambda: _report(summary))
    return summary


def _is_single_image(given: Sequence[str]) -> bool:
    """Whether `--image` names one file."""
    if len(given) > 1 or Path(given[0]).is_dir():
        return False
    return Path(given[0]).is_file() or not glob.has_magic(given[0])


def _segment_single_image(args: argparse.Namespace, segmenter: Segmenter, job: ImageJob) -> RunSummary:
    """Segment an image, whose errors are those of the script, and tell in one line what came of it."""
    start = time.perf_counter()
    with StopSignals():
        image = job.read(segmenter)
        (superpixels,) = segmenter.cluster([image], args.nspix, with_features=args.save_features is not None)
        if args.enforce_connectivity:
            superpixels = segmenter.finish(superpixels, args.nspix, exact=args.exact_nspix)
        job.write(segmenter, image, superpixels, _overlay_style(args))
    seconds = time.perf_counter() - start
    if job.flow is not None:
        logger.info("%s", job.flow)
    logger.info(
        "%s: %d superpixels requested, %d measured, %.2f s on %s, overlay in %s",
        job.image,
        args.nspix,
        superpixels.n_measured,
        seconds,
        segmenter.device,
        job.files.overlay,
    )
    return RunSummary(n_done=1, n_skipped=0, failures=[], seconds=seconds)


def _report(summary: RunSummary) -> None:
    """Tell what came of many images: a line for each that failed, and one for all.

    Raises
    ------
    RunError
        If an image failed.
    """
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


def _check_distinct(files: Mapping[str, Path | None]) -> None:
    paths = {name: path for name, path in files.items() if path is not None}
    for (name, path), (other_name, other_path) in itertools.combinations(paths.items(), 2):
        if path.resolve() == other_path.resolve():
            raise InputError(f"--{name} and --{other_name} are the same file, {path}")


def _find_images(given: Sequence[str], templates: Sequence[str]) -> list[tuple[Path, Path]]:
    """Images that `--image` names, each once, with its path below what is fixed in the value of `--image`.

    What lies in the folders of outputs and masks, if they are below a folder of images, is left out.
    """
    apart = [_fixed_folder(template).resolve() for template in templates if NAME in template]
    images: dict[tuple[Path, Path], tuple[Path, Path]] = {}
    n_left_out = 0
    for value in given:
        root, files = _match(value)
        for file in files:
            parents = file.resolve().parents
            if any(folder in parents and root.resolve() in folder.parents for folder in apart):
                n_left_out += 1
                continue
            name = file.relative_to(root)
            images.setdefault((file.resolve(), name), (file, name))
    if n_left_out:
        logger.info("%d images are left out, as they are in a folder of outputs or masks", n_left_out)
    if not images:
        raise InputError(f"--image {' '.join(given)}: no image but in folders of outputs or masks")
    return list(images.values())


def _match(given: str) -> tuple[Path, list[Path]]:
    """The folder that a value of `--image` starts from, and the images that it names."""
    path = Path(given)
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if _is_image(file.relative_to(path)))
        found = [file for file in files if file.is_file()]
        if not found:
            raise InputError(f"--image {given}: no image in that folder, of {', '.join(IMAGE_SUFFIXES)}")
        return path, found
    if path.exists() or not glob.has_magic(given):
        if not path.is_file():
            raise InputError(f"no image file {given}")
        return path.parent, [path]
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    found = [Path(file) for file in sorted(glob.glob(given, recursive=True)) if Path(file).is_file()]
    if not found:
        raise InputError(f"--image {given}: no file is named like that")
    return root, found


def _is_image(file: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.parts)
    return file.suffix.lower() in IMAGE_SUFFIXES and not is_hidden


def _template_of(option: str, given: str | None, *, is_single: bool) -> str | None:
    """Path of an output in which `{name}` stands for that of the image; None if there is none.

    Folders that files would go to are made.
    """
    output = _OUTPUTS[option]
    template = given or (output.default if is_single else output.default_for_many)
    if template is None:
        return None
    suffix = Path(template).suffix.lower()
    if is_single or NAME in template:
        if NAME not in template:
            check_output_file(f"--{option}", Path(template), output.suffixes)
            return template
        if suffix not in output.suffixes:
            raise InputError(f"--{option} {template}: the name must end in {', '.join(output.suffixes)}")
    elif suffix in output.suffixes and not Path(template).is_dir():
        raise InputError(
            f"--{option} {template} is one file, but there may be several images: give a folder, or a name "
            f"such as {NAME}{suffix}"
        )
    else:
        template = str(Path(template) / f"{NAME}{output.suffixes[0]}")
    prepare_out_dir(_fixed_folder(template), option=f"--{option}")
    return template


def _filled(template: str, name: Path) -> Path:
    """Path that a template gives an image."""
    return Path(template.replace(NAME, str(name.with_suffix(""))))


def _fixed_folder(template: str) -> Path:
    """Folder in which all files of a template are."""
    return Path(template[: template.index(NAME)] + "_").parent


def _mask_template(given: str | None, *, is_single: bool) -> str | None:
    if given is None or is_single or NAME in given:
        return given
    if not Path(given).is_dir():
        raise InputError(
            f"--mask {given}: for several images, give a folder of masks, or a name such as masks/{NAME}.png"
        )
    return str(Path(given) / f"{NAME}.png")


def _rgb_color(text: str) -> tuple[int, int, int]:
    """Read the name of a colour, or #rrggbb."""
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected the name of a colour or #rrggbb, got {text!r}") from None


def _output_files(paths: Mapping[str, Path]) -> OutputFiles:
    return OutputFiles(
        overlay=paths["out"],
        labels=paths.get("save_labels"),
        features=paths.get("save_features"),
        outlines=paths.get("save_outlines"),
        flow=paths.get("save_flow"),
    )
