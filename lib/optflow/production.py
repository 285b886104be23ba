"""Making flow archives, several videos at a time."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.files.opencv import cv2
from lib.optflow.archive import FlowArchive, write_flow_archive
from lib.optflow.sources import FlowSource
from lib.runtime.errors import InputError, RunError
from lib.runtime.signals import blocked_stop_signals, start_worker, stop_flag
from lib.runtime.workers import LOST_WORKER, usable_workers

_PROGRESS_INTERVAL = 0.2  # seconds


class ArchiveJob(NamedTuple):
    """An archive to make."""

    source: FlowSource
    path: Path
    attributes: dict[str, str]  # how the flow is made, stored in the archive


class ArchiveReport(NamedTuple):
    """What became of a job."""

    path: Path
    n_frames: int = 0
    was_there: bool = False
    consistency_error: float | None = None  # pixels, if it was asked for
    problem: str | None = None  # why there is no archive


def make_archives(
    jobs: list[ArchiveJob],
    *,
    n_workers: int,
    with_consistency: bool,
    on_progress: Callable[[int], object],
) -> Iterator[ArchiveReport]:
    """Make archives, in the order in which they get done; those that are there already are kept.

    Parameters
    ----------
    jobs : list of ArchiveJob
        What to make. Bad input spoils its own archive only.
    n_workers : int
        Processes, one archive each at a time; 0 works here.
    with_consistency : bool
        Measure the `consistency_error` of each archive.
    on_progress : callable
        Gets the number of pairs done since it was last called.

    Yields
    ------
    ArchiveReport

    Raises
    ------
    RunError
        If an archive cannot be written.
    Stop
        If the stop flag is set. Archives that are not finished are removed.
    """

    def on_pair() -> None:
        on_progress(1)
        stop_flag.raise_if_set()

    if n_workers == 0 or len(jobs) < 2:
        for job in jobs:
            yield _make_archive(job, with_consistency, on_pair)
        return
    # Fresh processes: a forked one could inherit OpenCV's threads in mid-work.
    context = multiprocessing.get_context("spawn")
    n_done, must_stop = context.Value("q", 0), context.Event()
    n_told = 0
    with ProcessPoolExecutor(
        usable_workers(min(n_workers, len(jobs))),
        context,
        initializer=_start_worker,
        initargs=(n_done, must_stop),
    ) as pool:
        with blocked_stop_signals():  # submitting starts the processes
            pending: set[Future] = {
                pool.submit(_make_archive_in_worker, job, with_consistency) for job in jobs
            }
        try:
            while pending:
                stop_flag.raise_if_set()
                done, pending = wait(pending, _PROGRESS_INTERVAL, FIRST_COMPLETED)
                n_now = n_done.value
                on_progress(n_now - n_told)
                n_told = n_now
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise RunError(LOST_WORKER) from error
        finally:
            must_stop.set()
            pool.shutdown(cancel_futures=True)


def consistency_error(archive: FlowArchive) -> float:
    """Mean forward-backward error of a video.

    Follows the forward flow of each pixel and the backward flow from where it leads, and takes the distance
    to the start. Pixels that the forward flow leads out of the frame do not count.

    Parameters
    ----------
    archive : FlowArchive
        The flow.

    Returns
    -------
    float
        In pixels; NaN if the flow leads every pixel out of the frame.

    References
    ----------
    .. [1] Sundaram et al., "Dense Point Trajectories by GPU-accelerated Large Displacement Optical Flow",
       ECCV 2010.
    """
    height, width = archive.frame_shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    total, n_counted = 0.0, 0
    following = archive.read_frame(0)
    for frame_idx in range(1, archive.n_frames):
        forward = following[..., :2]
        following = archive.read_frame(frame_idx)
        y_there, x_there = y + forward[..., 0], x + forward[..., 1]
        backward = cv2.remap(np.ascontiguousarray(following[..., 2:]), x_there, y_there, cv2.INTER_LINEAR)
        is_inside = (y_there >= 0) & (y_there <= height - 1) & (x_there >= 0) & (x_there <= width - 1)
        errors = np.linalg.norm(forward + backward, axis=-1)[is_inside]
        total, n_counted = total + float(errors.sum(dtype=np.float64)), n_counted + errors.size
    return total / n_counted if n_counted else float("nan")


class _StoppedError(Exception):
    """The main process wants an end."""


def _start_worker(n_done, must_stop) -> None:
    global _n_done, _must_stop
    _n_done, _must_stop = n_done, must_stop
    start_worker()
    cv2.setNumThreads(1)  # the other cores have workers of their own


def _make_archive_in_worker(job: ArchiveJob, with_consistency: bool) -> ArchiveReport:
    def on_pair() -> None:
        with _n_done.get_lock():
            _n_done.value += 1
        if _must_stop.is_set():
            raise _StoppedError

    return _make_archive(job, with_consistency, on_pair)


def _make_archive(job: ArchiveJob, with_consistency: bool, on_pair: Callable[[], object]) -> ArchiveReport:
    try:
        was_there = job.path.exists()
        if was_there:
            _check_existing(job)
            for _ in range(len(job.source)):
                on_pair()
        else:
            _write(job, on_pair)
        archive = FlowArchive(job.path)
        error = consistency_error(archive) if with_consistency else None
    except InputError as problem:
        return ArchiveReport(job.path, problem=str(problem))
    return ArchiveReport(job.path, archive.n_frames, was_there, error)


def _write(job: ArchiveJob, on_pair: Callable[[], object]) -> None:
    pairs = job.source.pairs()
    first = next(pairs)
    frame_shape = first[0].shape[:2]
    with write_flow_archive(job.path, frame_shape, job.attributes) as writer:
        for forward, backward in itertools.chain([first], pairs):
            writer.append(forward, backward)
            on_pair()


def _check_existing(job: ArchiveJob) -> None:
    archive = FlowArchive(job.path)
    attributes = archive.read_attributes()
    for name, value in job.attributes.items():
        if attributes.get(name, value) != value:
            raise InputError(
                f"{job.path} is there, made with {name} {attributes[name]}: delete it, or choose another "
                "`out_dir` or `method`"
            )
    if job.source.has_exact_length and archive.n_frames != len(job.source) + 1:
        raise InputError(
            f"{job.path} is there, but holds the flow of {archive.n_frames} frames, and the video has "
            f"{len(job.source) + 1}: delete it, or choose another `out_dir`"
        )
    height, width = next(job.source.pairs())[0].shape[:2]
    if archive.frame_shape != (height, width):
        raise InputError(
            f"{job.path} is there, but holds flow of {archive.frame_shape[1]}x{archive.frame_shape[0]}, and "
            f"the video is {width}x{height}: delete it, or choose another `out_dir`"
        )
