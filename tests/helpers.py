"""Helpers for several tests: small images, videos and failures."""

import argparse
import os
import signal
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import gaussian_filter
from torch.overrides import TorchFunctionMode

from lib import cli
from lib.cli.options import options_as_strings
from lib.cli.training import _as_arguments
from lib.files.frames import list_in_order
from lib.files.gdal import import_rasterio
from lib.runtime.signals import stop_flag
from lib.training import run as training_run

# (shape of an image, number of superpixels), with edge cases of the grid.
SHAPES_AND_COUNTS = [
    ((20, 31), 12),  # cells of unequal size
    ((20, 31), 1),
    ((20, 31), 620),  # one pixel a cell
    ((31, 20), 50),  # portrait
    ((3, 40), 5),  # lower than a cell row would be
    ((17, 1), 4),
    ((1, 23), 23),
    ((1, 1), 1),
]


QUADRANT_COLORS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 210], [230, 220, 60]], np.uint8)


def make_quadrants(height=60, width=92, *, seed=0):
    """Return an image of four slightly noisy coloured quadrants, and its labels."""
    row, col = np.mgrid[:height, :width]
    labels = (2 * (row >= height // 2) + (col >= width // 2)).astype(np.int32)
    noise = np.random.default_rng(seed).integers(-10, 11, (height, width, 3))
    image_rgb = np.clip(QUADRANT_COLORS[labels].astype(int) + noise, 0, 255).astype(np.uint8)
    return image_rgb, labels


def agreement(labels, expected):
    """Return the share of pixels in the same region of two label maps, whatever the regions' numbers."""
    pairs, counts = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1, return_counts=True)
    shares = []
    for side in pairs:
        largest = np.zeros(side.max() + 2)
        np.maximum.at(largest, side + 1, counts)  # number -1 is outside the mask
        shares.append(largest.sum() / labels.size)
    return min(shares)


# Options of a training run that takes a second.
SHORT_TRAINING = (
    "--train_iter=2",
    "--log_interval=1",
    "--test_interval=2",
    "--batchsize=2",
    "--crop_size=64",
    "--nworkers=0",
    "--nspix=24",
    "--val_nspix=24",
    "--lr=0.01",
    "--device=cpu",
    "--precision=fp32",  # equal results on all processors
)


@contextmanager
def full_disk(n_bytes):
    """Limit the size of files, as a full disk would."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_annotations(path: Path, annotations, *, is_compressed=False):
    """Write a .mat file in the layout of BSDS500, where all files are compressed."""
    cells = np.empty((1, len(annotations)), dtype=object)
    for idx, annotation in enumerate(annotations):
        cells[0, idx] = {"Segmentation": annotation.astype(np.uint16), "Boundaries": annotation > 1}
    savemat(path, {"groundTruth": cells}, do_compression=is_compressed)


def write_geotiff(path, values, *, roles=None, mask=None, **options):
    """Write values (H, W, bands) with rasterio; `roles` are names of colours, `mask` is (H, W) bool."""
    rasterio = import_rasterio()
    height, width, count = values.shape
    options = {"driver": "GTiff", "dtype": values.dtype, **options}
    with rasterio.open(path, "w", height=height, width=width, count=count, **options) as file:
        file.write(np.moveaxis(values, 2, 0))
        if roles:
            file.colorinterp = [rasterio.enums.ColorInterp[role] for role in roles]
        if mask is not None:
            file.write_mask(mask)


def fails_with(main, argv, capsys):
    """Run a script that must fail on bad input; return its one error line."""
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: main(argv))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@contextmanager
def ctrl_c_in_second_step(monkeypatch):
    """Interrupt the training run in the block during its second step, and expect it to stop."""
    original = training_run.compute_loss_terms
    calls = []

    def press_in_second_call(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "compute_loss_terms", press_in_second_call)
        with pytest.raises(KeyboardInterrupt), stop_flag.set_by_signals():
            yield


def check_recipe(script, name):
    """Check that a recipe of a training script holds values that its command line gives.

    Options of a run are stored as strings and parsed again when the run is resumed.
    """
    parser, recipe = script.build_parser(), script.RECIPES[name]
    assert recipe.keys() <= vars(parser.parse_args([])).keys()
    stored = options_as_strings(argparse.Namespace(**recipe))
    arguments = [argument for option in stored.items() for argument in _as_arguments(*option)]
    parsed = vars(parser.parse_args(arguments))
    assert {option: parsed[option] for option in recipe} == recipe
    for option, value in recipe.items():
        assert type(parsed[option]) is type(value), option


def in_thread(function, *args, **options):
    """Call a function outside the main thread, as a notebook or a web server does."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *args, **options).result()


class LineFit(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.matrix = torch.nn.Parameter(torch.zeros(3, 2))  # for a second optimizer

    def forward(self, batch):
        return batch @ (self.weight + self.matrix.sum(1))


HEIGHT, WIDTH = 210, 260  # of frames with known motion
INSIDE = np.s_[20:-20, 20:-20]  # excludes what enters or leaves the frame


def make_texture(height=HEIGHT, width=WIDTH):
    """Return smooth random patches, (H, W) float, 0 to 255."""
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(height, width)), 2)
    return 255 * (texture - texture.min()) / np.ptp(texture)


def translated_frames(n_frames, dy, dx):
    """Return frames (H, W, 3) uint8, each moved by (dy, dx) against the last."""
    texture = make_texture(HEIGHT + 40, WIDTH + 40)
    frames = []
    for idx in range(n_frames):
        top, left = 20 - idx * dy, 20 - idx * dx
        frames.append(np.repeat(texture[top : top + HEIGHT, left : left + WIDTH, None], 3, axis=2))
    return [frame.round().astype(np.uint8) for frame in frames]


def write_frames(folder, frames):
    folder.mkdir(exist_ok=True)
    for idx, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{idx}.png")
    return list_in_order(folder, (".png",))


def write_flo(path, flow):
    """Write (dy, dx) in the Middlebury format."""
    height, width, _ = flow.shape
    header = np.float32(202021.25).tobytes() + np.array([width, height], dtype="<i4").tobytes()
    path.write_bytes(header + flow[..., ::-1].astype("<f4").tobytes())


def insert_png_chunk(path, kind, data, *, before=b"IDAT"):
    """Insert a chunk into a PNG file."""
    content = path.read_bytes()
    at = content.index(before) - 4
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content[:at] + chunk + content[at:])


# Functions that return values of a tensor to Python, or a result whose shape depends on them. On a GPU they
# wait until all earlier work is done.
WAITING = {
    *("item", "tolist", "numpy", "cpu", "equal", "allclose"),
    *("__bool__", "__int__", "__float__", "__index__", "__contains__", "__repr__", "__format__"),
    *("nonzero", "argwhere", "unique", "masked_select", "repeat_interleave", "bincount", "synchronize"),
}


class WaitingCalls(TorchFunctionMode):
    """Collect the names of the functions called within the block that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        is_mask = name in ("__getitem__", "__setitem__") and any(
            isinstance(idx, torch.Tensor) and idx.dtype == torch.bool
            for idx in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if name in WAITING or is_mask:
            self.names.append(name)
        return func(*args, **(kwargs or {}))
