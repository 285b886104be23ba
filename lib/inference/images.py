"""Segment image files in a pipeline: reading, network and writing overlap."""

import itertools
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from lib.files.atomic import remove_leftovers
from lib.files.geotiff import check_same_place
from lib.files.images import DEFAULT_READER, ImageReader, count_pixels, read_mask
from lib.inference.large_images import check_large_outputs, segment_large_file
from lib.inference.outputs import (
    DEFAULT_EXPORT,
    DEFAULT_STYLE,
    ExportStyle,
    OutputFiles,
    OverlayStyle,
    write_outputs,
)
from lib.inference.segmenter import Clustered, PreprocessedImage, Segmenter
from lib.optflow.lookup import FlowOfFrame
from lib.runtime.errors import InputError, RunError, is_out_of_memory
from lib.runtime.memory import fits_memory
from lib.runtime.notices import hides_progress
from lib.runtime.ranks import gather, n_ranks, rank
from lib.runtime.signals import stop_flag
from lib.runtime.stopwatch import Stopwatch
from lib.runtime.streams import SideStream
from lib.superpixels.counts import check_n_spixels
from lib.superpixels.regions import Superpixels

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Threads that read, and as many that write: few beside a network that takes all cores of a CPU.
_N_THREADS_BESIDE_CPU = 2
_MAX_THREADS_BESIDE_GPU = 8

# Limits on images that are read ahead of a batch, and on images that wait to be written. A larger image waits
# alone. A pixel takes 3 bytes before the network, or 19 with flow, and its features afterwards.
_MAX_WAITING_PER_THREAD = 2
_MAX_WAITING_PIXELS = 2**25

# Batches that wait for their merges, or are merged, while a GPU clusters the next one.
_N_MERGED_BESIDE_GPU = 1

# Peak of the memory over what `Segmenter.needed_memory` returns, measured with a base model at 16 megapixels.
# Larger images have a lower one.
_PEAK_FACTOR = 1.4

_BATCH_PIXELS = 2**22  # the image that exceeds it is the last of its batch


class ImageJob(NamedTuple):
    """Image file, with its mask and flow, and the files to write for it."""

    image: Path
    files: OutputFiles
    mask: Path | None = None  # picture of the pixels to segment
    flow: FlowOfFrame | None = None  # for models that read flow
    reader: ImageReader = DEFAULT_READER

    def read(self, segmenter: Segmenter) -> PreprocessedImage:
        """Read the image, its mask and its flow, and prepare them for the network."""
        with segmenter.stopwatch.stage("reading"):
            mask = None if self.mask is None else read_mask(self.mask)
            if self.mask is not None:
                check_same_place(self.image, self.mask)
            image = self.reader.read_masked(self.image)
        extra = None
        if self.flow is not None:
            with segmenter.stopwatch.stage("flow"):
                extra = self.flow.read(np.ma.getdata(image))
        return segmenter.preprocess(image, extra, mask, name=str(self.image))

    def is_done(self) -> bool:
        """Return True if all files exist."""
        return all(os.path.exists(path) for path in self.files.paths)  # False for a name that is too long

    def write(
        self,
        segmenter: Segmenter,
        image: PreprocessedImage,
        superpixels: Superpixels,
        levels: Sequence[Superpixels],
        style: OverlayStyle,
        export: ExportStyle,
    ) -> None:
        """Write the files, and make missing folders."""
        with segmenter.stopwatch.stage("writing"):
            for path in self.files.paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            flow = None if image.extra is None else np.moveaxis(image.extra.numpy(), 0, -1)
            write_outputs(
                superpixels,
                self.files,
                levels=levels,
                style=style,
                export=export,
                flow=flow,
                image=self.image,
            )


_ReadImage = tuple[ImageJob, PreprocessedImage]
_Result = tuple[ImageJob, PreprocessedImage, Superpixels]


class Failure(NamedTuple):
    """Image that got no outputs, and its error."""

    image: Path
    error: Exception

    def __str__(self) -> str:
        message = str(self.error)
        return message if str(self.image) in message else f"{self.image}: {message}"


class _Failed(NamedTuple):
    """Outcome of an attempt at a batch; an error itself would keep the memory of the attempt."""

    error: Exception  # to report
    does_not_fit: bool  # in the memory


class RunSummary(NamedTuple):
    """Counts and failures over all ranks."""

    n_done: int
    n_skipped: int
    failures: list[Failure]
    seconds: float
    n_measured: int  # superpixels in all images that are done
    seconds_waited: float  # for reading and writing, on the first rank


