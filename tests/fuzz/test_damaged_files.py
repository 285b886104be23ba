"""Read files with flipped, inserted and missing bytes: a result or one line that names the file.

`pytest tests/fuzz --fuzz 1000 -n 2` tries 1000 damaged files of each kind, other ones in each run.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from helpers import make_quadrants, translated_frames, write_annotations, write_flo
from lib.datasets.bsds import _read_annotations
from lib.datasets.folder import _read_labels
from lib.datasets.masks import read_mask as read_object_mask
from lib.files.frames import open_video_file
from lib.files.images import read_image, read_mask
from lib.files.opencv import cv2
from lib.optflow.archive import FlowArchive, write_flow_archive
from lib.optflow.sources import read_flow_file
from lib.runtime.errors import InputError, RunError
from lib.runtime.notices import silence_readers
from lib.training.run_folder import find_resumable
from lib.weights import load_model, read_checkpoint, save_checkpoint
from model import SSNModel
from properties import given, settings, st

IMAGE_RGB, LABELS = make_quadrants(30, 44)
FRAMES = [frame[:48, :64] for frame in translated_frames(4, 1, 2)]
FLOW = np.full((20, 30, 2), 1.5, np.float32)


class Kind(NamedTuple):
    """Kind of file: how to write one, how the scripts read it, and if damage can never change the result."""

    suffix: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    has_checksum: bool = False


def image(suffix: str, pixels: np.ndarray = IMAGE_RGB, **options: Any) -> Kind:
    return Kind(suffix, lambda path: Image.fromarray(pixels).save(path, **options), read_rgb)


def read_rgb(path: Path) -> np.ndarray:
    image_rgb = read_image(path)
    assert image_rgb.dtype == np.uint8
    assert image_rgb.shape[2:] == (3,)
    return image_rgb


def write_kitti(path: Path) -> None:
    pixels = np.dstack([np.ones(FLOW.shape[:2]), 64 * FLOW + 2**15]).astype(np.uint16)
    cv2.imwrite(str(path), pixels)


def write_video(path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".mp4" else "mjpeg", rate=25)
        stream.height, stream.width = FRAMES[0].shape[:2]
        stream.pix_fmt = "yuv420p" if path.suffix == ".mp4" else "yuvj420p"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def write_animation(path: Path) -> None:
    first, *others = map(Image.fromarray, FRAMES)
    first.save(path, save_all=True, append_images=others, duration=40)


def read_video(path: Path) -> list[np.ndarray]:
    video = open_video_file(path)
    assert len(video) >= 0
    assert video.frame_rate > 0
    return list(video.read())


def write_flows(path: Path) -> None:
    with write_flow_archive(path, FLOW.shape[:2], {"method": "test"}) as writer:
        for _ in range(2):
            writer.append(FLOW, -FLOW)


def read_flows(path: Path) -> list[np.ndarray]:
    archive = FlowArchive(path)
    archive.read_attributes()
    return [archive.read_frame(idx) for idx in range(archive.n_frames)]


def write_weights(path: Path) -> None:
    torch.manual_seed(0)
    model_args = {"n_learned_features": 2, "n_iter": 2, "distance": "euclidean"}
    input_args = {"color_scale": 0.3, "pos_scale": 7.0}
    weights = SSNModel(**model_args).state_dict()
    merge_args = {"fine_factor": {10: 2.0}, "merge_pos_scale": {10: 0.5}}
    settings = {"model_args": model_args, "input_args": input_args, "merge_args": merge_args}
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors")
    save_checkpoint({"weights": weights, **settings}, path)


def write_state_dict(path: Path) -> None:
    torch.manual_seed(0)
    torch.save(SSNModel(n_learned_features=2).state_dict(), path)


def read_weights(path: Path) -> list[Any]:
    loaded = load_model(path)
    return [*loaded.model.state_dict().values(), loaded.scales, loaded.merging]


def write_last_checkpoint(path: Path) -> None:
    progress = {"step": 3, "moments": torch.arange(500.0), "options": {"lr": "0.1"}}
    save_checkpoint({"weights": {"weight": torch.ones(500)}, "model_args": {}, **progress}, path)


def read_last_checkpoint(path: Path) -> list[Any]:
    checkpoint = read_checkpoint(find_resumable(path.parent))
    return [checkpoint["step"], checkpoint["moments"], *checkpoint["weights"].values()]


KINDS = {
    "png": image(".png"),
    "png of 16 bits": image(".png", 256 * LABELS.astype(np.uint16)),
    "png of 16-bit colours": Kind(
        ".png", lambda path: cv2.imwrite(str(path), 256 * IMAGE_RGB.astype(np.uint16)), read_rgb
    ),
    "tiff of 16-bit colours": Kind(
        ".tif", lambda path: cv2.imwrite(str(path), 256 * IMAGE_RGB.astype(np.uint16)), read_rgb
    ),
    "png with a palette": Kind(
        ".png", lambda path: Image.fromarray(IMAGE_RGB).quantize(9).save(path), read_rgb
    ),
    "jpeg": image(".jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "progressive jpeg": image(".jpg", progressive=True),
    "tiff": image(".tif"),
    "lzw tiff": image(".tif", compression="tiff_lzw"),
    "tiff of 16 bits": image(".tif", 256 * LABELS.astype(np.uint16), compression="tiff_adobe_deflate"),
    "tiff of five bands": Kind(
        ".tif",
        lambda path: tifffile.imwrite(path, np.dstack([IMAGE_RGB] * 2)[..., :5], photometric="rgb"),
        lambda path: read_image(path, bands=(5, 1, 2)),
    ),
    "webp": image(".webp"),
    "gif": image(".gif"),
    "bmp": image(".bmp"),
    "ppm": image(".ppm"),
    "jpeg 2000": image(".jp2"),
    "mask": Kind(".png", Image.fromarray(255 * (LABELS > 1).astype(np.uint8)).save, read_mask),
    "object mask": Kind(
        ".png",
        Image.fromarray(LABELS.astype(np.uint8)).save,
        lambda path: read_object_mask(path, LABELS.shape),
    ),
    "labels": Kind(
        ".npy", lambda path: np.save(path, LABELS), lambda path: _read_labels(path, LABELS.shape, None)
    ),
    "annotations": Kind(
        ".mat",
        lambda path: write_annotations(path, [LABELS + 1, LABELS + 2]),
        lambda path: _read_annotations(path, LABELS.shape),
    ),
    "compressed annotations": Kind(
        ".mat",
        lambda path: write_annotations(path, [LABELS + 1, LABELS + 2], is_compressed=True),
        lambda path: _read_annotations(path, LABELS.shape),
    ),
    "flow archive": Kind(".h5", write_flows, read_flows),
    "middlebury flow": Kind(".flo", lambda path: write_flo(path, FLOW), read_flow_file),
    "kitti flow": Kind(".png", write_kitti, read_flow_file),
    "weights": Kind(".pth", write_weights, read_weights, has_checksum=True),
    "safetensors": Kind(".safetensors", write_weights, read_weights, has_checksum=True),
    "state dict": Kind(".pth", write_state_dict, read_weights, has_checksum=True),
    "checkpoint": Kind(".pth", write_last_checkpoint, read_last_checkpoint, has_checksum=True),
    "mp4": Kind(".mp4", write_video, read_video),
    "avi": Kind(".avi", write_video, read_video),
    "animated gif": Kind(".gif", write_animation, read_video),
    "animated webp": Kind(".webp", write_animation, read_video),
    "animated png": Kind(".png", write_animation, read_video),
}


@st.composite
def damaged(draw: Callable, content: bytes) -> bytes:
    """Draw a damaged copy: up to four bytes changed, headers more often, a few inserted, or the end cut."""
    copy = bytearray(content)
    offsets = st.integers(0, min(len(content), 256) - 1) | st.integers(0, len(content) - 1)
    for offset, bits in draw(st.lists(st.tuples(offsets, st.integers(1, 255)), max_size=4)):
        copy[offset] ^= bits
    if draw(st.integers(0, 3)) == 0:
        offset = draw(offsets)
        copy[offset:offset] = draw(st.binary(max_size=9))
    if draw(st.integers(0, 3)) == 0:
        del copy[draw(st.integers(0, len(copy))) :]
    return bytes(copy)


def same(values: list[Any], expected: list[Any]) -> bool:
    return all(
        value.equal(other) if isinstance(other, torch.Tensor) else value == other
        for value, other in zip(values, expected, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_gives_a_result_or_one_line(name, tmp_path, pytestconfig, capfd):
    kind = KINDS[name]
    path = tmp_path / ("last_model.pth" if name == "checkpoint" else f"file{kind.suffix}")
    kind.write(path)
    named = str(path.parent if name == "checkpoint" else path)
    content = path.read_bytes()
    expected = kind.read(path)
    n_examples = pytestconfig.getoption("--fuzz")

    @settings(max_examples=n_examples or 40, derandomize=not n_examples, deadline=None, database=None)
    @given(damaged(content))
    def check(copy):
        path.write_bytes(copy)
        result = error = None
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            silence_readers()
            try:
                result = kind.read(path)
            except (InputError, RunError) as raised:
                error = str(raised)
        assert not [str(warning.message) for warning in shown]
        assert capfd.readouterr().err == ""
        if error is None:
            assert not kind.has_checksum or same(result, expected)
        else:
            assert named in error
            assert "\n" not in error

    check()
