"""Results and refusals of the page."""

import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import make_quadrants, translated_frames
from lib.files.images import read_image
from lib.files.sessions import SessionFiles
from lib.inference import Segmenter
from lib.inference import page as page_module
from lib.inference.outputs import OverlayStyle
from lib.inference.page import NO_IMAGE, Page, PageResult, estimate_flow
from lib.inference.page_settings import DOWNLOADS, Drawing, Inputs
from lib.runtime.errors import InputError, TooLargeError
from lib.weights import save_checkpoint, shipped_weights
from model import SSNModel

SHAPE = (60, 92)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    (folder / "upload").mkdir(parents=True)
    return SessionFiles(folder)


@pytest.fixture
def page(base_weights, composite_weights, files, monkeypatch):
    """A page that accepts images of up to 60 x 92 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restores it
    return Page(base_weights, composite_weights, files, max_megapixels=SHAPE[0] * SHAPE[1] / 1e6)


@pytest.fixture
def image(files):
    return save(files, make_quadrants(*SHAPE)[0])


def save(files, image_rgb, name="image.png"):
    path = files.folder / "upload" / name
    Image.fromarray(image_rgb).save(path)
    return path


def copy(files, weights):
    """Upload a weight file."""
    return Path(shutil.copy(weights, files.folder / "upload"))


def segment(page, path, n_spixels=20, compactness=1, n_iter=3, *, download="Labels (.npy)", **inputs):
    drawing = Drawing(download=download)
    return page.segment(Inputs(path, n_spixels, compactness, n_iter, **inputs), drawing, session="one")


def redraw(page, level, **drawing):
    return page.redraw(level, Drawing(**drawing), session="one")


def read_pixels(path):
    return np.asarray(Image.open(path))


def test_result(page, files, image, base_weights):
    result = segment(page, image, 20, 2.5, 4)
    expected = Segmenter.from_checkpoint(base_weights, pos_scale_dist=2.5, n_iter=4)(read_image(image), 20)
    assert result.text == "20 superpixels"
    assert result.download.name == "image_labels.npy"
    np.testing.assert_array_equal(np.load(result.download), expected.labels)
    before, after = result.pictures
    np.testing.assert_array_equal(read_pixels(before), read_image(image))
    np.testing.assert_array_equal(read_pixels(after), OverlayStyle().draw(expected))
    assert not page.is_computing
    page.close("one")
    assert list(files.folder.iterdir()) == []


def test_levels_are_cut_from_the_stored_tree(page, image, base_weights, monkeypatch):
    assert segment(page, image).has_levels
    expected = Segmenter.from_checkpoint(base_weights)(read_image(image), 20)

    def fail(*args, **kwargs):
        raise AssertionError("a new segmentation")

    monkeypatch.setattr(Segmenter, "__call__", fail)
    for level in (1, 7, 20):
        result = redraw(page, level, download="Labels (.npy)")
        assert result.text == f"{level} superpixels"
        np.testing.assert_array_equal(np.load(result.download), expected.at(level).labels)
    assert redraw(page, 21) == PageResult("Level: enter a number from 1 to 20")
    assert redraw(page, 7).text == "7 superpixels"  # a refused level keeps the superpixels


def test_style_and_colour(page, image):
    segment(page, image)
    before, borders = map(read_pixels, redraw(page, 20, color="red", width=1).pictures)
    assert (borders == (255, 0, 0)).all(-1).any()
    assert not (borders == (255, 255, 0)).all(-1).any()
    wide = read_pixels(redraw(page, 20, color="red", width=5).pictures[1])
    assert (wide == (255, 0, 0)).all(-1).sum() > 2 * (borders == (255, 0, 0)).all(-1).sum()
    means = read_pixels(redraw(page, 4, style="Mean colours").pictures[1])
    assert len(np.unique(means.reshape(-1, 3), axis=0)) <= 4 < len(np.unique(before.reshape(-1, 3), axis=0))


@pytest.mark.parametrize("name", DOWNLOADS.names)
def test_downloads(page, image, name):
    result = segment(page, image, download=name)
    content = result.download.read_bytes()
    assert result.download.name == f"image_{DOWNLOADS.values[name].ending}"
    counted = {
        "Labels (.npy)": lambda: np.load(result.download).max() + 1,
        "Outlines (.geojson)": lambda: len(json.loads(content)["features"]),
        "Outlines (.svg)": lambda: content.count(b"<path"),
        "Annotations, COCO (.json)": lambda: len(json.loads(content)["annotations"]),
        "Annotations, labelme (.json)": lambda: len(json.loads(content)["shapes"]),
    }
    if name in counted:
        assert counted[name]() == 20
    if "labelme" in name:
        assert json.loads(content)["imagePath"] == "image.png"


def test_file_that_cannot_hold_the_superpixels(page, image):
    result = segment(page, image, 300, download="Annotations, CVAT (.zip)")
    assert result.text.startswith("300 superpixels; no file: ")
    assert "255" in result.text
    assert str(image.parent) not in result.text
    assert result.download is None
    assert result.pictures[1].exists()


def test_few_drawings_are_kept(page, image):
    results = [segment(page, image), *(redraw(page, level) for level in range(5, 10))]
    assert [result.pictures[1].exists() for result in results] == [False] * 3 + [True] * 3
    assert results[-1].pictures[0].exists()


def test_nothing_to_redraw(page, files, image):
    assert redraw(page, 5) is None
    segment(page, image)
    segment(page, image, 5000)  # refused
    assert redraw(page, 5) is None
    segment(page, image)
    page.remove("one")
    assert redraw(page, 5) is None


def test_other_superpixels_during_a_drawing(page, image, monkeypatch):
    segment(page, image)
    draw = OverlayStyle.draw

    def draw_late(*args, **kwargs):
        monkeypatch.setattr(OverlayStyle, "draw", draw)
        assert segment(page, image, 30).text == "30 superpixels"
        return draw(*args, **kwargs)

    monkeypatch.setattr(OverlayStyle, "draw", draw_late)
    assert redraw(page, 5) is None
    assert redraw(page, 30).text == "30 superpixels"


COMPOSITE = "Composite, two frames"


def test_composite_of_two_frames(page, files, composite_weights):
    first, second = (frame[: SHAPE[0], : SHAPE[1]] for frame in translated_frames(2, 0, 3))
    second = np.concatenate([first[:, :46], second[:, 46:]], axis=1)  # the right half moves to the right
    frames = [save(files, first, "0.png"), save(files, second, "1.png")]
    flow = estimate_flow(*frames, read_image(frames[0]))
    assert abs(np.median(flow[10:-10, 60:-10, 1]) - 3) < 0.5
    labels = segment_flow(composite_weights, frames[0], flow)
    result = segment(page, frames[0], model=COMPOSITE, next_frame=frames[1])
    np.testing.assert_array_equal(np.load(result.download), labels)
    trained = shipped_weights("composite")
    labels = segment_flow(trained, frames[0], flow)
    assert not np.array_equal(labels, segment_flow(trained, frames[0], 0 * flow))
    own = copy(files, trained)
    result = segment(page, frames[0], model="Own file", next_frame=frames[1], weights=own)
    np.testing.assert_array_equal(np.load(result.download), labels)


def segment_flow(weights, frame, flow):
    return Segmenter.from_checkpoint(weights, n_iter=3)(read_image(frame), 20, extra=flow).labels


def test_composite_needs_the_next_frame(page, image):
    reason = "This model reads the motion between two frames: drop the next frame too."
    assert segment(page, image, model=COMPOSITE) == PageResult(reason)


def test_frames_that_differ_or_are_small(page, files, image):
    other = save(files, make_quadrants(40, 50)[0], "other.png")
    result = segment(page, image, model=COMPOSITE, next_frame=other)
    assert result == PageResult("image.png is 92x60, but its neighbour other.png is 50x40")
    first, second = (save(files, make_quadrants(12, 40)[0], name) for name in ("1.png", "2.png"))
    text = segment(page, first, model=COMPOSITE, next_frame=second).text
    assert text == "1.png: frames of 40x12 are too small, DIS needs at least 16x16"


def test_composite_without_opencv(page, image, monkeypatch):
    monkeypatch.setitem(sys.modules, "lib.optflow.lookup", None)
    result = segment(page, image, model=COMPOSITE, next_frame=image)
    assert result == PageResult("optical flow needs OpenCV: pip install opencv-python-headless")


def test_own_weight_file(page, files, image, tmp_path):
    own = tmp_path / "own.pth"
    torch.manual_seed(1)
    save_checkpoint({"weights": SSNModel(n_learned_features=6).state_dict(), "model_args": {}}, own)
    result = segment(page, image, model="Own file", weights=copy(files, own))
    expected = Segmenter.from_checkpoint(own, n_iter=3)(read_image(image), 20)
    np.testing.assert_array_equal(np.load(result.download), expected.labels)


def test_own_file_is_not_unpickled(page, files, image, tmp_path):
    path = files.folder / "upload" / "bad.pth"
    torch.save({"weights": _Attack(tmp_path / "made")}, path)
    result = segment(page, image, model="Own file", weights=path)
    text = "bad.pth is not a readable weight file: damaged, or holds more than tensors and plain types"
    assert result == PageResult(text)
    assert not (tmp_path / "made").exists()


class _Attack:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_other_refusals_of_own_files(page, files, image, base_weights):
    missing = PageResult("Drop a weight file of your own, .pth or .safetensors.")
    assert segment(page, image, model="Own file") == missing
    elsewhere = segment(page, image, model="Own file", weights=base_weights)
    assert elsewhere == PageResult("base.pth is not an upload")
    picture = segment(page, image, model="Own file", weights=image)
    assert picture.text.startswith("image.png is not a readable weight file")


def test_stages_are_reported(page, image):
    stages = []
    page.segment(
        Inputs(image, 20), Drawing(), session="one", on_stage=lambda share, stage: stages.append(stage)
    )
    assert stages == ["Reading", "Segmenting", "Drawing"]


def test_without_image(page):
    assert segment(page, None) == PageResult("Drop an image above.")


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
        ({"model": "other"}, "Model: choose one of Base, Composite, two frames, Own file"),
        ({"download": ["Labels (.npy)"]}, f"File to download: choose one of {', '.join(DOWNLOADS.names)}"),
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
@pytest.mark.parametrize("place", ["read_image", "Segmenter.__call__", "StoredSuperpixels"])
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


def test_session_ends_during_a_drawing(page, files, image, monkeypatch):
    def draw_and_end(style, superpixels, levels):
        page.close("one")
        return superpixels.image_rgb

    segment(page, image)
    monkeypatch.setattr(OverlayStyle, "draw", draw_and_end)
    assert redraw(page, 5) is None
    image.parent.mkdir()
    image = save(files, make_quadrants(*SHAPE)[0])
    assert segment(page, image) == PageResult("The session has ended.")
    assert list(files.folder.rglob("*.png")) == []


def test_weights_of_another_model(base_weights, composite_weights, files):
    with pytest.raises(InputError, match="expected a base model"):
        Page(composite_weights, composite_weights, files, max_megapixels=1)
    with pytest.raises(InputError, match="expected a composite model"):
        Page(base_weights, base_weights, files, max_megapixels=1)
