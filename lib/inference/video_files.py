"""Files that grow with the frames of a video: an overlay video, and labels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lib.files.atomic import atomic_path
from lib.files.frames import is_hd
from lib.files.hdf5 import write_hdf5
from lib.files.pyav import import_av
from lib.inference.tracks import TrackTable
from lib.runtime.errors import InputError, RunError, is_out_of_memory

VIDEO_SUFFIXES = (".mp4",)
VIDEO_LABEL_SUFFIXES = (".h5",)

_CODEC, _QUALITY = "libx264", {"crf": "18", "preset": "veryfast"}


class _Colors(NamedTuple):
    """Colour space of a video: name of its matrix in PyAV, and code in ISO/IEC 23091-2."""

    matrix: str
    code: int


_SD_COLORS, _HD_COLORS = _Colors("ITU601", 6), _Colors("ITU709", 1)
_LIMITED_RANGE = 1  # 16 to 235, in FFmpeg's numbers

Append = Callable[[np.ndarray], None]  # appends a frame to a file


class FrameFile:
    """File that grows frame by frame; it appears when the block ends.

    `writing` opens the file and gives the function that appends a frame. If this file cannot be written, a
    `RunError` is raised and no file appears. After another error that ends the video early, the file is kept
    with its frames; after an unexpected error it is removed.
    """

    def __init__(self, path: Path, writing: AbstractContextManager[Append]) -> None:
        self.path = path
        self.n_frames = 0  # in the file
        self._writing = writing
        self._stack = ExitStack()
        self._append: Append | None = None

    def append(self, pixels: np.ndarray) -> None:
        """Add a frame."""
        try:
            if self._append is None:
                self._append = self._stack.enter_context(self._writing)
            self._append(pixels)
        except BaseException as error:
            self.n_frames = 0
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        self.n_frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        n_frames, self.n_frames = self.n_frames, 0
        if isinstance(error, InputError | RunError | KeyboardInterrupt) or is_out_of_memory(error):
            kind, error, trace = None, None, None
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            self.n_frames = n_frames


@contextmanager
def write_video(path: Path, shape: tuple[int, int], frame_rate: float) -> Iterator[Append]:
    """Encode pictures of one size as H.264 in MP4."""
    av = import_av()
    # The codec halves the resolution of colours, which needs even sides. An odd side loses a pixel.
    height, width = (max(2, side - side % 2) for side in shape)
    # FFmpeg reads a relative name with a colon as a protocol.
    with atomic_path(path) as temporary, av.open(str(temporary.absolute()), "w") as container:
        stream = container.add_stream(_CODEC, rate=_to_fraction(frame_rate), options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        colors = _HD_COLORS if is_hd((height, width)) else _SD_COLORS
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = colors.code
        codec.color_range = _LIMITED_RANGE

        def append(picture: np.ndarray) -> None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=colors.matrix)
            try:
                packets = stream.encode(frame)
            except av.FFmpegError as error:
                if isinstance(error, OSError):
                    raise
                raise RunError(
                    f"{_CODEC} cannot encode frames of {width}x{height} ({error.strerror})"
                ) from error
            container.mux(packets)

        yield append
        container.mux(stream.encode())


def _to_fraction(frame_rate: float) -> Fraction:
    """Return a frame rate as a fraction with small numbers, such as 30000/1001 or 1/60; at least 1e-4."""
    frame_rate = max(frame_rate, 1e-4)  # the numbers of the format have 32 bits
    if frame_rate < 1:
        return 1 / Fraction(1 / frame_rate).limit_denominator(1001)
    return Fraction(frame_rate).limit_denominator(1001)


@contextmanager
def write_labels(
    path: Path, shape: tuple[int, int], *, levels: Sequence[int] = (), tables: Sequence[TrackTable] = ()
) -> Iterator[Append]:
    """Write label maps, (n_levels, H, W) for each frame, to an HDF5 file.

    It has these compressed datasets:

    - `labels`, (frames, H, W) int32, or `level_<N>` for each of several `levels`;
    - for tracked labels, whose `tables` are complete when the block ends: `tracks`, or `tracks_<N>` for each
      level, a row of dtype `TRACK` for each label.
    """
    suffixes = [f"_{level}" for level in levels] or [""]
    with write_hdf5(path) as writing:
        datasets = [
            writing.file.create_dataset(
                f"level{suffix}" if suffix else "labels",
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(1, *shape),
                dtype=np.int32,
                compression="gzip",
                shuffle=True,
            )
            for suffix in suffixes
        ]

        def append(label_maps: np.ndarray) -> None:
            for dataset, labels in zip(datasets, label_maps, strict=True):
                dataset.resize(len(dataset) + 1, axis=0)
                dataset[-1] = labels
            writing.raise_failed_write()

        yield append
        for suffix, table in zip(suffixes, tables, strict=False):
            writing.file.create_dataset(f"tracks{suffix}", data=table.rows, compression="gzip")
