"""Average the scores of images into the means that are reported."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.integrate import trapezoid

from lib.evaluation.loop import ImageScores, Run
from lib.metrics.registry import METRICS

COUNT_RANGE = (100, 1000)  # measured superpixels; curves are averaged over this range


class Summary(NamedTuple):
    """Means of a run on a dataset, or on one video."""

    run: Run
    n_images: int
    n_pairs: int  # (image, annotation) pairs
    mean: dict[str, float]  # by metric: over pairs; over images if the metric needs no annotation
    worst: dict[str, float]  # by metric with annotations: over images, of the worst annotation of each
    seconds: float | None  # per image; None if not measured

    def figures(self, *, ignore_background: bool) -> dict[str, float]:
        """Return the means; `ignore_background` leaves segment 0 out of the mean IoU."""
        if ignore_background and "mean_iou_foreground" in self.mean:
            return {**self.mean, "mean_iou": self.mean["mean_iou_foreground"]}
        return self.mean

    def line(self, *, ignore_background: bool) -> str:
        """Return the last line of an evaluation, in a stable format."""
        figures = self.figures(ignore_background=ignore_background)
        shown = {"ASA": "asa", "mIoU": "mean_iou"}
        values = [f"{symbol} {figures[name]:.4f}" for symbol, name in shown.items() if name in figures]
        values.append(f"superpixels {figures['n_spixels']:.1f}")
        return f"{' '.join(values)} ({self.n_images} images, {self.n_pairs} pairs)"


def summarize(run: Run, images: Sequence[ImageScores], seconds: float | None = None) -> Summary:
    """Average the scores of a run on at least one image; `seconds` is the time per image.

    NaN values are left out. For example, the mean IoU without segment 0 is NaN if an annotation has no
    other segment.
    """
    pairs = [pair for image in images for pair in image.scores.pairs]
    mean = {name: _mean(image.scores.spixels[name] for image in images) for name in images[0].scores.spixels}
    worst = {}
    for name in pairs[0]:
        mean[name] = _mean(pair[name] for pair in pairs)
        # NumPy's fmin and fmax ignore NaN.
        pick = np.fmin.reduce if METRICS[name].higher_is_better else np.fmax.reduce
        worst[name] = _mean(pick([pair[name] for pair in image.scores.pairs]) for image in images)
    return Summary(run, len(images), len(pairs), mean, worst, seconds)


def summarize_groups(run: Run, images: Sequence[ImageScores]) -> dict[str, Summary]:
    """Average a run over each folder of images (a video in DAVIS); empty without folders."""
    folders: dict[str, list[ImageScores]] = {}
    for image in images:
        folders.setdefault(image.image.rpartition("/")[0], []).append(image)
    return {folder: summarize(run, members) for folder, members in folders.items() if folder}


class CurveMean(NamedTuple):
    """Means of metrics along a curve: area under it, divided by the range of measured counts."""

    method: str
    pos_scale: float | None
    low: float  # measured superpixels
    high: float
    means: dict[str, float]


class CurveMeans(NamedTuple):
    """Means along several curves, over two ranges."""

    own: list[CurveMean]  # over the part of `COUNT_RANGE` that each curve covers
    common: list[CurveMean]  # over the part that all these curves cover; empty without one


class DatasetResults(NamedTuple):
    """Results of an evaluation on one dataset."""

    name: str
    summaries: list[Summary]
    groups: dict[str, list[Summary]]  # by folder of images (a video in DAVIS)
    curve_means: CurveMeans


def summarize_dataset(
    name: str, scored: Mapping[Run, Sequence[ImageScores]], seconds: Mapping[Run, float]
) -> DatasetResults:
    """Average the scores of all runs on a dataset."""
    summaries = [summarize(run, images, seconds[run]) for run, images in scored.items()]
    groups: dict[str, list[Summary]] = {}
    for run, images in scored.items():
        for group, summary in summarize_groups(run, images).items():
            groups.setdefault(group, []).append(summary)
    return DatasetResults(name, summaries, groups, average_curves(summaries))


def average_curves(summaries: Sequence[Summary]) -> CurveMeans:
    """Average metrics on one dataset over the measured count, by linear interpolation, not extrapolation.

    Curves that cover no part of `COUNT_RANGE`, such as single points, are left out.
    """
    curves = group_curves(summaries)
    own = [_average(*curve, points, *COUNT_RANGE) for curve, points in curves.items()]
    own = [mean for mean in own if mean.low < mean.high]
    low = max((mean.low for mean in own), default=0)
    high = min((mean.high for mean in own), default=0)
    common = [_average(*mean[:2], curves[mean[:2]], low, high) for mean in own] if low < high else []
    return CurveMeans(own, common)


def _average(
    method: str, pos_scale: float | None, points: Sequence[Summary], low: float, high: float
) -> CurveMean:
    """Average a curve over the part of a range that it covers; no means if that part has no length."""
    counts, count_idx = np.unique([point.mean["n_spixels"] for point in points], return_inverse=True)
    n_points = np.bincount(count_idx)
    low, high = max(low, float(counts[0])), min(high, float(counts[-1]))
    if low >= high:
        return CurveMean(method, pos_scale, low, high, {})
    knots = np.concatenate([[low], counts[(counts > low) & (counts < high)], [high]])
    means = {}
    for name in points[0].mean:
        if name != "n_spixels":
            # Points with the same count are averaged.
            heights = np.bincount(count_idx, weights=[point.mean[name] for point in points]) / n_points
            values = np.interp(knots, counts, heights)
            means[name] = float(trapezoid(values, knots) / (high - low))
    return CurveMean(method, pos_scale, low, high, means)


def group_curves(summaries: Iterable[Summary]) -> dict[tuple[str, float | None], list[Summary]]:
    """Group summaries by method and `pos_scale`, sorted by the measured count."""
    curves: dict[tuple[str, float | None], list[Summary]] = {}
    for summary in summaries:
        curves.setdefault((summary.run.method, summary.run.pos_scale), []).append(summary)
    return {
        curve: sorted(points, key=lambda point: point.mean["n_spixels"]) for curve, points in curves.items()
    }


def _mean(values: Iterable[float]) -> float:
    kept = np.array([value for value in values if not np.isnan(value)])
    return float(kept.mean()) if kept.size else float("nan")
