"""Segment a video frame by frame into an overlay video and labels; beside a GPU, the steps overlap."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lib.files.frames import DEFAULT_FRAME_RATE
from lib.inference.outputs import DEFAULT_STYLE, OverlayStyle
from lib.inference.segmenter import Segmenter
from lib.inference.tracking import Tracker
from lib.inference.tracks import TrackedSuperpixels, TrackTable, draw_lifetimes
from lib.inference.video_files import FrameFile, write_labels, write_video
from lib.inference.video_frames import VideoFrame
from lib.runtime.ahead import read_ahead
from lib.runtime.errors import InputError, RunError, is_out_of_memory
from lib.runtime.notices import hides_progress
from lib.runtime.signals import stop_flag

logger = logging.getLogger(__name__)

# Beside a GPU: frames that are read ahead of the network, and segmented frames that wait to be written.
_N_AHEAD_BESIDE_GPU = 2


class VideoFiles(NamedTuple):
    """Output files of a video."""

    overlay: Path  # .mp4
    labels: Path | None = None  # .h5, see `write_labels`
    lifetimes: Path | None = None  # .png of the tracks, see `draw_lifetimes`


class VideoSummary(NamedTuple):
    """Counts and means over the frames of a video."""

    n_frames: int
    n_measured: float  # mean number of superpixels per frame, of the finest level
    n_tracks: int | None  # of the finest level; None without tracking
    mean_life: float | None  # mean number of frames in which a track occurs
    cuts: list[int]  # frames that start a new scene; found by tracking


def segment_video(
    segmenter: Segmenter,
    frames: Iterator[VideoFrame],
    n_spixels: int,
    *,
    files: VideoFiles,
    levels: Sequence[int] = (),
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
    files : VideoFiles
        Files to write; `lifetimes` needs tracking.
    levels : sequence of int
        Nested levels in each frame, in place of `n_spixels`.
    style : OverlayStyle
        Style of the overlay.
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
        cannot be written; it is removed, and the other files hold the frames so far.
    Stop
        If the stop flag is set; it is polled between frames. The files hold the finished frames.
    """
    levels = sorted(levels)
    counts = levels or [n_spixels]
    run = _VideoRun(segmenter, counts, Tracker(segmenter, counts) if tracked else None)
    tables = [TrackTable() for _ in counts] if tracked else []
    growing: list[FrameFile] = []  # opened when the first frame shows the size
    problem: InputError | RunError | KeyboardInterrupt | None = None
    n_written = 0
    progress = tqdm(total=n_frames or None, desc="segmenting", unit="frame", disable=hides_progress())
    try:
        with progress, ExitStack() as stack:
            segmented = read_ahead(run.segment_all(frames), count_ahead(segmenter.device))
            stack.enter_context(closing(segmented))
            for frame in segmented:
                if not growing:
                    shape = frame[0].superpixels.labels.shape
                    growing = [FrameFile(files.overlay, write_video(files.overlay, shape, frame_rate))]
                    if files.labels:
                        writing = write_labels(files.labels, shape, levels=levels, tables=tables)
                        growing.append(FrameFile(files.labels, writing))
                    for file in growing:
                        stack.enter_context(file)
                contents = (_draw(style, frame), np.stack([each.labels for each in frame]))
                for file, content in zip(growing, contents, strict=False):
                    file.append(content)
                for table, at_level in zip(tables, frame, strict=False):
                    table.add(at_level)
                n_written += 1
                progress.update()
    except (InputError, RunError, KeyboardInterrupt) as error:
        problem = error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problem = RunError(f"out of memory at frame {n_written}")
    if files.lifetimes and n_written:
        try:
            draw_lifetimes(tables, files.lifetimes)
        except RunError as error:
            problem = problem or error
        except MemoryError:
            problem = problem or RunError(f"out of memory for {files.lifetimes}")
    kept = [f"{file.n_frames} frames are in {file.path}" for file in growing if file.n_frames]
    if isinstance(problem, KeyboardInterrupt):
        logger.warning("stopped; %s", ", ".join(kept) or "no frame was finished")
        raise problem
    if problem is not None and kept:
        raise RunError(f"{problem}; {', '.join(kept)}") from problem
    if problem is not None or not growing:
        raise problem or InputError("the video has no frame")
    n_tracks, mean_life = (tables[-1].n_tracks, tables[-1].mean_life) if tracked else (None, None)
    return VideoSummary(run.n_frames, run.n_measured / run.n_frames, n_tracks, mean_life, run.cuts)


def count_ahead(device: torch.device) -> int:
    """Return how many frames each step may be ahead of the next; 0 lets one thread do all.

    A CPU is busy with the network, which would be slower in another thread than the main one: there, the C
    library returns large freed blocks to Linux at once, see `lib.runtime.memory.keep_freed_memory`.
    """
    return 0 if device.type == "cpu" else _N_AHEAD_BESIDE_GPU


def _draw(style: OverlayStyle, frame: Sequence[TrackedSuperpixels]) -> np.ndarray:
    levels = [each.superpixels for each in frame] if len(frame) > 1 else ()
    return style.draw(frame[-1].superpixels, levels, track_ids=frame[-1].track_ids)


@dataclass
class _VideoRun:
    """Segment frame after frame, and sum up for the summary."""

    segmenter: Segmenter
    counts: Sequence[int]
    tracker: Tracker | None
    last: VideoFrame | None = None
    cuts: list[int] = field(default_factory=list)
    n_measured: int = 0
    n_frames: int = 0

    def segment_all(self, frames: Iterator[VideoFrame]) -> Iterator[list[TrackedSuperpixels]]:
        """Segment frames, which are read ahead beside a GPU; a stop is raised after a frame."""
        with closing(read_ahead(frames, count_ahead(self.segmenter.device))) as ahead:
            for frame in ahead:
                yield self.segment(frame)
                stop_flag.raise_if_set()

    def segment(self, frame: VideoFrame) -> list[TrackedSuperpixels]:
        """Segment a frame at each level; without tracking, track IDs are the numbers of its superpixels."""
        name, shape = f"frame {self.n_frames}", frame.image_rgb.shape[:2]
        if self.last is not None and shape != (last_shape := self.last.image_rgb.shape[:2]):
            raise InputError(f"{name} is {shape}, but earlier frames are {last_shape}")
        extra = frame.flow if self.segmenter.model.n_extra_channels else None
        image = self.segmenter.preprocess(frame.image_rgb, extra, name=name)
        if self.tracker:
            levels, is_cut = self.tracker.segment(image, frame.flow_from(self.last) if self.last else None)
            if is_cut:
                logger.info("%s starts a new scene: no superpixel of the last frame goes on", name)
                self.cuts.append(self.n_frames)
        else:
            (clustered,) = self.segmenter.segment([image], self.counts[-1])
            superpixels = [self.segmenter.postprocess(clustered, count) for count in self.counts]
            levels = [
                TrackedSuperpixels(each, np.arange(len(each.sizes), dtype=np.int32)) for each in superpixels
            ]
        self.last = frame
        self.n_measured += levels[-1].superpixels.n_measured
        self.n_frames += 1
        return levels
