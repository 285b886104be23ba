"""Describe an evaluation: its protocol in words, and a record from which it can be repeated."""

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
Superpixels: each number of superpixels is requested from every method. The models of this repo merge finer
superpixels until exactly that number is left, unless the fine factor is 1. Then, and for all other methods,
every label is split into its 4-connected components, and components smaller than {MIN_SIZE_SHARE} times the
requested mean size (pixels / requested superpixels) join the neighbour with the longest shared border.
Results are reported against the measured number of superpixels.

Samples: a sample is a pair of an image and one of its annotations. Metrics are plain means over all samples.
Metrics that need no annotation (count, spread of sizes, compactness, explained variation, intra-cluster
variation, contour density, regularity) are means over the images. "Worst annotation" takes the worst value
among the annotations of each image, and is the mean over the images. Void pixels of an annotation, and
boundaries beside them, count in no metric that compares with it; annotations of void alone have no scores.

Boundaries: a boundary pixel has another label among its four neighbours. Recall and precision accept a
boundary within round({BOUNDARY_TOLERANCE} * diagonal) pixels, in a square window. The one-sided variants use
only pixels that differ from their right or lower neighbour, with a window of 1 or 2 pixels to each side.

Curves: linear between the measured counts. A mean over counts is the area under a curve, divided by the range
of counts. "own" is the part of {COUNT_RANGE[0]} to {COUNT_RANGE[1]} that the curve covers, and "common" the
part that all these curves cover. Curves that cover no part are left out, and nothing is extrapolated.

Seconds: the median time of the first {N_TIMED_IMAGES} images, segmented one by one while nothing else runs,
with colour conversion, merges and connectivity.

Chance: no random number is drawn."""

_PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "pillow", "h5py")

# Options that may differ when a run is resumed. They change no score, or the record holds checksums (or names
# and sizes) of the files behind them.
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
    """Dataset to evaluate on, with its names."""

    name: str  # in tables
    file_name: str  # prefix of its pictures
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
    """Build the record of an evaluation, in plain types for JSON; see `lib.evaluation.run.run_evaluation`."""
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
    """Return the protocol, the data, the methods and the device of an evaluation, in words."""
    sizes = "; ".join(f"{name}, {data['images']} images" for name, data in record["data"].items())
    lines = [
        f"Data: {sizes}.",
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
    """Write the record that `check_same_run` compares with."""
    with atomic_path(out_dir / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def recorded_picture_names(out_dir: Path) -> list[str]:
    """Return the prefixes of the pictures in a results folder; empty if its record is not readable."""
    try:
        record = json.loads((out_dir / RECORD).read_text(encoding="utf-8"))
        return [data["pictures"] for data in record["data"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def check_same_run(record: Mapping[str, Any], out_dir: Path) -> None:
    """Raise `InputError` unless a folder holds a readable record of the same evaluation, so it can resume.

    Options that change no score may differ, such as folders of datasets or the number of workers.
    """
    path = out_dir / RECORD
    try:
        earlier = _flatten(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"must be set to start again: {path} is not a readable record of the results",
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
    """Return the leaves of nested mappings, by keys joined with dots."""
    if not isinstance(value, Mapping):
        return {name: value}
    prefix = f"{name}." if name else ""
    return {
        path: leaf for key, item in value.items() for path, leaf in _flatten(item, f"{prefix}{key}").items()
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # not every installation has metadata
        return "unknown"
