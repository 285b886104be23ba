"""The frames of a video, from a folder of images or from a video file, one at a time."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from lib.files.images import read_image, resize_image
from lib.files.opencv import cv2
from lib.runtime.errors import InputError

logger = logging.getLogger(__name__)

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

# Some containers announce a few frames more than they hold.
ANNOUNCED_SHARE = 0.95

DEFAULT_FRAME_RATE = 24.0  # frames a second


class FrameFolder:
    """The frames of a video as image files.

    Parameters
    ----------
    name : str
        The video's name.
    files : list of Path
        Its frames, in order.
    frame_shape : tuple of int, optional
        (H, W) to resize frames of another size to.
    """

    def __init__(self, name: str, files: list[Path], frame_shape: tuple[int, int] | None = None) -> None:
        self.name = name
        self.files = files
        self.frame_rate = DEFAULT_FRAME_RATE
        self.frame_shape = frame_shape

    def __len__(self) -> int:
        return len(self.files)

    def read(self) -> Iterator[np.ndarray]:
        """Yield the frames, each (H, W, 3) uint8 RGB."""
        for file in self.files:
            image_rgb = read_image(file)
            if self.frame_shape is not None and image_rgb.shape[:2] != self.frame_shape:
                image_rgb = resize_image(image_rgb, self.frame_shape)
            yield image_rgb


class VideoFile:
    """A video in any format that OpenCV decodes.

    Parameters
    ----------
    name : str
        The video's name.
    path : Path
        Its file.

    Raises
    ------
    InputError
        If the file is missing or cannot be decoded.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        capture = self._open()
        self._n_stored = _read_stored_count(path)
        # The same, or else duration times frame rate, which is too high where frames were left out.
        self._n_frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        frame_rate = capture.get(cv2.CAP_PROP_FPS)
        self.frame_rate = frame_rate if 1 <= frame_rate <= 240 else DEFAULT_FRAME_RATE  # headers may be wrong
        capture.release()

    def __len__(self) -> int:
        return self._n_frames

    def read(self) -> Iterator[np.ndarray]:
        """Yield the frames, each (H, W, 3) uint8 RGB.

        Raises
        ------
        InputError
            If decoding stops well before the number of frames that the file's header announces.
        """
        capture = self._open()
        n_read = 0
        try:
            while True:
                is_there, image_bgr = capture.read()
                if not is_there:
                    break
                n_read += 1
                yield cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()
        if n_read < ANNOUNCED_SHARE * self._n_stored - 1:
            raise InputError(f"{self.path}: decoding stopped after {n_read} of {self._n_stored} frames")
        if n_read < self._n_stored:
            logger.warning("%s announces %d frames, but holds %d", self.path, self._n_stored, n_read)
        elif n_read < ANNOUNCED_SHARE * self._n_frames - 1:
            logger.warning(
                "%s holds %d frames, but its duration is that of %d: it left some out, or is damaged",
                self.path,
                n_read,
                self._n_frames,
            )

    def _open(self) -> cv2.VideoCapture:
        if not self.path.is_file():
            raise InputError(f"no video file {self.path}")
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise InputError(f"{self.path} is not a video that can be decoded")
        return capture


def _read_stored_count(path: Path) -> int:
    """Frames of a video as its header counts them; 0 where it does not, as in Matroska."""
    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].frames
    except (av.FFmpegError, IndexError):
        return 0


def list_in_order(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files in a folder that are not hidden, ordered by name, with numbers in it ordered by value.

    Raises
    ------
    InputError
        If none has one of `suffixes`, or they have several of them: masks beside frames, say.
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
        raise InputError(f"{folder} holds {' and '.join(present)} files; it must be files of one kind")
    return sorted(files, key=_natural_order)


def _natural_order(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
