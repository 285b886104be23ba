"""Frames of a video with the optical flow to their neighbours, read from files or estimated on the fly."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lib.files.atomic import real_path
from lib.files.frames import (
    FRAME_SUFFIXES,
    EveryNth,
    FrameFolder,
    Video,
    list_in_order,
    log_gaps,
    open_video_file,
)
from lib.files.images import DEFAULT_READER, ImageReader
from lib.optflow.archive import FlowArchive
from lib.optflow.sources import DEFAULT_PRESET, DISEstimator, FlowPair
from lib.runtime.ahead import read_ahead
from lib.runtime.errors import InputError

logger = logging.getLogger(__name__)


class VideoFrame(NamedTuple):
    """Frame of a video, with its flow."""

    image_rgb: np.ndarray  # (H, W, 3), uint8
    # (H, W, 4), float32, pixels: to the next frame, and to the last one; zeros where that does not exist
    flow: np.ndarray | None

    def flow_from(self, last: Self) -> FlowPair:
        """Return the flow from the last frame to this one, and back."""
        return last.flow[..., :2], self.flow[..., 2:]


def open_video(path: Path, *, every: int = 1, reader: ImageReader = DEFAULT_READER) -> Video:
    """Open a video file, an animated picture or a folder of frames.

    `reader` is for the frames in a folder. Only one of `every` frames is read, from the first. A gap in the
    numbers of a folder's frames is logged.
    """
    if path.is_dir():
        files = list_in_order(path, FRAME_SUFFIXES)
        log_gaps(logger, files)
        video = FrameFolder(real_path(path).name, files[::every], reader=reader)
        return replace(video, frame_rate=video.frame_rate / every)
    video = open_video_file(path)
    return video if every == 1 else EveryNth(video, every)


def read_frames(
    video: Video, archive: FlowArchive | None = None, *, with_flow: bool, n_ahead: int = 0
) -> Iterator[VideoFrame]:
    """Yield the frames of a video. Flow is read from `archive`, or estimated if only `with_flow` is set.

    While flow is estimated, a thread decodes up to `n_ahead` later frames.

    Raises
    ------
    InputError
        If a frame cannot be read, the archive has another frame size or number of frames, or frames are too
        small or differ in size for the estimation.
    """
    if archive is not None:
        return _with_archived_flow(video, archive)
    if with_flow:
        return _with_estimated_flow(video, n_ahead)
    return (VideoFrame(image_rgb, None) for image_rgb in video.read())


def _with_estimated_flow(frames: Video, n_ahead: int) -> Iterator[VideoFrame]:
    """Yield frames with flow that DIS estimates on the fly; before an error, yield all earlier frames."""
    estimator = DISEstimator(frames.name, DEFAULT_PRESET)
    waiting, backward, problem = None, None, None
    try:
        with closing(read_ahead(frames.read(), n_ahead)) as decoded:
            for image_rgb in decoded:
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
