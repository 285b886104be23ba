"""Test reading images and masks of all supported kinds."""

import logging
import os
import re

import numpy as np
import pytest
from PIL import Image

from helpers import insert_png_chunk, make_quadrants
from lib.files.images import is_image, read_image, read_mask
from lib.files.opencv import cv2
from lib.runtime.errors import InputError
from lib.runtime.notices import forget_logged

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


RAMP = np.arange(20 * 31).reshape(20, 31) / (20 * 31 - 1)  # 0 to 1


def write_color_16(path, values):
    """Write values (H, W, 3 or 4) uint16, RGB or RGBA."""
    assert cv2.imwrite(str(path), values[..., [2, 1, 0, 3][: values.shape[2]]])


@pytest.mark.parametrize("n_bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm", "int32.tif"])
def test_grey_values_fill_their_bits(name, n_bits, tmp_path):
    values = np.rint(RAMP * (2**n_bits - 1)).astype(np.int32 if name == "int32.tif" else np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    expected = np.rint(values / (2**n_bits - 1) * 255)
    np.testing.assert_array_equal(read_image(tmp_path / name)[..., 2], expected)


@pytest.mark.parametrize("n_bits", [8, 12, 16])
@pytest.mark.parametrize("name", ["rgb.png", "rgb.tif", "rgb.ppm", "rgba.png", "rgba.tif"])
def test_colors_fill_their_bits(name, n_bits, tmp_path):
    colors = np.stack([RAMP, 1 - RAMP, RAMP**2], axis=2)
    values = np.rint(colors * (2**n_bits - 1)).astype(np.uint16)
    expected = np.rint(values / (2**n_bits - 1) * 255)
    if "rgba" in name:  # the left column is transparent
        values = np.dstack([values, np.full((20, 31), 65535, np.uint16)])
        values[:, 0, 3] = 0
        expected[:, 0] = 255
    write_color_16(tmp_path / name, values)
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)


def test_16_bit_colors_are_turned(tmp_path):
    values = np.rint(np.stack([RAMP, 1 - RAMP, RAMP**2], axis=2) * 4095).astype(np.uint16)
    write_color_16(tmp_path / "a.png", values)
    upright = read_image(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    insert_png_chunk(tmp_path / "a.png", b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(upright, -1))


def test_value_range_clips(tmp_path):
    values = np.rint(RAMP * 4095).astype(np.uint16)
    expected = np.rint((values.clip(500, 1500) - 500.0) / 1000 * 255)
    Image.fromarray(values).save(tmp_path / "grey.png")
    write_color_16(tmp_path / "rgb.png", np.stack([values] * 3, axis=2))
    Image.fromarray(values.astype(np.int32) - 1000).save(tmp_path / "signed.tif")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    for name, value_range in [
        ("grey.png", (500, 1500)),
        ("rgb.png", (500, 1500)),
        ("signed.tif", (-500, 500)),
        ("float.tif", (500, 1500)),
    ]:
        image_rgb = read_image(tmp_path / name, value_range=value_range)
        np.testing.assert_array_equal(image_rgb[..., 0], expected)
    with pytest.raises(InputError, match="`value_range` 5 5: "):
        read_image(tmp_path / "grey.png", value_range=(5, 5))


def test_value_range_leaves_8_bits_alone(tmp_path):
    Image.fromarray(IMAGE_RGB).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", value_range=(0, 4095)), IMAGE_RGB)


def test_range_of_the_header_counts(tmp_path):
    values = np.rint(RAMP * 900).astype(">u2")  # would fit in 10 bits
    (tmp_path / "a.pgm").write_bytes(b"P5 31 20 4095\n" + values.tobytes())
    (tmp_path / "a.ppm").write_bytes(b"P6 31 20 4095\n" + np.repeat(values, 3).tobytes())
    for name in ("a.pgm", "a.ppm"):
        np.testing.assert_allclose(read_image(tmp_path / name)[..., 0], values / 4095 * 255, atol=1)


def test_range_is_logged_once(tmp_path, caplog):
    forget_logged()
    for idx, top in enumerate([4000, 3000, 900, 800]):
        Image.fromarray(np.full((2, 3), top, np.uint16)).save(tmp_path / f"{idx}.png")
        read_image(tmp_path / f"{idx}.png")
    first, second = caplog.messages
    assert "0.png has values up to 4000: read as 12 bits, 0 to 4095" in first
    assert "2.png has values up to 900: read as 10 bits, 0 to 1023" in second


def test_16_bit_color_mask_of_small_values(tmp_path):
    values = np.zeros((20, 31, 3), np.uint16)
    values[:5, 3:, 1] = 1
    write_color_16(tmp_path / "mask.png", values)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), values.any(axis=2))


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_first_of_several_pages_is_read(kind, tmp_path, caplog):
    forget_logged()
    colors = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    pages = [Image.new("RGB", (31, 20), color) for color in colors]
    for idx in range(2):
        path = tmp_path / f"{idx}.{kind.lower()}"
        pages[0].save(path, kind, save_all=True, append_images=pages[1:])
        np.testing.assert_allclose(read_image(path)[3:5, 7], [(255, 0, 0)] * 2, atol=2)
    (message,) = caplog.messages
    assert f"0.{kind.lower()} holds several pages or frames: the first is read" in message
    pages[0].save(path, kind)
    forget_logged()
    read_image(path)
    assert len(caplog.messages) == 1


