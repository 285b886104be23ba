"""Results and refusals of the page."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import make_quadrants
from lib.files.images import read_image
from lib.files.sessions import SessionFiles
from lib.inference import Segmenter
from lib.inference import page as page_module
from lib.inference.page import NO_IMAGE, PICTURES, Page, PageResult, draw_pictures
from lib.runtime.errors import InputError, TooLargeError

SHAPE = (60, 92)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    (folder / "upload").mkdir(parents=True)
    return SessionFiles(folder)


@pytest.fixture
def page(base_weights, files, monkeypatch):
    """A page that accepts images of up to 60 x 92 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restores it
    return Page(base_weights, files, max_megapixels=SHAPE[0] * SHAPE[1] / 1e6)


@pytest.fixture
def image(files):
    return save(files, make_quadrants(*SHAPE)[0])


def save(files, image_rgb, name="image.png"):
    path = files.folder / "upload" / name
    Image.fromarray(image_rgb).save(path)
    return path


def segment(page, path, n_spixels=20, compactness=1, n_iter=3):
    return page.segment(path, n_spixels, compactness, n_iter, session="one")


def test_result(page, files, image, base_weights):
    result = segment(page, image, 20, 2.5, 4)
    expected = Segmenter.from_checkpoint(base_weights, pos_scale_dist=2.5, n_iter=4)(read_image(image), 20)
    assert result.text == "20 superpixels"
    np.testing.assert_array_equal(np.load(result.labels), expected.labels)
    assert [path.stem for path in result.pictures] == list(PICTURES)
    for path, pixels in zip(result.pictures, draw_pictures(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    assert not page.is_computing
    files.close("one")
    assert list(files.folder.iterdir()) == []


def test_without_image(page):
    assert segment(page, None) == PageResult("Drop an image above.", (None, None, None), None)


def test_broken_file(page, files):
    path = files.folder / "upload" / "notes.jpg"
    path.write_text("This is no image.")
    reason = "notes.jpg is not a readable image (cannot identify image file 'notes.jpg')"
    assert segment(page, path) == PageResult(reason)


def test_cut_file(page, files, image):
    image.write_bytes(image.read_bytes()[:2000])
    result = segment(page, image)
    assert result.text.startswith("image.png is not a readable image (")
    assert result == PageResult(result.text)


def test_one_row_beyond_the_limit(page, files):
    path = save(files, make_quadrants(SHAPE[0] + 1, SHAPE[1])[0], "large.png")
    reason = "large.png has more than 0.00552 megapixels, the limit of this page"
    assert segment(page, path) == PageResult(reason)


@pytest.mark.filterwarnings("error")
def test_no_warning_at_the_limit(page, image):
    assert segment(page, image).text == "20 superpixels"


def test_size_is_read_before_the_pixels(page, files):
    path = save(files, make_quadrants(4, 4)[0], "bomb.png")
    size = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = path.read_bytes()
    path.write_bytes(content[:12] + size + struct.pack(">I", zlib.crc32(size)) + content[33:])
    assert segment(page, path).text == "bomb.png has more than 0.00552 megapixels, the limit of this page"


def test_other_file(page, tmp_path):
    path = tmp_path / "secret.png"
    Image.fromarray(make_quadrants(*SHAPE)[0]).save(path)
    assert segment(page, path) == PageResult("secret.png is not an upload")


def test_deleted_upload(page, files):
    assert segment(page, files.folder / "upload" / "gone.png") == PageResult("no image file gone.png")


def test_image_of_too_few_pixels(page, files):
    path = save(files, make_quadrants(3, 4)[0], "tiny.png")
    assert segment(page, path) == PageResult("Superpixels: 20 is above the 12 pixels of the image")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_spixels": 2001}, "Superpixels: enter a number from 10 to 2000"),
        ({"n_spixels": None}, "Superpixels: enter a number from 10 to 2000"),
        ({"n_spixels": "20"}, "Superpixels: enter a number from 10 to 2000"),
        ({"compactness": 0}, "Compactness, 1 as trained: enter a number from 0.2 to 5"),
        ({"compactness": float("nan")}, "Compactness, 1 as trained: enter a number from 0.2 to 5"),
        ({"n_iter": 0}, "Iterations: enter a number from 1 to 20"),
    ],
)
def test_setting_out_of_range(page, image, settings, reason):
    assert segment(page, image, **settings) == PageResult(reason)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        TooLargeError("image.png needs at least 9.0 GB"),
    ],
    ids=["numpy", "cuda", "cpu", "size"],
)
@pytest.mark.parametrize("place", ["read_image", "Segmenter.__call__", "draw_pictures"])
def test_out_of_memory(page, image, monkeypatch, error, place):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(f"lib.inference.page.{place}", fail)
    reason = "out of memory: image.png is too large for this machine; drop a smaller image"
    assert segment(page, image) == PageResult(reason)


def test_out_of_memory_in_pillow(page, image, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    assert segment(page, image).text.startswith("out of memory: image.png")


def test_error_of_the_program_is_raised(page, image, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Segmenter, "__call__", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        segment(page, image)
    assert not page.is_computing


def test_image_removed_during_a_computation(page, image, monkeypatch):
    def read_and_remove(path):
        assert page.remove("one") == NO_IMAGE
        return read_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(page_module, "read_image", read_and_remove)
        assert segment(page, image) == NO_IMAGE
    assert segment(page, image).text == "20 superpixels"


def test_session_ends_during_a_computation(page, files, image, monkeypatch):
    def read_and_end(path):
        assert page.is_computing
        pixels = read_image(path)
        files.close("one")
        return pixels

    monkeypatch.setattr(page_module, "read_image", read_and_end)
    assert segment(page, image) == PageResult("The session has ended.")
    assert list(files.folder.iterdir()) == []


def test_weights_of_another_model(composite_weights, files):
    with pytest.raises(InputError, match="base"):
        Page(composite_weights, files, max_megapixels=1)
