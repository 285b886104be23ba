"""Production of flow archives, several videos at a time."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.files.images import DEFAULT_READER
from lib.files.opencv import cv2
from lib.files.sizes import size_text
from lib.optflow.archive import FlowArchive, write_flow_archive
from lib.optflow.sources import FlowSource
from lib.runtime.errors import InputError, RunError
from lib.runtime.signals import blocked_stop_signals, start_worker, stop_flag
from lib.runtime.workers import LOST_WORKER, usable_workers

_PROGRESS_INTERVAL = 0.2  # seconds


class ArchiveJob(NamedTuple):
    """Archive to make."""

    source: FlowSource
    path: Path
    attributes: dict[str, str]  # settings of the flow, stored in the archive


class ArchiveReport(NamedTuple):
    """Result of a job."""

    path: Path
    n_frames: int = 0
    existed: bool = False
    consistency_error: float | None = None  # in pixels; None if not measured
    problem: str | None = None  # reason why no archive was made


def make_archives(
    jobs: list[ArchiveJob],
    *,
    n_workers: int,
    with_consistency: bool,
    on_progress: Callable[[int], object],
) -> Iterator[ArchiveReport]:
    """Make archives and yield a report as each is finished; existing archives are kept.

    Parameters
    ----------
    jobs : list of ArchiveJob
        Archives to make. Bad input fails only its own archive.
    n_workers : int
        Worker processes, one archive each at a time; 0 works in this process.
    with_consistency : bool
        Measure the `consistency_error` of each archive.
    on_progress : callable
        Called with the number of pairs finished since the last call.

    Raises
    ------
    RunError
        If an archive cannot be written.
    Stop
        If the stop flag is set. Unfinished archives are removed.
    """

    def on_pair() -> None:
        on_progress(1)
        stop_flag.raise_if_set()

    if n_workers == 0 or len(jobs) < 2:
        for job in jobs:
            yield _make_archive(job, with_consistency, on_pair)
        return
    # A forked process could inherit the state of OpenCV's threads at work, and hang.
    context = multiprocessing.get_context("spawn")
    n_done, must_stop = context.Value("q", 0), context.Event()
    n_reported = 0
    n_workers = usable_workers(min(n_workers, len(jobs)))
    with ProcessPoolExecutor(n_workers, context, _start_worker, (n_done, must_stop)) as pool:
        with blocked_stop_signals():  # submitting starts the processes
            pending = {pool.submit(_make_archive_in_worker, job, with_consistency) for job in jobs}
        try:
            while pending:
                stop_flag.raise_if_set()
                done, pending = wait(pending, _PROGRESS_INTERVAL, FIRST_COMPLETED)
                n_new = n_done.value - n_reported
                on_progress(n_new)
                n_reported += n_new
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise RunError(LOST_WORKER) from error
        finally:
            must_stop.set()
            pool.shutdown(cancel_futures=True)


def consistency_error(archive: FlowArchive) -> float:
    """Return the mean forward-backward error of a video, in pixels.

    Each pixel follows its forward flow, then the backward flow at its target. The error is its distance to
    the start. Pixels whose forward flow leaves the frame do not count; if all leave it, the mean is NaN.

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
        y_target, x_target = y + forward[..., 0], x + forward[..., 1]
        backward = cv2.remap(np.ascontiguousarray(following[..., 2:]), x_target, y_target, cv2.INTER_LINEAR)
        is_inside = (y_target >= 0) & (y_target <= height - 1) & (x_target >= 0) & (x_target <= width - 1)
        errors = np.linalg.norm(forward + backward, axis=-1)[is_inside]
        total, n_counted = total + float(errors.sum(dtype=np.float64)), n_counted + errors.size
    return total / n_counted if n_counted else float("nan")


class _StoppedError(Exception):
    """The main process requested a stop."""


def _start_worker(n_done, must_stop) -> None:
    global _n_done, _must_stop
    _n_done, _must_stop = n_done, must_stop
    start_worker()
    cv2.setNumThreads(1)  # other workers use the other cores


def _make_archive_in_worker(job: ArchiveJob, with_consistency: bool) -> ArchiveReport:
    def on_pair() -> None:
        with _n_done.get_lock():
            _n_done.value += 1
        if _must_stop.is_set():
            raise _StoppedError

    return _make_archive(job, with_consistency, on_pair)


def _make_archive(job: ArchiveJob, with_consistency: bool, on_pair: Callable[[], object]) -> ArchiveReport:
    try:
        existed = job.path.exists()
        if existed:
            _check_existing(job)
            for _ in range(len(job.source)):
                on_pair()
        else:
            _write(job, on_pair)
        archive = FlowArchive(job.path)
        error = consistency_error(archive) if with_consistency else None
    except InputError as problem:
        return ArchiveReport(job.path, problem=str(problem))
    return ArchiveReport(job.path, archive.n_frames, existed, error)


def _write(job: ArchiveJob, on_pair: Callable[[], object]) -> None:
    pairs = job.source.pairs()
    first = next(pairs)
    with write_flow_archive(job.path, first[0].shape[:2], job.attributes) as writer:
        for forward, backward in itertools.chain([first], pairs):
            writer.append(forward, backward)
            on_pair()


def _check_existing(job: ArchiveJob) -> None:
    archive = FlowArchive(job.path)
    attributes = archive.read_attributes()
    earlier = DEFAULT_READER.described()  # of archives made before they stored these settings
    for name, value in job.attributes.items():
        found = attributes.get(name, earlier.get(name, value))
        if found != value:
            raise InputError(
                f"{job.path} exists, made with {name} {found}: delete it, or choose another `out_dir` or "
                "`method`"
            )
    if job.source.has_exact_length and archive.n_frames != len(job.source) + 1:
        raise InputError(
            f"{job.path} exists, but holds the flow of {archive.n_frames} frames, and the video has "
            f"{len(job.source) + 1}: delete it, or choose another `out_dir`"
        )
    frame_shape = next(job.source.pairs())[0].shape[:2]
    if archive.frame_shape != frame_shape:
        raise InputError(
            f"{job.path} exists, but holds flow of {size_text(archive.frame_shape)}, and the video is "
            f"{size_text(frame_shape)}: delete it, or choose another `out_dir`"
        )
