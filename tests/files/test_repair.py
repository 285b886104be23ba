"""Test reading files that Pillow refuses although every pixel is there, and odd metadata."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from helpers import insert_png_chunk, make_quadrants
from lib.files.images import count_pixels, read_image, read_image_shape, read_mask
from lib.runtime.errors import InputError

IMAGE_RGB = make_quadrants(20, 31)[0]
TURNED = np.rot90(IMAGE_RGB, -1)
RAMP = np.arange(20 * 31).reshape(20, 31)

ORIENTATION = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)  # rotate clockwise by 90 degrees for display
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


def make_exif(*entries, rest=b""):
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return header + b"".join(entries) + struct.pack("<I", 0) + rest


BROKEN_EXIF = {
    "whole": make_exif(ORIENTATION),
    "negative rational": make_exif(ORIENTATION, struct.pack("<HHII", 0x11A, 10, 1, 38), rest=b"\xff" * 8),
    "beyond the end": make_exif(ORIENTATION, struct.pack("<HHII", 0x11A, 5, 1, 9999)),
    "text as number": make_exif(ORIENTATION, struct.pack("<HHI4s", 0x128, 2, 4, b"abc\0")),
    "unknown type": make_exif(ORIENTATION, struct.pack("<HHII", 0x9999, 99, 1, 38)),
    "lost directory": make_exif(ORIENTATION, struct.pack("<HHII", 0x8769, 4, 1, 9999)),
    "cut": make_exif(ORIENTATION, ORIENTATION)[:26],
}


@pytest.mark.filterwarnings("ignore:.*EXIF")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kind", BROKEN_EXIF)
def test_orientation_in_broken_exif(kind, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(IMAGE_RGB).save(path, exif=b"Exif\0\0" + BROKEN_EXIF[kind], quality=95)
    image_rgb = read_image(path)
    assert image_rgb.shape == TURNED.shape
    assert np.abs(image_rgb.astype(int) - TURNED).mean() < 12
    assert read_image_shape(path) == TURNED.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMAGE_RGB).save(tmp_path / "a.png", exif=exif)
    expected = {
        1: IMAGE_RGB,
        2: IMAGE_RGB[:, ::-1],
        3: IMAGE_RGB[::-1, ::-1],
        4: IMAGE_RGB[::-1],
        5: IMAGE_RGB.transpose(1, 0, 2),
        6: IMAGE_RGB[::-1].transpose(1, 0, 2),
        7: IMAGE_RGB[::-1, ::-1].transpose(1, 0, 2),
        8: IMAGE_RGB[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    assert read_image_shape(tmp_path / "a.png") == expected.shape[:2]


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    ("kind", "data"),
    [(b"eXIf", make_exif(ORIENTATION)), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)],
)
def test_png_metadata_before_and_after_the_pixels(kind, data, before, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE_RGB).save(path)
    insert_png_chunk(path, kind, data, before=before)
    np.testing.assert_array_equal(read_image(path), TURNED)
    assert read_image_shape(path) == TURNED.shape[:2]


LONG = zlib.compress(b"a" * 3_000_000)
LONG_TEXTS = {
    "zTXt": (b"zTXt", b"prompt\0\0" + LONG),
    "iTXt": (b"iTXt", b"prompt\0\1\0\0\0" + LONG),
    "iCCP": (b"iCCP", b"profile\0\0" + LONG),
    "tEXt": (b"tEXt", b"prompt\0" + b"a" * 70_000_000),
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_png_with_megabytes_of_text(kind, before, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE_RGB).save(path)
    insert_png_chunk(path, *LONG_TEXTS[kind], before=before)
    np.testing.assert_array_equal(read_image(path), IMAGE_RGB)
    assert read_image_shape(path) == IMAGE_RGB.shape[:2]
    assert count_pixels(path) == 20 * 31
    insert_png_chunk(path, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    np.testing.assert_array_equal(read_image(path), TURNED)
    assert read_image_shape(path) == TURNED.shape[:2]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="not a readable image"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_without_its_end(mode, progressive, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    for quality in (75, 100):
        Image.fromarray(noise).convert(mode).save(path, progressive=progressive, quality=quality)
        data, whole = path.read_bytes(), read_image(path)
        for n_missing in (1, 2):
            path.write_bytes(data[:-n_missing])
            np.testing.assert_array_equal(read_image(path), whole)
        for n_missing in (5, 6, 10, 21, 50, 700, len(data) // 2):
            path.write_bytes(data[:-n_missing])
            with pytest.raises(InputError, match="truncated"):
                read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_progressive_jpeg_without_its_last_scans(mode, tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(IMAGE_RGB).convert(mode).save(path, progressive=True)
    data = path.read_bytes()
    first = data.index(b"\xff\xda")
    starts = [idx for idx in range(first + 1, len(data)) if data[idx : idx + 2] in (b"\xff\xc4", b"\xff\xda")]
    assert len(starts) > 6
    for start in starts:
        path.write_bytes(data[:start])
        with pytest.raises(InputError, match="truncated"):
            read_image(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("n_bits", [8, 12, 16])
def test_white_is_zero(n_bits, compression, tmp_path):
    top = 2**n_bits - 1
    values = np.rint(RAMP / RAMP.max() * top).astype(np.uint8 if n_bits == 8 else np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="miniswhite", compression=compression, byteorder="<")
    np.testing.assert_array_equal(read_image(path)[..., 0], 255 - np.rint(values / top * 255))
    tifffile.imwrite(path, np.where(RAMP < 99, top, 0).astype(values.dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(path), RAMP >= 99)


@pytest.mark.parametrize(("n_bits", "n_channels"), [(8, 1), (8, 3), (16, 1), (16, 3)])
def test_transparent_value_of_png(n_bits, n_channels, tmp_path):
    top = 4095 if n_bits == 16 else 255
    values = np.repeat(np.rint(RAMP[..., None] / RAMP.max() * top), n_channels, axis=2).astype(">u2")
    transparent = np.full(n_channels, 2**n_bits - 1, ">u2")
    values[3, 4] = transparent
    rows = values.astype(np.uint8 if n_bits == 8 else ">u2")
    expected = np.rint(values / top * 255)
    expected[values == transparent[0]] = 255
    path = tmp_path / "a.png"
    write_png(path, rows, n_bits, {1: 0, 3: 2}[n_channels], transparent.tobytes())
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(expected, (20, 31, 3)))
    np.testing.assert_array_equal(read_mask(path), ((values != transparent[0]) & (values > 0)).all(axis=2))


def write_png(path, rows, n_bits, color_type, transparent):
    """Write pixels (H, W, C), stored as they are, with a transparent value."""
    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, n_bits, color_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    for kind, data in ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", content)):
        insert_png_chunk(path, kind, data, before=b"IEND")
