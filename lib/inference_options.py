"""The options of the inference scripts: which images to segment, and which files to make of them."""

import argparse
import glob
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import ImageColor

from lib.cli import add_bool, positive_float, positive_int
from lib.errors import InputError, RunError
from lib.files import check_output_file, prepare_out_dir
from lib.image_run import ImageJob, RunSummary
from lib.images import IMAGE_SUFFIXES
from lib.outputs import (
    FEATURE_SUFFIXES,
    LABEL_SUFFIXES,
    OVERLAYS,
    PICTURE_SUFFIXES,
    OutputFiles,
    OverlayStyle,
)
from lib.superpixels import Superpixels

logger = logging.getLogger(__name__)

NAME = "{name}"  # in the path of an output: the image's path in the folder that was given, without its suffix

_CUDA_BATCH_SIZE = 8


class _Output(NamedTuple):
    """A kind of file that is written for an image."""

    suffixes: tuple[str, ...]  # which choose the format
    default: str | None  # for a single image; None writes none
    default_for_many: str | None


# By option, which is `OutputFiles`' attribute too, but for "out"; the first suffix is that of files in a
# folder of which only the name is given.
_OUTPUTS = {
    "out": _Output(PICTURE_SUFFIXES, "results.png", "results"),
    "save_labels": _Output(LABEL_SUFFIXES, None, None),
    "save_features": _Output(FEATURE_SUFFIXES, None, None),
    "save_flow": _Output(PICTURE_SUFFIXES, None, None),
}