def segment_files(
    segmenter: Segmenter,
    jobs: Sequence[ImageJob],
    n_spixels: int,
    *,
    levels: Sequence[int] = (),
    connected: bool = True,
    exact: bool = False,
    style: OverlayStyle = DEFAULT_STYLE,
    export: ExportStyle = DEFAULT_EXPORT,
    batch_size: int = 1,
    skip_existing: bool = False,
    out_of_core: bool | str = "auto",
) -> RunSummary:
    """Segment image files, and write the requested files of each.

    Consecutive images of one size form a batch, if they are not too large. A batch that does not fit the
    memory is split, and later batches are smaller. If an image cannot be read, segmented or written, the
    summary reports it and the others continue. Several ranks share the images.

    Parameters
    ----------
    segmenter : Segmenter
        Segmenter of a base model or of a composite model.
    jobs : sequence of ImageJob
        Images and their files, no file twice. All jobs have flow, or none. Missing folders are made.
    n_spixels, connected, exact
        See the call of the segmenter.
    levels : sequence of int
        Numbers of superpixels of nested levels to write, in rising order up to `n_spixels`; they need
        `connected`. See `write_outputs`. Other outputs are of the finest level.
    batch_size : int
        Largest number of images in a batch; they have one size and no masks.
    style, export
        Style of the overlays; detail of the outlines and format of the annotations.
    skip_existing : bool
        Skip images whose files all exist.
    out_of_core : bool or "auto"
        Segment images with temporary files in place of memory, one by one after all others; see
        `segment_large_file`. "auto": images that do not fit the free memory. Jobs must have no flow.

    Raises
    ------
    Stop
        If the stop flag is set; it is polled between batches.
    """
    start = time.perf_counter()
    share = jobs[rank() :: n_ranks()]
    for folder in {path.parent for job in share for path in job.files.paths}:
        if folder.is_dir():
            remove_leftovers(folder)
    with tqdm(total=len(share), desc="segmenting", unit="image", disable=hides_progress()) as progress:
        todo = [job for job in share if not (skip_existing and job.is_done())]
        progress.update(len(share) - len(todo))
        pipeline = _Pipeline(
            segmenter,
            n_spixels,
            levels=levels,
            connected=connected,
            exact=exact,
            style=style,
            export=export,
            batch_size=batch_size,
            out_of_core=out_of_core,
            progress=progress,
        )
        n_threads = count_threads(segmenter.device)
        with (
            ThreadPoolExecutor(n_threads) as readers,
            ThreadPoolExecutor(1) as merger,
            ThreadPoolExecutor(n_threads) as writers,
        ):
            try:
                pipeline.segment(
                    todo, readers, merger, writers, max_waiting=_MAX_WAITING_PER_THREAD * n_threads
                )
            except BaseException:  # such as `Stop`; files in writing are finished first
                for threads in (readers, merger, writers):
                    threads.shutdown(cancel_futures=True)
                for failure in pipeline.failures:
                    logger.error("%s", failure)
                raise
    results = gather(lambda: (len(todo), len(share) - len(todo), pipeline.n_measured, pipeline.failures))
    n_todo, n_skipped, n_measured, failures = zip(*results, strict=True)
    failures = list(itertools.chain.from_iterable(failures))
    n_done = sum(n_todo) - len(failures)
    seconds = time.perf_counter() - start
    seconds_waited = sum(pipeline.waiting.seconds.values())
    return RunSummary(n_done, sum(n_skipped), failures, seconds, sum(n_measured), seconds_waited)


