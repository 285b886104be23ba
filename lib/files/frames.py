"""Read the frames of a video one at a time, from a folder of images or from a video file."""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lib.files.animation import DEFAULT_FRAME_RATE, AnimatedImage, is_picture
from lib.files.images import DEFAULT_READER, ImageReader, resize_image
from lib.files.listing import list_visible
from lib.files.pyav import import_av
from lib.files.sizes import size_text
from lib.runtime.errors import InputError, missing_path
from lib.runtime.memory import check_memory

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

# Share of the frames listed in the header that must be decoded. Some headers list a few frames too many.
MIN_DECODED_SHARE = 0.95

_FRAME_BYTES = 6  # per pixel: 3 of RGB, and 1.5 each of the frame and the one that it refers to

_BT709, _UNTAGGED = 1, 2  # colour matrices, in the numbers of ISO/IEC 23091-2


@dataclass
class FrameFolder:
    """Frames of a video as image files, in order."""

    name: str  # of the video
    files: list[Path]
    frame_shape: tuple[int, int] | None = None  # (H, W); frames of another size are resized to it
    frame_rate: float = DEFAULT_FRAME_RATE
    reader: ImageReader = DEFAULT_READER

    def __len__(self) -> int:
        return len(self.files)

    def read(self) -> Iterator[np.ndarray]:
        """Yield the frames, each (H, W, 3) uint8 RGB."""
        for file in self.files:
            image_rgb = self.reader.read(file)
            yield resize_image(image_rgb, self.frame_shape) if self.frame_shape else image_rgb


