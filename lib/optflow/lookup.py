"""The optical flow of images that are frames of videos: from archives, or estimated from their neighbours."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from lib.files.frames import list_in_order
from lib.files.images import read_image
from lib.optflow.archive import FlowArchive, find_archives
from lib.optflow.sources import DEFAULT_PRESET, DISEstimator
from lib.runtime.errors import InputError

AUTO = "auto"  # in place of a flow archive: estimate the flow


class FlowOfFrame(Protocol):
    """Where the flow of an image comes from; as a string, what it is.

    Attributes
    ----------
    files : sequence of Path
        What is read for it, beside the image.
    """

    files: Sequence[Path]

    def read(self, image_rgb: np.ndarray) -> np.ndarray:
        """The flow of the image (H, W, 3) uint8: (H, W, 4) float32, as `FlowArchive.read_frame` has it.

        Raises
        ------
        InputError
            If it is of another size, or cannot be had.
        """


class ArchivedFlow(NamedTuple):
    """The flow of a frame in an archive."""

    archive: FlowArchive
    frame_idx: int

    @property
    def files(self) -> Sequence[Path]:
        return [self.archive.path]

    def read(self, image_rgb: np.ndarray) -> np.ndarray:
        height, width = self.archive.frame_shape
        if image_rgb.shape[:2] != (height, width):
            raise InputError(
                f"the flow in {self.archive.path} is {width}x{height}, but the image is "
                f"{image_rgb.shape[1]}x{image_rgb.shape[0]}; resize it, or estimate the flow from images of "
                "its size"
            )
        return self.archive.read_frame(self.frame_idx)

    def __str__(self) -> str:
        has_next, has_previous = self.frame_idx < self.archive.n_frames - 1, self.frame_idx > 0
        return f"{self.archive.path}, frame {self.frame_idx}: {_describe(has_next, has_previous)}"


class EstimatedFlow(NamedTuple):
    """The flow of a frame to its neighbours, which OpenCV's DIS estimates; one of them may be missing."""

    frame: Path
    previous: Path | None
    following: Path | None

    @property
    def files(self) -> Sequence[Path]:
        return [file for file in (self.previous, self.following) if file is not None]

    def read(self, image_rgb: np.ndarray) -> np.ndarray:
        estimator = DISEstimator(str(self.frame.parent), DEFAULT_PRESET)
        forward = backward = np.zeros((*image_rgb.shape[:2], 2), np.float32)
        if self.previous:
            estimator.flow_from_last(self._read_neighbor(self.previous, image_rgb))
        pair = estimator.flow_from_last(image_rgb)
        if pair is not None:
            backward = pair[1]
        if self.following:
            forward = estimator.flow_from_last(self._read_neighbor(self.following, image_rgb))[0]
        return np.concatenate([forward, backward], axis=2)

    def _read_neighbor(self, file: Path, image_rgb: np.ndarray) -> np.ndarray:
        neighbor_rgb = read_image(file)
        if neighbor_rgb.shape != image_rgb.shape:
            (height, width), (our_height, our_width) = neighbor_rgb.shape[:2], image_rgb.shape[:2]
            raise InputError(
                f"{self.frame} is {our_width}x{our_height}, but {file}, a neighbour whose flow is needed, is "
                f"{width}x{height}"
            )
        return neighbor_rgb

    def __str__(self) -> str:
        described = _describe(self.following is not None, self.previous is not None)
        return f"{self.frame}, estimated: {described}"


def flows_of_images(
    images: Sequence[Path], optflow_data: Path, *, frame_idx: int | None = None, method: str | None = None
) -> list[FlowOfFrame]:
    """Find the flow of images.

    Images of one folder and one kind of file are the frames of a video that has the name of the folder, in
    the order of their names, numbers by value.

    Parameters
    ----------
    images : sequence of Path
        At least one.
    optflow_data : Path
        A flow archive, for images of one video; a folder of archives, one for each video; or "auto", for flow
        that is estimated.
    frame_idx : int, optional
        Which frame in the archive a single image is, from 0, whatever lies beside it.
    method : str, optional
        Whose archives, where the folder holds those of several methods.

    Raises
    ------
    InputError
        If archives are missing or cover another number of frames than there are, or a video has one frame.
    """
    if frame_idx is not None and len(images) > 1:
        raise InputError(
            "is for a single image; those of several are their places in their folder",
            parameter="frame_idx",
        )
    if frame_idx is not None and optflow_data == Path(AUTO):
        raise InputError("needs a flow archive, not `optflow_data` auto", parameter="frame_idx")
    videos = _Videos()
    if optflow_data == Path(AUTO):
        return [_between_neighbors(image, *videos.place(image)) for image in images]
    archives = _archives_of(images, optflow_data, method)
    if frame_idx is not None:
        return [ArchivedFlow(archives[0], frame_idx)]
    flows = []
    for image, archive in zip(images, archives, strict=True):
        frames, place = videos.place(image)
        if archive.n_frames != len(frames):
            raise InputError(
                f"{archive.path} covers {archive.n_frames} frames, but {image.parent} holds {len(frames)} "
                f"{image.suffix} files; for a single image, `frame_idx` tells which frame it is"
            )
        flows.append(ArchivedFlow(archive, place))
    return flows


class _Videos:
    """The frames beside images, listed once for each folder."""

    def __init__(self) -> None:
        self._frames: dict[tuple[Path, str], list[Path]] = {}
        self._places: dict[Path, int] = {}

    def place(self, image: Path) -> tuple[list[Path], int]:
        """The frames of an image's video, and which of them it is."""
        image = _absolute(image)
        key = image.parent, image.suffix.lower()
        if key not in self._frames:
            self._frames[key] = list_in_order(image.parent, (key[1],))
            self._places |= {frame: idx for idx, frame in enumerate(self._frames[key])}
        if image not in self._places:
            raise InputError(f"{image} is hidden, and so no frame of the video in its folder")
        return self._frames[key], self._places[image]


def _archives_of(images: Sequence[Path], optflow_data: Path, method: str | None) -> list[FlowArchive]:
    """The archive of each image."""
    folders = list(dict.fromkeys(_absolute(image).parent for image in images))
    if optflow_data.is_dir():
        names = [folder.name for folder in folders]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated:
            raise InputError(
                f"{optflow_data}: images lie in two folders of the name {repeated}",
                parameter="optflow_data",
            )
        found = find_archives(optflow_data, names, method, parameter="optflow_data")
        archives = dict(zip(folders, found, strict=True))
    else:
        archive = FlowArchive(optflow_data)
        if len(folders) > 1:
            raise InputError(
                f"{optflow_data} is of one video, but images lie in {len(folders)} folders; "
                "give a folder of archives",
                parameter="optflow_data",
            )
        archives = {folders[0]: archive}
    return [archives[_absolute(image).parent] for image in images]


def _absolute(image: Path) -> Path:
    """A path to compare with others; its folder has a name, the given one even if it is a link."""
    return Path(os.path.abspath(image))


def _between_neighbors(image: Path, frames: list[Path], place: int) -> EstimatedFlow:
    if len(frames) == 1:
        raise InputError(
            f"{image} is the only {image.suffix} file in its folder; optical flow needs the frame before or "
            "after"
        )
    previous = frames[place - 1] if place > 0 else None
    following = frames[place + 1] if place + 1 < len(frames) else None
    return EstimatedFlow(image, previous, following)


def _describe(has_next: bool, has_previous: bool) -> str:
    if has_next and has_previous:
        return "flow to the next and to the previous frame"
    if has_next:
        return "flow to the next frame only, as this is the first frame"
    return "flow to the previous frame only, as this is the last frame"
