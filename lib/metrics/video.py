"""Metrics of superpixels that keep their labels over the frames of a video: of label volumes (T, H, W).

In formulas, s are the supervoxels (all pixels of a label, in all frames), g the segments of the masks, and
|s| counts pixels. Void pixels count in no metric that compares with the masks. Sources: Xu and Corso,
"Evaluation of Super-voxel Methods for Early Video Processing", CVPR 2012, with their benchmark LIBSVX, and
Chang et al., "A Video Representation Using Temporal Superpixels", CVPR 2013.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from lib.metrics.boundary import Boundary
from lib.metrics.definitions import achievable_segmentation_accuracy, boundary_recall
from lib.metrics.label_map import VOID, check_label_map
from lib.metrics.registry import METRICS, Metric, Pair

VIDEO_METRICS = {
    metric.name: metric
    for metric in (
        METRICS["n_spixels"],
        Metric("n_labels", "labels", "Labels in the video", None),
        Metric("sa3d", "SA3D", "3D segmentation accuracy", True),
        Metric("ue3d", "UE3D", "3D undersegmentation error", False),
        Metric("br3d", "BR3D", "3D boundary recall", True),
        Metric("ev3d", "EV3D", "3D explained variation", True),
        Metric("tex", "TEX", "Temporal extent", True),
        Metric("size_variation", "SV", "Size variation over time", False),
        METRICS["asa"],
        METRICS["boundary_recall"],
    )
}

SharedPixels = Counter[tuple[int, int]]  # pixels of each pair (label, segment) that has any


class VideoMetrics:
    """Scores of a video, from frames that are added in order.

    Memory grows with the number of labels, but not with the number of pixels: of the frames, only the last
    one is kept.

    Examples
    --------
    >>> metrics = VideoMetrics()
    >>> for labels, mask in [([[0, 0, 1]], [[0, 0, 1]]), ([[0, 1, 1]], [[0, 0, 1]])]:
    ...     metrics.add(np.array(labels), np.array(mask), np.zeros((1, 3, 3), np.uint8))
    >>> scores = metrics.result()
    >>> scores["sa3d"], scores["ue3d"], scores["tex"]
    (0.875, 0.5, 1.0)
    """

    def __init__(self) -> None:
        self._n_spixels: list[int] = []  # per frame
        self._frame_asa: list[float] = []
        self._frame_recall: list[float] = []
        self._shared: SharedPixels = Counter()
        self._sums = _LabelSums()
        self._boundaries = _BoundaryMatch()
        self._frame_shape: tuple[int, int] | None = None

    def add(self, labels: np.ndarray, gt_labels: np.ndarray, image_rgb: np.ndarray) -> None:
        """Add the next frame.

        Parameters
        ----------
        labels : ndarray, shape (H, W), integer
            Superpixel of each pixel, at least 0. Equal labels in different frames are one supervoxel.
        gt_labels : ndarray, shape (H, W), integer
            Segments of the mask, equal for the same object in all frames; `VOID` where none is known.
        image_rgb : ndarray, shape (H, W, 3), uint8
            The frame.

        Raises
        ------
        ValueError
            If a size differs from that of earlier frames, or an array has a wrong shape or dtype.
        """
        labels, gt_labels = np.asarray(labels), np.asarray(gt_labels)
        if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3:
            raise ValueError(f"the image must be (H, W, 3) uint8, got {image_rgb.dtype} of {image_rgb.shape}")
        self._frame_shape = self._frame_shape or image_rgb.shape[:2]
        for name, shape in {
            "superpixels": labels.shape,
            "the mask": gt_labels.shape,
            "the image": image_rgb.shape[:2],
        }.items():
            if shape != self._frame_shape:
                raise ValueError(f"{name}: {shape}, but the frames are {self._frame_shape}")
        numbers, dense = _number_anew(labels)
        segments, gt_dense = _number_anew(gt_labels, with_void=True)
        pair = Pair(Boundary(dense), Boundary(gt_dense))
        self._n_spixels.append(len(numbers))
        self._sums.add(numbers, dense, image_rgb)
        self._boundaries.add(labels, gt_labels, pair)
        if not pair.is_scored:
            return
        table = pair.table
        labels_of_pairs = numbers[table.spixels[table.spixel_idx]]
        pairs = zip(labels_of_pairs.tolist(), segments[table.segments].tolist(), strict=True)
        for pair_of_labels, n_shared in zip(pairs, table.n_shared.tolist(), strict=True):
            self._shared[pair_of_labels] += n_shared
        self._frame_asa.append(achievable_segmentation_accuracy(table))
        self._frame_recall.append(boundary_recall(*pair.boundaries, pair.tolerance))

    def result(self) -> dict[str, float]:
        """Return the scores of the frames so far, by the names in `VIDEO_METRICS`.

        `asa` and `boundary_recall` are means over the frames, and `n_spixels` is the mean number per frame.
        Scores are NaN if nothing can be scored: without a frame, or a frame that is not all void; for
        `size_variation`, without a label in two frames.
        """
        if not self._n_spixels:
            return dict.fromkeys(VIDEO_METRICS, math.nan)
        scores = {
            "n_spixels": fmean(self._n_spixels),
            "n_labels": float(self._sums.n_labels),
            "sa3d": segmentation_accuracy_3d(self._shared),
            "ue3d": undersegmentation_error_3d(self._shared),
            "br3d": self._boundaries.recall() if self._shared else math.nan,
            "ev3d": self._sums.explained_variation(),
            "tex": self._sums.temporal_extent(len(self._n_spixels)),
            "size_variation": self._sums.size_variation(),
            "asa": _mean(self._frame_asa),
            "boundary_recall": _mean(self._frame_recall),
        }
        return {name: scores[name] for name in VIDEO_METRICS}


def segmentation_accuracy_3d(shared: SharedPixels) -> float:
    """Compute the share of each segment covered by supervoxels that lie in it by half or more.

    SA3D = mean_g 1/|g| sum_{s: |s n g| >= |s - g|} |s n g|, in [0, 1]; 1 is best. Every segment has the same
    weight, the background too. Source: Xu and Corso, CVPR 2012.
    """
    sizes, gt_sizes = _sizes(shared)
    inside: Counter[int] = Counter()
    for (label, segment), n_shared in shared.items():
        if 2 * n_shared >= sizes[label]:
            inside[segment] += n_shared
    return _mean([inside[segment] / size for segment, size in gt_sizes.items()])


def undersegmentation_error_3d(shared: SharedPixels) -> float:
    """Compute by how much the supervoxels that touch a segment exceed it.

    UE3D = mean_g (sum_{s: |s n g| > 0} |s| - |g|) / |g|, from 0, which is best, without an upper bound. Every
    segment has the same weight, the background too. Source: Xu and Corso, CVPR 2012.
    """
    sizes, gt_sizes = _sizes(shared)
    touching: Counter[int] = Counter()
    for label, segment in shared:
        touching[segment] += sizes[label]
    return _mean([(touching[segment] - size) / size for segment, size in gt_sizes.items()])


@dataclass
class _Frame:
    """Frame whose boundary to the next one is not known yet."""

    labels: np.ndarray  # (H, W)
    gt_labels: np.ndarray
    is_boundary: np.ndarray  # (H, W), bool: differs within the frame, or from the frame before
    is_gt_boundary: np.ndarray


class _BoundaryMatch:
    """Counts of the masks' boundary pixels, and of those that the supervoxels have at the same place.

    A boundary pixel has another label among its four neighbours in the frame, or at its place in the frame
    before or after. The tolerance is 0, in space and in time. Source: Xu and Corso, as LIBSVX computes it.
    """

    def __init__(self) -> None:
        self._n_found = self._n_boundary = 0  # up to the frame before the last
        self._last: _Frame | None = None

    def add(self, labels: np.ndarray, gt_labels: np.ndarray, pair: Pair) -> None:
        """Add a frame; `pair` holds the boundaries within it."""
        is_boundary, is_gt_boundary = (boundary.two_sided.copy() for boundary in pair.boundaries)
        frame = _Frame(labels.copy(), gt_labels.copy(), is_boundary, is_gt_boundary)
        if self._last is not None:
            last = self._last
            is_scored = (gt_labels != VOID) & (last.gt_labels != VOID)
            differs = is_scored & (labels != last.labels)
            gt_differs = is_scored & (gt_labels != last.gt_labels)
            for each in (last, frame):
                each.is_boundary |= differs
                each.is_gt_boundary |= gt_differs
            self._n_found, self._n_boundary = self._counts()
        self._last = frame

    def recall(self) -> float:
        """Return BR3D in [0, 1]; 1 is best. If the masks have no boundary, it is 1."""
        n_found, n_boundary = self._counts()
        return float(n_found / n_boundary) if n_boundary else 1.0

    def _counts(self) -> tuple[int, int]:
        """Count with the last frame, which has all boundaries that are known now."""
        last = self._last
        n_found = np.count_nonzero(last.is_boundary & last.is_gt_boundary)
        return self._n_found + n_found, self._n_boundary + np.count_nonzero(last.is_gt_boundary)


class _LabelSums:
    """Sums over the pixels and the frames of each label, void or not."""

    def __init__(self) -> None:
        # By label: frames, pixels, squared sizes in the frames, R, G, B, squared colours of all channels.
        self._rows: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(7, np.int64))

    @property
    def n_labels(self) -> int:
        return len(self._rows)

    def add(self, numbers: np.ndarray, dense: np.ndarray, image_rgb: np.ndarray) -> None:
        """Add a frame: its labels `numbers` (K,), and the index among them of each pixel, (H, W)."""
        flat, colors = dense.ravel(), image_rgb.reshape(-1, 3).astype(np.int64)
        sizes = np.bincount(flat)
        sums = [np.bincount(flat, channel) for channel in (*colors.T, np.square(colors).sum(axis=1))]
        rows = np.stack([np.ones_like(sizes), sizes, np.square(sizes), *sums], axis=1).astype(np.int64)
        for number, row in zip(numbers.tolist(), rows, strict=True):
            self._rows[number] += row

    def explained_variation(self) -> float:
        """Compute the share of the variation of colour that lies between supervoxels, not within them.

        EV3D = sum_s |s| |mean(s) - mean|^2 / sum_n |x_n - mean|^2 over the pixels x_n of the video, all
        channels pooled, in [0, 1]; 1 is best. For a video of a single colour it is 1. Source: Xu and Corso.
        """
        rows = np.stack(list(self._rows.values()))
        n_pixels, *color_sums, n_squares = rows[:, [1, 3, 4, 5, 6]].sum(axis=0).tolist()
        total = n_pixels * n_squares - sum(value * value for value in color_sums)  # exact, times n_pixels
        if total == 0:
            return 1.0
        within = rows[:, 6] - np.square(rows[:, 3:6].astype(np.float64)).sum(axis=1) / rows[:, 1]
        share = float(1 - within.sum() * n_pixels / total)
        return min(1.0, max(0.0, share))  # rounding may exceed the range

    def temporal_extent(self, n_frames: int) -> float:
        """Compute the mean share of the frames in which a label occurs, in (0, 1]; 1 is best.

        Frames in which a label is missing between two others do not count. Source: Chang et al.; the share of
        the frames lets videos of different lengths share a mean.
        """
        return fmean(int(row[0]) for row in self._rows.values()) / n_frames

    def size_variation(self) -> float:
        """Compute how much the size of a label changes from frame to frame; 0 is best.

        It is the standard deviation of a label's sizes over their mean, in the frames where it occurs. The
        mean is over the labels in two frames or more: others have no change, and labels that are new in
        every frame would score best. NaN without such a label. The definition is ours.
        """
        rows = np.stack(list(self._rows.values())).astype(np.float64)
        n_frames, sizes, squared_sizes = rows[rows[:, 0] > 1, :3].T
        variances = np.maximum(0, n_frames * squared_sizes - np.square(sizes))  # times n_frames^2
        return _mean(np.sqrt(variances) / sizes)


def _number_anew(labels: np.ndarray, *, with_void: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels that occur, and the index among them of each pixel, (H, W); void stays void."""
    check_label_map(labels, with_void=with_void)
    numbers, flat = np.unique(labels, return_inverse=True)
    dense = flat.reshape(labels.shape)
    return (numbers[1:], dense - 1) if numbers[0] == VOID else (numbers, dense)


def _sizes(shared: SharedPixels) -> tuple[Counter[int], Counter[int]]:
    """Return the pixels of each supervoxel and of each segment that are not void."""
    sizes: Counter[int] = Counter()
    gt_sizes: Counter[int] = Counter()
    for (label, segment), n_shared in shared.items():
        sizes[label] += n_shared
        gt_sizes[segment] += n_shared
    return sizes, gt_sizes


def _mean(values: list[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
