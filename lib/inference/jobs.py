"""Which images a command line names, and which files to make of each."""

import argparse
import glob
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.files.atomic import check_output_file, prepare_out_dir, real_path
from lib.files.images import IMAGE_SUFFIXES
from lib.inference.images import ImageJob
from lib.inference.outputs import (
    FEATURE_SUFFIXES,
    LABEL_SUFFIXES,
    OUTLINE_SUFFIXES,
    PICTURE_SUFFIXES,
    OutputFiles,
)
from lib.optflow.lookup import FlowOfFrame
from lib.runtime.errors import InputError

logger = logging.getLogger(__name__)

NAME = "{name}"  # in the path of an output: the image's path in the folder that was given, without its suffix


class Output(NamedTuple):
    """A kind of file that is written for an image."""

    suffixes: tuple[str, ...]  # which choose the format
    default: str | None  # for a single image; None writes none
    default_for_many: str | None


# By option. The first suffix is that of files in a folder, of which only the folder is given.
OUTPUTS = {
    "out": Output(PICTURE_SUFFIXES, "results.png", "results"),
    "save_labels": Output(LABEL_SUFFIXES, None, None),
    "save_features": Output(FEATURE_SUFFIXES, None, None),
    "save_outlines": Output(OUTLINE_SUFFIXES, None, None),
    "save_flow": Output(PICTURE_SUFFIXES, None, None),
}


def is_single_image(given: Sequence[str]) -> bool:
    """Whether `--image` names one file."""
    if len(given) > 1 or Path(given[0]).is_dir():
        return False
    return Path(given[0]).is_file() or not glob.has_magic(given[0])


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
    is_single = is_single_image(args.image)
    mask_template = _mask_template(args.mask, is_single=is_single)
    templates = {}
    for option in OUTPUTS:
        template = _template_of(option, getattr(args, option, None), is_single=is_single)
        if template is not None:
            templates[option] = template
    images = _find_images(args.image, [*templates.values(), *filter(None, [mask_template])])
    jobs = []
    masks = {real_path(_filled(mask_template, name)) for _, name in images} if mask_template else set()
    images = [(file, name) for file, name in images if is_single or real_path(file) not in masks]
    if not images:
        raise InputError(f"--image {' '.join(args.image)}: no image but those that --mask names as masks")
    users = {real_path(file): f"the image {file}" for file, _ in images}
    flows = [None] * len(images) if flows_of is None else flows_of([file for file, _ in images])
    for (file, name), flow in zip(images, flows, strict=True):
        paths = {option: _filled(template, name) for option, template in templates.items()}
        mask = _filled(mask_template, name) if mask_template else None
        if mask:
            users.setdefault(real_path(mask), f"--mask of {file}")
        for source in flow.files if flow else []:
            users.setdefault(real_path(source), f"{source}, for the flow of {file},")
        jobs.append(ImageJob(file, _output_files(paths), mask, flow))
    for job in jobs:
        for path in job.files.paths:
            user = f"an output of {job.image}"
            other = users.setdefault(real_path(path), user)
            if other is not user:
                raise InputError(f"{user} and {other} are the same file, {path}")
    return jobs


def _find_images(given: Sequence[str], templates: Sequence[str]) -> list[tuple[Path, Path]]:
    """Images that `--image` names, each once, with its path below what is fixed in the value of `--image`.

    What lies in the folders of outputs and masks, if they are below a folder of images, is left out.
    """
    apart = [real_path(_fixed_folder(template)) for template in templates if NAME in template]
    images: dict[tuple[Path, Path], tuple[Path, Path]] = {}
    n_left_out = 0
    for value in given:
        root, files = _match(value)
        for file in files:
            parents = real_path(file).parents
            if any(folder in parents and real_path(root) in folder.parents for folder in apart):
                n_left_out += 1
                continue
            name = file.relative_to(root)
            images.setdefault((real_path(file), name), (file, name))
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
    output = OUTPUTS[option]
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


def _output_files(paths: Mapping[str, Path]) -> OutputFiles:
    return OutputFiles(
        overlay=paths["out"],
        labels=paths.get("save_labels"),
        features=paths.get("save_features"),
        outlines=paths.get("save_outlines"),
        flow=paths.get("save_flow"),
    )
