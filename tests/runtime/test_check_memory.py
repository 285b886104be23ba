"""Announced sizes are held against the free memory before anything is allocated."""

import io
import re
import struct
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import SHORT_TRAINING, fails_with, insert_png_chunk, write_annotations, write_flo
from lib.datasets.bsds import _read_cells
from lib.datasets.masks import read_mask as read_davis_mask
from lib.files.animation import AnimatedImage
from lib.files.frames import VideoFile
from lib.files.images import read_image, read_image_shape, read_mask
from lib.inference import Segmenter
from lib.inference.video_files import write_video
from lib.optflow.archive import FlowArchive
from lib.optflow.sources import read_flow_file
from lib.runtime import memory
from lib.runtime.errors import InputError
from lib.runtime.memory import check_memory
from lib.weights import load_model, read_checkpoint, save_checkpoint
from model import SSNModel
from train_base_model import main as train

FREE = "1.5 GB are free on cpu"


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1_500_000_000)
    monkeypatch.setattr(memory, "_UNCHECKED", 0)


@pytest.fixture
def allocates_little():
    """Fail if the test allocates over 20 MB at a time in Python and NumPy."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def png_of_zeros(shape, *, bits, kind):
    """Return a PNG of black pixels, which takes a thousandth of their size; kind 0 is grey, 2 is RGB."""
    height, width = shape
    row = bytes(1 + width * bits // 8 * (3 if kind == 2 else 1))
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def declare(content, shape):
    """Return a PNG file whose header declares another size."""
    height, width = shape
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize("free", [None, 10])
def test_memory_that_is_enough_or_unknown(monkeypatch, free):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    check_memory(10, "a file")


def test_small_sizes_are_not_checked(monkeypatch):
    monkeypatch.setattr(memory, "_UNCHECKED", 2**26)
    monkeypatch.setattr(memory, "free_memory", lambda device: 10)
    check_memory(2**26, "a file")
    with pytest.raises(InputError):
        check_memory(2**26 + 1, "a file")


def test_message_has_both_amounts():
    with pytest.raises(InputError, match=rf"^a\.png needs at least 2\.5 GB, {FREE}$"):
        check_memory(2_500_000_000, "a.png")


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_large_image_in_a_small_file(tmp_path, read, allocates_little, monkeypatch, recwarn):
    path = tmp_path / "a.png"
    path.write_bytes(png_of_zeros((20_000, 20_000), bits=1, kind=0))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as in the scripts
    assert read_image_shape(path) == (20_000, 20_000)
    with pytest.raises(InputError, match=rf"^{path} of 20000x20000 pixels needs at least 2\.8 GB, {FREE}$"):
        read(path)
    assert not recwarn.list


def test_header_of_an_image_that_must_be_decoded(tmp_path, allocates_little, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path)
    insert_png_chunk(path, b"eXIf", b"MM\0*\0\0\0\x08\0\0", before=b"IEND")  # EXIF after the pixels
    path.write_bytes(declare(path.read_bytes(), (50_000, 50_000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(InputError, match=rf"^{path} of 50000x50000 pixels needs at least 17\.5 GB"):
        read_image_shape(path)


def test_photograph_of_100_megapixels_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png_of_zeros((10_000, 10_000), bits=8, kind=0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).shape == (10_000, 10_000, 3)


def test_mask_of_davis_and_animation(tmp_path, allocates_little, monkeypatch):
    path = tmp_path / "a.png"
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "PNG")
    path.write_bytes(declare(content.getvalue(), (30_000, 20_000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for read in (lambda: read_davis_mask(path, (8, 8)), lambda: AnimatedImage("a", path)):
        with pytest.raises(
            InputError, match=rf"^{path} of 20000x30000 pixels needs at least 4\.2 GB, {FREE}$"
        ):
            read()


def test_flow_files(tmp_path, allocates_little, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    flo, png = tmp_path / "a.flo", tmp_path / "a.png"
    write_flo(flo, np.zeros((3, 4, 2)))
    content = flo.read_bytes()
    flo.write_bytes(content[:4] + np.array([10**9, 10**9], "<i4").tobytes() + content[12:])
    with pytest.raises(
        InputError, match=f"{flo} has 108 bytes, which is not the size of 1000000000x1000000000"
    ):
        read_flow_file(flo)
    with flo.open("r+b") as file:  # a file with holes takes no space on the disk
        file.seek(4)
        file.write(np.array([20_000, 10_000], "<i4").tobytes())
        file.truncate(12 + 8 * 20_000 * 10_000)
    with pytest.raises(InputError, match=rf"{flo} of 20000x10000 pixels needs at least 3\.2 GB, {FREE}"):
        read_flow_file(flo)
    png.write_bytes(declare(png_of_zeros((3, 4), bits=16, kind=2), (30_000, 20_000)))
    with pytest.raises(InputError, match=rf"{png} of 20000x30000 pixels needs at least 9\.6 GB, {FREE}"):
        read_flow_file(png)


def test_text_named_like_flow_of_kitti(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no picture at all, but of some length")
    with pytest.raises(InputError, match=f"{path} is not a 16-bit colour PNG"):
        read_flow_file(path)


def test_flow_archive(tmp_path, allocates_little):
    path = tmp_path / "optflow_dis_car.h5"
    with h5py.File(path, "w") as file:
        for name in ("flows", "inv_flows"):
            file.create_dataset(name, (10, 50_000, 40_000, 2), np.float16, chunks=(1, 8, 8, 2))
    assert path.stat().st_size < 10_000
    archive = FlowArchive(path)
    with pytest.raises(InputError, match=rf"a frame of {path}, 40000x50000, needs at least 48\.0 GB, {FREE}"):
        archive.read_frame(0)


def test_annotation_file(tmp_path, allocates_little):
    path = tmp_path / "a.mat"
    write_annotations(path, [np.ones((3, 4))])
    header, variable = path.read_bytes()[:128], bytearray(path.read_bytes()[128:])
    variable[4:8] = struct.pack("<I", 2_000_000_000)
    compressed = zlib.compress(variable)
    path.write_bytes(header + struct.pack("<II", 15, len(compressed)) + compressed)
    with pytest.raises(InputError, match=rf"{path}: a compressed variable needs at least 2\.0 GB, {FREE}"):
        _read_cells(path)


def test_video(tmp_path, monkeypatch, pyav):
    path = tmp_path / "a.mp4"
    with write_video(path, (64, 96), 10) as append:
        append(np.zeros((64, 96, 3), np.uint8))
    assert len(VideoFile("a", path)) == 1
    monkeypatch.setattr(memory, "free_memory", lambda device: 6 * 64 * 96 - 1)
    with pytest.raises(InputError, match=f"{path} of 96x64 pixels needs at least"):
        VideoFile("a", path)


def test_model_arguments(base_weights, allocates_little, monkeypatch):
    weights = read_checkpoint(base_weights)["weights"]
    for name in ("weight", "bias"):
        del weights[f"feature_extract.output_conv.0.{name}"]
    save_checkpoint({"weights": weights, "model_args": {"n_learned_features": 10**9}}, base_weights)
    built = []
    monkeypatch.setattr(SSNModel, "load_state_dict", lambda *_: built.append(1))
    with pytest.raises(InputError, match=rf"{base_weights}: the network needs at least 7096\.0 GB, {FREE}"):
        load_model(base_weights)
    save_checkpoint({"weights": weights, "model_args": {"n_learned_features": 10**4}}, base_weights)
    with pytest.raises(InputError, match=r"it lacks feature_extract\.output_conv\.0\.weight"):
        load_model(base_weights)
    assert built == []


def test_tensor_that_repeats_a_number(tmp_path, allocates_little):
    path = tmp_path / "a.pth"
    torch.save({"feature_extract.a": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(InputError, match=rf"{path}: the state dict needs at least 4000\.0 GB, {FREE}"):
        load_model(path)


@pytest.mark.parametrize(
    ("size", "batch_size", "expected"), [(100_000, 2, "5120.0 GB"), (64, 2_000_000, "2097.2 GB")]
)
def test_crops_of_a_step(bsds_root, tmp_path, capsys, size, batch_size, expected):
    argv = [*SHORT_TRAINING, f"--bsds_root={bsds_root}", f"--out_dir={tmp_path / 'run'}"]
    error = fails_with(train, [*argv, f"--crop_size={size}", f"--batchsize={batch_size}"], capsys)
    assert re.search(
        rf"--crop_size {size}: a step with --batchsize {batch_size} needs at least {expected}, {FREE}", error
    )
    assert not (tmp_path / "run").exists()


def test_image_for_the_network(monkeypatch):
    segmenter = Segmenter.from_checkpoint("none")
    image_rgb = np.zeros((30, 40, 3), np.uint8)
    assert segmenter(image_rgb, 4).n_measured == 4
    needed = 4 * (5 + 2 * 5) * 30 * 40
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    with pytest.raises(InputError, match="the image of 40x30 pixels needs at least"):
        segmenter(image_rgb, 4)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    assert segmenter(image_rgb, 4).n_measured == 4
