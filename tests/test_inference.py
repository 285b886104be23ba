"""From an image file to overlay and label files."""

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label

from conftest import make_quadrants
from lib.checkpoint import InputScales
from lib.errors import InputError
from lib.files import check_output_file
from lib.inference import segment_file
from lib.segmentation import segment_lab
from lib.visualization import BOUNDARY_COLOR, draw_boundaries
from model import SSNPix


def segment(image_lab):
    return segment_lab(SSNPix(), image_lab, 24, InputScales(0.26, 2.5))


@pytest.fixture
def image_file(tmp_path):
    Image.fromarray(make_quadrants()[0]).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_superpixels_follow_the_quadrants(image_file, tmp_path):
    superpixels = segment_file(
        segment,
        image_file,
        24,
        connected=True,
        overlay_file=tmp_path / "overlay.png",
        labels_file=tmp_path / "labels.npy",
    )
    labels = np.load(tmp_path / "labels.npy")
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, superpixels.labels)
    assert superpixels.n_measured == len(np.unique(labels)) == labels.max() + 1
    assert label(labels + 1, background=0, connectivity=1).max() == superpixels.n_measured
    quadrants = make_quadrants()[1]
    for idx in range(superpixels.n_measured):
        counts = np.bincount(quadrants[labels == idx])
        assert counts.max() > 0.95 * counts.sum()
    overlay = np.asarray(Image.open(tmp_path / "overlay.png"))
    np.testing.assert_array_equal(overlay, draw_boundaries(make_quadrants()[0], labels))


def test_without_connectivity_labels_are_those_of_the_grid(image_file, tmp_path):
    superpixels = segment_file(segment, image_file, 24, connected=False, overlay_file=tmp_path / "o.jpg")
    assert superpixels.labels.max() < 3 * 6
    assert superpixels.n_measured == len(np.unique(superpixels.labels))


def segment_into_single_pixels(image_lab):
    return segment_lab(SSNPix(), image_lab, image_lab.shape[2] * image_lab.shape[3], InputScales(0, 1000))


def write_blank_image(path, height, width):
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path)


def test_png_labels_hold_16_bits(tmp_path):
    write_blank_image(tmp_path / "image.png", 256, 256)
    superpixels = segment_file(
        segment_into_single_pixels,
        tmp_path / "image.png",
        256**2,
        connected=True,
        overlay_file=tmp_path / "overlay.png",
        labels_file=tmp_path / "labels.png",
    )
    assert superpixels.n_measured == 65536
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), superpixels.labels)


def test_labels_above_16_bits_need_npy(tmp_path):
    write_blank_image(tmp_path / "image.png", 256, 257)
    arguments = {"connected": False, "overlay_file": tmp_path / "overlay.png"}
    image_and_count = tmp_path / "image.png", 256 * 257
    with pytest.raises(InputError, match=r"--save_labels .*does not fit a 16-bit PNG.*\.npy"):
        segment_file(
            segment_into_single_pixels, *image_and_count, **arguments, labels_file=tmp_path / "labels.png"
        )
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]
    labels_file = tmp_path / "labels.NPY"
    segment_file(segment_into_single_pixels, *image_and_count, **arguments, labels_file=labels_file)
    assert np.load(labels_file).max() > 65535
    assert sorted(file.name for file in tmp_path.iterdir()) == ["image.png", "labels.NPY", "overlay.png"]


def test_overlay_too_large_for_its_format_leaves_nothing(tmp_path):
    write_blank_image(tmp_path / "image.png", 1, 16400)
    with pytest.raises(InputError, match=r"--out .*overlay\.webp: the format cannot hold this image"):
        segment_file(
            segment,
            tmp_path / "image.png",
            24,
            connected=True,
            overlay_file=tmp_path / "overlay.webp",
            labels_file=tmp_path / "labels.npy",
        )
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


def test_borders_are_drawn_and_the_rest_is_kept():
    image_rgb = np.full((10, 12, 3), 100, dtype=np.uint8)
    labels = np.zeros((10, 12), dtype=np.int32)
    labels[:, 6:] = 1
    overlay = draw_boundaries(image_rgb, labels)
    is_border = np.zeros((10, 12), dtype=bool)
    is_border[:, 5:7] = True
    np.testing.assert_array_equal(overlay[is_border], np.tile(BOUNDARY_COLOR, (20, 1)))
    assert (overlay[~is_border] == 100).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels.txt", r"must end in \.npy, \.png"),
        ("no/labels.npy", "cannot write to folder"),
        ("folder.npy", "is a folder"),
    ],
)
def test_output_that_cannot_be_written_is_found_early(tmp_path, name, message):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match=f"--save_labels .*{message}"):
        check_output_file("--save_labels", tmp_path / name, (".npy", ".png"))
