"""Test reading images and masks of all supported kinds."""

import numpy as np
import pytest
from PIL import Image

from helpers import make_quadrants
from lib.files.images import read_image, read_mask
from lib.runtime.errors import InputError

IMAGE_RGB, LABELS = make_quadrants(20, 31)


def test_rgb_is_read_unchanged(tmp_path):
    Image.fromarray(IMAGE_RGB).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), IMAGE_RGB)


def test_greyscale_becomes_three_equal_channels(tmp_path):
    Image.fromarray(IMAGE_RGB[..., 0]).save(tmp_path / "grey.png")
    expected = np.repeat(IMAGE_RGB[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), expected)


def test_16_bit_greyscale_keeps_its_range(tmp_path):
    grey = IMAGE_RGB[..., 0].astype(np.uint16) * 257
    for name in ("grey16.png", "grey16.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 1], IMAGE_RGB[..., 0])


def test_palette_is_applied(tmp_path):
    image = Image.fromarray(LABELS.astype(np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "palette.png")
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), colors[LABELS])


def test_transparent_pixels_become_white(tmp_path):
    rgba = np.dstack([IMAGE_RGB, np.where(LABELS == 0, 0, 255).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    expected = np.where(LABELS[..., None] == 0, 255, IMAGE_RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), expected)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(IMAGE_RGB)
    exif = image.getexif()
    exif[0x0112] = 6  # rotate clockwise by 90 degrees for display
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(IMAGE_RGB, -1))


@pytest.mark.parametrize("kind", ["missing", "truncated", "foreign", "folder", "float"])
def test_error_names_unreadable_image(tmp_path, kind):
    path = tmp_path / ("image.tif" if kind == "float" else "image.png")
    if kind == "truncated":
        Image.fromarray(IMAGE_RGB).save(path)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "foreign":
        path.write_text("not an image")
    elif kind == "folder":
        path.mkdir()
    elif kind == "float":
        Image.fromarray(np.ones((4, 5), dtype=np.float32)).save(path)
    with pytest.raises(InputError, match=str(path)):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_masks_of_all_modes(mode, tmp_path):
    expected = np.zeros((8, 9), dtype=bool)
    expected[2:5, 3:] = True
    grey = Image.fromarray(np.uint8(255 * expected))
    if mode == "P":  # white is colour 0, so a nonzero index is black
        image = Image.fromarray(np.uint8(~expected)).convert("P")
        image.putpalette([255, 255, 255, 0, 0, 0])
    elif mode == "I;16":
        image = Image.fromarray(expected.astype(np.uint16))
    elif mode == "CMYK":
        image = grey.convert("RGB").convert(mode)
    else:
        image = grey.convert(mode)
    path = tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png")
    image.save(path)
    np.testing.assert_array_equal(read_mask(path), expected)


@pytest.mark.parametrize("brightest", [200, 70_000])
def test_integers_of_unknown_range_are_rejected(tmp_path, brightest):
    path = tmp_path / "image.tif"
    Image.fromarray(np.array([[0, brightest]], dtype=np.int32)).save(path)
    with pytest.raises(InputError, match=r"image\.tif has integer pixels"):
        read_image(path)
