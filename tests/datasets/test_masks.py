"""Object numbers in masks of DAVIS and in its layout."""

import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from lib.datasets.masks import read_mask, voc_colors
from lib.metrics.label_map import VOID
from lib.runtime.errors import InputError

SHAPE = (12, 20)
NUMBERS = np.arange(240).reshape(SHAPE)


def rows_of(*values):
    """Return a map whose rows have these values in turn."""
    return np.resize(values, SHAPE[0])[:, None].repeat(SHAPE[1], axis=1)


def save(path, values, mode="L"):
    image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette(voc_colors().ravel().tolist())
    image.save(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mask.png"


@pytest.mark.parametrize("mode", ["P", "L", "I;16"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 2, 255), (0, 1, 2, VOID)),
        ((0, 2, 255), (0, 2, VOID)),  # the first object is hidden
        ((1, 255), (1, VOID)),
        ((0, 255), (0, 1)),
        ((255,), (1,)),
        ((0, 1, 2), (0, 1, 2)),
        ((0, 85, 170, 255), (0, 85, 170, 255)),  # levels of grey
    ],
)
def test_void(path, mode, values, expected):
    save(path, rows_of(*values), mode)
    mask = read_mask(path, SHAPE)
    assert mask.dtype == np.int32
    np.testing.assert_array_equal(mask, rows_of(*expected))


def test_16_bit_numbers_are_kept(path):
    save(path, NUMBERS + 100, "I;16")  # 255 is one of many
    np.testing.assert_array_equal(read_mask(path, SHAPE), NUMBERS + 100)


def test_colour_map_of_voc():
    colors = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert voc_colors()[:7].tolist() == colors
    assert voc_colors()[[8, 20, 255]].tolist() == [[64, 0, 0], [0, 64, 128], [224, 224, 192]]
    assert len(np.unique(voc_colors(), axis=0)) == 256


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_read_as_numbers(path, mode):
    Image.fromarray(voc_colors()[NUMBERS]).convert(mode).save(path)
    np.testing.assert_array_equal(read_mask(path, SHAPE), NUMBERS)
    Image.fromarray(voc_colors()[rows_of(0, 5, 255)]).convert(mode).save(path)
    np.testing.assert_array_equal(read_mask(path, SHAPE), rows_of(0, 5, VOID))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_in_colour_channels(path, mode):
    for values, expected in (((0, 1, 2), (0, 1, 2)), ((0, 255), (0, 1)), ((0, 3, 255), (0, 3, VOID))):
        Image.fromarray(rows_of(*values).astype(np.uint8)).convert(mode).save(path)
        np.testing.assert_array_equal(read_mask(path, SHAPE), rows_of(*expected))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits(path, bits):
    numbers = NUMBERS % 2**bits
    Image.fromarray(numbers.astype(np.uint8)).convert("P").save(path, bits=bits)
    content = bytearray(path.read_bytes())
    content[25] = 0  # from palette to grey, which Pillow cannot write
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    without_palette = content[:33] + content[content.index(b"IDAT") - 4 :]
    path.write_bytes(without_palette)
    np.testing.assert_array_equal(read_mask(path, SHAPE), numbers)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "JPEG", "16-bit RGB"])
def test_masks_that_hold_no_numbers_are_refused_by_name(path, kind):
    image = Image.fromarray(rows_of(0, 40, 80).astype(np.uint8))
    if kind == "16-bit RGB":
        cv2.imwrite(str(path), np.stack([NUMBERS + 256] * 3, axis=-1).astype(np.uint16))
    elif kind == "JPEG":
        image.save(path, format="JPEG")
    elif kind == "RGB":
        colors = voc_colors()[rows_of(0, 1)]
        colors[3, 4] = (128, 0, 1)
        Image.fromarray(colors).save(path)
    else:
        image = image.convert(kind)
        image.putalpha(Image.fromarray(rows_of(0, 255).astype(np.uint8)))
        image.save(path)
    message = {"RGB": r"the colour \(128, 0, 1\)", "JPEG": "not a readable mask", "16-bit RGB": "16 bits"}
    with pytest.raises(InputError, match=message.get(kind, "transparent")) as caught:
        read_mask(path, SHAPE)
    assert str(path) in str(caught.value)


def test_broken_mask_is_named(path):
    path.write_bytes(b"broken")
    with pytest.raises(InputError, match=f"{path} is not a readable mask"):
        read_mask(path, SHAPE)


@pytest.mark.parametrize("mode", ["P", "I;16"])
def test_masks_are_resized_by_nearest_neighbour(path, mode):
    values = rows_of(0, 7, 255).repeat(2, axis=0).repeat(2, axis=1)
    save(path, values, mode)
    np.testing.assert_array_equal(read_mask(path, SHAPE), rows_of(0, 7, VOID))
