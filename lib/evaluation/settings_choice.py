"""Choose the settings that a trained model is used with, by its scores on validation images."""

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from lib.runtime.notices import RESULT, hides_progress
from lib.runtime.signals import stop_flag
from lib.superpixels.merge_settings import MergeSettings
from lib.superpixels.regions import Superpixels
from lib.weights import store_settings

logger = logging.getLogger(__name__)

MAX_IMAGES = 10  # evenly spaced; an image of BSDS500 takes 37 seconds or more on two cores

COUNTS = (100, 200, 400, 1000)  # requested numbers of superpixels
_MIN_PIXELS = 8  # of a superpixel; a smaller image is left out for a count

_N_ITERS = (5, 7, 10)
_POS_SCALE_FACTORS = (0.7, 0.84, 1.0, 1.2, 1.4)  # of the scale that the segmenter starts with
_FINE_FACTORS = (2.0, 3.0, 5.0)
_MERGE_POS_SCALES = (0.2, 0.35, 0.6, 1.0, 1.5)

_RECALL_WEIGHT = 0.1  # of boundary recall beside ASA or mean IoU, which vary ten times less

# Subtracted for each unit of missing compactness. It outweighs by far what less compactness gains, some 0.1.
_PENALTY = 10.0

_WORTH_TIME = 0.0005  # a smaller gain is not worth more iterations, or more superpixels to segment

_START = "start"  # name of the trial with the settings that the segmenter starts with

_Trials = Mapping[Any, Superpixels]  # superpixels of an image, by the values of settings


class ChosenSettings(NamedTuple):
    """Settings that a weight file stores as defaults of inference and evaluation."""

    pos_scale: float
    n_iter: int
    merging: MergeSettings


class _Score(NamedTuple):
    """Means over pairs of image and annotation."""

    accuracy: float  # figure + 0.1 * boundary recall
    compactness: float


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
    logger.log(RESULT, "settings of %s: %s", out or weights, chosen)
    return chosen


