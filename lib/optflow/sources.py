"""Sources of optical flow: estimated from frames, or read from the files of another program.

A source yields the forward and the backward flow of each pair of neighbouring frames. Each is (H, W, 2)
float32, with last axis (dy, dx) in pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lib.files.frames import FrameFolder, Video
from lib.files.native_output import native_output_hidden
from lib.files.opencv import cv2
from lib.files.sizes import size_text
from lib.runtime.errors import InputError
from lib.runtime.memory import check_memory

# Presets of OpenCV's implementation, from fast to accurate.
DIS_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

DEFAULT_PRESET = "medium"

# Rows and columns, in pixels. With fewer, OpenCV's implementation may crash.
MIN_FRAME_SIDE = 16

FLOW_SUFFIXES = (".flo", ".png")

_FLO_MAGIC = b"PIEH"
_FLO_UNKNOWN = 1e9  # the Middlebury code marks unknown flow by larger values

_FLOW_BYTES = 16  # per pixel: the values as they are read, and in the order that we use

FlowPair = tuple[np.ndarray, np.ndarray]


class FlowSource(ABC):
    """Optical flow of a video, pair by pair."""

    name: str
    has_exact_length = True

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of pairs of frames; an estimate unless `has_exact_length`."""

    @abstractmethod
    def pairs(self) -> Iterator[FlowPair]:
        """Yield the forward and the backward flow of each pair of neighbouring frames."""


class DISFlow(FlowSource):
    """Flow of a video, estimated by OpenCV's Dense Inverse Search with one of `DIS_PRESETS`.

    References
    ----------
    .. [1] Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.
    """

    def __init__(self, frames: Video, preset: str) -> None:
        self.name = frames.name
        self.frames = frames
        self.preset = preset
        self.has_exact_length = isinstance(frames, FrameFolder)

    def __len__(self) -> int:
        return max(0, len(self.frames) - 1)

    def pairs(self) -> Iterator[FlowPair]:
        """Estimate the flow between every frame and the next.

        Raises `InputError` if the video has one frame, or frames that are too small or differ in size.
        """
        estimator = DISEstimator(self.name, self.preset)
        for image_rgb in self.frames.read():
            pair = estimator.flow_from_last(image_rgb)
            if pair is not None:
                yield pair
        if estimator.n_frames < 2:
            raise InputError(f"{self.name} has {estimator.n_frames} frame; optical flow needs at least two")


class DISEstimator:
    """Estimator of the flow between frames that arrive one at a time; `name` stands in error messages."""

    def __init__(self, name: str, preset: str) -> None:
        self._name = name
        self._estimator = cv2.DISOpticalFlow_create(DIS_PRESETS[preset])
        self._last: np.ndarray | None = None
        self.n_frames = 0

    def flow_from_last(self, image_rgb: np.ndarray) -> FlowPair | None:
        """Return the flow from the last frame to this one, and back; None for the first frame.

        Raises `InputError` if the frame is too small, or has another size than the last frame.
        """
        last, self._last = self._last, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY)
        self.n_frames += 1
        if min(self._last.shape) < MIN_FRAME_SIDE:
            raise InputError(
                f"{self._name}: frames of {size_text(self._last.shape)} are too small, DIS needs at least "
                f"{MIN_FRAME_SIDE}x{MIN_FRAME_SIDE}"
            )
        if last is None:
            return None
        if self._last.shape != last.shape:
            raise InputError(
                f"{self._name}: frame {self.n_frames - 1} is {size_text(self._last.shape)}, "
                f"the last was {size_text(last.shape)}"
            )
        return self._estimate(last, self._last), self._estimate(self._last, last)

    def _estimate(self, frame: np.ndarray, other: np.ndarray) -> np.ndarray:
        flow = self._estimator.calc(frame, other, None)
        return np.ascontiguousarray(flow[..., ::-1])  # OpenCV has (dx, dy)


