"""Metrics of superpixels: agreement with a segmentation, and properties of the superpixels themselves.

All metrics follow from three intermediate results: a `ContingencyTable` of superpixels and segments, the
`Boundary` of each, and the `ColorVariation` within superpixels. Each needs one pass over the pixels.

In formulas, S_j are the superpixels, G_i the segments of the annotation, N the number of pixels. Metrics that
compare with an annotation leave its void pixels out. Docstrings name details in which implementations differ.
Stutz et al., "Superpixels: An Evaluation of the State-of-the-Art", CVIU 2018 (arXiv 1612.01601), compare the
metrics.
"""

import math
from typing import NamedTuple, Self

import numpy as np

from lib.metrics.boundary import Boundary
from lib.metrics.label_map import VOID, check_label_map

BOUNDARY_TOLERANCE = 0.0025  # as a share of the image's diagonal


class ContingencyTable:
    """Numbers of pixels that superpixels share with segments; only pairs with shared pixels are stored.

    Superpixels are numbered without gaps, in the order of their labels. Segments keep their numbers unless
    these are too large; see `check_label_map`. Segment 0 stays 0. Void pixels of `gt_labels` are left out,
    and superpixels without other pixels. Raises a ValueError if the shapes differ, one of the arrays is not a
    label map, or all pixels are void.

    Attributes
    ----------
    spixel_idx, segments, n_shared : ndarray, shape (K,), int64
        Superpixel, segment and number of shared pixels of each pair, ordered by superpixel, then by segment.
    spixels, spixel_sizes, largest_share : ndarray, shape (n_spixels,), int64
        Label of each superpixel, its number of pixels, and the largest number that it shares with a segment.
    """

    def __init__(self, labels: np.ndarray, gt_labels: np.ndarray) -> None:
        labels, gt_labels = check_label_map(labels), check_label_map(gt_labels, with_void=True)
        _check_same_shape(labels, gt_labels)
        n_segments = int(gt_labels.max()) + 1
        if n_segments == 0:
            raise ValueError("all pixels of the annotation are void")
        is_scored = gt_labels != VOID
        pairs, self.n_shared = np.unique(
            labels[is_scored] * n_segments + gt_labels[is_scored], return_counts=True
        )
        spixels, self.segments = np.divmod(pairs, n_segments)
        is_first = np.diff(spixels, prepend=-1) > 0
        self.spixel_idx = np.cumsum(is_first) - 1
        self._first_pair = np.flatnonzero(is_first)
        self.spixels = spixels[is_first]
        self.spixel_sizes = np.add.reduceat(self.n_shared, self._first_pair)
        self.largest_share = np.maximum.reduceat(self.n_shared, self._first_pair)

    @property
    def n_pixels(self) -> int:
        """Number of pixels that are not void, N."""
        return int(self.n_shared.sum())

    def majority(self) -> np.ndarray:
        """Return the segment that each superpixel shares most with, (n_spixels,); the lower one in a tie."""
        is_largest = self.n_shared == self.largest_share[self.spixel_idx]
        return np.minimum.reduceat(
            np.where(is_largest, self.segments, np.iinfo(np.int64).max), self._first_pair
        )


class ColorVariation(NamedTuple):
    """Variation of colour within superpixels and in the whole image, all channels pooled."""

    within: np.ndarray  # (n_spixels,), float64: sum of squared differences to the superpixel's mean colour
    spixel_sizes: np.ndarray  # (n_spixels,), int64
    total: float  # sum of squared differences to the image's mean colour

    @classmethod
    def measure(cls, labels: np.ndarray, image_rgb: np.ndarray) -> Self:
        """Measure the variation in an image (H, W, 3), 0 to 255 in every channel.

        Raises a ValueError if `labels` is not a label map, or the image has another shape or is not finite.
        """
        labels = check_label_map(labels)
        if image_rgb.ndim != 3 or image_rgb.shape[:2] != labels.shape:
            raise ValueError(f"the image is {image_rgb.shape}, but its superpixels are {labels.shape}")
        if not np.isfinite(image_rgb).all():
            raise ValueError("the image holds NaN or infinite values")
        spixel_of_pixel = labels.ravel()
        sizes = np.bincount(spixel_of_pixel)
        occurs = sizes > 0
        squares = np.zeros(labels.size)
        total = 0.0
        for channel in np.moveaxis(image_rgb, -1, 0):
            values = channel.ravel().astype(np.float64)
            sums = np.bincount(spixel_of_pixel, weights=values)
            means = np.divide(sums, sizes, out=np.zeros_like(sums), where=occurs)
            squares += np.square(values - means[spixel_of_pixel])
            total += np.square(values - values.mean()).sum()
        within = np.bincount(spixel_of_pixel, weights=squares)
        return cls(within[occurs], sizes[occurs], float(total))