def choose_settings(
    segmenter: Segmenter, dataset: Dataset[SegmentedImage], *, figure: str = "asa"
) -> ChosenSettings:
    """Choose the iterations, then the position scale and for each of `COUNTS` the settings of the merges.

    The best settings have the highest mean of `figure` + 0.1 * boundary recall over the pairs of image and
    annotation, among those whose superpixels are on average as compact as with the settings of `segmenter`.
    Without that condition, superpixels would follow borders ever more closely and be ever less compact.

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
    start = segmenter.scales
    pos_scales = [float(f"{factor * start.pos_scale:.2g}") for factor in _POS_SCALE_FACTORS]

    def vary_n_iter(image: PreprocessedImage, n_spixels: int) -> _Trials:
        trials = {}
        for n_iter in _N_ITERS:
            segmenter.n_iter = n_iter
            (trials[n_iter],) = segmenter.sweep(image, [(n_spixels, start.pos_scale)])
        return trials

    def vary_scales(image: PreprocessedImage, n_spixels: int) -> _Trials:
        (at_start,) = segmenter.sweep(image, [(n_spixels, start.pos_scale)])
        trials = {_START: at_start}
        varied = copy.copy(segmenter)
        for pos_scale in pos_scales:
            varied.scales = start._replace(pos_scale=pos_scale)
            merged = varied.sweep_merging(image, n_spixels, _FINE_FACTORS, _MERGE_POS_SCALES)
            trials |= {(pos_scale, *merging): superpixels for merging, superpixels in merged.items()}
        return trials

    by_count = _score(segmenter, dataset, figure, vary_n_iter)
    by_n_iter = {
        n_iter: _mean(scores[n_iter].accuracy for scores in by_count.values()) for n_iter in _N_ITERS
    }
    logger.info("scores by `n_iter`: %s", _show(by_n_iter))
    segmenter.n_iter = min(_nearly_best(by_n_iter))

    by_count = _score(segmenter, dataset, figure, vary_scales)
    values = {n_spixels: _penalize(scores) for n_spixels, scores in by_count.items()}
    best = {
        scale: _mean(max(_of_merges(each, scale).values()) for each in values.values())
        for scale in pos_scales
    }
    logger.info("scores by `pos_scale`, with the best merges: %s", _show(best))
    pos_scale = max(best, key=best.__getitem__)

    fine_factor, merge_pos_scale = {}, {}
    for n_spixels, each in values.items():
        merges = _of_merges(each, pos_scale)
        logger.info("scores at %d by `fine_factor` and `merge_pos_scale`: %s", n_spixels, _show(merges))
        factor, _ = min(_nearly_best(merges))  # the fewest superpixels to segment
        fine_factor[n_spixels] = factor
        merge_pos_scale[n_spixels] = max(_MERGE_POS_SCALES, key=lambda scale: merges[factor, scale])
    return ChosenSettings(pos_scale, segmenter.n_iter, MergeSettings(fine_factor, merge_pos_scale))


def _score(
    segmenter: Segmenter,
    dataset: Dataset[SegmentedImage],
    figure: str,
    segment: Callable[[PreprocessedImage, int], _Trials],
) -> dict[int, dict[Any, _Score]]:
    """Return the score of each trial of `segment(image, n_spixels)`, by the number of superpixels."""
    pairs: dict[int, dict[Any, list[_Score]]] = defaultdict(lambda: defaultdict(list))
    for image in _spaced_images(dataset):
        prepared = segmenter.preprocess(image.image_rgb, image.extra, name=image.name)
        for n_spixels in COUNTS:
            if n_spixels * _MIN_PIXELS > prepared.n_pixels:
                continue
            trials = segment(prepared, n_spixels)
            label_maps = [trial.labels for trial in trials.values()]
            metrics = (figure, "boundary_recall", "compactness")
            scores = score_label_maps(label_maps, image.image_rgb, image.annotations, metrics)
            for setting, of_trial in zip(trials, scores, strict=True):
                compactness = of_trial.spixels["compactness"]
                pairs[n_spixels][setting] += [
                    _Score(pair[figure] + _RECALL_WEIGHT * pair["boundary_recall"], compactness)
                    for pair in of_trial.pairs
                ]
    if not pairs:
        smallest = _MIN_PIXELS * min(COUNTS)
        raise InputError(f"settings cannot be chosen: all images have fewer than {smallest} pixels")
    return {
        n_spixels: {setting: _Score(*np.nanmean(each, axis=0).tolist()) for setting, each in trials.items()}
        for n_spixels, trials in pairs.items()
    }


def _spaced_images(dataset: Dataset[SegmentedImage]) -> Iterator[SegmentedImage]:
    """Yield evenly spaced images of a dataset, at most `MAX_IMAGES`."""
    images = EvaluationImages(dataset)
    indices = np.unique(np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).round().astype(int))
    for idx in tqdm(indices.tolist(), desc="choosing settings", unit="image", disable=hides_progress()):
        stop_flag.raise_if_set()
        yield images[idx]


def _penalize(scores: Mapping[Any, _Score]) -> dict[Any, float]:
    """Return the accuracy of each trial, lowered if it is less compact than the trial at the start."""
    wanted = scores[_START].compactness
    return {
        setting: score.accuracy - _PENALTY * max(0.0, wanted - score.compactness)
        for setting, score in scores.items()
    }


def _of_merges(values: Mapping[Any, float], pos_scale: float) -> dict[tuple[float, float], float]:
    """Return the values of a position scale, by fine factor and position scale of the merges."""
    return {
        (factor, scale): values[pos_scale, factor, scale]
        for factor in _FINE_FACTORS
        for scale in _MERGE_POS_SCALES
    }


def _nearly_best(values: Mapping[Any, float]) -> list[Any]:
    """Return the settings whose value is so close to the best that time decides."""
    return [setting for setting, value in values.items() if value >= max(values.values()) - _WORTH_TIME]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _show(values: Mapping[Any, float]) -> str:
    return ", ".join(f"{setting} {value:.4f}" for setting, value in values.items())
