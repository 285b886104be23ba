"""What an evaluation did: in words, and in all that is needed to repeat it."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from lib.datasets.base import SegmentedImage, fingerprint
from lib.evaluation.methods import Method
from lib.evaluation.summary import COUNT_RANGE
from lib.evaluation.timing import N_TIMED_IMAGES
from lib.files.atomic import atomic_path
from lib.metrics.definitions import BOUNDARY_TOLERANCE
from lib.runtime.errors import InputError
from lib.superpixels.connectivity import MIN_SIZE_SHARE

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
range of counts: the part of {COUNT_RANGE[0]} to {COUNT_RANGE[1]} that a curve covers ("own"), and the part
of it that all these curves cover ("common"). Curves that cover none of it are left out, and nothing is
extrapolated.

Seconds: the median time of the first {N_TIMED_IMAGES} images, segmented one by one while nothing else runs,
connectivity excluded. Networks start from the image in CIELAB; SLIC includes its own colour conversion and
connectivity.

Chance: no random number is drawn."""

_PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "pillow", "h5py")

# Options that may change when a run goes on: they change no score, or the record holds checksums (or names
# and sizes) of the files they lead to.
_FREE_ON_RESUME = {
    "base_model_weights",
    "bsds_root",
    "comp_model_weights",
    "compare",
    "davis2017_root",
    "davis_optflow_folder",
    "davis_split",
    "device",
    "nworkers",
    "out_dir",
    "overwrite",
    "protocol",
    "resume",
}


class EvaluationSet(NamedTuple):
    """A data set to evaluate on."""

    name: str  # in tables
    file_name: str  # start of the names of its pictures
    dataset: Dataset[SegmentedImage]


def make_record(
    methods: Sequence[Method],
    sets: Sequence[EvaluationSet],
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
    sets : sequence of EvaluationSet
        What it is evaluated on.
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
        "data": {
            each.name: {
                "images": len(each.dataset),
                "pictures": each.file_name,
                "sources_sha256": fingerprint(each.dataset),
            }
            for each in sets
        },
        "requested": list(n_spixels),
        "metrics": list(metrics),
        "device": str(device),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "protocol": PROTOCOL,
        "options": dict(options),
    }


def describe(record: Mapping[str, Any]) -> str:
    """What an evaluation did, in words: the protocol, then what it was applied to."""
    sizes = [f"{name}, {data['images']} images" for name, data in record["data"].items()]
    lines = [
        f"Data: {'; '.join(sizes)}.",
        f"Superpixels requested: {', '.join(map(str, record['requested']))}.",
        f"Metrics: {', '.join(record['metrics'])}.",
        "Methods:",
    ]
    for name, description in record["methods"].items():
        known = {key: value for key, value in description.items() if value not in (None, [None])}
        lines.append(f"- {name}: " + ", ".join(f"{key} {value}" for key, value in known.items()))
    lines.append(f"Device: {record['device']}.")
    return f"{record['protocol']}\n\n" + "\n".join(lines)


def write_record(record: Mapping[str, Any], out_dir: Path) -> None:
    """Write a record for `check_same_run` to find."""
    with atomic_path(out_dir / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def recorded_picture_names(out_dir: Path) -> list[str]:
    """Starts of the names of the pictures among the results in a folder, as far as its record tells."""
    try:
        record = json.loads((out_dir / RECORD).read_text(encoding="utf-8"))
        return [data["pictures"] for data in record["data"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def check_same_run(record: Mapping[str, Any], out_dir: Path) -> None:
    """Check that results in a folder are those of the same evaluation, so that it can go on.

    Options may differ if they change no score, such as where data sets lie, or the number of workers.

    Raises
    ------
    InputError
        If not.
    """
    path = out_dir / RECORD
    try:
        earlier = _flatten(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"must be set to start anew: {path} does not describe the run of the results",
            parameter="overwrite",
        ) from error
    ours = _flatten(json.loads(json.dumps(record)))
    free = {f"options.{name}" for name in _FREE_ON_RESUME}
    for name in [*ours, *earlier]:
        if name not in free and earlier.get(name) != ours.get(name):
            values = f"is {earlier.get(name, 'unset')}, not {ours.get(name, 'unset')}"
            raise InputError(
                f"{out_dir} holds another run: {name} {values if len(values) < 200 else 'differs'}; "
                "choose another folder, or set `overwrite`",
                parameter="out_dir",
            )


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by names joined with dots."""
    if not isinstance(value, Mapping):
        return {name: value}
    prefix = f"{name}." if name else ""
    return {
        path: leaf for key, item in value.items() for path, leaf in _flatten(item, f"{prefix}{key}").items()
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # installed in a way that leaves no such name
        return "unknown"