def add_output_args(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the options that say what to write; with `several`, for several images too."""
    in_folder = "; for several images, a folder or a name with {name}" if several else ""
    parser.add_argument(
        "--out",
        default=None if several else _OUTPUTS["out"].default,
        help=f"overlay to write, any common format{in_folder}"
        + (f"; default: {_OUTPUTS['out'].default}, or folder results" if several else ""),
    )
    parser.add_argument(
        "--save_labels",
        help=f"label map to write: .npy (int32), .png (16 bits), .tif (32 bits) or .h5{in_folder}",
    )
    parser.add_argument(
        "--save_features",
        help=f"position-invariant features of pixels and superpixels to write: .npz{in_folder}",
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


def check_count_args(args: argparse.Namespace) -> None:
    """Check that `--exact_nspix` has what it needs.

    Raises
    ------
    InputError
        If not.
    """
    if args.exact_nspix and not args.enforce_connectivity:
        raise InputError("--exact_nspix needs --enforce_connectivity")


def add_many_images_args(parser: argparse.ArgumentParser, *, demo_image: Path) -> None:
    """Add the options for any number of images."""
    parser.add_argument(
        "--image",
        nargs="+",
        default=[str(demo_image)],
        metavar="IMAGE",
        help="images to segment: files, folders with all that is below them, or patterns such as '*.jpg'",
    )
    parser.add_argument(
        "--mask",
        help="picture of the pixels to segment, all that are not black; for several images, a folder or a "
        "name with {name}",
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


def overlay_style(args: argparse.Namespace) -> OverlayStyle:
    """The overlays that the options describe."""
    return OverlayStyle(args.overlay, args.boundary_color, args.boundary_width)


def choose_batch_size(given: int | None, device: torch.device) -> int:
    """The value of `--batchsize`, or its default."""
    return given or (_CUDA_BATCH_SIZE if device.type == "cuda" else 1)


def is_single_image(given: Sequence[str]) -> bool:
    """Whether `--image` names one file."""
    return len(given) == 1 and not glob.has_magic(given[0]) and not Path(given[0]).is_dir()


def plan_jobs(args: argparse.Namespace) -> list[ImageJob]:
    """The images that the options name and the files to make of each.

    Raises
    ------
    InputError
        If there are no images, a file cannot be written, or two files would be the same.
    """
    images = [found for given in args.image for found in _find_images(given)]
    is_single = is_single_image(args.image)
    templates = {}
    mask_template = _mask_template(args.mask, is_single=is_single)
    for option in ("out", "save_labels", "save_features"):
        template = _template_of(option, getattr(args, option), n_images=None if is_single else len(images))
        if template is not None:
            templates[option] = template
    jobs = []
    users: dict[Path, str] = {file.resolve(): f"the image {file}" for file, _ in images}
    for file, name in images:
        stem = str(name.with_suffix(""))
        paths = {option: Path(template.replace(NAME, stem)) for option, template in templates.items()}
        mask = Path(mask_template.replace(NAME, stem)) if mask_template else None
        for option, path in paths.items():
            user = f"--{option} of {file}"
            if users.setdefault(path.resolve(), user) != user:
                raise InputError(f"{user} and {users[path.resolve()]} are the same file, {path}")
        jobs.append(ImageJob(file, _output_files(paths), mask))
    return jobs


def check_files(**files: str | Path | None) -> dict[str, Path]:
    """Find out, before any work, whether the files asked for can be written and are different ones.

    Parameters
    ----------
    **files : str, Path or None
        Files by the name of their option; those that are outputs are written, others are read.

    Returns
    -------
    dict of str to Path
        The files that are not None.

    Raises
    ------
    InputError
        If not.
    """
    paths = {name: Path(file) for name, file in files.items() if file is not None}
    for name in paths.keys() & _OUTPUTS.keys():
        check_output_file(f"--{name}", paths[name], _OUTPUTS[name].suffixes)
    for (name, path), (other_name, other_path) in itertools.combinations(paths.items(), 2):
        if path.resolve() == other_path.resolve():
            raise InputError(f"--{name} and --{other_name} are the same file, {path}")
    return paths


def output_files(**files: str | None) -> OutputFiles:
    """The outputs of a single image, by the names of their options."""
    return _output_files({name: Path(file) for name, file in files.items() if file is not None})


def log_superpixels(
    image: Path, n_spixels: int, superpixels: Superpixels, seconds: float, device: torch.device, out: Path
) -> None:
    """Tell in one line what came out of an image."""
    logger.info(
        "%s: %d superpixels requested, %d measured, %.2f s on %s, overlay in %s",
        image,
        n_spixels,
        superpixels.n_measured,
        seconds,
        device,
        out,
    )


def report(summary: RunSummary) -> None:
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
        raise RunError(f"{len(summary.failures)} images failed")


def _find_images(given: str) -> list[tuple[Path, Path]]:
    """Images that a value of `--image` names, each with its path below what is fixed in that value."""
    path = Path(given)
    if path.is_dir():
        found = [
            file for file in sorted(path.rglob("*")) if _is_image(file.relative_to(path)) and file.is_file()
        ]
        if not found:
            raise InputError(f"--image {given}: no image in that folder, of {', '.join(IMAGE_SUFFIXES)}")
        return [(file, file.relative_to(path)) for file in found]
    if path.exists() or not glob.has_magic(given):
        if not path.is_file():
            raise InputError(f"no image file {given}")
        return [(path, Path(path.name))]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    found = [Path(file) for file in sorted(glob.glob(given, recursive=True)) if Path(file).is_file()]
    if not found:
        raise InputError(f"--image {given}: no file is named like that")
    return [(file, file.relative_to(fixed)) for file in found]


def _is_image(file: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.parts)
    return file.suffix.lower() in IMAGE_SUFFIXES and not is_hidden


def _template_of(option: str, given: str | None, *, n_images: int | None) -> str | None:
    """Path of an output in which `{name}` stands for that of the image; None if there is none.

    `n_images` is None for a single image. Folders that files would go to are made.
    """
    output = _OUTPUTS[option]
    template = given or (output.default if n_images is None else output.default_for_many)
    if template is None:
        return None
    suffix = Path(template).suffix.lower()
    if n_images is None or NAME in template:
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
    prepare_out_dir(Path(template[: template.index(NAME)] + "_").parent, option=f"--{option}")
    return template


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
    return OutputFiles(paths["out"], paths.get("save_labels"), paths.get("save_features"))
