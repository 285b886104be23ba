"""Segment a video frame by frame into an overlay video and labels."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import av
import numpy as np
from tqdm import tqdm

from lib.files.atomic import atomic_path, real_path
from lib.files.frames import DEFAULT_FRAME_RATE, FRAME_SUFFIXES, FrameFolder, VideoFile, list_in_order
from lib.files.hdf5 import HDF5Writing, write_hdf5
from lib.inference.outputs import DEFAULT_STYLE, OverlayStyle
from lib.inference.segmenter import Segmenter
from lib.inference.tracking import Tracker, share_that_follows
from lib.optflow.archive import FlowArchive
from lib.optflow.sources import DEFAULT_PRESET, DISEstimator
from lib.runtime.errors import InputError, RunError, is_out_of_memory
from lib.runtime.signals import stop_flag
from lib.superpixels.regions import Superpixels

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4",)
VIDEO_LABEL_SUFFIXES = (".h5",)

_CODEC, _QUALITY = "libx264", {"crf": "18", "preset": "veryfast"}


class VideoFrame(NamedTuple):
    """Frame of a video, with its flow.

    Attributes
    ----------
    image_rgb : ndarray, shape (H, W, 3), uint8
    flow : ndarray, shape (H, W, 4), float32, or None
        [fwd_dy, fwd_dx, bwd_dy, bwd_dx] in pixels; zeros if no next or previous frame exists.
    """

    image_rgb: np.ndarray
    flow: np.ndarray | None


class VideoSummary(NamedTuple):
    """Counts and means over the frames of a video."""

    n_frames: int
    n_measured: float  # mean number of superpixels per frame
    share_that_follows: float | None  # mean share of pixels whose label follows the flow; None without flow


def frames_without_flow(frames: FrameFolder | VideoFile) -> Iterator[VideoFrame]:
    """Yield the frames of a video, without flow."""
    for image_rgb in frames.read():
        yield VideoFrame(image_rgb, None)


def frames_with_estimated_flow(frames: FrameFolder | VideoFile, preset: str) -> Iterator[VideoFrame]:
    """Yield the frames of a video with flow that DIS estimates on the fly.

    Raises
    ------
    InputError
        If the frames are too small, or differ in size.
    """
    estimator = DISEstimator(frames.name, preset)
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


def frames_with_archived_flow(frames: FrameFolder | VideoFile, archive: FlowArchive) -> Iterator[VideoFrame]:
    """Yield the frames of a video with the flow in an archive.

    Raises
    ------
    InputError
        If the archive has another frame size or number of frames.
    """

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


def open_video(path: Path) -> FrameFolder | VideoFile:
    """Open a video file or a folder of frames."""
    if path.is_dir():
        return FrameFolder(real_path(path).name, list_in_order(path, FRAME_SUFFIXES))
    return VideoFile(path.stem, path)


def read_frames(
    video: FrameFolder | VideoFile, archive: FlowArchive | None = None, *, with_flow: bool
) -> Iterator[VideoFrame]:
    """Yield the frames of a video. Flow is read from `archive`, or estimated if only `with_flow` is set."""
    if archive is not None:
        return frames_with_archived_flow(video, archive)
    if with_flow:
        return frames_with_estimated_flow(video, DEFAULT_PRESET)
    return frames_without_flow(video)


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
        Frames of the video; see `read_frames`.
    n_spixels : int
        Requested number of superpixels per frame.
    overlay_file : Path
        Video to write, .mp4.
    labels_file : Path, optional
        HDF5 file to write, with a compressed dataset `labels`, (frames, H, W) int32.
    style : OverlayStyle
        Style of the overlays.
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
    problem: InputError | RunError | KeyboardInterrupt | None = None
    progress = tqdm(total=n_frames or None, desc="segmenting", unit="frame", disable=None)
    try:
        with progress, ExitStack() as stack:
            try:
                for frame in frames:
                    superpixels, frame_labels = run.segment(frame)
                    if not files:
                        size = frame.image_rgb.shape[:2]
                        writings = {overlay_file: _write_video(overlay_file, size, frame_rate)}
                        if labels_file:
                            writings[labels_file] = _write_labels(labels_file, size)
                        files = [stack.enter_context(_FrameFile(*writing)) for writing in writings.items()]
                    for file, pixels in zip(files, (style.draw(superpixels), frame_labels), strict=False):
                        file.append(pixels)
                    progress.update()
                    stop_flag.raise_if_set()
            except (InputError, RunError, KeyboardInterrupt) as error:
                problem = error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = RunError(f"out of memory at frame {run.n_frames}")
    except RunError as error:  # raised while a file is closed
        problem = error
    kept = [f"{file.n_frames} frames are in {file.path}" for file in files if file.n_frames]
    if isinstance(problem, KeyboardInterrupt):
        logger.warning("stopped; %s", ", ".join(kept) or "no frame was finished")
        raise problem
    if problem is not None and kept:
        raise RunError(f"{problem}; {', '.join(kept)}") from problem
    if problem is not None or not files:
        raise problem or InputError("the video has no frame")
    return run.summary()


class _VideoRun:
    """Segment frame after frame, and sum up for the summary."""

    def __init__(self, segmenter: Segmenter, n_spixels: int, tracker: Tracker | None) -> None:
        self._segmenter = segmenter
        self._n_spixels = n_spixels
        self._tracker = tracker
        self._last: tuple[np.ndarray, np.ndarray] | None = None  # labels and forward flow
        self._shape: tuple[int, ...] | None = None
        self._share_sum, self._n_shares = 0.0, 0
        self._n_measured = 0
        self.n_frames = 0

    def segment(self, frame: VideoFrame) -> tuple[Superpixels, np.ndarray]:
        """Return the superpixels of a frame and their labels, (H, W); with tracking, labels are track IDs."""
        name = f"frame {self.n_frames}"
        self._shape = self._shape or frame.image_rgb.shape
        if frame.image_rgb.shape != self._shape:
            raise InputError(
                f"{name} is {frame.image_rgb.shape[:2]}, but earlier frames are {self._shape[:2]}"
            )
        extra = frame.flow if self._segmenter.model.n_extra_channels else None
        image = self._segmenter.preprocess(frame.image_rgb, extra, name=name)
        if self._tracker:
            tracked = self._tracker.segment(image, self._last[1] if self._last else None)
            superpixels, labels = tracked.superpixels, tracked.labels
        else:
            (clustered,) = self._segmenter.segment([image], self._n_spixels)
            superpixels = self._segmenter.postprocess(clustered, self._n_spixels)
            labels = superpixels.labels
        if frame.flow is not None:
            if self._last:
                share = share_that_follows(self._last[0], labels, self._last[1])
                if not np.isnan(share):
                    self._share_sum, self._n_shares = self._share_sum + share, self._n_shares + 1
            self._last = labels, frame.flow[..., :2]
        self._n_measured += superpixels.n_measured
        self.n_frames += 1
        return superpixels, labels

    def summary(self) -> VideoSummary:
        share = self._share_sum / self._n_shares if self._n_shares else None
        return VideoSummary(self.n_frames, self._n_measured / self.n_frames, share)


class _FrameWriter(Protocol):
    """Writer that appends one frame after another."""

    def append(self, pixels: np.ndarray) -> None: ...


class _FrameFile:
    """Context manager of a file that grows frame by frame; the file appears when the block ends.

    If this file cannot be written, a `RunError` is raised. After a `RunError` of another file, it is kept.
    """

    def __init__(self, path: Path, writing: AbstractContextManager[_FrameWriter]) -> None:
        self.path = path
        self.n_frames = 0  # in the file
        self._writing = writing
        self._stack = ExitStack()
        self._writer: _FrameWriter | None = None

    def append(self, pixels: np.ndarray) -> None:
        try:
            if self._writer is None:
                self._writer = self._stack.enter_context(self._writing)
            self._writer.append(pixels)
        except BaseException as error:
            self._end(type(error), error, error.__traceback__)
            raise
        self.n_frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is not None and issubclass(kind, RunError):
            self._end(None, None, None)
        else:
            self._end(kind, *exception)

    def _end(self, kind: type | None, *exception: object) -> None:
        n_frames, self.n_frames = self.n_frames, 0
        self._stack.__exit__(kind, *exception)
        if kind is None:
            self.n_frames = n_frames


@contextmanager
def _write_video(path: Path, shape: tuple[int, int], frame_rate: float) -> Iterator["_VideoWriter"]:
    with atomic_path(path) as temporary, _VideoWriter(temporary, shape, frame_rate) as writer:
        yield writer


@contextmanager
def _write_labels(path: Path, shape: tuple[int, int]) -> Iterator["_LabelWriter"]:
    with write_hdf5(path) as writing:
        yield _LabelWriter(writing, shape)


class _VideoWriter:
    """Encode pictures of one size as H.264 in MP4."""

    def __init__(self, path: Path, shape: tuple[int, int], frame_rate: float) -> None:
        # The codec halves the resolution of colours, which needs even sides. An odd side loses a pixel.
        self._height, self._width = (max(2, side - side % 2) for side in shape)
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(
            _CODEC, rate=Fraction(frame_rate).limit_denominator(1001), options=_QUALITY
        )
        self._stream.height, self._stream.width = self._height, self._width
        self._stream.pix_fmt = "yuv420p"

    def __enter__(self) -> "_VideoWriter":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()

    def append(self, picture: np.ndarray) -> None:
        picture = np.ascontiguousarray(picture[: self._height, : self._width])
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        try:
            packets = self._stream.encode(frame)
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise RunError(
                f"{_CODEC} cannot encode frames of {self._width}x{self._height} ({error.strerror})"
            ) from error
        self._container.mux(packets)


class _LabelWriter:
    """Append label maps to an HDF5 file."""

    def __init__(self, writing: HDF5Writing, shape: tuple[int, int]) -> None:
        self._writing = writing
        self._labels = writing.file.create_dataset(
            "labels",
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(1, *shape),
            dtype=np.int32,
            compression="gzip",
            shuffle=True,
        )

    def append(self, labels: np.ndarray) -> None:
        self._labels.resize(len(self._labels) + 1, axis=0)
        self._labels[-1] = labels
        self._writing.raise_failed_write()


def _join(forward: np.ndarray, backward: np.ndarray | None) -> np.ndarray:
    backward = np.zeros_like(forward) if backward is None else backward
    return np.concatenate([forward, backward], axis=2)
