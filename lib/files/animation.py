"""Read animated GIF, WebP and APNG files as videos."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from lib.files.images import to_rgb_array
from lib.files.sizes import check_decoding
from lib.runtime.errors import InputError

_FORMATS = ("GIF", "WEBP", "PNG")
_SIGNATURES = (b"GIF8", b"RIFF", b"\x89PNG")

DEFAULT_FRAME_RATE = 24.0  # frames per second; of frames without a duration

# Milliseconds. Browsers and FFmpeg show frames of a GIF with a shorter delay for `_DEFAULT_DELAY`.
_MIN_DELAY, _DEFAULT_DELAY = 20, 100

_GIF_END = b";"


class AnimatedImage:
    """Frames of an animated picture, in order, laid on white where they are transparent.

    `frame_rate` is the mean, in frames per second. Raises `InputError` if the file is not a readable GIF,
    WebP or PNG.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        durations = [self._duration(image) for image in self._images()]
        self._n_frames = len(durations)
        self.frame_rate = 1000 * len(durations) / sum(durations) if sum(durations) else DEFAULT_FRAME_RATE

    def __len__(self) -> int:
        return self._n_frames

    def read(self) -> Iterator[np.ndarray]:
        """Yield the frames, each (H, W, 3) uint8 RGB; raises `InputError` if one is damaged."""
        for image in self._images():
            with self._name_errors():
                image_rgb = to_rgb_array(image, name=str(self.path))[0]
            yield image_rgb

    def _images(self) -> Iterator[Image.Image]:
        """Seek to each frame, and yield the image."""
        with self._name_errors():
            image = Image.open(self.path, formats=_FORMATS)
        with image:
            with self._name_errors():
                check_decoding(image)
                n_frames = getattr(image, "n_frames", 1)
                # In an APNG, a picture for programs without animations may come first.
                first = int(bool(image.info.get("default_image")) and n_frames > 1)
            for idx in range(first, n_frames):
                with self._name_errors(f" at frame {idx - first}"):
                    image.seek(idx)
                    image.load()
                yield image
            self._check_end(image)

    def _duration(self, image: Image.Image) -> float:
        """Return how long a frame is shown, in milliseconds."""
        duration = image.info.get("duration", 0)
        is_short = image.format == "GIF" and getattr(image, "n_frames", 1) > 1 and duration < _MIN_DELAY
        return _DEFAULT_DELAY if is_short else duration

    def _check_end(self, image: Image.Image) -> None:
        """Check that a GIF was not cut off between two frames, which Pillow does not notice."""
        if image.format == "GIF" and not self.path.read_bytes().rstrip(b"\0").endswith(_GIF_END):
            raise InputError(f"{self.path} is truncated after {image.n_frames} frames")

    @contextmanager
    def _name_errors(self, place: str = "") -> Iterator[None]:
        try:
            yield
        except InputError as error:
            message = str(error)
            raise InputError(message if str(self.path) in message else f"{self.path} {message}") from error
        except Exception as error:  # broken files make Pillow raise many kinds of errors
            raise InputError(
                f"{self.path} is not a readable animation{place} ({error or type(error).__name__})"
            ) from error


def is_picture(path: Path) -> bool:
    """Return True if a file starts like a picture in a format that may be animated."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) and (start[:4] != b"RIFF" or start[8:] == b"WEBP")