def achievable_segmentation_accuracy(table: ContingencyTable) -> float:
    """Compute the share of correct pixels when every superpixel takes the segment it shares most with.

    ASA = 1/N sum_j max_i |S_j n G_i|, in (0, 1]; 1 is best. Source: Liu et al., "Entropy Rate Superpixel
    Segmentation", CVPR 2011.
    """
    return float(table.largest_share.sum() / table.n_pixels)


def undersegmentation_error_np(table: ContingencyTable) -> float:
    """Compute the undersegmentation error of Neubert and Protzel: pixels that leak out of segments.

    UE_NP = 1/N sum_i sum_{j: S_j n G_i not empty} min(|S_j n G_i|, |S_j - G_i|), in [0, 1]; 0 is best.
    Source: Neubert and Protzel, "Superpixel Benchmark and Comparison", Forum Bildverarbeitung 2012.
    """
    outside = table.spixel_sizes[table.spixel_idx] - table.n_shared
    return float(np.minimum(table.n_shared, outside).sum() / table.n_pixels)


def undersegmentation_error_bergh(table: ContingencyTable) -> float:
    """Compute the undersegmentation error of Van den Bergh et al.: pixels outside the largest share.

    UE_Bergh = 1/N sum_j |S_j - argmax_i |S_j n G_i||, in [0, 1); 0 is best. It equals 1 - ASA. Source: Van
    den Bergh et al., "SEEDS: Superpixels Extracted via Energy-Driven Sampling", ECCV 2012.
    """
    return float((table.spixel_sizes - table.largest_share).sum() / table.n_pixels)


def mean_iou(table: ContingencyTable, *, ignore_background: bool = False) -> float:
    """Compute the mean IoU of the segments when every superpixel takes the segment it shares most with.

    In a tie the segment with the lower number wins. The result lies in [0, 1]; 1 is best. `ignore_background`
    leaves segment 0 out of the mean. The result is NaN if no segment is left to average over.
    """
    segments, segment_idx = np.unique(table.segments, return_inverse=True)
    n_segments = len(segments)
    majority_idx = np.searchsorted(segments, table.majority())
    gt_size = np.bincount(segment_idx, weights=table.n_shared)
    predicted_size = np.bincount(majority_idx, weights=table.spixel_sizes, minlength=n_segments)
    intersection = np.bincount(majority_idx, weights=table.largest_share, minlength=n_segments)
    iou = intersection / (gt_size + predicted_size - intersection)
    if ignore_background:
        iou = iou[segments != 0]
    return float(iou.mean()) if len(iou) else math.nan


def boundary_tolerance(shape: tuple[int, int]) -> int:
    """Compute the tolerance of boundary recall and precision for an image (H, W), in pixels."""
    return round(BOUNDARY_TOLERANCE * math.hypot(*shape))


def boundary_recall(
    boundary: Boundary, gt_boundary: Boundary, radius: int, *, one_sided: bool = False
) -> float:
    """Compute the share of the annotation's boundary pixels that have a superpixel boundary nearby.

    The result lies in [0, 1]; 1 is best. If the annotation has no boundary, it is 1. Raises a ValueError if
    the label maps differ in shape. Source: Martin et al., "Learning to Detect Natural Image Boundaries Using
    Local Brightness, Color, and Texture Cues", TPAMI 2004.

    Parameters
    ----------
    boundary, gt_boundary : Boundary
        Boundaries of the superpixels and of the annotation.
    radius : int
        Nearby means within a square window of side 2 `radius` + 1, in pixels. See `boundary_tolerance`.
    one_sided : bool
        Use only the upper or left one of the two pixels at a boundary, in both maps. The papers of SSN and
        SEAL (Tu et al., "Learning Superpixels with Segmentation-Aware Affinity Loss", CVPR 2018) report this
        variant with a `radius` of 1 and 2.
    """
    _check_same_shape(boundary.labels, gt_boundary.labels)
    is_found = boundary.near(radius, one_sided=one_sided)[gt_boundary.pixels(one_sided=one_sided)]
    return float(is_found.mean()) if is_found.size else 1.0


