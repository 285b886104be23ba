"""What an evaluation did: in words, and in all that is needed to repeat it."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lib.connectivity import MIN_SIZE_SHARE
from lib.errors import InputError
from lib.evaluation.methods import Method
from lib.evaluation.summary import COUNT_RANGE
from lib.evaluation.timing import N_TIMED_IMAGES
from lib.files import atomic_path
from lib.metrics import BOUNDARY_TOLERANCE

RECORD = "run.json"

PROTOCOL = f"""\
Superpixels: every method is asked for each number of superpixels. Before anything is measured, every label is
split into its 4-connected pieces, and pieces smaller than {MIN_SIZE_SHARE} times the requested mean size
(pixels / requested superpixels) join the neighbour they share the longest border with. Results are reported
against the measured number of superpixels that remain.

Samples: every pair of an image and one of its annotations is a sample, and figures are plain means over all
pairs. Figures that need no annotation (count, spread of sizes, compactness, explained variation,
intra-cluster variation, contour density) are means over the images. "Worst annotation" is the mean over the
images of the worst value among the annotations of each.

Boundaries: a boundary pixel has another label among its four neighbours. Recall and precision accept a
boundary within round({BOUNDARY_TOLERANCE} * diagonal) pixels, in a square window. The one-sided variants take
only pixels that differ from their right or lower neighbour, with a window of 1 or 2 pixels to each side.

Curves: linear between the measured counts. Means over counts are areas under these curves, divided by the
range of counts, which is the part of {COUNT_RANGE[0]} to {COUNT_RANGE[1]} that all curves cover.

Seconds: the median time of the first {N_TIMED_IMAGES} images, segmented one by one while nothing else runs,
connectivity excluded. Networks start from the image in CIELAB; SLIC includes its own colour conversion and
connectivity.

Chance: no random number is drawn."""

_PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "opencv-python-headless")


def make_record(
    methods: Sequence[Method],
    n_images: Mapping[str, int],
    *,
    n_spixels: Sequence[int],
    metrics: Sequence[str],
    device: torch.device,
    options: Mapping[str, str],
) -> dict[str, Any]:
    """Describe an evaluation in plain types.

    Parameters
    ----------
    methods : sequence of Method
        What is evaluated.
    n_images : mapping of str to int
        Images by data set.
    n_spixels, metrics
        As for `lib.evaluation.loop.evaluate`.
    device : torch.device
        Where networks compute.
    options : mapping of str to str
        Options of the script.
    """
    return {
        "methods": {
            method.name: {**method.description, "pos_scales": list(method.pos_scales)} for method in methods
        },
        "images": dict(n_images),
        "requested": list(n_spixels),
        "metrics": list(metrics),
        "device": str(device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "protocol": PROTOCOL,
        "options": dict(options),
    }


def write_record(record: Mapping[str, Any], out_dir: Path) -> None:
    """Write a record for `check_same_run` to find."""
    with atomic_path(out_dir / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def check_same_run(record: Mapping[str, Any], out_dir: Path) -> None:
    """Check that results in a folder are those of the same evaluation, so that it can go on.

    Options may differ as long as they change no score: where data sets lie, the number of workers.

    Raises
    ------
    InputError
        If not.
    """
    path = out_dir / RECORD
    try:
        earlier = _flatten(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--resume: {path} does not tell of which run the results are; use --overwrite"
        ) from error
    ours = _flatten(json.loads(json.dumps(record)))
    for name in [*ours, *earlier]:
        if not name.startswith("options.") and earlier.get(name) != ours.get(name):
            values = f"is {earlier.get(name, 'not set')}, not {ours.get(name, 'not set')}"
            raise InputError(
                f"--resume: {out_dir} holds another run: {name} "
                f"{values if len(values) < 200 else 'differs'}; "
                "choose another --out_dir, or --overwrite"
            )


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by names joined with dots."""
    if not isinstance(value, Mapping):
        return {name: value}
    prefix = f"{name}." if name else ""
    return {
        path: leaf for key, item in value.items() for path, leaf in _flatten(item, f"{prefix}{key}").items()
    }
