"""Registry of the metrics by name, and their computation for the label maps of an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lib.metrics.boundary import Boundary
from lib.metrics.definitions import (
    ColorVariation,
    ContingencyTable,
    achievable_segmentation_accuracy,
    boundary_precision,
    boundary_recall,
    boundary_tolerance,
    compactness,
    contour_density,
    count_spixels,
    explained_variation,
    intra_cluster_variation,
    mean_distance_to_edge,
    mean_iou,
    size_spread,
    undersegmentation_error_bergh,
    undersegmentation_error_np,
)
from lib.runtime.errors import InputError


class Spixels:
    """Label map and image, with intermediate results that metrics share."""

    def __init__(self, labels: np.ndarray, image_rgb: np.ndarray) -> None:
        self.labels = labels
        self.image_rgb = image_rgb
        self.boundary = Boundary(labels)

    @cached_property
    def variation(self) -> ColorVariation:
        return ColorVariation.measure(self.labels, self.image_rgb)


class Pair:
    """Label map and annotation, with intermediate results that metrics share."""

    def __init__(self, spixels: Spixels, gt_boundary: Boundary) -> None:
        self.boundary = spixels.boundary
        self.gt_boundary = gt_boundary
        self.tolerance = boundary_tolerance(spixels.labels.shape)

    @cached_property
    def table(self) -> ContingencyTable:
        return ContingencyTable(self.boundary.labels, self.gt_boundary.labels)

    def recall(self, radius: int, *, one_sided: bool = False) -> float:
        return boundary_recall(self.boundary, self.gt_boundary, radius, one_sided=one_sided)

    def precision(self, radius: int, *, one_sided: bool = False) -> float:
        return boundary_precision(self.boundary, self.gt_boundary, radius, one_sided=one_sided)


@dataclass(frozen=True)
class Metric:
    """Metric with its names in files, tables and curves."""

    name: str  # in files and options
    symbol: str  # in tables
    title: str  # in curves
    higher_is_better: bool | None  # None if neither direction is better
    compute: Callable[[Spixels], float] | Callable[[Pair], float]


# Metrics of a label map and its image: one value per image.
SPIXEL_METRICS = (
    Metric("n_spixels", "measured", "Superpixels", None, lambda spixels: count_spixels(spixels.labels)),
    Metric("size_spread", "spread", "Spread of sizes", None, lambda spixels: size_spread(spixels.labels)),
    Metric("compactness", "CO", "Compactness", True, lambda spixels: compactness(spixels.boundary)),
    Metric(
        "explained_variation",
        "EV",
        "Explained variation",
        True,
        lambda spixels: explained_variation(spixels.variation),
    ),
    Metric(
        "intra_cluster_variation",
        "ICV",
        "Intra-cluster variation",
        False,
        lambda spixels: intra_cluster_variation(spixels.variation),
    ),
    Metric(
        "contour_density", "CD", "Contour density", False, lambda spixels: contour_density(spixels.boundary)
    ),
)

# Metrics of a label map and an annotation: one value per pair.
PAIR_METRICS = (
    Metric(
        "asa",
        "ASA",
        "Achievable segmentation accuracy",
        True,
        lambda pair: achievable_segmentation_accuracy(pair.table),
    ),
    Metric(
        "ue_np",
        "UE",
        "Undersegmentation error (Neubert-Protzel)",
        False,
        lambda pair: undersegmentation_error_np(pair.table),
    ),
    Metric(
        "ue_bergh",
        "UE Bergh",
        "Undersegmentation error (Bergh)",
        False,
        lambda pair: undersegmentation_error_bergh(pair.table),
    ),
    Metric("boundary_recall", "BR", "Boundary recall", True, lambda pair: pair.recall(pair.tolerance)),
    Metric(
        "boundary_precision", "BP", "Boundary precision", True, lambda pair: pair.precision(pair.tolerance)
    ),
    Metric(
        "boundary_recall_one_sided_1",
        "BR1",
        "Boundary recall (one-sided, r = 1)",
        True,
        lambda pair: pair.recall(1, one_sided=True),
    ),
    Metric(
        "boundary_precision_one_sided_1",
        "BP1",
        "Boundary precision (one-sided, r = 1)",
        True,
        lambda pair: pair.precision(1, one_sided=True),
    ),
    Metric(
        "boundary_recall_one_sided_2",
        "BR2",
        "Boundary recall (one-sided, r = 2)",
        True,
        lambda pair: pair.recall(2, one_sided=True),
    ),
    Metric(
        "boundary_precision_one_sided_2",
        "BP2",
        "Boundary precision (one-sided, r = 2)",
        True,
        lambda pair: pair.precision(2, one_sided=True),
    ),
    Metric(
        "mean_distance_to_edge",
        "MDE",
        "Mean distance to edge (pixels)",
        False,
        lambda pair: mean_distance_to_edge(pair.boundary, pair.gt_boundary),
    ),
    Metric("mean_iou", "mIoU", "Mean IoU", True, lambda pair: mean_iou(pair.table)),
    Metric(
        "mean_iou_foreground",
        "mIoU fg",
        "Mean IoU without segment 0",
        True,
        lambda pair: mean_iou(pair.table, ignore_background=True),
    ),
)

METRICS = {metric.name: metric for metric in (*SPIXEL_METRICS, *PAIR_METRICS)}


def check_metrics(names: Sequence[str]) -> None:
    """Check the names of metrics.

    Raises
    ------
    InputError
        If a name is unknown. The message lists the known names.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(f"unknown metric {unknown[0]!r}; choose from {', '.join(METRICS)}")


class Scores(NamedTuple):
    """Metric values by name."""

    spixels: dict[str, float]  # values for the label map
    pairs: list[dict[str, float]]  # values for the label map and each annotation


def score_label_maps(
    label_maps: Sequence[np.ndarray],
    image_rgb: np.ndarray,
    annotations: Sequence[np.ndarray],
    metrics: Sequence[str],
) -> list[Scores]:
    """Compute metrics of several label maps of one image.

    Parameters
    ----------
    label_maps : sequence of ndarray, shape (H, W), integer
        Superpixels. Connectivity is not enforced here.
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    annotations : sequence of ndarray, shape (H, W), integer
        Ground-truth segments of the image.
    metrics : sequence of str
        Names in `METRICS`.

    Returns
    -------
    list of Scores
        One for each label map.

    Raises
    ------
    ValueError
        If sizes differ, an array has a wrong shape or dtype, or a metric is unknown.
    """
    check_metrics(metrics)
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3:
        raise ValueError(f"the image must be (H, W, 3) uint8, got {image_rgb.dtype} of {image_rgb.shape}")
    for labels in (*label_maps, *annotations):
        if labels.shape != image_rgb.shape[:2]:
            raise ValueError(f"a label map is {labels.shape}, but the image is {image_rgb.shape}")
    gt_boundaries = [Boundary(annotation) for annotation in annotations]
    return [_score(Spixels(labels, image_rgb), gt_boundaries, metrics) for labels in label_maps]


def _score(spixels: Spixels, gt_boundaries: Sequence[Boundary], metrics: Sequence[str]) -> Scores:
    pairs = [Pair(spixels, gt_boundary) for gt_boundary in gt_boundaries]
    return Scores(
        {metric.name: metric.compute(spixels) for metric in SPIXEL_METRICS if metric.name in metrics},
        [
            {metric.name: metric.compute(pair) for metric in PAIR_METRICS if metric.name in metrics}
            for pair in pairs
        ],
    )