def boundary_precision(
    boundary: Boundary, gt_boundary: Boundary, radius: int, *, one_sided: bool = False
) -> float:
    """Compute the share of the superpixels' boundary pixels that have an annotation boundary nearby.

    The result lies in [0, 1]; 1 is best. For a single superpixel it is 1. Hits are counted on the boundary of
    the superpixels; some implementations count them on the annotation instead. For parameters and errors see
    `boundary_recall`.
    """
    return boundary_recall(gt_boundary, boundary, radius, one_sided=one_sided)


def mean_distance_to_edge(boundary: Boundary, gt_boundary: Boundary) -> float:
    """Compute the mean distance of the annotation's boundary pixels to the nearest superpixel boundary.

    The result is in pixels; 0 is best. For a single superpixel it is the diagonal of the image. If the
    annotation has no boundary, it is 0. The mean is over the annotation's boundary pixels; some
    implementations divide by all pixels of the image instead. Raises a ValueError if the shapes differ.
    Source: Benesova and Kottman, "Fast Superpixel Segmentation Using Morphological Processing", 2014.
    """
    _check_same_shape(boundary.labels, gt_boundary.labels)
    distances = boundary.distance[gt_boundary.two_sided]
    return float(distances.mean()) if distances.size else 0.0


def compactness(boundary: Boundary) -> float:
    """Compute the compactness: how much of a circle with equal perimeter a superpixel fills, on average.

    CO = 1/N sum_j |S_j| 4 pi A_j / P_j^2, where the area A_j = |S_j| is in pixels. The perimeter P_j is in
    pixel sides and includes the image's border. Higher is more compact; squares reach the maximum, pi / 4.
    Source: Schick et al., "Measuring and Evaluating the Compactness of Superpixels", ICPR 2012.
    """
    sizes = np.bincount(boundary.labels.ravel())
    occurs = sizes > 0
    sizes, perimeters = sizes[occurs].astype(np.float64), boundary.perimeters[occurs]
    quotients = 4 * np.pi * sizes / np.square(perimeters)
    return float((sizes * quotients).sum() / sizes.sum())


def explained_variation(variation: ColorVariation) -> float:
    """Compute the share of the variation of colour that lies between superpixels, not within them.

    EV = sum_j |S_j| |mean(S_j) - mean(I)|^2 / sum_n |I_n - mean(I)|^2, all channels pooled, in [0, 1]; 1 is
    best. For an image of a single colour it is 1. Source: Moore et al., "Superpixel Lattices", CVPR 2008.
    """
    if variation.total == 0:
        return 1.0
    share = float(1 - variation.within.sum() / variation.total)
    return max(0.0, share)  # rounding may give a negative number


def intra_cluster_variation(variation: ColorVariation) -> float:
    """Compute the mean variation of colour within superpixels, with equal weights.

    ICV = mean_j sqrt(sum_{n in S_j} |I_n - mean(S_j)|^2) / |S_j|, in 8-bit units, all channels pooled; 0 is
    best. Because |S_j| stands outside the root, the value also falls as superpixels grow. Source: Benesova
    and Kottman, "Fast Superpixel Segmentation Using Morphological Processing", 2014.
    """
    return float((np.sqrt(variation.within) / variation.spixel_sizes).mean())


def contour_density(boundary: Boundary) -> float:
    """Compute the share of pixels on either side of a superpixel boundary, in [0, 1].

    The image's border does not count. At the same boundary recall, a lower density is better. Source:
    Machairas et al., "Waterpixels", TIP 2015.
    """
    return float(boundary.two_sided.mean())


def count_spixels(labels: np.ndarray) -> int:
    """Count the superpixels that occur."""
    return int(np.count_nonzero(np.bincount(check_label_map(labels).ravel())))


def size_spread(labels: np.ndarray) -> float:
    """Compute the standard deviation of superpixel sizes over their mean; 0 if all sizes are equal."""
    sizes = np.bincount(check_label_map(labels).ravel())
    sizes = sizes[sizes > 0]
    return float(sizes.std() / sizes.mean())


def _check_same_shape(labels: np.ndarray, gt_labels: np.ndarray) -> None:
    if labels.shape != gt_labels.shape:
        raise ValueError(f"superpixels are {labels.shape}, but the annotation is {gt_labels.shape}")
