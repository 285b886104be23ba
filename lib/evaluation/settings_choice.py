"""Choose the settings that a trained model is used with, by its scores on validation images."""

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from lib.datasets.base import SegmentedImage
from lib.datasets.loaders import EvaluationImages
from lib.inference.segmenter import PreprocessedImage, Segmenter
from lib.metrics.registry import score_label_maps
from lib.runtime.errors import InputError
from lib.runtime.signals import stop_flag
from lib.superpixels.merge_settings import MergeSettings
from lib.superpixels.regions import Superpixels
from lib.weights import store_settings

logger = logging.getLogger(__name__)

MAX_IMAGES = 40  # evenly spaced; more images take longer and choose nearly the same

COUNTS = (100, 200, 400, 1000)  # requested numbers of superpixels
_FEW_COUNTS = (200, 1000)  # enough for settings that hold for all numbers
_MIN_PIXELS = 8  # of a superpixel; a smaller image is left out for a count

_POS_SCALE_FACTORS = (0.7, 0.84, 1.0, 1.2, 1.4)  # of the scale that the segmenter starts with
_N_ITERS = (5, 7, 10)
_FINE_FACTORS = (2.0, 3.0, 5.0)
_MERGE_POS_SCALES = (0.2, 0.35, 0.6, 1.0, 1.5)

# Weight of boundary recall and compactness beside ASA or mean IoU, which vary ten times less. A higher scale
# of the position trades recall for compactness; with both in the score, the scale rises until recall falls
# faster than compactness rises.
_BORDER_WEIGHT = 0.1

_WORTH_TIME = 0.0005  # a smaller gain in score is not worth more iterations, or more fine superpixels

_Trials = Mapping[Any, Superpixels]  # superpixels of an image, by the values of a setting


class ChosenSettings(NamedTuple):
    """Settings that a weight file stores as defaults of inference and evaluation."""

    pos_scale: float
    n_iter: int
    merging: MergeSettings


def choose_and_store(
    segmenter: Segmenter,
    dataset: Dataset[SegmentedImage],
    weights: Path,
    *,
    figure: str,
    out: Path | None = None,
) -> ChosenSettings:
    """Choose the settings of a weight file, and store them in it or in a copy `out`.

    `segmenter` has the model of the file, and the settings to start from. For the other parameters and the
    errors see `choose_settings`.
    """
    chosen = choose_settings(segmenter, dataset, figure=figure)
    store_settings(weights, out or weights, **chosen._asdict())
    logger.info("settings of %s: %s", out or weights, chosen)
    return chosen


