"""Many image files in, the files of their superpixels out: reading, network and writing overlap."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from lib.files.images import count_pixels, read_image, read_mask
from lib.inference.outputs import DEFAULT_STYLE, OutputFiles, OverlayStyle, write_outputs
from lib.inference.segmenter import PreparedImage, Segmenter
from lib.optflow.lookup import FlowOfFrame
from lib.runtime.errors import InputError, RunError, is_out_of_memory
from lib.runtime.ranks import gather, is_first_rank, n_ranks, rank
from lib.runtime.signals import stop_flag
from lib.superpixels.counts import check_n_spixels
from lib.superpixels.regions import Superpixels

logger = logging.getLogger(__name__)

Item, Result = TypeVar("Item"), TypeVar("Result")

_N_THREADS = 2  # that read, and as many that write

# What is read in advance, beside a batch, or waits to be written: images at most, and as many pixels, beyond
# which there is one image alone. Each pixel takes some 15 bytes before the network, and features afterwards.
_MAX_WAITING = 4
_MAX_WAITING_PIXELS = 2**25

_OUT_OF_MEMORY = "out of memory"
_BATCH_PIXELS = 2**22  # a batch ends with the image that exceeds it


class ImageJob(NamedTuple):
    """An image and the files to make of it."""

    image: Path
    files: OutputFiles
    mask: Path | None = None  # picture of the pixels to segment
    flow: FlowOfFrame | None = None  # for models that read it

    def read(self, segmenter: Segmenter) -> PreparedImage:
        """Read the image and what belongs to it, and prepare it for the network."""
        with segmenter.stopwatch.stage("reading"):
            mask = None if self.mask is None else read_mask(self.mask)
            image_rgb = read_image(self.image)
        extra = None
        if self.flow is not None:
            with segmenter.stopwatch.stage("flow"):
                extra = self.flow.read(image_rgb)
        return segmenter.prepare(image_rgb, extra, mask, name=str(self.image))

    def write(
        self, segmenter: Segmenter, image: PreparedImage, superpixels: Superpixels, style: OverlayStyle
    ) -> None:
        """Write the files, into folders that are made where they are missing."""
        with segmenter.stopwatch.stage("writing"):
            for path in self.files.paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            flow = None if image.extra is None else np.moveaxis(image.extra.numpy(), 0, -1)
            write_outputs(superpixels, self.files, style=style, flow=flow)


class Failure(NamedTuple):
    """Error of an image without outputs."""

    image: Path
    error: Exception

    def __str__(self) -> str:
        message = str(self.error)
        return message if str(self.image) in message else f"{self.image}: {message}"


class RunSummary(NamedTuple):
    """Counts and failures of all ranks."""

    n_done: int
    n_skipped: int
    failures: list[Failure]
    seconds: float
    n_measured: int = 0  # superpixels in the images that were done


def segment_files(
    segmenter: Segmenter,
    jobs: Sequence[ImageJob],
    n_spixels: int,
    *,
    connected: bool = True,
    exact: bool = False,
    style: OverlayStyle = DEFAULT_STYLE,
    batch_size: int = 1,
    skip_existing: bool = False,
) -> RunSummary:
    """Segment image files, and write what is asked for of each.

    Consecutive images of one size form a batch, if they are not too large. An image that cannot be read,
    segmented or written is told of in the summary and does not stop the others. Several ranks share the
    images.

    Parameters
    ----------
    segmenter : Segmenter
        Of a base model, or of a composite that reads flow.
    jobs : sequence of ImageJob
        Images and their files, no file twice; missing folders are made. All of them have flow, or none.
    n_spixels : int
        Requested number of superpixels of an image.
    connected : bool
        Enforce connectivity.
    exact : bool
        Make exactly `n_spixels`, which must be connected.
    style : OverlayStyle
        How the overlays look.
    batch_size : int
        Images of one size, without masks, that go through the network together.
    skip_existing : bool
        Leave out images of which all files are there.

    Raises
    ------
    Stop
        If the stop flag is set; it is polled between batches.
    """
    start = time.perf_counter()
    own = jobs[rank() :: n_ranks()]
    is_hidden = None if is_first_rank() else True  # None: shown on a terminal
    progress = tqdm(total=len(own), desc="segmenting", unit="image", disable=is_hidden)
    with progress:
        todo = [job for job in own if not (skip_existing and all(path.exists() for path in job.files.paths))]
        progress.update(len(own) - len(todo))
        run = _Run(segmenter, n_spixels, connected=connected, exact=exact, style=style, progress=progress)
        with ThreadPoolExecutor(_N_THREADS) as readers, ThreadPoolExecutor(_N_THREADS) as writers:
            try:
                run.segment(todo, batch_size, readers, writers)
            except BaseException:  # such as `Stop`; files that are being written are finished
                readers.shutdown(cancel_futures=True)
                writers.shutdown(cancel_futures=True)
                for failure in run.failures:
                    logger.error("%s", failure)
                raise
    shares = gather(lambda: (len(own) - len(todo), run.failures, len(todo), run.n_measured))
    failures = [failure for share in shares for failure in share[1]]
    return RunSummary(
        n_done=sum(share[2] for share in shares) - len(failures),
        n_skipped=sum(share[0] for share in shares),
        failures=failures,
        seconds=time.perf_counter() - start,
        n_measured=sum(share[3] for share in shares),
    )


class _Run:
    """The state of `segment_files`."""

    def __init__(
        self,
        segmenter: Segmenter,
        n_spixels: int,
        *,
        connected: bool,
        exact: bool,
        style: OverlayStyle,
        progress: tqdm,
    ) -> None:
        self.segmenter = segmenter
        self.n_spixels = n_spixels
        self.connected = connected
        self.exact = exact
        self.style = style
        self.progress = progress
        self.failures: list[Failure] = []
        self.n_measured = 0
        self._lock = Lock()  # two threads write
        self._written: deque[tuple[Future[None], int]] = deque()  # with the pixels of each

    def segment(
        self,
        jobs: Sequence[ImageJob],
        batch_size: int,
        readers: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
    ) -> None:
        prepared = _map_ahead(
            readers,
            self._read,
            jobs,
            n_ahead=_MAX_WAITING + batch_size,
            size_of=lambda job: count_pixels(job.image),
        )
        for batch in _equal_sizes(zip(jobs, prepared, strict=True), batch_size):
            stop_flag.raise_if_set()
            for job, image, superpixels in self._cluster(batch):
                written = writers.submit(self._write, job, image, superpixels)
                self._written.append((written, superpixels.labels.size))
            while len(self._written) > _MAX_WAITING or self._n_waiting_pixels() > _MAX_WAITING_PIXELS:
                self._written.popleft()[0].result()
        while self._written:
            self._written.popleft()[0].result()

    def _n_waiting_pixels(self) -> int:
        return sum(n_pixels for _, n_pixels in self._written)

    def _read(self, job: ImageJob) -> PreparedImage | None:
        try:
            image = job.read(self.segmenter)
            check_n_spixels(self.n_spixels, image.n_pixels, image.name)
        except InputError as error:
            self._fail(job, error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._fail(job, RunError(_OUT_OF_MEMORY))
        else:
            return image
        return None

    def _cluster(
        self, batch: list[tuple[ImageJob, PreparedImage]]
    ) -> list[tuple[ImageJob, PreparedImage, Superpixels]]:
        jobs, images = zip(*batch, strict=True)
        with_features = jobs[0].files.features is not None
        try:
            superpixels = self.segmenter.cluster(images, self.n_spixels, with_features=with_features)
        except InputError as error:
            failure = error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failure = RunError(_OUT_OF_MEMORY)
        else:
            return list(zip(jobs, images, superpixels, strict=True))
        # Only here is what the attempt left in memory let go.
        if len(batch) > 1:
            return [each for one in batch for each in self._cluster([one])]
        self._fail(jobs[0], failure)
        return []

    def _write(self, job: ImageJob, image: PreparedImage, superpixels: Superpixels) -> None:
        try:
            if self.connected:
                superpixels = self.segmenter.finish(superpixels, self.n_spixels, exact=self.exact)
            job.write(self.segmenter, image, superpixels, self.style)
        except (InputError, RunError, OSError) as error:
            self._fail(job, error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._fail(job, RunError(_OUT_OF_MEMORY))
        else:
            with self._lock:
                self.n_measured += superpixels.n_measured
            self.progress.update()

    def _fail(self, job: ImageJob, error: Exception) -> None:
        self.failures.append(Failure(job.image, error))
        self.progress.update()


def _map_ahead(
    executor: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    n_ahead: int,
    size_of: Callable[[Item], int],
) -> Iterator[Result]:
    """Results of a function in the order of the items, computed in advance.

    At most `n_ahead` are under way or wait, of at most `_MAX_WAITING_PIXELS` together, but always one.
    """
    todo = deque(items)
    pending: deque[tuple[Future[Result], int]] = deque()
    while todo or pending:
        while todo and len(pending) < n_ahead:
            size = size_of(todo[0])
            if pending and size + sum(waiting for _, waiting in pending) > _MAX_WAITING_PIXELS:
                break
            pending.append((executor.submit(function, todo.popleft()), size))
        yield pending.popleft()[0].result()


def _equal_sizes(
    images: Iterable[tuple[ImageJob, PreparedImage | None]], batch_size: int
) -> Iterator[list[tuple[ImageJob, PreparedImage]]]:
    """Batches of consecutive images of one size; images that could not be read are left out."""
    batch: list[tuple[ImageJob, PreparedImage]] = []
    for job, image in images:
        if image is None:
            continue
        is_full = len(batch) == batch_size or sum(one.n_pixels for _, one in batch) > _BATCH_PIXELS
        if batch and (is_full or not _go_together(batch[0][1], image)):
            yield batch
            batch = []
        batch.append((job, image))
    if batch:
        yield batch


def _go_together(one: PreparedImage, other: PreparedImage) -> bool:
    return one.image_rgb.shape == other.image_rgb.shape and one.mask is None and other.mask is None
