"""Read the frames of a video one at a time, from a folder of images or from a video file."""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from lib.files.images import read_image, resize_image
from lib.files.opencv import cv2
from lib.files.value_range import ValueRange
from lib.runtime.errors import InputError

logger = logging.getLogger(__name__)

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

# Share of the frames listed in the header that must be decoded. Some headers list a few frames too many.
MIN_DECODED_SHARE = 0.95

DEFAULT_FRAME_RATE = 24.0  # frames per second


@dataclass
class FrameFolder:
    """Frames of a video as image files, in order."""

    name: str  # of the video
    files: list[Path]
    frame_shape: tuple[int, int] | None = None  # (H, W); frames of another size are resized to it
    frame_rate: float = DEFAULT_FRAME_RATE
    value_range: ValueRange | None = None  # of frames of more than 8 bits; see `read_image`

    def __len__(self) -> int:
        return len(self.files)

    def read(self) -> Iterator[np.ndarray]:
        """Yield the frames, each (H, W, 3) uint8 RGB."""
        for file in self.files:
            image_rgb = read_image(file, value_range=self.value_range)
            yield resize_image(image_rgb, self.frame_shape) if self.frame_shape else image_rgb


class VideoFile:
    """Video file in any format that OpenCV decodes; raises `InputError` for other and for missing files."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        capture = self._open()
        self._n_stored = _read_stored_count(path)
        # OpenCV takes the count from the header or, without one, computes duration * frame rate. The latter
        # is too high for videos that skip frames.
        self._n_frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        frame_rate = capture.get(cv2.CAP_PROP_FPS)
        # Headers may hold a wrong frame rate.
        self.frame_rate = frame_rate if 1 <= frame_rate <= 240 else DEFAULT_FRAME_RATE
        capture.release()

    def __len__(self) -> int:
        return self._n_frames

    def read(self) -> Iterator[np.ndarray]:
        """Yield the frames, each (H, W, 3) uint8 RGB.

        If decoding stops well before the number of frames in the file's header, raises `InputError`.
        """
        capture = self._open()
        n_read = 0
        try:
            while (image_bgr := capture.read()[1]) is not None:
                n_read += 1
                yield cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()
        if n_read < MIN_DECODED_SHARE * self._n_stored - 1:
            raise InputError(f"{self.path}: decoding stopped after {n_read} of {self._n_stored} frames")
        if n_read < self._n_stored:
            logger.warning(
                "%s: the header lists %d frames, but the file holds %d", self.path, self._n_stored, n_read
            )
        elif n_read < MIN_DECODED_SHARE * self._n_frames - 1:
            logger.warning(
                "%s holds %d frames, but its duration fits %d; frames were skipped or the file is damaged",
                self.path,
                n_read,
                self._n_frames,
            )

    def _open(self) -> cv2.VideoCapture:
        if not self.path.is_file():
            raise InputError(f"no video file {self.path}")
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{self.path}: OpenCV needs a path in UTF-8; rename the video") from error
        # FFmpeg takes a relative name with a colon for a protocol.
        capture = cv2.VideoCapture(os.path.abspath(self.path))
        if not capture.isOpened():
            raise InputError(f"{self.path} is not a video that can be decoded")
        return capture


def _read_stored_count(path: Path) -> int:
    """Read the number of frames from a video's header; 0 if the header has none, as in Matroska."""
    try:
        with av.open(os.path.abspath(path)) as container:
            return container.streams.video[0].frames
    except (av.FFmpegError, IndexError):
        return 0


def list_in_order(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the visible files in a folder, ordered by name; numbers in names are ordered by value.

    Raises `InputError` if no file has one of `suffixes`, or files have different ones, for example frames
    and masks.
    """
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    ]
    present = sorted({file.suffix.lower() for file in files})
    if not present:
        raise InputError(f"{folder} holds no {', '.join(suffixes)} file")
    if len(present) > 1:
        raise InputError(f"{folder} holds {' and '.join(present)} files; expected one kind")
    return sorted(files, key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)  # text and numbers in turn
    return [(int(part) if part.isdecimal() else 0, part) for part in parts]
