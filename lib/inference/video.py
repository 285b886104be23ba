"""Segment a video frame by frame into an overlay video and labels; beside a GPU, the steps overlap."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, Self

import numpy as np
import torch
from tqdm import tqdm

from lib.files.atomic import atomic_path, real_path
from lib.files.frames import (
    DEFAULT_FRAME_RATE,
    FRAME_SUFFIXES,
    FrameFolder,
    Video,
    is_hd,
    list_in_order,
    open_video_file,
)
from lib.files.hdf5 import write_hdf5
from lib.files.images import DEFAULT_READER, ImageReader
from lib.files.pyav import import_av
from lib.inference.outputs import DEFAULT_STYLE, OverlayStyle
from lib.inference.segmenter import Segmenter
from lib.inference.tracking import TrackedSuperpixels, Tracker, share_that_follows
from lib.optflow.archive import FlowArchive
from lib.optflow.sources import DEFAULT_PRESET, DISEstimator
from lib.runtime.ahead import read_ahead
from lib.runtime.errors import InputError, RunError, is_out_of_memory
from lib.runtime.signals import stop_flag

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4",)
VIDEO_LABEL_SUFFIXES = (".h5",)

_CODEC, _QUALITY = "libx264", {"crf": "18", "preset": "veryfast"}


class _Colors(NamedTuple):
    """Colour space of a video: name of its matrix in PyAV, and code in ISO/IEC 23091-2."""

    matrix: str
    code: int


_SD_COLORS, _HD_COLORS = _Colors("ITU601", 6), _Colors("ITU709", 1)
_LIMITED_RANGE = 1  # 16 to 235, in FFmpeg's numbers

# Beside a GPU: frames that are read ahead of the network, and segmented frames that wait to be written.
_N_AHEAD_BESIDE_GPU = 2

_Append = Callable[[np.ndarray], None]  # appends a frame to a file


class VideoFrame(NamedTuple):
    """Frame of a video, with its flow."""

    image_rgb: np.ndarray  # (H, W, 3), uint8
    flow: np.ndarray | None  # (H, W, 4), float32, pixels; zeros where no next or previous frame exists


class VideoSummary(NamedTuple):
    """Counts and means over the frames of a video."""

    n_frames: int
    n_measured: float  # mean number of superpixels per frame
    share_that_follows: float | None  # mean share of pixels whose label follows the flow; None without flow


def open_video(path: Path, *, reader: ImageReader = DEFAULT_READER) -> Video:
    """Open a video file, an animated picture or a folder of frames.

    `reader` is for the frames in a folder.
    """
    if path.is_dir():
        files = list_in_order(path, FRAME_SUFFIXES)
        return FrameFolder(real_path(path).name, files, reader=reader)
    return open_video_file(path)


def read_frames(video: Video, archive: FlowArchive | None = None, *, with_flow: bool) -> Iterator[VideoFrame]:
    """Yield the frames of a video. Flow is read from `archive`, or estimated if only `with_flow` is set.

    Raises
    ------
    InputError
        If a frame cannot be read, the archive has another frame size or number of frames, or frames are too
        small or differ in size for the estimation.
    """
    if archive is not None:
        return _with_archived_flow(video, archive)
    if with_flow:
        return _with_estimated_flow(video)
    return (VideoFrame(image_rgb, None) for image_rgb in video.read())


def _with_estimated_flow(frames: Video) -> Iterator[VideoFrame]:
    """Yield frames with flow that DIS estimates on the fly; before an error, yield all earlier frames."""
    estimator = DISEstimator(frames.name, DEFAULT_PRESET)
    waiting, backward, problem = None, None, None
    try:
        for image_rgb in frames.read():
            pair = estimator.flow_from_last(image_rgb)
            if pair is not None:
                yield VideoFrame(waiting, _join(pair[0], backward))
                backward = pair[1]
            waiting = image_rgb
    except InputError as error:
        problem = error
    if waiting is not None:
        yield VideoFrame(waiting, _join(np.zeros((*waiting.shape[:2], 2), np.float32), backward))
    if problem is not None:
        raise problem


def _join(forward: np.ndarray, backward: np.ndarray | None) -> np.ndarray:
    backward = np.zeros_like(forward) if backward is None else backward
    return np.concatenate([forward, backward], axis=2)


def _with_archived_flow(frames: Video, archive: FlowArchive) -> Iterator[VideoFrame]:
    def check_count(n_frames: int) -> None:
        if n_frames != archive.n_frames:
            raise InputError(
                f"{archive.path} covers {archive.n_frames} frames, but {frames.name} has {n_frames}"
            )

    if isinstance(frames, FrameFolder):  # the frame count in a video file may be too high
        check_count(len(frames))
    n_read = 0
    for image_rgb in frames.read():
        if image_rgb.shape[:2] != archive.frame_shape:
            raise InputError(
                f"the flow in {archive.path} is {archive.frame_shape}, but frame {n_read} of {frames.name} "
                f"is {image_rgb.shape[:2]}"
            )
        yield VideoFrame(image_rgb, archive.read_frame(n_read))
        n_read += 1
    check_count(n_read)


def segment_video(
    segmenter: Segmenter,
    frames: Iterator[VideoFrame],
    n_spixels: int,
    *,
    overlay_file: Path,
    labels_file: Path | None = None,
    style: OverlayStyle = DEFAULT_STYLE,
    tracked: bool = False,
    frame_rate: float = DEFAULT_FRAME_RATE,
    n_frames: int | None = None,
) -> VideoSummary:
    """Segment a video with only a few frames in memory.

    Parameters
    ----------
    segmenter : Segmenter
        Segmenter of a base model, or of a composite model that reads the flow of the frames.
    frames : iterator of VideoFrame
        Frames of the video; see `read_frames`. Beside a GPU, another thread reads them.
    n_spixels : int
        Requested number of superpixels per frame.
    overlay_file, style
        Video to write, .mp4, and the style of its pictures.
    labels_file : Path, optional
        HDF5 file to write, with a compressed dataset `labels`, (frames, H, W) int32.
    tracked : bool
        Keep the label of a superpixel from frame to frame; needs frames with flow. See `Tracker`.
    frame_rate : float
        Frames per second of the overlay video.
    n_frames : int, optional
        Expected number of frames, for the progress bar.

    Raises
    ------
    InputError
        If the video has no frame, or the first one cannot be used.
    RunError
        If a later frame cannot be used, or memory runs out; the files then hold the earlier frames. If a file
        cannot be written; it is removed, and the other file holds the frames so far.
    Stop
        If the stop flag is set; it is polled between frames. The files hold the finished frames.
    """
    run = _VideoRun(segmenter, n_spixels, Tracker(segmenter, n_spixels) if tracked else None)
    files: list[_FrameFile] = []  # opened when the first frame shows the size
    n_written = 0
    problem: InputError | RunError | KeyboardInterrupt | None = None
    progress = tqdm(total=n_frames or None, desc="segmenting", unit="frame", disable=None)
    try:
        with progress, ExitStack() as stack:
            segmented = read_ahead(run.segment_all(frames), count_ahead(segmenter.device))
            stack.enter_context(closing(segmented))
            for superpixels, labels in segmented:
                if not files:
                    files = _open_files(stack, labels.shape, overlay_file, labels_file, frame_rate)
                for file, pixels in zip(files, (style.draw(superpixels), labels), strict=False):
                    file.append(pixels)
                n_written += 1
                progress.update()
    except (InputError, RunError, KeyboardInterrupt) as error:
        problem = error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problem = RunError(f"out of memory at frame {n_written}")
    kept = [f"{file.n_frames} frames are in {file.path}" for file in files if file.n_frames]
    if isinstance(problem, KeyboardInterrupt):
        logger.warning("stopped; %s", ", ".join(kept) or "no frame was finished")
        raise problem
    if problem is not None and kept:
        raise RunError(f"{problem}; {', '.join(kept)}") from problem
    if problem is not None or not files:
        raise problem or InputError("the video has no frame")
    return run.summary()


def count_ahead(device: torch.device) -> int:
    """Return how many frames each step may be ahead of the next; 0 lets one thread do all.

    A CPU is busy with the network, which would be slower in another thread than the main one: there, the C
    library returns large freed blocks to Linux at once, see `lib.runtime.memory.keep_freed_memory`.
    """
    return 0 if device.type == "cpu" else _N_AHEAD_BESIDE_GPU


@dataclass
class _VideoRun:
    """Segment frame after frame, and sum up for the summary."""

    segmenter: Segmenter
    n_spixels: int
    tracker: Tracker | None
    last: VideoFrame | None = None
    last_labels: np.ndarray | None = None
    shares: list[float] = field(default_factory=list)
    n_measured: int = 0
    n_frames: int = 0

    def segment_all(self, frames: Iterator[VideoFrame]) -> Iterator[TrackedSuperpixels]:
        """Segment frames, which are read ahead beside a GPU; a stop is raised after a frame."""
        with closing(read_ahead(frames, count_ahead(self.segmenter.device))) as ahead:
            for frame in ahead:
                yield self.segment(frame)
                stop_flag.raise_if_set()

    def segment(self, frame: VideoFrame) -> TrackedSuperpixels:
        """Segment a frame; without tracking, labels are the numbers of its superpixels."""
        name, shape = f"frame {self.n_frames}", frame.image_rgb.shape[:2]
        last_flow = None
        if self.last is not None:
            last_shape = self.last.image_rgb.shape[:2]
            if shape != last_shape:
                raise InputError(f"{name} is {shape}, but earlier frames are {last_shape}")
            last_flow = None if self.last.flow is None else self.last.flow[..., :2]
        extra = frame.flow if self.segmenter.model.n_extra_channels else None
        image = self.segmenter.preprocess(frame.image_rgb, extra, name=name)
        if self.tracker:
            result = self.tracker.segment(image, last_flow)
        else:
            (clustered,) = self.segmenter.segment([image], self.n_spixels)
            superpixels = self.segmenter.postprocess(clustered, self.n_spixels)
            result = TrackedSuperpixels(superpixels, superpixels.labels)
        if last_flow is not None:
            self.shares.append(share_that_follows(self.last_labels, result.labels, last_flow))
        self.last, self.last_labels = frame, result.labels
        self.n_measured += result.superpixels.n_measured
        self.n_frames += 1
        return result

    def summary(self) -> VideoSummary:
        shares = [share for share in self.shares if not np.isnan(share)]
        mean_share = fmean(shares) if shares else None
        return VideoSummary(self.n_frames, self.n_measured / self.n_frames, mean_share)


class _FrameFile:
    """File that grows frame by frame; it appears when the block ends.

    If this file cannot be written, a `RunError` is raised and no file appears. After another error that ends
    the video early, the file is kept with its frames; after an unexpected error it is removed.
    """

    def __init__(self, path: Path, writing: AbstractContextManager[_Append]) -> None:
        self.path = path
        self.n_frames = 0  # in the file
        self._writing = writing
        self._stack = ExitStack()
        self._append: _Append | None = None

    def append(self, pixels: np.ndarray) -> None:
        try:
            if self._append is None:
                self._append = self._stack.enter_context(self._writing)
            self._append(pixels)
        except BaseException as error:
            self.n_frames = 0
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        self.n_frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        n_frames, self.n_frames = self.n_frames, 0
        if isinstance(error, InputError | RunError | KeyboardInterrupt) or is_out_of_memory(error):
            kind, error, trace = None, None, None
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            self.n_frames = n_frames


def _open_files(
    stack: ExitStack, shape: tuple[int, int], overlay_file: Path, labels_file: Path | None, frame_rate: float
) -> list[_FrameFile]:
    files = [_FrameFile(overlay_file, _write_video(overlay_file, shape, frame_rate))]
    if labels_file:
        files.append(_FrameFile(labels_file, _write_labels(labels_file, shape)))
    return [stack.enter_context(file) for file in files]


@contextmanager
def _write_video(path: Path, shape: tuple[int, int], frame_rate: float) -> Iterator[_Append]:
    """Encode pictures of one size as H.264 in MP4."""
    av = import_av()
    # The codec halves the resolution of colours, which needs even sides. An odd side loses a pixel.
    height, width = (max(2, side - side % 2) for side in shape)
    # FFmpeg reads a relative name with a colon as a protocol.
    with atomic_path(path) as temporary, av.open(str(temporary.absolute()), "w") as container:
        stream = container.add_stream(_CODEC, rate=_to_fraction(frame_rate), options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        colors = _HD_COLORS if is_hd((height, width)) else _SD_COLORS
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = colors.code
        codec.color_range = _LIMITED_RANGE

        def append(picture: np.ndarray) -> None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=colors.matrix)
            try:
                packets = stream.encode(frame)
            except av.FFmpegError as error:
                if isinstance(error, OSError):
                    raise
                raise RunError(
                    f"{_CODEC} cannot encode frames of {width}x{height} ({error.strerror})"
                ) from error
            container.mux(packets)

        yield append
        container.mux(stream.encode())


def _to_fraction(frame_rate: float) -> Fraction:
    """Return a frame rate as a fraction with small numbers, such as 30000/1001 or 1/60."""
    if frame_rate < 1:
        return 1 / Fraction(1 / frame_rate).limit_denominator(1001)
    return Fraction(frame_rate).limit_denominator(1001)


@contextmanager
def _write_labels(path: Path, shape: tuple[int, int]) -> Iterator[_Append]:
    """Write label maps to an HDF5 file."""
    with write_hdf5(path) as writing:
        dataset = writing.file.create_dataset(
            "labels",
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(1, *shape),
            dtype=np.int32,
            compression="gzip",
            shuffle=True,
        )

        def append(labels: np.ndarray) -> None:
            dataset.resize(len(dataset) + 1, axis=0)
            dataset[-1] = labels
            writing.raise_failed_write()

        yield append