@dataclass
class FlowFiles(FlowSource):
    """Flow that another program wrote, one file per pair of frames and direction; see `read_flow_file`.

    Raises `InputError` if files are missing.
    """

    name: str
    forward_files: list[Path]  # flow from frame i to i + 1, for i = 0, 1, ...
    backward_files: list[Path]  # flow from frame i + 1 to i

    def __post_init__(self) -> None:
        n_forward, n_backward = len(self.forward_files), len(self.backward_files)
        if n_forward == 0:
            raise InputError(f"{self.name} has no files of forward flow")
        if n_forward != n_backward:
            raise InputError(
                f"{self.name} has {n_forward} files of forward flow, but {n_backward} of backward flow; "
                "a video of N frames has N - 1 of each"
            )

    def __len__(self) -> int:
        return len(self.forward_files)

    def pairs(self) -> Iterator[FlowPair]:
        """Yield the flow in the files; raises `InputError` if one cannot be read, or differs in size."""
        shape = None
        for files in zip(self.forward_files, self.backward_files, strict=True):
            pair = tuple(read_flow_file(file) for file in files)
            for file, flow in zip(files, pair, strict=True):
                shape = shape or flow.shape
                if flow.shape != shape:
                    raise InputError(
                        f"{file} is {size_text(flow.shape)}, but the files before are {size_text(shape)}"
                    )
            yield pair


def read_flow_file(path: Path) -> np.ndarray:
    """Read flow (H, W, 2) float32, (dy, dx) in pixels, of Middlebury (.flo) or of KITTI (16-bit .png).

    Both store (dx, dy). KITTI stores 64ths of a pixel with an offset of 2**15, and a third channel that marks
    pixels with known flow. Raises `InputError` if the file is damaged, or its flow is not known everywhere.

    References
    ----------
    .. [1] Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011.
    .. [2] Geiger et al., "Are we ready for Autonomous Driving?", CVPR 2012.
    """
    flow = _read_flo(path) if path.suffix.lower() == ".flo" else _read_kitti(path)
    is_unknown = ~(np.abs(flow) < _FLO_UNKNOWN).all(axis=-1)  # NaN is not below
    if is_unknown.any():
        raise InputError(f"{path} lacks the flow of {is_unknown.sum()} pixels; it must be dense")
    return np.ascontiguousarray(flow)


def _read_flo(path: Path) -> np.ndarray:
    try:
        n_bytes = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(12)
            if len(header) < 12 or header[:4] != _FLO_MAGIC:
                raise InputError(f"{path} is not a Middlebury .flo file")
            width, height = np.frombuffer(header, "<i4", offset=4).tolist()
            if n_bytes != 12 + 8 * width * height or min(width, height) < 1:
                raise InputError(
                    f"{path} has {n_bytes} bytes, which is not the size of {width}x{height} flow"
                )
            _check_flow_memory(path, (height, width))
            content = file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    return np.frombuffer(content, "<f4").reshape(height, width, 2)[..., ::-1]


def _read_kitti(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            _check_flow_memory(path, image.size[::-1])
            image.verify()  # OpenCV may read a damaged file
    except InputError:
        raise
    except Exception as error:  # Pillow raises various errors for broken bytes
        raise InputError(
            f"{path} is not a 16-bit colour PNG, the KITTI format of flow, or is damaged ({error})"
        ) from error
    with native_output_hidden():
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"{path} is not a 16-bit colour PNG, the KITTI format of flow")
    is_known, flow = image[..., 0], image[..., 1:]  # OpenCV reads BGR, which is (is_known, dy, dx)
    flow = (flow.astype(np.float32) - 2**15) / 64
    flow[is_known == 0] = np.nan
    return flow


def _check_flow_memory(path: Path, shape: tuple[int, int]) -> None:
    check_memory(_FLOW_BYTES * math.prod(shape), f"{path} of {size_text(shape)} pixels")
