"""Evaluation loop: segment every image with every method and score every label map.

`lib.evaluation.protocol.PROTOCOL` describes the protocol in words.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from torch.utils.data import Dataset
from tqdm import tqdm

from lib.datasets.base import SegmentedImage
from lib.datasets.loaders import EvaluationImages, evaluation_loader
from lib.evaluation.methods import Method, Setting
from lib.metrics.registry import DEFAULT_METRICS, Scores, check_metrics, score_label_maps
from lib.runtime.errors import InputError, RunError
from lib.runtime.notices import hides_progress
from lib.runtime.ranks import gather, n_ranks
from lib.runtime.signals import start_worker, stop_flag
from lib.runtime.workers import LOST_WORKER, usable_workers
from lib.superpixels.counts import check_n_spixels


class Run(NamedTuple):
    """Method with a setting; one row of the tables."""

    method: str
    n_spixels: int | None  # requested; None for labels from files
    pos_scale: float | None  # None for methods without a position scale


class ImageScores(NamedTuple):
    """Scores of one run on one image."""

    image: str
    scores: Scores


def list_runs(methods: Sequence[Method], n_spixels: Sequence[int]) -> list[Run]:
    """List every method with each of its settings, in evaluation order."""
    return [Run(method.name, *setting) for method in methods for setting in list_settings(method, n_spixels)]


def list_settings(method: Method, n_spixels: Sequence[int]) -> list[Setting]:
    """List the settings of a method, in evaluation order."""
    return [Setting(count, pos_scale) for pos_scale in method.pos_scales for count in n_spixels]


def check_first_image(
    dataset: Dataset[SegmentedImage], n_spixels: Sequence[int], *, parameter: str = "n_spixels"
) -> None:
    """Raise `InputError` if a dataset is empty, or its first image cannot be used or has too few pixels.

    `parameter` names `n_spixels` in error messages.
    """
    _check_not_empty(dataset)
    image = EvaluationImages(dataset)[0]
    check_n_spixels(max(n_spixels), image.image_rgb[..., 0].size, image.name, parameter=parameter)


def evaluate(
    methods: Sequence[Method],
    dataset: Dataset[SegmentedImage],
    *,
    n_spixels: Sequence[int],
    metrics: Sequence[str] = DEFAULT_METRICS,
    n_workers: int = 0,
    first_idx: int = 0,
    title: str = "evaluating",
    parameter: str = "n_spixels",
) -> Iterator[dict[Run, ImageScores]]:
    """Score superpixels on the images of a dataset; yield the scores of one image after another, in order.

    Ranks share the images; each rank yields the scores of all images.

    Parameters
    ----------
    methods, dataset
        Methods to evaluate, see `lib.evaluation.methods`, and images with their annotations.
    n_spixels : sequence of int
        Requested numbers of superpixels.
    metrics : sequence of str
        Names in `lib.metrics.METRICS`; the measured number of superpixels is always added.
    n_workers : int
        Number of processes that read images, and of processes that compute metrics; 0 uses this process.
    first_idx : int
        Index of the first image to evaluate.
    title, parameter : str
        Title of the progress bar, and name of `n_spixels` in error messages.

    Raises
    ------
    InputError
        If a metric is unknown, the dataset is empty, or an image cannot be used.
    RunError
        If a worker process crashed.
    Stop
        If the stop flag is set.
    """
    check_metrics(metrics)
    _check_not_empty(dataset)
    metrics = tuple(dict.fromkeys(("n_spixels", *metrics)))
    own = _evaluate_own_share(methods, dataset, n_spixels, metrics, n_workers, first_idx, parameter)
    progress = tqdm(total=len(dataset), initial=first_idx, desc=title, unit="image", disable=hides_progress())
    with closing(own), progress:
        for _ in range(first_idx, len(dataset), n_ranks()):
            for image in gather(lambda: next(own, None)):
                if image is not None:  # None: the last round may have fewer images than ranks
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
    with _metric_workers(n_workers) as submit:
        for image in loader:
            stop_flag.raise_if_set()
            check_n_spixels(max(n_spixels), image.image_rgb[..., 0].size, image.name, parameter=parameter)
            label_maps = []
            for method in methods:
                label_maps += method.segment(image, list_settings(method, n_spixels))
            future = submit(score_label_maps, label_maps, image.image_rgb, image.annotations, metrics)
            pending.append((image.name, future))
            # Images that wait for a worker take memory, so limit their number.
            while pending and (pending[0][1].done() or len(pending) > 2 * n_workers + 1):
                yield collect()
        while pending:
            yield collect()


def _check_not_empty(dataset: Dataset[SegmentedImage]) -> None:
    if len(dataset) == 0:
        raise InputError("the dataset has no images")


@contextmanager
def _metric_workers(n_workers: int) -> Iterator[Callable[..., Future]]:
    """Start processes, at most one per core; yields the function that submits a call. 0 uses this process."""
    if n_workers == 0:
        yield _call
        return
    executor = ProcessPoolExecutor(usable_workers(n_workers), initializer=start_worker)
    try:
        yield executor.submit
    except BrokenProcessPool as error:
        raise RunError(LOST_WORKER) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _call(function: Callable[..., Any], *args: Any) -> Future:
    future: Future = Future()
    future.set_result(function(*args))
    return future
