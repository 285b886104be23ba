"""Find images by name, folder or pattern, and plan their output files."""

import glob
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.files.atomic import check_output_file, prepare_out_dir, real_path
from lib.files.gdal import check_geo_extra
from lib.files.images import DEFAULT_READER, ImageReader, is_image
from lib.files.listing import is_hidden, log_left_out
from lib.inference.images import ImageJob
from lib.inference.outputs import (
    FEATURE_SUFFIXES,
    LABEL_SUFFIXES,
    NESTED_LABEL_SUFFIXES,
    OUTLINE_SUFFIXES,
    PICTURE_SUFFIXES,
    OutputFiles,
)
from lib.optflow.lookup import FlowOfFrame
from lib.runtime.errors import InputError, missing_path
from lib.superpixels.annotations import ANNOTATION_SUFFIXES

logger = logging.getLogger(__name__)

NAME = "{name}"  # in a template: path of the image below the given folder, without its suffix


class Output(NamedTuple):
    """Kind of file that can be written for an image."""

    suffixes: tuple[str, ...]  # of the formats
    default: str | None = None  # for a single image; None writes no file
    default_for_many: str | None = None


# By field of `OutputFiles`. If only a folder is given, the first suffix is the format.
OUTPUTS = {
    "overlay": Output(PICTURE_SUFFIXES, "results.png", "results"),
    "labels": Output(LABEL_SUFFIXES),
    "features": Output(FEATURE_SUFFIXES),
    "outlines": Output(OUTLINE_SUFFIXES),
    "annotations": Output(tuple(dict.fromkeys(ANNOTATION_SUFFIXES.values()))),
    "flow": Output(PICTURE_SUFFIXES),
}
_OUTPUT_SUFFIXES = {suffix for output in OUTPUTS.values() for suffix in output.suffixes}
_NESTED_LABELS = Output(NESTED_LABEL_SUFFIXES)


def is_single_image(images: Sequence[str]) -> bool:
    """Return True if `images` names a single file."""
    if len(images) > 1 or Path(images[0]).is_dir():
        return False
    return Path(images[0]).is_file() or not glob.has_magic(images[0])


def plan_jobs(
    images: Sequence[str],
    outputs: Mapping[str, str | None],
    *,
    nested: bool = False,
    annotation_format: str | None = None,
    mask: str | None = None,
    reader: ImageReader = DEFAULT_READER,
    flows_of: Callable[[Sequence[Path]], Sequence[FlowOfFrame]] | None = None,
) -> list[ImageJob]:
    """Find images, and plan the output files of each.

    Parameters
    ----------
    images : sequence of str
        Files, folders (with all images below them), or glob patterns.
    outputs : mapping of str to str or None
        File, folder or template with `{name}`, by key of `OUTPUTS`; None means the default.
    nested : bool
        Label maps are of nested levels.
    annotation_format : str, optional
        Format of annotations, a key of `ANNOTATION_SUFFIXES`; by default, the suffix chooses.
    mask : str, optional
        Picture of the pixels to segment; for several images, a folder or a template.
    reader : ImageReader
        Settings of reading, for all images.
    flows_of : callable, optional
        Returns the flow of each image; by default, images have no flow.

    Raises
    ------
    InputError
        If no image is found, a file cannot be written, two files are the same, a setting of reading cannot
        be used, or the packages that write GeoPackages are missing.
    """
    reader.check()
    is_single = is_single_image(images)
    mask_template = _mask_template(mask, is_single=is_single)
    templates = _make_templates(images, outputs, nested=nested, annotation_format=annotation_format)
    if templates.get("outlines", "").lower().endswith(".gpkg"):
        check_geo_extra()
    found = _find_images(images, [*templates.values(), *filter(None, [mask_template])])
    jobs = []
    masks = {real_path(_fill(mask_template, name)) for _, name in found} if mask_template else set()
    found = [(file, name) for file, name in found if is_single or real_path(file) not in masks]
    if not found:
        raise InputError(f"{' '.join(images)}: every image is a mask of `mask`", parameter="images")
    users = {real_path(file): f"the image {file}" for file, _ in found}
    flows = [None] * len(found) if flows_of is None else flows_of([file for file, _ in found])
    for (file, name), flow in zip(found, flows, strict=True):
        files = OutputFiles(**{kind: _fill(template, name) for kind, template in templates.items()})
        mask_file = _fill(mask_template, name) if mask_template else None
        if mask_file:
            users.setdefault(real_path(mask_file), f"`mask` of {file}")
        for source in flow.files if flow else []:
            users.setdefault(real_path(source), f"{source}, for the flow of {file},")
        jobs.append(ImageJob(file, files, mask_file, flow, reader))
    for job in jobs:
        for path in job.files.paths:
            user = f"an output of {job.image}"
            other = users.setdefault(real_path(path), user)
            if other is not user:
                raise InputError(f"{user} and {other} are the same file, {path}")
    return jobs


