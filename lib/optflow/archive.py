"""Flow archives: the optical flow of a video in one HDF5 file, read and written frame by frame.

A file `optflow_<method>_<video>.h5` holds two HDF5 datasets, each (n_frames - 1, H, W, 2) float16:

- `flows[i]` is the flow from frame i to frame i + 1,
- `inv_flows[i]` is the flow from frame i + 1 to frame i.

The last axis is (dy, dx) in pixels of the frames, which are 480x854 for DAVIS. vvarga90/ssn-pytorch-optflow
uses the same format.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from lib.files.hdf5 import HDF5Writing, open_hdf5, write_hdf5
from lib.files.sizes import size_text
from lib.runtime.errors import InputError, missing_path
from lib.runtime.memory import check_memory

FORWARD, BACKWARD = "flows", "inv_flows"

_FRAME_BYTES = 16 + 4 + 4  # per pixel: the flow in float32, one direction in float16, and the test for NaN

_MAX_FLOW = float(np.finfo(np.float16).max)


class FlowArchive:
    """Flow archive to read from.

    Every read opens the file, so an archive can be passed to worker processes. Only the requested frame is
    read, whatever the chunk layout. Raises `InputError` if the file is missing or damaged, or has another
    layout.

    Attributes
    ----------
    n_frames : int
        Number of frames of the video, one more than flows in each direction.
    frame_shape : tuple of int
        (H, W) of its frames.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise missing_path(path, "flow archive")
        with open_hdf5(self.path) as file:
            missing = [name for name in (FORWARD, BACKWARD) if not isinstance(file.get(name), h5py.Dataset)]
            if missing:
                raise InputError(
                    f"{path} is no flow archive: it lacks the dataset {' and '.join(missing)} "
                    f"and holds {', '.join(map(str, file)) or 'nothing'}"
                )
            for name in (FORWARD, BACKWARD):
                shape, dtype = file[name].shape, file[name].dtype
                if len(shape) != 4 or shape[3] != 2 or dtype.kind != "f":
                    raise InputError(
                        f"{name} of {path} is {shape} {dtype}, "
                        "but must be (n_frames - 1, height, width, 2) floating point"
                    )
            shape, inverse_shape = file[FORWARD].shape, file[BACKWARD].shape
        if shape != inverse_shape:
            raise InputError(f"{path}: {FORWARD} are {shape}, but {BACKWARD} are {inverse_shape}")
        if shape[0] == 0:
            raise InputError(f"{path} holds no flow: a video with one frame has none")
        self.n_frames = shape[0] + 1
        self.frame_shape = shape[1:3]

    def read_frame(self, frame_idx: int) -> np.ndarray:
        """Read the flow of frame `frame_idx`, counted from 0, to its next and to its previous frame.

        Returns (H, W, 4) float32, [fwd_dy, fwd_dx, bwd_dy, bwd_dx] in pixels; zeros if the next or previous
        frame does not exist. Raises `InputError` if this frame does not exist, or its flow is damaged, NaN,
        infinite or beyond float16.
        """
        if not 0 <= frame_idx < self.n_frames:
            raise InputError(f"{self.path} covers frames 0 to {self.n_frames - 1}, not frame {frame_idx}")
        n_bytes = _FRAME_BYTES * math.prod(self.frame_shape)
        check_memory(n_bytes, f"a frame of {self.path}, {size_text(self.frame_shape)},")
        flow = np.zeros((*self.frame_shape, 4), dtype=np.float32)
        with open_hdf5(self.path) as file:
            if frame_idx < self.n_frames - 1:
                flow[..., :2] = file[FORWARD][frame_idx]
            if frame_idx > 0:
                flow[..., 2:] = file[BACKWARD][frame_idx - 1]
        if not (np.abs(flow) <= _MAX_FLOW).all():
            raise InputError(
                f"{self.path}: the flow of frame {frame_idx} is NaN, infinite or above {_MAX_FLOW:.0f} pixels"
            )
        return flow

    def read_attributes(self) -> dict[str, str]:
        """Return the notes of the writer on the flow, such as its settings, each in one line."""
        with open_hdf5(self.path) as file:
            return {name: _read_text(value) for name, value in file.attrs.items()}