@dataclass
class _Pipeline:
    """Settings and state of `segment_files`."""

    segmenter: Segmenter
    n_spixels: int
    levels: Sequence[int]
    connected: bool
    exact: bool
    style: OverlayStyle
    export: ExportStyle
    batch_size: int  # halved when a batch does not fit the memory
    out_of_core: bool | str
    progress: tqdm
    large: list[ImageJob] = field(default_factory=list)  # segmented after the others
    failures: list[Failure] = field(default_factory=list)
    n_measured: int = 0
    waiting: Stopwatch = field(default_factory=Stopwatch)

    def segment(
        self,
        jobs: Sequence[ImageJob],
        readers: Executor,
        merger: Executor,
        writers: Executor,
        *,
        max_waiting: int,
    ) -> None:
        writing: deque[tuple[Future[int], int]] = deque()  # with the number of pixels
        batches = self._batches(self._read_ahead(jobs, readers, max_waiting + self.batch_size))
        for results in self._results(batches, merger):
            for job, image, superpixels in results:
                future = writers.submit(self._write, job, image, superpixels)
                writing.append((future, superpixels.labels.size))
            while len(writing) > max_waiting or sum(size for _, size in writing) > _MAX_WAITING_PIXELS:
                self.n_measured += self._wait_for(writing.popleft()[0])
        self.n_measured += sum(self._wait_for(future) for future, _ in writing)
        for job in self.large:
            stop_flag.raise_if_set()
            self.n_measured += self._segment_large(job)

    def _wait_for(self, future: Future[T]) -> T:
        with self.waiting.stage("files"):
            return future.result()

    def _batches(self, images: Iterable[_ReadImage]) -> Iterator[list[_ReadImage]]:
        """Yield batches of consecutive images of one size."""
        batch: list[_ReadImage] = []
        for job, image in images:
            is_full = len(batch) >= self.batch_size or sum(each.n_pixels for _, each in batch) > _BATCH_PIXELS
            if batch and (is_full or not _fit_one_batch(batch[0][1], image)):
                yield batch
                batch = []
            batch.append((job, image))
        if batch:
            yield batch

    def _read_ahead(self, jobs: Sequence[ImageJob], readers: Executor, n_ahead: int) -> Iterator[_ReadImage]:
        """Yield the images that can be read, in order, with their jobs; threads read ahead.

        At most `n_ahead` images of at most `_MAX_WAITING_PIXELS` in all are ahead; a larger one is alone.
        """
        todo = deque(jobs)
        reading: deque[tuple[ImageJob, Future[PreprocessedImage | None], int]] = deque()
        while todo or reading:
            while todo and len(reading) < n_ahead:
                n_pixels = count_pixels(todo[0].image)
                if self._is_large(todo[0], n_pixels):
                    self.large.append(todo.popleft())
                    continue
                if reading and n_pixels + sum(size for *_, size in reading) > _MAX_WAITING_PIXELS:
                    break
                job = todo.popleft()
                reading.append((job, readers.submit(self._read, job), n_pixels))
            if not reading:
                break
            job, future, _ = reading.popleft()
            image = self._wait_for(future)
            if image is not None:
                yield job, image

    def _is_large(self, job: ImageJob, n_pixels: int) -> bool:
        """Return True for an image to segment out of core."""
        if self.out_of_core != "auto":
            return bool(self.out_of_core)
        n_bytes = int(_PEAK_FACTOR * self.segmenter.needed_memory((1, n_pixels)))
        return job.flow is None and not fits_memory(n_bytes, device=self.segmenter.device)

    def _segment_large(self, job: ImageJob) -> int:
        """Segment an image out of core; return the number of superpixels, 0 if it failed."""
        is_one_level = not (self.connected and self.segmenter.merges(self.n_spixels))
        try:
            check_large_outputs(job.files, levels=self.levels, exact=self.exact and is_one_level)
            job.files.overlay.parent.mkdir(parents=True, exist_ok=True)
            n_measured = segment_large_file(
                self.segmenter,
                job.image,
                job.files,
                self.n_spixels,
                mask=job.mask,
                reader=job.reader,
                connected=self.connected,
                style=self.style,
            )
        except Exception as error:
            self._fail(job, _error_of_image(error))
            return 0
        self.progress.update()
        return n_measured

    def _read(self, job: ImageJob) -> PreprocessedImage | None:
        try:
            image = job.read(self.segmenter)
            parameter = "levels" if self.levels else "n_spixels"
            check_n_spixels(self.n_spixels, image.n_pixels, image.name, parameter=parameter)
            return image.pinned() if self.segmenter.device.type == "cuda" else image
        except Exception as error:
            self._fail(job, _error_of_image(error))
            return None

    def _results(self, batches: Iterable[list[_ReadImage]], merger: Executor) -> Iterator[list[_Result]]:
        """Yield the results of batches, in order; a GPU clusters a batch while the one before is merged."""
        n_beside = count_merged_beside(self.segmenter.device)
        stream = SideStream(self.segmenter.device)
        merging: deque[tuple[list[_ReadImage], Future[list[Superpixels] | _Failed]]] = deque()
        for batch in batches:
            stop_flag.raise_if_set()
            if n_beside == 0:
                yield self._complete(batch, self._attempt(partial(self._segment, batch)))
                continue
            merging.append((batch, self._start(batch, merger, stream)))
            if len(merging) > n_beside:
                yield self._wait_for_merges(merging)
        while merging:
            yield self._wait_for_merges(merging)

    def _start(
        self, batch: list[_ReadImage], merger: Executor, stream: SideStream
    ) -> Future[list[Superpixels] | _Failed]:
        """Cluster a batch, and let the other thread finish it."""
        clustered = self._attempt(partial(self._cluster, batch))
        event = stream.mark()

        def finish() -> list[Superpixels]:
            with stream.after(event, clustered.tensors):
                return self.segmenter.finish(clustered)

        if isinstance(clustered, _Failed):
            return merger.submit(lambda: clustered)
        return merger.submit(self._attempt, finish)

    def _wait_for_merges(
        self, merging: deque[tuple[list[_ReadImage], Future[list[Superpixels] | _Failed]]]
    ) -> list[_Result]:
        """Return the results of the first batch; one that did not fit beside the others is tried alone."""
        batch, future = merging.popleft()
        outcome = future.result()
        if isinstance(outcome, _Failed) and outcome.does_not_fit:
            wait([later for _, later in merging])
            outcome = self._attempt(partial(self._segment, batch))
        return self._complete(batch, outcome)

    def _segment(self, batch: list[_ReadImage]) -> list[Superpixels]:
        return self.segmenter.finish(self._cluster(batch))

    def _cluster(self, batch: list[_ReadImage]) -> Clustered:
        images = [image for _, image in batch]
        with_features = batch[0][0].files.features is not None
        return self.segmenter.cluster(
            images, self.n_spixels, merged=self.connected, with_features=with_features
        )

    def _attempt(self, step: Callable[[], T]) -> T | _Failed:
        """Do a step for a batch. An error that other images would meet too is raised."""
        try:
            return step()
        except Exception as error:
            return _Failed(_error_of_image(error), is_out_of_memory(error))

    def _complete(self, batch: list[_ReadImage], outcome: list[Superpixels] | _Failed) -> list[_Result]:
        """Return the results of a batch; after a failure, try its parts."""
        if not isinstance(outcome, _Failed):
            return [(*read, superpixels) for read, superpixels in zip(batch, outcome, strict=True)]
        if len(batch) == 1:
            self._fail(batch[0][0], outcome.error)
            return []
        size = 1
        if outcome.does_not_fit:
            size = math.ceil(len(batch) / 2)
            self._limit_batches(size)
        parts = [batch[first : first + size] for first in range(0, len(batch), size)]
        outcomes = ((part, self._attempt(partial(self._segment, part))) for part in parts)
        return [result for part, outcome in outcomes for result in self._complete(part, outcome)]

    def _limit_batches(self, size: int) -> None:
        if size < self.batch_size:
            logger.warning(
                "a batch of %d images does not fit the memory; going on with %d", self.batch_size, size
            )
            self.batch_size = size

    def _write(self, job: ImageJob, image: PreprocessedImage, superpixels: Superpixels) -> int:
        """Write the files of an image; return the number of superpixels, 0 if it failed."""
        try:
            if self.connected:
                superpixels = self.segmenter.postprocess(superpixels, self.n_spixels, exact=self.exact)
            with self.segmenter.stopwatch.stage("connectivity"):
                levels = [superpixels.at(n_spixels) for n_spixels in self.levels]
            job.write(self.segmenter, image, superpixels, levels, self.style, self.export)
        except Exception as error:
            self._fail(job, _error_of_image(error))
            return 0
        self.progress.update()
        return superpixels.n_measured

    def _fail(self, job: ImageJob, error: Exception) -> None:
        self.failures.append(Failure(job.image, error))
        self.progress.update()


def count_threads(device: torch.device) -> int:
    """Return how many threads read images, and how many write; each uses one core at most."""
    if device.type == "cpu":
        return _N_THREADS_BESIDE_CPU
    return min(max(_N_THREADS_BESIDE_CPU, (os.cpu_count() or 1) // 2), _MAX_THREADS_BESIDE_GPU)


def count_merged_beside(device: torch.device) -> int:
    """Return how many batches are merged while the next one is clustered; a CPU is busy with one batch."""
    return 0 if device.type == "cpu" else _N_MERGED_BESIDE_GPU


def _error_of_image(error: Exception) -> Exception:
    """Return the error to report for an image; raise errors that the other images would meet too."""
    if isinstance(error, InputError | RunError | OSError):
        return error.with_traceback(None)  # which would keep the tensors of its functions
    if is_out_of_memory(error):
        return RunError("out of memory")
    raise error


def _fit_one_batch(first: PreprocessedImage, second: PreprocessedImage) -> bool:
    return first.image_rgb.shape == second.image_rgb.shape and first.mask is None and second.mask is None