def find_output_folders(images: Sequence[str], outputs: Mapping[str, str | None]) -> dict[str, Path]:
    """Return the folders that outputs fill, each once, by key of `OUTPUTS`; parameters as for `plan_jobs`.

    An output of a single name fills no folder.
    """
    folders: dict[Path, tuple[str, Path]] = {}
    for kind, template in _make_templates(images, outputs).items():
        if NAME in template:
            folder = _fixed_folder(template)
            folders.setdefault(real_path(folder), (kind, folder))
    return dict(folders.values())


def _find_images(given: Sequence[str], templates: Sequence[str]) -> list[tuple[Path, Path]]:
    """Return the images, each once, with its path below the given folder.

    Folders of outputs and masks below a folder of images are skipped.
    """
    skipped_folders = [real_path(_fixed_folder(template)) for template in templates if NAME in template]
    images: dict[tuple[Path, Path], tuple[Path, Path]] = {}
    left_out: set[Path] = set()
    n_skipped = 0
    for value in given:
        root, files = _match(value)
        for file in files:
            parents = real_path(file).parents
            is_skipped = any(
                folder in parents and real_path(root) in folder.parents for folder in skipped_folders
            )
            if root == Path(value) and not is_image(file):
                left_out |= set() if is_skipped or file.suffix.lower() in _OUTPUT_SUFFIXES else {file}
                continue
            if is_skipped:
                n_skipped += 1
                continue
            name = file.relative_to(root)
            images.setdefault((real_path(file), name), (file, name))
    if n_skipped:
        logger.info("%d images are skipped: they lie in a folder of outputs or masks", n_skipped)
    log_left_out(logger, left_out)
    if not images and n_skipped == 0:
        raise InputError(f"{' '.join(given)}: holds no image", parameter="images")
    if not images:
        raise InputError(
            f"{' '.join(given)}: all images lie in folders of outputs or masks", parameter="images"
        )
    return list(images.values())


def _match(given: str) -> tuple[Path, list[Path]]:
    """Return the files that a name, folder or pattern matches, after the folder that it starts with."""
    path = Path(given)
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if not is_hidden(file.relative_to(path)))
        return path, [file for file in files if file.is_file()]
    if path.exists() or not glob.has_magic(given):
        if not path.is_file():
            raise missing_path(given, "image file")
        return path.parent, [path]
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    found = [Path(file) for file in sorted(glob.glob(given, recursive=True)) if Path(file).is_file()]
    if not found:
        raise InputError(f"{given}: no file matches", parameter="images")
    return root, found


def _make_templates(
    images: Sequence[str],
    outputs: Mapping[str, str | None],
    *,
    nested: bool = False,
    annotation_format: str | None = None,
) -> dict[str, str]:
    """Return the template of each output, by key of `OUTPUTS`; see `_make_template`."""
    kinds = OUTPUTS | {"labels": _NESTED_LABELS} if nested else dict(OUTPUTS)
    if annotation_format:
        kinds["annotations"] = Output((ANNOTATION_SUFFIXES[annotation_format],))
    is_single = is_single_image(images)
    templates = {
        kind: _make_template(kind, output, outputs.get(kind), is_single=is_single)
        for kind, output in kinds.items()
    }
    return {kind: template for kind, template in templates.items() if template}


def _make_template(kind: str, output: Output, given: str | None, *, is_single: bool) -> str | None:
    """Return the path of an output, a template if several images are possible; None for no output.

    The folder of a template is made.
    """
    template = given or (output.default if is_single else output.default_for_many)
    if template is None:
        return None
    suffix = Path(template).suffix.lower()
    suffixes = ", ".join(output.suffixes)
    is_folder = template.endswith(os.sep) or Path(template).is_dir()
    if NAME in template:
        if suffix not in output.suffixes:
            raise InputError(f"{template}: the name must end in {suffixes}", parameter=kind)
    elif is_single and not is_folder:
        check_output_file(kind, Path(template), output.suffixes)
        return template
    elif suffix in output.suffixes and not is_folder:
        raise InputError(
            f"{template} is a single file, but several images are possible: give a folder, or a name "
            f"such as {NAME}{suffix}",
            parameter=kind,
        )
    else:
        template = str(Path(template) / f"{NAME}{output.suffixes[0]}")
    prepare_out_dir(_fixed_folder(template), parameter=kind)
    return template


def _fill(template: str, name: Path) -> Path:
    """Return the path that a template gives for an image."""
    return Path(template.replace(NAME, str(name.with_suffix(""))))


def _fixed_folder(template: str) -> Path:
    """Return the deepest folder that holds all files of a template."""
    return Path(template[: template.index(NAME)] + "_").parent


def _mask_template(given: str | None, *, is_single: bool) -> str | None:
    if given is None or is_single or NAME in given:
        return given
    if not Path(given).is_dir():
        raise InputError(
            f"{given}: for several images, give a folder of masks, or a name such as masks/{NAME}.png",
            parameter="mask",
        )
    return str(Path(given) / f"{NAME}.png")