class FlowArchiveWriter:
    """Writer that appends pairs of flows to an archive; `write_flow_archive` creates it."""

    def __init__(self, writing: HDF5Writing, path: Path, frame_shape: tuple[int, int]) -> None:
        self._writing = writing
        self._path = path
        shape = (*frame_shape, 2)
        # LZF, which comes with h5py, makes files 10 to 20 % larger than gzip does, but takes half the time to
        # write. fletcher32 is a checksum.
        layout = {"maxshape": (None, *shape), "chunks": (1, *shape), "dtype": np.float16}
        filters = {"compression": "lzf", "shuffle": True, "fletcher32": True}
        self._datasets = [
            writing.file.create_dataset(name, (0, *shape), **layout, **filters)
            for name in (FORWARD, BACKWARD)
        ]

    def append(self, forward: np.ndarray, backward: np.ndarray) -> None:
        """Append the flow from the last frame to a new frame and back, each (H, W, 2), (dy, dx) in pixels.

        Raises `InputError` if a value is NaN, infinite or beyond float16, and `OSError` if writing fails.
        """
        for dataset, flow in zip(self._datasets, (forward, backward), strict=True):
            with np.errstate(over="ignore"):
                flow = flow.astype(np.float16)
            if not np.isfinite(flow).all():
                raise InputError(
                    f"{self._path.name}: the flow between frames {len(dataset)} and {len(dataset) + 1} is "
                    "NaN, infinite or beyond 65504 pixels"
                )
            dataset.resize(len(dataset) + 1, axis=0)
            dataset[-1] = flow
        self._writing.raise_failed_write()


@contextmanager
def write_flow_archive(
    path: Path, frame_shape: tuple[int, int], attributes: Mapping[str, str]
) -> Iterator[FlowArchiveWriter]:
    """Write an archive of frames (H, W) to a temporary file, renamed to `path` if the block succeeds.

    The attributes say how the flow was made; `FlowArchive.read_attributes` returns them. A failed write, for
    example on a full disk, raises `RunError`.
    """
    with write_hdf5(path) as writing:
        # Texts of fixed length: HDF5 may crash when it reads damaged texts of variable length.
        writing.file.attrs.update({name: np.bytes_(text.encode()) for name, text in attributes.items()})
        yield FlowArchiveWriter(writing, path, frame_shape)


def archive_name(method: str, video: str) -> str:
    """Return the file name of a video's flow, estimated with a method such as "dis" or "gma"."""
    return f"optflow_{method}_{video}.h5"


def find_archives(
    folder: Path, videos: list[str], method: str | None = None, *, parameter: str = "davis_optflow_folder"
) -> list[FlowArchive]:
    """Find and open the archives of videos in a folder; `parameter` is the folder's name in errors.

    The method of the flow is needed if a video has archives of several methods, or if the method's name holds
    an underscore: then the file name alone does not say where the video's name starts. Raises `InputError` if
    archives are missing (the message names all), or a video has several.
    """
    all_paths = sorted(folder.glob("optflow_*.h5"))
    paths, missing = [], []
    for video in dict.fromkeys(videos):
        known = {}
        for path in all_paths:
            name = path.name.removeprefix("optflow_").removesuffix(f"_{video}.h5")
            if path.name == archive_name(name, video) and (name == method if method else "_" not in name):
                known[name] = path
        if len(known) > 1:
            raise InputError(
                f"{folder} holds the flow of {video} by several methods: choose one with `optflow_method` "
                f"{' or '.join(sorted(known))}"
            )
        if known:
            paths.append(next(iter(known.values())))
        else:
            missing.append(archive_name(method or "<method>", video))
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}; estimate_optflow.py makes them", parameter=parameter
        )
    return [FlowArchive(path) for path in paths]


def _read_text(value: object) -> str:
    """Return the value of an attribute in one line."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return " ".join(text.split())