def choose_settings(
    segmenter: Segmenter, dataset: Dataset[SegmentedImage], *, figure: str = "asa"
) -> ChosenSettings:
    """Choose the position scale, then the iterations, then for each of `COUNTS` the settings of the merges.

    The score of a label map is `figure` + 0.1 * (boundary recall + compactness), averaged over the pairs of
    image and annotation. Position scale and iterations are chosen by the mean score at 200 and 1000
    superpixels.

    Parameters
    ----------
    segmenter : Segmenter
        Model with the settings to start from; it is not changed.
    dataset : Dataset of SegmentedImage
        Images that the model was not trained on. If there are more than `MAX_IMAGES`, evenly spaced ones are
        used.
    figure : {"asa", "mean_iou"}
        Main figure of the score.

    Raises
    ------
    InputError
        If an image cannot be used, or all are too small.
    Stop
        If the stop flag is set.
    """
    segmenter = copy.copy(segmenter)
    pos_scales = [float(f"{factor * segmenter.scales.pos_scale:.2g}") for factor in _POS_SCALE_FACTORS]

    def vary_pos_scale(image: PreprocessedImage, n_spixels: int) -> _Trials:
        results = segmenter.sweep(image, [(n_spixels, pos_scale) for pos_scale in pos_scales])
        return dict(zip(pos_scales, results, strict=True))

    def vary_n_iter(image: PreprocessedImage, n_spixels: int) -> _Trials:
        trials = {}
        for n_iter in _N_ITERS:
            segmenter.n_iter = n_iter
            (trials[n_iter],) = segmenter.sweep(image, [(n_spixels, segmenter.scales.pos_scale)])
        return trials

    def vary_merging(image: PreprocessedImage, n_spixels: int) -> _Trials:
        return segmenter.sweep_merging(image, n_spixels, _FINE_FACTORS, _MERGE_POS_SCALES)

    scores = _mean_over_counts(_score(segmenter, dataset, figure, vary_pos_scale, _FEW_COUNTS))
    pos_scale = max(scores, key=scores.__getitem__)
    logger.info("scores by `pos_scale`: %s", _show(scores))
    segmenter.scales = segmenter.scales._replace(pos_scale=pos_scale)

    scores = _mean_over_counts(_score(segmenter, dataset, figure, vary_n_iter, _FEW_COUNTS))
    n_iter = min(_nearly_best(scores))
    logger.info("scores by `n_iter`: %s", _show(scores))
    segmenter.n_iter = n_iter

    fine_factor, merge_pos_scale = {}, {}
    for n_spixels, scores in _score(segmenter, dataset, figure, vary_merging, COUNTS).items():
        factor, _ = min(_nearly_best(scores))  # the least to segment
        scales = {scale: score for (each, scale), score in scores.items() if each == factor}
        fine_factor[n_spixels], merge_pos_scale[n_spixels] = factor, max(scales, key=scales.__getitem__)
        logger.info("scores at %d by `fine_factor` and `merge_pos_scale`: %s", n_spixels, _show(scores))
    return ChosenSettings(pos_scale, n_iter, MergeSettings(fine_factor, merge_pos_scale))


def _score(
    segmenter: Segmenter,
    dataset: Dataset[SegmentedImage],
    figure: str,
    segment: Callable[[PreprocessedImage, int], _Trials],
    counts: Sequence[int],
) -> dict[int, dict[Any, float]]:
    """Return the mean score of each trial of `segment(image, n_spixels)`, by the number of superpixels."""
    values: dict[int, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for image in _spaced_images(dataset):
        prepared = segmenter.preprocess(image.image_rgb, image.extra, name=image.name)
        for n_spixels in counts:
            if n_spixels * _MIN_PIXELS > prepared.n_pixels:
                continue
            trials = segment(prepared, n_spixels)
            label_maps = [trial.labels for trial in trials.values()]
            metrics = (figure, "boundary_recall", "compactness")
            scores = score_label_maps(label_maps, image.image_rgb, image.annotations, metrics)
            for value, of_trial in zip(trials, scores, strict=True):
                borders = _BORDER_WEIGHT * of_trial.spixels["compactness"]
                values[n_spixels][value] += [
                    pair[figure] + borders + _BORDER_WEIGHT * pair["boundary_recall"]
                    for pair in of_trial.pairs
                ]
    if not values:
        raise InputError(
            f"settings cannot be chosen: all images have fewer than {_MIN_PIXELS * min(counts)} pixels"
        )
    return {n: {value: float(np.nanmean(each)) for value, each in of_n.items()} for n, of_n in values.items()}


def _spaced_images(dataset: Dataset[SegmentedImage]) -> Iterator[SegmentedImage]:
    """Yield evenly spaced images of a dataset, at most `MAX_IMAGES`."""
    images = EvaluationImages(dataset)
    indices = np.unique(np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).round().astype(int))
    for idx in tqdm(indices.tolist(), desc="choosing settings", unit="image", disable=None):
        stop_flag.raise_if_set()
        yield images[idx]


def _mean_over_counts(scores: Mapping[int, Mapping[Any, float]]) -> dict[Any, float]:
    values = next(iter(scores.values()))
    return {value: float(np.mean([of_n[value] for of_n in scores.values()])) for value in values}


def _nearly_best(scores: Mapping[Any, float]) -> list[Any]:
    """Return the values of a setting whose score is so close to the best that time decides."""
    return [value for value, score in scores.items() if score >= max(scores.values()) - _WORTH_TIME]


def _show(scores: Mapping[Any, float]) -> str:
    return ", ".join(f"{value} {score:.4f}" for value, score in scores.items())
