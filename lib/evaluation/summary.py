"""From the scores of images to the figures that are reported."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from scipy.integrate import trapezoid

from lib.evaluation.loop import ImageScores, Run
from lib.evaluation.scoring import METRICS

COUNT_RANGE = (100, 1000)  # measured superpixels over which curves are averaged


class Summary(NamedTuple):
    """Figures of a run on a data set, or on a part of it."""

    run: Run
    n_images: int
    n_pairs: int  # (image, annotation) pairs
    mean: dict[str, float]  # by metric: over all pairs; over all images for metrics without annotation
    worst: dict[str, float]  # by metric with annotation: over all images, the worst annotation of each
    seconds: float | None  # per image; None if it was not measured

    def figures(self, *, ignore_background: bool) -> dict[str, float]:
        """The means, with that of the mean IoU without segment 0 in place of the other if asked for."""
        if ignore_background and "mean_iou_foreground" in self.mean:
            return {**self.mean, "mean_iou": self.mean["mean_iou_foreground"]}
        return self.mean

    def line(self, *, ignore_background: bool) -> str:
        """The line that an evaluation ends in."""
        figures = self.figures(ignore_background=ignore_background)
        shown = {"ASA": "asa", "mIoU": "mean_iou"}
        values = [f"{symbol} {figures[name]:.4f}" for symbol, name in shown.items() if name in figures]
        values.append(f"superpixels {figures['n_spixels']:.1f}")
        return f"{' '.join(values)} ({self.n_images} images, {self.n_pairs} pairs)"


def summarize(run: Run, images: Sequence[ImageScores], seconds: float | None = None) -> Summary:
    """Average the scores of a run.

    Values that are NaN, as the mean IoU without segment 0 of an image that has no other, are left out.

    Parameters
    ----------
    run : Run
        What was evaluated.
    images : sequence of ImageScores
        At least one.
    seconds : float, optional
        What the run takes for an image.
    """
    pairs = [pair for image in images for pair in image.scores.pairs]
    mean = {name: _mean(image.scores.spixels[name] for image in images) for name in images[0].scores.spixels}
    worst = {}
    for name in pairs[0]:
        mean[name] = _mean(pair[name] for pair in pairs)
        # NumPy's fmin and fmax pass over NaN.
        pick = np.fmin.reduce if METRICS[name].higher_is_better else np.fmax.reduce
        worst[name] = _mean(pick([pair[name] for pair in image.scores.pairs]) for image in images)
    return Summary(run, len(images), len(pairs), mean, worst, seconds)


def summarize_groups(run: Run, images: Sequence[ImageScores]) -> dict[str, Summary]:
    """Average a run over each folder of images, which is a video in DAVIS; empty if there are no folders."""
    folders = groupby(images, key=lambda image: image.image.rpartition("/")[0])
    return {folder: summarize(run, list(images)) for folder, images in folders if folder}


class CurveMeans(NamedTuple):
    """Means of metrics over a range of measured superpixel counts, by linear interpolation."""

    low: float  # the range, common to all curves that are compared
    high: float
    curves: dict[tuple[str, float | None], dict[str, float]]  # by (method, pos_scale), then by metric


def average_curves(summaries: Iterable[Summary]) -> CurveMeans | None:
    """Area under the curve of each metric against the measured count, divided by the range of counts.

    The range is the part of `COUNT_RANGE` that all curves cover, as nothing is extrapolated: methods are
    compared over the same counts. Curves of a single point are left out.

    Parameters
    ----------
    summaries : iterable of Summary
        Of one data set.

    Returns
    -------
    CurveMeans or None
        None if no range is common to all curves.
    """
    points = {curve: points for curve, points in curves_of(summaries).items() if len(points) > 1}
    counts = {
        curve: np.array([summary.mean["n_spixels"] for summary in points]) for curve, points in points.items()
    }
    low = max([COUNT_RANGE[0], *(count[0] for count in counts.values())])
    high = min([COUNT_RANGE[1], *(count[-1] for count in counts.values())])
    if not points or low >= high:
        return None
    means = {}
    for curve, on_curve in points.items():
        inside = (counts[curve] > low) & (counts[curve] < high)
        knots = np.concatenate([[low], counts[curve][inside], [high]])
        means[curve] = {
            name: float(trapezoid(_interpolate(knots, counts[curve], on_curve, name), knots) / (high - low))
            for name in on_curve[0].mean
            if name != "n_spixels"
        }
    return CurveMeans(float(low), float(high), means)


def curves_of(summaries: Iterable[Summary]) -> dict[tuple[str, float | None], list[Summary]]:
    """Group summaries by method and weight of the position, each in the order of the measured count."""
    curves: dict[tuple[str, float | None], list[Summary]] = {}
    for summary in summaries:
        curves.setdefault((summary.run.method, summary.run.pos_scale), []).append(summary)
    return {
        curve: sorted(points, key=lambda point: point.mean["n_spixels"]) for curve, points in curves.items()
    }


def _interpolate(knots: np.ndarray, counts: np.ndarray, points: Sequence[Summary], name: str) -> np.ndarray:
    return np.interp(knots, counts, [summary.mean[name] for summary in points])


def _mean(values: Iterable[float]) -> float:
    kept = np.array([value for value in values if not np.isnan(value)])
    return float(kept.mean()) if kept.size else float("nan")
