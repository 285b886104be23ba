"""Test reading TIFF files of any number of bands, and the choice of bands in other files."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from helpers import make_quadrants
from lib.files.images import ImageReader, count_pixels, read_image, read_image_shape, read_mask
from lib.files.tiff import read_layout
from lib.runtime.errors import InputError
from lib.runtime.notices import forget_logged

SHAPE = 20, 31
TOPS = {np.uint8: 255, np.uint16: 4095, np.float32: 0.4}


def write_bands(path, values, *, planar=False, photometric="minisblack", **options):
    """Write values (H, W, bands) without a word on what the bands are."""
    values, planes = (np.moveaxis(values, 2, 0), "separate") if planar else (values, "contig")
    tifffile.imwrite(path, values, photometric=photometric, planarconfig=planes, **options)


def make_bands(n_bands, dtype=np.uint8):
    """Return values (H, W, n_bands), each band another, and the 8 bits that 0 to the top become."""
    shares = np.random.default_rng(0).uniform(0, 1, (*SHAPE, n_bands))
    shares[0, 0], shares[0, 1] = 0, 1
    values = (shares * TOPS[dtype]).astype(dtype)
    return values, np.rint(values.astype(np.float64) / TOPS[dtype] * 255)


LAYOUTS = [{}, {"compression": "zlib", "tile": (16, 16)}, {"byteorder": ">", "rowsperstrip": 3}]


@pytest.mark.parametrize("options", LAYOUTS, ids=["plain", "tiles", "big-endian strips"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", TOPS)
@pytest.mark.parametrize("n_bands", [2, 4, 5, 8, 13])
def test_chosen_bands_in_their_order(n_bands, dtype, planar, options, tmp_path):
    values, expected = make_bands(n_bands, dtype)
    path = tmp_path / "a.tif"
    write_bands(path, values, planar=planar, **options)
    value_range = (0, TOPS[dtype]) if dtype == np.float32 else None
    for bands in ((1,), (2,), (2, 1, 1), (4, 3, 2), (n_bands, 1, 2)):
        if max(bands) <= n_bands:
            image_rgb = read_image(path, bands=bands, value_range=value_range)
            chosen = expected[..., [band - 1 for band in bands]]
            np.testing.assert_array_equal(image_rgb, np.broadcast_to(chosen, (*SHAPE, 3)))
            assert image_rgb.dtype == np.uint8
    assert read_image_shape(path) == SHAPE
    assert count_pixels(path) == SHAPE[0] * SHAPE[1]


def test_range_is_of_the_chosen_bands(tmp_path):
    values, expected = make_bands(5, np.uint16)  # 12 bits
    values[..., 4] = 60_000
    write_bands(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", bands=(3, 2, 1)), expected[..., 2::-1])
    image_rgb = read_image(tmp_path / "a.tif", bands=(3, 2, 1), value_range=(1000, 2000))
    clipped = (values[..., 2::-1].clip(1000, 2000) - 1000.0) / 1000
    np.testing.assert_array_equal(image_rgb, np.rint(255 * clipped))


@pytest.mark.parametrize("tags", ["minisblack", "rgb"])
@pytest.mark.parametrize("n_bands", [5, 13])
def test_many_bands_are_refused_without_a_choice(n_bands, tags, tmp_path):
    path = tmp_path / "a.tif"
    write_bands(path, make_bands(n_bands)[0], photometric=tags)
    with pytest.raises(
        InputError, match=rf"a\.tif has {n_bands} bands; `bands` chooses three, as red, green"
    ):
        read_image(path)
    with pytest.raises(InputError, match=rf"a\.tif has {n_bands} bands, and so no band 14 of `bands`"):
        read_image(path, bands=(1, 2, 14))
    with pytest.raises(InputError, match=rf"a\.tif has {n_bands} bands; expected one$"):
        read_mask(path)
    for bands in ((1, 2), (0,), (1, 2, 3, 4)):
        with pytest.raises(InputError, match=f"`bands` {bands[0]}.*: expected three bands"):
            read_image(path, bands=bands)


def test_four_bands_without_a_tag_are_refused(tmp_path):
    write_bands(tmp_path / "a.tif", make_bands(4, np.uint16)[0])
    with pytest.raises(InputError, match="has 4 bands; `bands` chooses three"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [False, True])
def test_fourth_band_of_no_meaning_is_left_out_and_reported(planar, dtype, tmp_path, caplog):
    forget_logged()
    values, expected = make_bands(4, dtype)
    options = {"planar": planar, "photometric": "rgb", "extrasamples": ["unspecified"]}
    write_bands(tmp_path / "a.tif", values, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected[..., :3])
    assert any("a.tif has a fourth band, which is left out" in message for message in caplog.messages)
    image_rgb = read_image(tmp_path / "a.tif", bands=(4, 1, 2))
    np.testing.assert_array_equal(image_rgb, expected[..., [3, 0, 1]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_opacity_that_is_data_is_a_band(suffix, tmp_path, caplog):
    forget_logged()
    values = make_bands(4)[0]
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    read_image(path)
    assert "If the band holds other data, give `bands` 1 2 3" in caplog.messages[0]
    np.testing.assert_array_equal(read_image(path, bands=(1, 2, 3)), values[..., :3])
    np.testing.assert_array_equal(read_image(path, bands=(4, 3, 2)), values[..., :0:-1])


def test_bands_of_other_kinds(tmp_path):
    image_rgb, labels = make_quadrants(*SHAPE)
    grey16 = np.rint(image_rgb[..., 0].astype(np.uint16) * 16.0).astype(np.uint16)
    palette = Image.fromarray(labels.astype(np.uint8)).convert("P")
    palette.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 9, 8])
    Image.fromarray(grey16).save(tmp_path / "grey16.png")
    palette.save(tmp_path / "palette.png")
    assert (read_image(tmp_path / "grey16.png", bands=(1, 1, 1)) == read_image(tmp_path / "grey16.png")).all()
    np.testing.assert_array_equal(
        read_image(tmp_path / "palette.png", bands=(3, 1, 1))[labels == 1][0], [4, 6, 6]
    )
    with pytest.raises(InputError, match="has 1 bands, and so no band 3"):
        read_image(tmp_path / "grey16.png", bands=(1, 2, 3))


@pytest.mark.parametrize("dtype", TOPS)
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("tags", ["minisblack", "rgb"])
def test_three_bands_are_red_green_and_blue(tags, planar, dtype, tmp_path):
    values, expected = make_bands(3, dtype)
    write_bands(tmp_path / "a.tif", values, planar=planar, photometric=tags)
    value_range = (0, TOPS[dtype]) if dtype == np.float32 else None
    image_rgb = read_image(tmp_path / "a.tif", value_range=value_range)
    np.testing.assert_array_equal(image_rgb, expected)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), (values != 0).any(axis=2))


def test_float_bands_need_a_range(tmp_path):
    write_bands(tmp_path / "a.tif", make_bands(5, np.float32)[0])
    with pytest.raises(InputError, match=r"a\.tif has .* of unknown range; give `value_range`"):
        read_image(tmp_path / "a.tif", bands=(3, 2, 1))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("n_bands", "bands"), [(3, None), (5, (3, 2, 1))])
def test_16_bit_colors_are_turned(n_bands, bands, planar, orientation, tmp_path):
    values, expected = make_bands(n_bands, np.uint16)
    options = {"photometric": "rgb"} if n_bands == 3 else {}
    tag = (0x0112, "H", 1, orientation, True)
    write_bands(tmp_path / "a.tif", values, planar=planar, extratags=[tag], **options)
    upright = expected[..., :3] if bands is None else expected[..., 2::-1]
    upright = np.rot90(upright, -1) if orientation == 6 else upright
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", bands=bands), upright)
    assert read_image_shape(tmp_path / "a.tif") == upright.shape[:2]


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("n_colors", [1, 3])
def test_opacity_of_16_bits(n_colors, planar, kind, tmp_path):
    colors = make_bands(n_colors, np.uint16)[0].astype(np.float64)
    share = np.linspace(0, 1, SHAPE[1])[:, None] ** 2 * np.ones((*SHAPE, 1))
    stored = colors * share if kind == "assocalpha" else colors
    values = np.rint(np.concatenate([stored, share * 4095], axis=2)).astype(np.uint16)
    photometric = "rgb" if n_colors == 3 else "minisblack"
    write_bands(tmp_path / "a.tif", values, planar=planar, photometric=photometric, extrasamples=[kind])
    over_white = 255 * (colors / 4095 * share + 1 - share)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif"), over_white * np.ones(3), atol=2)


def test_first_page_that_is_not_an_overview_is_reported(tmp_path, caplog):
    forget_logged()
    values, expected = make_bands(5)
    for name, subfile_type in (("overview.tif", 1), ("pages.tif", 0)):
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            options = {"photometric": "minisblack", "planarconfig": "contig"}
            tiff.write(values, **options)
            tiff.write(values[::2, ::2], subfiletype=subfile_type, **options)
        image_rgb = read_image(tmp_path / name, bands=(1, 2, 3))
        np.testing.assert_array_equal(image_rgb, expected[..., :3])
    (message,) = caplog.messages
    assert "pages.tif holds several pages" in message


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", [False, True])
def test_damaged_files_are_refused(planar, compression, tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (*SHAPE, 5)).astype(np.uint16)
    path = tmp_path / "a.tif"
    write_bands(path, values, planar=planar, compression=compression, rowsperstrip=4)
    data = path.read_bytes()
    for n_kept in (3, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:n_kept])
        with pytest.raises(InputError, match=r"a\.tif is not a readable"):
            read_image(path, bands=(1, 2, 3))


def test_damaged_tags_are_not_logged(tmp_path, caplog):
    values, expected = make_bands(5)
    path = tmp_path / "a.tif"
    write_bands(path, values, resolution=(72, 72))
    path.write_bytes(path.read_bytes().replace(struct.pack("<HH", 282, 5), struct.pack("<HH", 282, 99)))
    np.testing.assert_array_equal(read_image(path, bands=(1, 2, 3)), expected[..., :3])
    assert caplog.messages == []


def test_lzw(tmp_path):
    pytest.importorskip("imagecodecs")
    values, expected = make_bands(5, np.uint16)
    write_bands(tmp_path / "a.tif", values, compression="lzw", predictor=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", bands=(3, 2, 1)), expected[..., 2::-1])


def test_larger_than_pillow_reads(tmp_path, monkeypatch):
    write_bands(tmp_path / "a.tif", make_bands(5)[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300.0)
    with pytest.raises(InputError, match="has 620 pixels, more than the 600 that are read"):
        read_image(tmp_path / "a.tif", bands=(1, 2, 3))


def test_other_files_have_no_layout(tmp_path):
    image = Image.fromarray(make_quadrants(*SHAPE)[0])
    image.save(tmp_path / "a.png")
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.convert("P").save(tmp_path / "palette.tif")
    (tmp_path / "broken.tif").write_bytes(b"II*\0\xff\xff")
    for name in ("a.png", "cmyk.tif", "palette.tif", "broken.tif"):
        assert read_layout(tmp_path / name) is None


@pytest.mark.parametrize(
    "options",
    [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}, {"tile": (16, 16), "compression": "adobe_deflate"}],
)
@pytest.mark.parametrize("n_bands", [1, 3])
def test_plain_files_are_read_in_rows_of_tiles(n_bands, options, tmp_path, monkeypatch):
    values = make_quadrants(61, 45)[0][..., :n_bands]
    photometric = "rgb" if n_bands == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", values.squeeze(), photometric=photometric, **options)
    expected = read_image(tmp_path / "a.tif")
    monkeypatch.setattr("lib.files.images.read_image", None)
    bands = list(ImageReader().read_rows(tmp_path / "a.tif"))
    np.testing.assert_array_equal(np.concatenate(bands), expected)
    n_rows = options.get("rowsperstrip") or options.get("tile", (61,))[0]
    assert len(bands) == -(-61 // n_rows)


def test_other_files_are_read_at_once(tmp_path):
    image_rgb = make_quadrants(61, 45)[0]
    Image.fromarray(image_rgb).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", image_rgb.astype(np.uint16) * 257, photometric="rgb")
    Image.fromarray(image_rgb).save(tmp_path / "c.tif", tiffinfo={274: 6})  # turned
    for name in ("a.png", "b.tif", "c.tif"):
        (rows,) = ImageReader().read_rows(tmp_path / name)
        np.testing.assert_array_equal(rows, read_image(tmp_path / name))
    (tmp_path / "d.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:-100])
    (tmp_path / "e.tif").write_bytes(b"II*\0")
    for name in ("d.tif", "e.tif"):
        with pytest.raises(InputError, match=rf"{name} is not a readable image"):
            list(ImageReader().read_rows(tmp_path / name))