def test_images_by_suffix_or_content(tmp_path):
    saved = "PNG", "JPEG", "PPM", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "SGI", "PCX"
    for kind in saved:
        Image.fromarray(IMAGE_RGB).save(tmp_path / kind, kind)
        assert is_image(tmp_path / kind)
    for name in ("a.txt", "a.h5", "a.mpg", "a.pdf", "noise", "a.dng"):
        assert not is_image(write(tmp_path / name, np.random.default_rng(0).bytes(2000)))
    assert not is_image(write(tmp_path / "a.cr2", (tmp_path / "TIFF").read_bytes()))
    assert is_image(write(tmp_path / "broken.Tga", b""))


def write(path, content):
    path.write_bytes(content)
    return path


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


def test_opacity_that_looks_like_data_is_reported(tmp_path, caplog):
    forget_logged()
    near_infrared = np.random.default_rng(0).integers(0, 256, (20, 31), dtype=np.uint8)
    for idx in range(2):
        Image.fromarray(np.dstack([IMAGE_RGB, near_infrared])).save(tmp_path / f"{idx}.tif")
        read_image(tmp_path / f"{idx}.tif")
    (message,) = caplog.messages
    assert re.search(r"0\.tif: the last band is opacity by its tag, and (99|100) % of the pixels", message)
    forget_logged()
    near_infrared[:] = np.where(LABELS == 0, 0, 255)
    near_infrared[5] = 99  # a soft border
    Image.fromarray(np.dstack([IMAGE_RGB, near_infrared])).save(tmp_path / "cut_out.png")
    read_image(tmp_path / "cut_out.png")
    assert len(caplog.messages) == 1


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


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGBA;16"])
def test_transparent_pixels_are_outside_a_mask(mode, tmp_path):
    color, opacity = np.full((20, 31, 3), 200, np.uint8), np.full((20, 31), 255, np.uint8)
    color[:2] = 0
    opacity[:, :4] = 0
    opacity[5:9, 9:12] = 100
    expected = np.ones((20, 31), dtype=bool)
    expected[:2] = expected[:, :4] = expected[5:9, 9:12] = False
    rgba = np.dstack([color, opacity])
    if mode == "RGBA;16":
        write_color_16(tmp_path / "mask.png", rgba.astype(np.uint16) * 16)  # 12 bits
    elif mode == "P":
        colors = np.array([[200, 0, 0, 255], [0, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 100]])
        index = np.zeros((20, 31), np.uint8)
        index[:2], index[:, :4], index[5:9, 9:12] = 1, 2, 3
        image = Image.fromarray(index).convert("P")
        image.putpalette(colors[:, :3].ravel().tolist())
        image.save(tmp_path / "mask.png", transparency=bytes(colors[:, 3].tolist()))
    else:
        Image.fromarray(rgba).convert(mode).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), expected)


def test_nan_is_outside_a_mask(tmp_path):
    values = np.array([[0, 0.1, np.nan], [-1, np.inf, 0]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "mask.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), [[0, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize("suffix", ["jpg", "avif"])
@pytest.mark.parametrize("color", ["white", "red"])
def test_lossy_masks_are_cut_at_half_of_the_range(suffix, color, tmp_path, caplog):
    forget_logged()
    expected = np.add.outer(np.arange(60) ** 2, np.arange(92) ** 2) < 50**2
    picture = Image.new("RGB", (92, 60))
    picture.paste(color, mask=Image.fromarray(expected))
    picture.save(tmp_path / f"mask.{suffix}", quality=60)
    assert (np.asarray(Image.open(tmp_path / f"mask.{suffix}")).any(axis=2) != expected).sum() > 100
    assert (read_mask(tmp_path / f"mask.{suffix}") != expected).sum() < 15
    assert caplog.messages == []
    Image.fromarray(np.uint8(255 * RAMP)).save(tmp_path / f"ramp.{suffix}", quality=95)
    assert abs(read_mask(tmp_path / f"ramp.{suffix}").mean() - 0.5) < 0.01
    (message,) = caplog.messages
    assert re.search(rf"ramp\.{suffix}: (49|50|51) % of the pixels of this mask", message)


@pytest.mark.parametrize("outermost", [-1, 70_000])
def test_integers_of_unknown_range_are_rejected(tmp_path, outermost):
    path = tmp_path / "image.tif"
    Image.fromarray(np.array([[0, outermost]], dtype=np.int32)).save(path)
    with pytest.raises(InputError, match=r"image\.tif has integer pixels"):
        read_image(path)


class _Direct(logging.Handler):
    """Write where standard error goes, as a handler of a program that uses the library does."""

    def emit(self, record):
        os.write(2, record.getMessage().encode())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_notices_are_shown_although_lines_of_libtiff_are_hidden(tmp_path, capfd, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.full((4, 5), 900, np.uint16)).save(path)
    handler, logger = _Direct(), logging.getLogger("lib.files")
    forget_logged()
    logger.addHandler(handler)
    try:
        read_image(path)
    finally:
        logger.removeHandler(handler)
    assert "read as 10 bits, 0 to 1023" in capfd.readouterr().err
