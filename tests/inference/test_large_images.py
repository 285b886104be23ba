"""Image files that are segmented out of core: the files of images in memory."""

import logging
import re

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

import inference_base_model
import inference_optflow_composite_model
from helpers import fails_with, full_disk, make_quadrants
from lib.runtime import memory
from lib.runtime.errors import RunError

SHAPE = (61, 93)


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """Make a PNG file in the current folder, and let files be written in bands of 16 rows."""
    monkeypatch.chdir(tmp_path)
    for module in ("lib.files.row_pictures", "lib.inference.large_images"):
        monkeypatch.setattr(f"{module}.TILE_SIDE", 16)
    Image.fromarray(make_quadrants(*SHAPE)[0]).save("photo.png")
    mask = np.full(SHAPE, 255, np.uint8)
    mask[20:30, 10:50] = 0
    Image.fromarray(mask).save("mask.png")
    return "photo.png"


def segment(*argv):
    return inference_base_model.main(["--base_model_weights=none", "--nspix=24", "--device=cpu", *argv])


def read_file(path):
    if path.endswith(".npy"):
        return np.load(path)
    if path.endswith(".h5"):
        with h5py.File(path) as file:
            return file["labels"][:]
    with Image.open(path) as image:
        return np.asarray(image)


STYLES = {
    "boundaries": [],
    "wide": ["--boundary_width=9", "--boundary_color=red"],
    "very wide": ["--boundary_width=100000"],
    "mean_colors": ["--overlay=mean_colors"],
    "label_colors": ["--overlay=label_colors"],
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "setting", ["merged", "--fine_factor=1", "--enforce_connectivity=False", "--mask=mask.png"]
)
def test_overlay_is_that_in_memory(photo, setting, style):
    argv = ["--image", photo, *STYLES[style], *([] if setting == "merged" else [setting])]
    expected = segment(*argv, "--out=a.png", "--out_of_core=False")
    for name in ("b.png", "b.tif"):
        summary = segment(*argv, "--out", name, "--out_of_core")
        assert summary.n_measured == expected.n_measured
        np.testing.assert_array_equal(read_file(name), read_file("a.png"))


@pytest.mark.parametrize("suffix", ["npy", "png", "tif", "h5"])
def test_labels_are_those_in_memory(photo, suffix):
    labels = []
    for out_of_core in (True, False):
        segment("--image", photo, f"--save_labels=a.{suffix}", f"--out_of_core={out_of_core}")
        labels.append(read_file(f"a.{suffix}"))
    np.testing.assert_array_equal(*labels)
    assert labels[0].dtype == labels[1].dtype
    assert labels[0].max() == 23


@pytest.mark.parametrize("bands", [[], ["--bands", "3", "2", "1"]])
def test_tiles_of_a_tiff(photo, bands):
    tifffile.imwrite("photo.tif", read_file(photo), photometric="rgb", tile=(16, 32))
    argv = ["--image=photo.tif", "--save_labels=a.npy", *bands]
    segment(*argv, "--out_of_core=False")
    expected = np.load("a.npy")
    segment(*argv, "--out_of_core")
    np.testing.assert_array_equal(np.load("a.npy"), expected)


def test_chosen_by_free_memory(photo, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(memory, "_UNCHECKED", 0)
    needed = int(1.4 * (4 * (5 + 2 * 5) * 61 * 93))
    Image.fromarray(make_quadrants(60, 93)[0]).save("smaller.png")
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    summary = segment("--image", photo, "smaller.png", "--out=o", "--save_labels=l")
    assert (summary.n_done, summary.n_measured) == (2, 48)
    lines = [message for message in caplog.messages if "out of core" in message]
    assert lines == [f"{photo} of 93x61 pixels is segmented out of core: temporary files of 0.0 GB in o"]
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == ["photo.png", "smaller.png"]
    caplog.clear()
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    segment("--image", photo)
    assert "out of core" not in caplog.text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--save_outlines=o.svg"], "--save_outlines o.svg is not possible for an image that does not fit"),
        (["--save_annotations=o.json"], "--save_annotations o.json is not possible"),
        (["--levels", "8", "24"], "--levels 8 24 is not possible for an image"),
        (["--exact_nspix", "--fine_factor=1"], "--exact_nspix is not possible for an image"),
        (["--out=o.jpg"], r"--out o.jpg: this format is not possible .*; use .png, .tif, .tiff"),
        (["--mask=mask.png", "--save_labels=l.png"], "--save_labels l.png: PNG cannot hold label -1"),
        (["--mask=small.png"], r"the mask is \(3, 4\), but photo.png is \(61, 93\)"),
    ],
)
def test_refused_before_the_work(photo, argv, message, tmp_path, capsys, monkeypatch):
    Image.new("L", (4, 3), "white").save("small.png")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("lib.inference.large_images.segment_out_of_core", None)
    argv = ["--image", photo, "--out_of_core", "--base_model_weights=none", "--device=cpu", *argv]
    assert re.search(message, fails_with(inference_base_model.main, argv, capsys))
    assert sorted(tmp_path.iterdir()) == before


def test_exact_numbers_need_no_splits_when_merged(photo):
    assert segment("--image", photo, "--exact_nspix", "--out_of_core").n_measured == 24


def test_not_with_flow(photo, composite_weights, capsys):
    argv = ["--image", photo, "--optflow_data=auto", "--out_of_core", "--comp_model_weights"]
    error = fails_with(inference_optflow_composite_model.main, [*argv, str(composite_weights)], capsys)
    assert "--out_of_core is not possible with optical flow" in error


def test_full_disk_leaves_nothing(photo, tmp_path):
    before = sorted(tmp_path.iterdir())
    for n_bytes in (10_000, 60_000):  # in the image, in the features
        with full_disk(n_bytes), pytest.raises(RunError, match="cannot write a temporary file in"):
            segment("--image", photo, "--out_of_core")
        assert sorted(tmp_path.iterdir()) == before


def test_broken_image_among_others(photo, tmp_path):
    (tmp_path / "broken.png").write_bytes((tmp_path / photo).read_bytes()[:500])
    with pytest.raises(RunError, match="1 of the images failed"):
        segment("--image", "broken.png", photo, "--out=o", "--out_of_core")
    assert [file.name for file in (tmp_path / "o").iterdir()] == ["photo.png"]
