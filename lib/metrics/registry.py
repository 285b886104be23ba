"""Registry of the metrics by name, and their computation for the label maps of an image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lib.metrics import definitions
from lib.metrics.boundary import Boundary
from lib.metrics.definitions import ColorVariation, ContingencyTable, boundary_precision, boundary_recall
from lib.metrics.label_map import check_label_map
from lib.metrics.regularity import shape_regularity, smooth_matching
from lib.runtime.errors import InputError


class Spixels:
    """Label map and image, with intermediate results that metrics share."""

    def __init__(self, labels: np.ndarray, image_rgb: np.ndarray) -> None:
        self.labels = labels
        self.image_rgb = image_rgb
        self.boundary = Boundary(check_label_map(labels))

    @cached_property
    def variation(self) -> ColorVariation:
        return ColorVariation.measure(self.labels, self.image_rgb)

    @cached_property
    def shape_regularity(self) -> float:
        return shape_regularity(self.labels)

    @cached_property
    def smooth_matching(self) -> float:
        return smooth_matching(self.labels)


class Pair:
    """Label map and annotation, with intermediate results that metrics share.

    Boundaries lie between pixels that are not void in the annotation.
    """

    def __init__(self, boundary: Boundary, gt_boundary: Boundary) -> None:
        self.label_maps = boundary.labels, gt_boundary.labels
        self.boundaries = boundary.without_void_of(gt_boundary), gt_boundary
        self.is_scored = gt_boundary.labels.max() >= 0
        self.tolerance = definitions.boundary_tolerance(boundary.labels.shape)

    @cached_property
    def table(self) -> ContingencyTable:
        return ContingencyTable(*self.label_maps)


@dataclass(frozen=True)
class Metric:
    """Names of a metric, and its better direction."""

    name: str  # in files and options
    symbol: str  # in tables
    title: str  # in curves
    higher_is_better: bool | None  # None if neither direction is better
    is_default: bool = True  # computed unless metrics are chosen


# Metrics of a label map and its image: one value per image. The names are keys of the functions below.
SPIXEL_METRICS = (
    Metric("n_spixels", "measured", "Superpixels", None),
    Metric("size_spread", "spread", "Spread of sizes", None),
    Metric("compactness", "CO", "Compactness", True),
    Metric("explained_variation", "EV", "Explained variation", True),
    Metric("intra_cluster_variation", "ICV", "Intra-cluster variation", False),
    Metric("contour_density", "CD", "Contour density", False),
    # As slow as all other metrics together, and therefore only computed if chosen.
    Metric("src", "SRC", "Shape regularity criterion", True, is_default=False),
    Metric("smf", "SMF", "Smooth matching factor", True, is_default=False),
    Metric("gr", "GR", "Global regularity", True, is_default=False),
)
_SPIXEL_FUNCTIONS: dict[str, Callable[[Spixels], float]] = {
    "n_spixels": lambda spixels: definitions.count_spixels(spixels.labels),
    "size_spread": lambda spixels: definitions.size_spread(spixels.labels),
    "compactness": lambda spixels: definitions.compactness(spixels.boundary),
    "explained_variation": lambda spixels: definitions.explained_variation(spixels.variation),
    "intra_cluster_variation": lambda spixels: definitions.intra_cluster_variation(spixels.variation),
    "contour_density": lambda spixels: definitions.contour_density(spixels.boundary),
    "src": lambda spixels: spixels.shape_regularity,
    "smf": lambda spixels: spixels.smooth_matching,
    "gr": lambda spixels: spixels.shape_regularity * spixels.smooth_matching,
}

# Metrics of a label map and an annotation: one value per pair.
PAIR_METRICS = (
    Metric("asa", "ASA", "Achievable segmentation accuracy", True),
    Metric("ue_np", "UE", "Undersegmentation error (Neubert-Protzel)", False),
    Metric("ue_bergh", "UE Bergh", "Undersegmentation error (Bergh)", False),
    Metric("boundary_recall", "BR", "Boundary recall", True),
    Metric("boundary_precision", "BP", "Boundary precision", True),
    Metric("boundary_recall_one_sided_1", "BR1", "Boundary recall (one-sided, r = 1)", True),
    Metric("boundary_precision_one_sided_1", "BP1", "Boundary precision (one-sided, r = 1)", True),
    Metric("boundary_recall_one_sided_2", "BR2", "Boundary recall (one-sided, r = 2)", True),
    Metric("boundary_precision_one_sided_2", "BP2", "Boundary precision (one-sided, r = 2)", True),
    Metric("mean_distance_to_edge", "MDE", "Mean distance to edge (pixels)", False),
    Metric("mean_iou", "mIoU", "Mean IoU", True),
    Metric("mean_iou_foreground", "mIoU fg", "Mean IoU without segment 0", True),
)
_PAIR_FUNCTIONS: dict[str, Callable[[Pair], float]] = {
    "asa": lambda pair: definitions.achievable_segmentation_accuracy(pair.table),
    "ue_np": lambda pair: definitions.undersegmentation_error_np(pair.table),
    "ue_bergh": lambda pair: definitions.undersegmentation_error_bergh(pair.table),
    "boundary_recall": lambda pair: boundary_recall(*pair.boundaries, pair.tolerance),
    "boundary_precision": lambda pair: boundary_precision(*pair.boundaries, pair.tolerance),
    "boundary_recall_one_sided_1": lambda pair: boundary_recall(*pair.boundaries, 1, one_sided=True),
    "boundary_precision_one_sided_1": lambda pair: boundary_precision(*pair.boundaries, 1, one_sided=True),
    "boundary_recall_one_sided_2": lambda pair: boundary_recall(*pair.boundaries, 2, one_sided=True),
    "boundary_precision_one_sided_2": lambda pair: boundary_precision(*pair.boundaries, 2, one_sided=True),
    "mean_distance_to_edge": lambda pair: definitions.mean_distance_to_edge(*pair.boundaries),
    "mean_iou": lambda pair: definitions.mean_iou(pair.table),
    "mean_iou_foreground": lambda pair: definitions.mean_iou(pair.table, ignore_background=True),
}

METRICS = {metric.name: metric for metric in (*SPIXEL_METRICS, *PAIR_METRICS)}
DEFAULT_METRICS = tuple(name for name, metric in METRICS.items() if metric.is_default)


def check_metrics(names: Sequence[str]) -> None:
    """Raise an InputError that lists the known names if a name is unknown."""
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
    """Compute metrics of several label maps of one image; connectivity is not enforced here.

    Parameters
    ----------
    label_maps, annotations : sequence of ndarray, shape (H, W), integer
        Superpixels, and ground-truth segments of the image. Pixels that are `VOID` in an annotation do not
        count in its scores; if all are, the scores are NaN.
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    metrics : sequence of str
        Names in `METRICS`.

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
    pairs = [Pair(spixels.boundary, gt_boundary) for gt_boundary in gt_boundaries]
    return Scores(
        {name: compute(spixels) for name, compute in _SPIXEL_FUNCTIONS.items() if name in metrics},
        [
            {
                name: compute(pair) if pair.is_scored else math.nan
                for name, compute in _PAIR_FUNCTIONS.items()
                if name in metrics
            }
            for pair in pairs
        ],
    )
