"""The loop of an evaluation: every image through every method, every label map through every metric.

The protocol is told in words by `lib.evaluation.protocol.PROTOCOL`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from lib.datasets.base import SegmentedImage
from lib.datasets.loaders import EvaluationImage, EvaluationImages, evaluation_loader
from lib.evaluation.methods import Method, Setting
from lib.evaluation.workers import metric_workers
from lib.metrics.registry import METRICS, Scores, check_metrics, score_label_maps
from lib.runtime.errors import InputError, RunError
from lib.runtime.ranks import gather, is_first_rank, n_ranks
from lib.runtime.signals import stop_flag
from lib.runtime.workers import LOST_WORKER
from lib.superpixels.connectivity import enforce_connectivity
from lib.superpixels.counts import check_n_spixels


class Run(NamedTuple):
    """A method with a setting: what a row of the tables is about."""

    method: str
    n_spixels: int  # requested
    pos_scale: float | None  # None for methods that have none


class ImageScores(NamedTuple):
    """What a run reached on an image."""

    image: str
    scores: Scores


def list_runs(methods: Sequence[Method], n_spixels: Sequence[int]) -> list[Run]:
    """All methods with all their settings, in the order in which they are evaluated."""
    return [Run(method.name, *setting) for method in methods for setting in list_settings(method, n_spixels)]


def list_settings(method: Method, n_spixels: Sequence[int]) -> list[Setting]:
    """All settings of a method, in the order in which they are evaluated."""
    return [Setting(count, pos_scale) for pos_scale in method.pos_scales for count in n_spixels]


def check_first_image(
    dataset: Dataset[SegmentedImage], n_spixels: Sequence[int], *, parameter: str = "n_spixels"
) -> None:
    """Find out before any work whether a data set can be evaluated on, as far as its first image tells.

    `parameter` names `n_spixels` in error messages.

    Raises
    ------
    InputError
        If it is empty, or its first image cannot be used or has too few pixels.
    """
    _check_not_empty(dataset)
    image = EvaluationImages(dataset)[0]
    check_n_spixels(max(n_spixels), image.image_lab[0, 0].numel(), image.name, parameter=parameter)


def evaluate(
    methods: Sequence[Method],
    dataset: Dataset[SegmentedImage],
    *,
    n_spixels: Sequence[int],
    metrics: Sequence[str] = tuple(METRICS),
    n_workers: int = 0,
    first_idx: int = 0,
    title: str = "evaluating",
    parameter: str = "n_spixels",
) -> Iterator[dict[Run, ImageScores]]:
    """Score superpixels on the images of a data set, one after the other.

    Several ranks share the images; each yields the scores of all.

    Parameters
    ----------
    methods : sequence of Method
        What to evaluate; see `lib.evaluation.methods`.
    dataset : Dataset of SegmentedImage
        Images with their annotations.
    n_spixels : sequence of int
        Requested numbers of superpixels.
    metrics : sequence of str
        Names in `METRICS`; the measured number of superpixels is always among the scores.
    n_workers : int
        Processes that read images, and as many that compute metrics; 0 does all of it here.
    first_idx : int
        Image to start from.
    title : str
        Shown in the progress bar.
    parameter : str
        Name of `n_spixels` in error messages.

    Yields
    ------
    dict of Run to ImageScores
        The scores of an image, in the order of the data set.

    Raises
    ------
    InputError
        If a metric is unknown, the data set is empty, or an image cannot be used.
    RunError
        If a worker process crashed.
    Stop
        If the stop flag is set.
    """
    check_metrics(metrics)
    _check_not_empty(dataset)
    metrics = tuple(dict.fromkeys(("n_spixels", *metrics)))
    is_hidden = None if is_first_rank() else True  # None: shown on a terminal
    own = _evaluate_own_share(methods, dataset, n_spixels, metrics, n_workers, first_idx, parameter)
    with (
        closing(own),
        tqdm(total=len(dataset), initial=first_idx, desc=title, unit="image", disable=is_hidden) as progress,
    ):
        for _ in range(first_idx, len(dataset), n_ranks()):
            for image in gather(lambda: next(own, None)):
                if image is not None:  # as on ranks for which no image is left in the last round
                    yield image
                    progress.update()


def _evaluate_own_share(
    methods: Sequence[Method],
    dataset: Dataset[SegmentedImage],
    n_spixels: Sequence[int],
    metrics: Sequence[str],
    n_workers: int,
    first_idx: int,
    parameter: str,
) -> Iterator[dict[Run, ImageScores]]:
    runs = list_runs(methods, n_spixels)
    pending: deque[tuple[str, Future]] = deque()

    def collect() -> dict[Run, ImageScores]:
        name, future = pending.popleft()
        scores = future.result()
        return {run: ImageScores(name, of_run) for run, of_run in zip(runs, scores, strict=True)}

    loader = evaluation_loader(dataset, n_workers=n_workers, first_idx=first_idx)
    with _name_lost_worker(), metric_workers(n_workers) as executor:
        for image in loader:
            stop_flag.raise_if_set()
            check_n_spixels(max(n_spixels), image.image_lab[0, 0].numel(), image.name, parameter=parameter)
            label_maps = [
                labels
                for method in methods
                for labels in method.segment(image, list_settings(method, n_spixels))
            ]
            counts = [run.n_spixels for run in runs]
            future = executor.submit(_score, label_maps, counts, image.image_rgb, image.annotations, metrics)
            pending.append((image.name, future))
            # Images that wait for a worker take memory: let no more than a few pile up.
            while pending and (pending[0][1].done() or len(pending) > 2 * n_workers + 1):
                yield collect()
        while pending:
            yield collect()


def connected_superpixels(method: Method, image: EvaluationImage, setting: Setting) -> np.ndarray:
    """The superpixels of an image that are scored, (H, W) int32."""
    (labels,) = method.segment(image, [setting])
    return enforce_connectivity(labels, setting.n_spixels)


def _check_not_empty(dataset: Dataset[SegmentedImage]) -> None:
    if len(dataset) == 0:
        raise InputError("there is no image to evaluate on")


@contextmanager
def _name_lost_worker() -> Iterator[None]:
    """Turn the errors that a worker process leaves when it is gone into a `RunError`."""
    try:
        yield
    except BrokenProcessPool as error:
        raise RunError(LOST_WORKER) from error


def _score(
    label_maps: Sequence[np.ndarray],
    n_spixels: Sequence[int],
    image_rgb: np.ndarray,
    annotations: Sequence[np.ndarray],
    metrics: Sequence[str],
) -> list[Scores]:
    connected = [
        enforce_connectivity(labels, count) for labels, count in zip(label_maps, n_spixels, strict=True)
    ]
    return score_label_maps(connected, image_rgb, annotations, metrics)
