"""The command that does what the page shows."""

import shlex
from pathlib import Path

from lib.cli.options import DEFAULT_BASE_WEIGHTS, DEFAULT_COMPOSITE_WEIGHTS, REPO_ROOT
from lib.inference.outputs import DEFAULT_STYLE
from lib.inference.page_settings import Segmentation, View


def command_of(view: View) -> str:
    """Return the lines to type in a shell, in the root of the repository, for what a page shows.

    Uploads are named without their folder. The frames of an uploaded pair are first copied to a folder, in
    their order.
    """
    done = view.segmentation
    lines, image = _place_frames(done)
    words = ["python", *_script(done), "--image", image]
    if done.next_frame is not None:
        words += ["--optflow_data", "auto"]
    has_level = view.level < done.n_spixels
    words += ["--levels", view.level, done.n_spixels] if has_level else ["--nspix", done.n_spixels]
    if done.compactness != 1:
        words += ["--pos_scale_dist", f"{done.compactness:g}"]
    if done.n_iter is not None:
        words += ["--niter", done.n_iter]
    words += _style(view) + _outputs(view, nested=has_level)
    if has_level:
        picture = "both levels" if view.style.kind == DEFAULT_STYLE.kind else f"{done.n_spixels} superpixels"
        lines.append(
            f"# labels.h5 has the labels of the page as level_{view.level}; the picture shows {picture}"
        )
    return "\n".join([*lines, shlex.join(map(str, words))])


def _script(done: Segmentation) -> list[str]:
    """Return the script, with its weights unless they are the default."""
    script, option, default = "inference_base_model.py", "--base_model_weights", DEFAULT_BASE_WEIGHTS
    if done.next_frame is not None:
        script, option = "inference_optflow_composite_model.py", "--comp_model_weights"
        default = DEFAULT_COMPOSITE_WEIGHTS
    return [script] if done.weights == default else [script, option, _name(done.weights)]


def _place_frames(done: Segmentation) -> tuple[list[str], str]:
    """Return commands that put a pair of frames into one folder, and the name of the image."""
    if done.next_frame is None or REPO_ROOT in done.image.parents:
        return [], _name(done.image)
    frames = [f"frames/{number}{done.image.suffix.lower()}" for number in range(2)]
    copies = [
        shlex.join(["cp", _name(path), frame])
        for path, frame in zip((done.image, done.next_frame), frames, strict=True)
    ]
    return [" && ".join(["mkdir frames", *copies])], frames[0]


def _style(view: View) -> list[object]:
    style = view.style
    if style.kind != DEFAULT_STYLE.kind:
        return ["--overlay", style.kind]
    words = []
    if style.color != DEFAULT_STYLE.color:
        words += ["--boundary_color", "#{:02x}{:02x}{:02x}".format(*style.color)]
    if style.width is not None:
        words += ["--boundary_width", style.width]
    return words


def _outputs(view: View, *, nested: bool) -> list[str]:
    """Return the options of the files to write; outlines and annotations would be of the finest level."""
    words = ["--out", "superpixels.png", "--save_labels", "labels.h5" if nested else "labels.npy"]
    download = view.download
    if download.kind in ("outlines", "annotations") and not nested:
        words += [f"--save_{download.kind}", download.ending]
        if download.annotation_format:
            words += ["--annotation_format", download.annotation_format]
    return words


def _name(path: Path) -> str:
    """Return the path of a file of the repository below its root, the bare name of another file."""
    return path.relative_to(REPO_ROOT).as_posix() if REPO_ROOT in path.parents else path.name
