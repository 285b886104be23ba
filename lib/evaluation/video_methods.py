"""Methods that label whole videos: image by image, with tracking, or from files of other software."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lib.datasets.base import SegmentedImage
from lib.datasets.davis import DAVISDataset
from lib.datasets.label_volumes import open_label_volume
from lib.evaluation.loop import list_settings
from lib.evaluation.methods import Method, NetworkMethod, Setting
from lib.inference.segmenter import Segmenter
from lib.inference.tracking import Tracker
from lib.optflow.sources import FlowPair
from lib.runtime.errors import InputError

TRACKED = "_tracked"  # end of the name of a model with tracking

# Labels the next frame of a video, given the flow from the last frame to it, and back; None for the first
# frame, and where no method needs it. Returns labels (H, W), at least 0, for each setting.
Labeller = Callable[[SegmentedImage, FlowPair | None], list[np.ndarray]]


class VideoMethod(Protocol):
    """Method that labels the frames of a video in order."""

    name: str  # in tables and files
    pos_scales: Sequence[float | None]  # (None,) for a method without a position scale
    description: Mapping[str, Any]  # settings in plain types, for the evaluation record
    needs_flow: bool

    def settings(self, n_spixels: Sequence[int]) -> list[Setting]:
        """List the settings of the method, in evaluation order."""

    def start(self, video: str, settings: Sequence[Setting]) -> Labeller:
        """Start a video; all settings are labelled side by side."""


class FrameByFrame:
    """Image method on each frame alone: every label ends with its frame."""

    needs_flow = False

    def __init__(self, method: Method) -> None:
        self._method = method
        self.name, self.pos_scales = method.name, method.pos_scales
        self.description = method.description

    def settings(self, n_spixels: Sequence[int]) -> list[Setting]:
        """List the settings of the image method."""
        return list_settings(self._method, n_spixels)

    def start(self, video: str, settings: Sequence[Setting]) -> Labeller:
        """Start a video."""
        n_labels = np.zeros(len(settings), np.int64)

        def label(image: SegmentedImage, flow: FlowPair | None) -> list[np.ndarray]:
            label_maps = self._method.segment(image, settings)
            numbered = [labels + first for labels, first in zip(label_maps, n_labels, strict=True)]
            n_labels[:] = [labels.max() + 1 for labels in numbered]
            return numbered

        return label


class Tracked:
    """Model whose superpixels keep their label from frame to frame, by a `Tracker`."""

    needs_flow = True

    def __init__(self, method: NetworkMethod) -> None:
        self._method = method
        self.name, self.pos_scales = method.name + TRACKED, method.pos_scales
        self.description = {**method.description, "tracked": True}

    def settings(self, n_spixels: Sequence[int]) -> list[Setting]:
        """List the settings of the model."""
        return list_settings(self._method, n_spixels)

    def start(self, video: str, settings: Sequence[Setting]) -> Labeller:
        """Start a video."""
        segmenter = self._method.segmenter
        has_extra = segmenter.model.n_extra_channels > 0
        trackers = [
            Tracker(_with_pos_scale(segmenter, each.pos_scale), [each.n_spixels]) for each in settings
        ]

        def label(image: SegmentedImage, flow: FlowPair | None) -> list[np.ndarray]:
            extra = image.extra if has_extra else None
            prepared = segmenter.preprocess(image.image_rgb, extra, name=image.name)
            return [tracker.segment(prepared, flow).levels[0].labels for tracker in trackers]

        return label


class LabelVolumes:
    """Labels of other software, one file or folder for each video of a dataset; see `open_label_volume`.

    Raises `InputError` if one is missing, or has neither as many frames as the video has nor as many as the
    dataset uses.
    """

    pos_scales = (None,)
    needs_flow = False

    def __init__(self, name: str, folder: Path, dataset: DAVISDataset) -> None:
        self.name = name
        self.description = {"labels": folder.name}
        self._volumes = {video: open_label_volume(folder, video) for video in dataset.video_lengths}
        for video, volume in self._volumes.items():
            n_used, n_frames = dataset.n_used(video), dataset.video_lengths[video]
            if volume.n_frames not in (n_used, n_frames):
                scored = "" if n_used == n_frames else f", {n_used} of them scored"
                raise InputError(
                    f"{volume.path} holds the labels of {volume.n_frames} frames, but {video} has "
                    f"{n_frames}{scored}"
                )

    def settings(self, n_spixels: Sequence[int]) -> list[Setting]:
        """Return the one setting: the number of superpixels is as it is in the files."""
        return [Setting(None)]

    def start(self, video: str, settings: Sequence[Setting]) -> Labeller:
        """Start a video."""
        volume = self._volumes[video]
        n_read = 0

        def label(image: SegmentedImage, flow: FlowPair | None) -> list[np.ndarray]:
            nonlocal n_read
            n_read += 1
            return [volume.read(n_read - 1, image.image_rgb.shape[:2])]

        return label


def in_videos(method: Method | LabelVolumes) -> list[VideoMethod]:
    """Return the ways in which a method labels videos: frame by frame, and models with tracking too."""
    if isinstance(method, LabelVolumes):
        return [method]
    with_tracking = [Tracked(method)] if isinstance(method, NetworkMethod) else []
    return [FrameByFrame(method), *with_tracking]


def _with_pos_scale(segmenter: Segmenter, pos_scale: float) -> Segmenter:
    varied = copy.copy(segmenter)
    varied.scales = segmenter.scales._replace(pos_scale=pos_scale)
    return varied