class VideoFile:
    """Video file in any format that FFmpeg decodes; raises `InputError` for other and for missing files.

    Frames are those that a player shows: edit lists of MP4 and MOV, which phones and lossless cutters write,
    hide frames. Lists of other files, such as playlists, are not followed.

    `frame_rate` is the mean over the timestamps, in frames per second. `len` is the number of packets, which
    can differ from the number of frames in formats without an index.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        scan = _scan(path)
        self._n_frames = len(scan.times)
        self._n_fitting = _count_fitting(scan.times)
        self._n_expected = self._n_frames + _count_missing(path, scan)
        self.frame_rate = _measure_rate(scan)

    def __len__(self) -> int:
        return self._n_frames

    def read(self) -> Iterator[np.ndarray]:
        """Yield the frames, each (H, W, 3) uint8 RGB.

        If much less can be decoded than the number of frames in the file's header, raises `InputError`.
        """
        n_read = 0
        with _open_stream(self.path) as (container, stream):
            stream.thread_type = "AUTO"
            matrix = None
            for frame in _decode(container, stream):
                matrix = _display_matrix(frame) or matrix
                n_read += 1
                yield _turn(_to_rgb(frame), matrix)
            has_index = stream.frames > 0
        if has_index and n_read < MIN_DECODED_SHARE * self._n_expected - 1:
            raise InputError(f"{self.path}: decoding stopped after {n_read} of {self._n_expected} frames")
        if has_index and n_read < self._n_expected:
            logger.warning(
                "%s: the header lists %d frames, but the file holds %d", self.path, self._n_expected, n_read
            )
        elif n_read < MIN_DECODED_SHARE * self._n_fitting - 1:
            logger.warning(
                "%s holds %d frames, but its duration fits %d; frames were skipped or the file is damaged",
                self.path,
                n_read,
                self._n_fitting,
            )


class _Scan(NamedTuple):
    """Packets of a video, which hold one frame each."""

    times: list[float | None]  # of the frames that are shown, in seconds, in the order of the file
    n_packets: int  # with hidden frames
    n_stored: int  # number of frames in the header; 0 if it has none, as in Matroska
    rate: float  # frames per second by the header; 0 if it has none
    time_unit: float  # seconds


@contextmanager
def _open_stream(path: Path, **options: str) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """Open the first video stream of a file, with options of FFmpeg."""
    if not path.is_file():
        raise missing_path(path, "video file")
    av = import_av()
    with ExitStack() as stack:
        try:
            # FFmpeg gets an open file: it would read a name with a colon as a protocol, and without protocols
            # it opens no other file.
            options = {"protocol_whitelist": "none", **options}
            file = stack.enter_context(path.open("rb"))
            container = stack.enter_context(av.open(file, options=options, metadata_errors="replace"))
            stream = container.streams.video[0]
        except (av.FFmpegError, OSError, IndexError) as error:
            raise InputError(f"{path} is not a video that can be decoded") from error
        if stream.codec_context is None:
            raise InputError(f"{path} is not a video that can be decoded; its codec is unknown")
        shape = stream.codec_context.height, stream.codec_context.width
        check_memory(_FRAME_BYTES * math.prod(shape), f"{path} of {size_text(shape)} pixels")
        yield container, stream


def _scan(path: Path, **options: str) -> _Scan:
    with _open_stream(path, **options) as (container, stream):
        times, n_packets = [], 0
        for packet in _demux(container, stream):
            if packet.size > 0:  # the last packet is empty
                n_packets += 1
                if not packet.is_discard:
                    stamp = packet.dts if packet.pts is None else packet.pts
                    times.append(None if stamp is None else float(stamp * stream.time_base))
        return _Scan(
            times, n_packets, stream.frames, float(stream.average_rate or 0), float(stream.time_base)
        )


def _count_missing(path: Path, scan: _Scan) -> int:
    """Count the frames in the header that are not in the file; an edit list may hide others."""
    if scan.n_packets >= scan.n_stored:
        return 0
    return max(0, scan.n_stored - _scan(path, ignore_editlist="1").n_packets)


def _measure_rate(scan: _Scan) -> float:
    if len(scan.times) < 2 or None in scan.times:
        return scan.rate or DEFAULT_FRAME_RATE
    n_steps, duration = len(scan.times) - 1, max(scan.times) - min(scan.times)
    # Timestamps are rounded. If the header agrees with them, it is more accurate.
    if duration == 0 or (scan.rate and abs(duration - n_steps / scan.rate) <= 2 * scan.time_unit):
        return scan.rate or DEFAULT_FRAME_RATE
    return n_steps / duration


def _count_fitting(times: list[float | None]) -> int:
    """Count the frames that fit the duration at the usual distance of two frames."""
    if len(times) < 2 or None in times:
        return len(times)
    steps = np.diff(np.sort(times))
    usual = np.median(steps)
    return round(steps.sum() / usual) + 1 if usual > 0 else len(times)


def _demux(container: "InputContainer", stream: "VideoStream") -> Iterator["av.Packet"]:
    """Yield packets until the end of the file, or until it is damaged beyond reading."""
    av = import_av()
    try:
        yield from container.demux(stream)
    except av.FFmpegError as error:
        logger.debug("%s", error)


def _decode(container: "InputContainer", stream: "VideoStream") -> Iterator["av.VideoFrame"]:
    """Yield the frames of all packets that can be decoded."""
    av = import_av()
    for packet in _demux(container, stream):
        try:
            yield from packet.decode()
        except av.FFmpegError as error:
            logger.debug("%s", error)


def _to_rgb(frame: "av.VideoFrame") -> np.ndarray:
    """Convert a frame by its colour matrix; players assume BT.709 for HD videos without a tag."""
    is_untagged_hd = frame.colorspace == _UNTAGGED and is_hd((frame.height, frame.width))
    if is_untagged_hd or frame.colorspace == _BT709:
        # RGB has no matrix, but PyAV 15 ignores the first one if both are equal.
        return frame.to_ndarray(format="rgb24", src_colorspace="ITU709", dst_colorspace="ITU601")
    return frame.to_ndarray(format="rgb24")


def is_hd(shape: tuple[int, int]) -> bool:
    """Return True if players take frames (H, W) for HD, whose colours are BT.709."""
    return shape[0] > 576 or shape[1] >= 1280


def _display_matrix(frame: "av.VideoFrame") -> tuple[int, int, int, int] | None:
    """Return the signs of the linear part (a, b, c, d) of the display matrix, None without one.

    It maps (x, y) to (a x + c y, b x + d y).
    """
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
            return tuple(int(np.sign(value)) for value in (a, b, c, d))
    return None


def _turn(image_rgb: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """Turn and mirror a frame by right angles; other matrices are ignored, as most players do."""
    if matrix is None:
        return image_rgb
    a, b, c, d = matrix
    if a and d and not b and not c:
        turned = image_rgb[::d, ::a]
    elif b and c and not a and not d:
        turned = image_rgb.swapaxes(0, 1)[::b, ::c]
    else:
        return image_rgb
    return np.ascontiguousarray(turned)


@dataclass
class EveryNth:
    """Every n-th frame of a video, from the first."""

    video: VideoFile | AnimatedImage
    n: int

    @property
    def name(self) -> str:
        """Name of the video."""
        return self.video.name

    @property
    def frame_rate(self) -> float:
        """Frames per second that are left."""
        return self.video.frame_rate / self.n

    def __len__(self) -> int:
        return -(-len(self.video) // self.n)

    def read(self) -> Iterator[np.ndarray]:
        """Yield the frames, each (H, W, 3) uint8 RGB."""
        with closing(self.video.read()) as frames:
            yield from islice(frames, 0, None, self.n)


Video = FrameFolder | VideoFile | AnimatedImage | EveryNth


def open_video_file(path: Path) -> VideoFile | AnimatedImage:
    """Open a video file or an animated picture, named after the file; raises `InputError` as they do."""
    return AnimatedImage(path.stem, path) if is_picture(path) else VideoFile(path.stem, path)


def list_in_order(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the visible files in a folder, ordered by name; numbers in names are ordered by value.

    Raises `InputError` if no file has one of `suffixes`, or files have different ones, for example frames
    and masks.
    """
    files = [file for file in list_visible(folder) if file.suffix.lower() in suffixes and file.is_file()]
    present = sorted({file.suffix.lower() for file in files})
    if not present:
        raise InputError(f"{folder} holds no {', '.join(suffixes)} file")
    if len(present) > 1:
        raise InputError(f"{folder} holds {' and '.join(present)} files; expected one kind")
    return sorted(files, key=_natural_order)


def log_gaps(logger: logging.Logger, files: list[Path]) -> None:
    """Log a warning if the last numbers in the names of files, in order, rise by two usual steps or more.

    The usual step is the most common one. Rounding, as of timestamps, is allowed for. Names without a number
    are ignored.
    """
    names = [(file, re.findall(r"\d+", file.stem)) for file in files]
    numbered = [(file, int(numbers[-1])) for file, numbers in names if numbers]
    steps = [(one, other, after - before) for (one, before), (other, after) in pairwise(numbered)]
    counts = Counter(step for *_, step in steps)
    usual = min(counts, key=lambda step: (-counts[step], step), default=0)
    gaps = [(one, other) for one, other, step in steps if step >= 1.5 * usual > 0]
    if gaps:
        one, other = gaps[0]
        more = "" if len(gaps) == 1 else f" and in {len(gaps) - 1} more places"
        logger.warning(
            "frames are missing between %s and %s%s; they are taken as neighbours", one, other.name, more
        )


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)  # text and numbers in turn
    return [(int(part) if part.isdecimal() else 0, part) for part in parts]
