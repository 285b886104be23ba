"""Optical flow of video frames: from archives, or estimated from neighbouring frames."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.files.frames import list_in_order
from lib.files.images import DEFAULT_READER, ImageReader
from lib.files.sizes import size_text
from lib.optflow.archive import FlowArchive, find_archives
from lib.optflow.sources import DEFAULT_PRESET, DISEstimator
from lib.runtime.errors import InputError

AUTO = "auto"  # in place of a flow archive: estimate the flow


class ArchivedFlow(NamedTuple):
    """Flow of a frame, from an archive; `str()` describes it for the log."""

    archive: FlowArchive
    frame_idx: int

    @property
    def files(self) -> list[Path]:
        """Files that `read` needs, in addition to the image."""
        return [self.archive.path]

    def read(self, image_rgb: np.ndarray) -> np.ndarray:
        """Return the flow (H, W, 4) of the image (H, W, 3) uint8, as `FlowArchive.read_frame` does.

        Raises `InputError` if the flow has another size, or is not available.
        """
        if image_rgb.shape[:2] != self.archive.frame_shape:
            raise InputError(
                f"the flow in {self.archive.path} is {size_text(self.archive.frame_shape)}, but the image is "
                f"{size_text(image_rgb.shape)}; resize the image, or estimate the flow of images of its size"
            )
        return self.archive.read_frame(self.frame_idx)

    def __str__(self) -> str:
        has_next, has_previous = self.frame_idx < self.archive.n_frames - 1, self.frame_idx > 0
        return f"{self.archive.path}, frame {self.frame_idx}: {_describe(has_next, has_previous)}"


class EstimatedFlow(NamedTuple):
    """Flow of a frame to its neighbours, estimated by OpenCV's DIS; used like `ArchivedFlow`."""

    frame: Path
    previous: Path | None  # one of the neighbours may be missing
    following: Path | None
    reader: ImageReader = DEFAULT_READER

    @property
    def files(self) -> list[Path]:
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
        neighbor_rgb = self.reader.read(file)
        if neighbor_rgb.shape != image_rgb.shape:
            raise InputError(
                f"{self.frame} is {size_text(image_rgb.shape)}, but its neighbour {file} is "
                f"{size_text(neighbor_rgb.shape)}"
            )
        return neighbor_rgb

    def __str__(self) -> str:
        described = _describe(self.following is not None, self.previous is not None)
        return f"{self.frame}, estimated: {described}"


FlowOfFrame = ArchivedFlow | EstimatedFlow


def flows_of_images(
    images: Sequence[Path],
    optflow_data: Path,
    *,
    frame_idx: int | None = None,
    method: str | None = None,
    reader: ImageReader = DEFAULT_READER,
) -> list[FlowOfFrame]:
    """Find the flow of images.

    The images of one folder with one suffix are the frames of a video, which is named after the folder. They
    are sorted by name, with numbers by value.

    Parameters
    ----------
    images : sequence of Path
        At least one.
    optflow_data : Path
        A flow archive, for images of one video; a folder with one archive per video; or "auto", to estimate
        the flow.
    frame_idx : int, optional
        Index of a single image in the archive, from 0; default: its position in its folder.
    method : str, optional
        Method of the archives; needed if a video has archives of several methods.
    reader : ImageReader
        Settings of reading the neighbours, to estimate the flow.

    Raises
    ------
    InputError
        If an archive is missing, or covers another number of frames than its video has, or a video has one
        frame.
    """
    is_estimated = optflow_data == Path(AUTO)
    if frame_idx is not None and len(images) > 1:
        raise InputError(
            "is for a single image; several images take their position in the folder", parameter="frame_idx"
        )
    if frame_idx is not None and is_estimated:
        raise InputError("needs a flow archive, not `optflow_data` auto", parameter="frame_idx")
    if is_estimated:
        return [_between_neighbors(*located)._replace(reader=reader) for located in _locate(images)]
    archives = _archives_of(images, optflow_data, method)
    if frame_idx is not None:
        return [ArchivedFlow(archives[0], frame_idx)]
    flows = []
    for archive, (image, frames, position) in zip(archives, _locate(images), strict=True):
        if archive.n_frames != len(frames):
            raise InputError(
                f"{archive.path} covers {archive.n_frames} frames, but {image.parent} holds {len(frames)} "
                f"{image.suffix} files; give `frame_idx` for a single image"
            )
        flows.append(ArchivedFlow(archive, position))
    return flows


def _locate(images: Sequence[Path]) -> Iterator[tuple[Path, list[Path], int]]:
    """Yield each image with the frames of its video and its position among them."""
    frames_of: dict[tuple[Path, str], list[Path]] = {}  # by folder and suffix; each folder is listed once
    positions: dict[Path, int] = {}
    for image in images:
        frame = _absolute(image)
        key = folder, suffix = frame.parent, frame.suffix.lower()
        if key not in frames_of:
            frames_of[key] = list_in_order(folder, (suffix,))
            positions |= {other: idx for idx, other in enumerate(frames_of[key])}
        if frame not in positions:
            raise InputError(f"{frame} is hidden, and so is not a frame of the video in its folder")
        yield image, frames_of[key], positions[frame]


def _archives_of(images: Sequence[Path], optflow_data: Path, method: str | None) -> list[FlowArchive]:
    """Return the archive of each image."""
    folders = list(dict.fromkeys(_absolute(image).parent for image in images))
    if optflow_data.is_dir():
        names = [folder.name for folder in folders]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated:
            raise InputError(
                f"{optflow_data}: images are in two folders named {repeated}", parameter="optflow_data"
            )
        archives = find_archives(optflow_data, names, method, parameter="optflow_data")
    else:
        archives = [FlowArchive(optflow_data)]
        if len(folders) > 1:
            raise InputError(
                f"{optflow_data} covers one video, but images are in {len(folders)} folders; "
                "give a folder of archives",
                parameter="optflow_data",
            )
    archive_of = dict(zip(folders, archives, strict=True))
    return [archive_of[_absolute(image).parent] for image in images]


def _absolute(image: Path) -> Path:
    """Return an absolute path without resolving links, so that its folder keeps the given name."""
    return Path(os.path.abspath(image))


def _between_neighbors(image: Path, frames: list[Path], position: int) -> EstimatedFlow:
    if len(frames) == 1:
        raise InputError(
            f"{image} is the only {image.suffix} file in its folder; optical flow needs the frame before or "
            "after"
        )
    previous = frames[position - 1] if position > 0 else None
    following = frames[position + 1] if position + 1 < len(frames) else None
    return EstimatedFlow(image, previous, following)


def _describe(has_next: bool, has_previous: bool) -> str:
    if has_next and has_previous:
        return "flow to the next and to the previous frame"
    if has_next:
        return "flow to the next frame only, as this is the first frame"
    return "flow to the previous frame only, as this is the last frame"
