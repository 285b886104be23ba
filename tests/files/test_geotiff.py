"""Test reading GeoTIFF files, their place and what has no data, and writing label maps."""

import sys

import numpy as np
import pytest
from PIL import Image

from helpers import write_geotiff
from lib.files.geotiff import (
    PIXELS,
    Georeference,
    check_same_place,
    count_bands,
    is_geotiff,
    read_each_band,
    read_georeference,
    read_geotiff,
    to_label_geotiff,
)
from lib.files.images import ImageReader, read_image, read_mask
from lib.runtime.errors import InputError
from lib.runtime.notices import forget_logged

rasterio = pytest.importorskip("rasterio", reason="needs rasterio")

SHAPE = 20, 31
NORTH_UP = rasterio.Affine(10, 0, 500_000, 0, -10, 4_600_000)
TURNED = rasterio.Affine(8, 6, 500_000, 6, -8, 4_600_000)
UTM = {"crs": "EPSG:32633", "transform": NORTH_UP}


@pytest.fixture(autouse=True)
def _new_run():
    forget_logged()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.tif"


@pytest.fixture
def no_rasterio(monkeypatch):
    """Let imports of rasterio fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, "rasterio", None)


def make_bands(n_bands, dtype=np.uint16):
    return np.random.default_rng(0).integers(1, 200, (*SHAPE, n_bands)).astype(dtype)


@pytest.mark.parametrize("compress", ["lzw", "zstd", None])
@pytest.mark.parametrize("transform", [NORTH_UP, TURNED], ids=["north up", "turned"])
def test_bands_and_place(transform, compress, path):
    values = make_bands(100)
    write_geotiff(path, values, crs="EPSG:2056", transform=transform, compress=compress)
    image = read_geotiff(path, bands=(99, 1, 50))
    np.testing.assert_array_equal(image.pixels, values[..., [98, 0, 49]])
    assert not np.ma.is_masked(image.pixels)
    assert rasterio.CRS.from_wkt(image.georeference.crs) == rasterio.CRS.from_epsg(2056)
    assert image.georeference.transform == pytest.approx(tuple(transform)[:6], rel=1e-12)
    corners = np.array([[0, 0], [31, 20], [3, 7]])
    x, y = rasterio.transform.xy(transform, corners[:, 1], corners[:, 0], offset="ul")
    np.testing.assert_allclose(image.georeference.place(corners), np.stack([x, y], axis=1))
    assert image.georeference.pixel_area == pytest.approx(100)
    numbers, bands = zip(*read_each_band(path), strict=True)
    assert numbers == tuple(range(1, 101))
    np.testing.assert_array_equal(np.stack(bands, axis=2), values)


def test_nodata_of_each_band(path):
    values = make_bands(4, np.int16)
    values[2:5, :, 0] = values[4:7, :, 3] = -9999
    write_geotiff(path, values, nodata=-9999, **UTM)
    image = read_geotiff(path, bands=(4, 2, 1))
    np.testing.assert_array_equal(image.pixels.mask, values[..., [3, 1, 0]] == -9999)
    for band, read in read_each_band(path):
        np.testing.assert_array_equal(read.mask, values[..., band - 1] == -9999)
    image_rgb = ImageReader(bands=(4, 2, 1)).read_masked(path)
    is_known = np.ones(SHAPE, dtype=bool)
    is_known[2:7] = False
    np.testing.assert_array_equal(image_rgb.mask, np.repeat(~is_known[..., None], 3, axis=2))
    np.testing.assert_array_equal(image_rgb.data[is_known], values[..., [3, 1, 0]][is_known])  # 8 bits


def test_floats_without_data(path):
    values = make_bands(1, np.float32) / 200
    values[0, :3, 0] = np.nan, np.inf, -np.inf
    values[1, 1, 0] = -5
    write_geotiff(path, values, nodata=-5, **UTM)
    is_known = np.isfinite(values[..., 0]) & (values[..., 0] != -5)
    np.testing.assert_array_equal(~read_geotiff(path).pixels.mask[..., 0], is_known)
    image_rgb = ImageReader(value_range=(0, 2)).read_masked(path)
    np.testing.assert_array_equal(~image_rgb.mask[..., 1], is_known)
    np.testing.assert_array_equal(image_rgb.data[is_known, 1], np.rint(255 * values[is_known, 0] / 2))
    with pytest.raises(InputError, match=r"a\.tif has 32-bit float pixels of unknown range; give `value_ra"):
        ImageReader().read_masked(path)


@pytest.mark.parametrize("nodata", [None, 0])
def test_opacity_masks_unless_it_is_chosen(nodata, path):
    values = make_bands(4, np.uint8)
    values[:4, :, 3] = 0
    values[6, :, 0] = 0
    roles = ["red", "green", "blue", "alpha"]
    write_geotiff(path, values, photometric="rgb", alpha="yes", roles=roles, nodata=nodata, **UTM)
    expected = np.repeat(values[..., 3:] == 0, 3, axis=2)
    if nodata == 0:
        expected[6, :, 0] = True
    np.testing.assert_array_equal(read_geotiff(path).pixels.mask, expected)
    np.testing.assert_array_equal(read_geotiff(path, bands=(1, 2, 3)).pixels.mask, expected)
    chosen = read_geotiff(path, bands=(4,)).pixels
    np.testing.assert_array_equal(chosen.data, values[..., 3:])
    assert not np.ma.is_masked(chosen)
    assert [band for band, _ in read_each_band(path)] == [1, 2, 3]
    assert count_bands(path) == 3


def test_mask_inside_a_file(path):
    mask = np.arange(31) < np.arange(20)[:, None]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_geotiff(path, make_bands(3, np.uint8), photometric="rgb", mask=mask)
    assert is_geotiff(path)
    np.testing.assert_array_equal(read_geotiff(path).pixels.mask[..., 2], ~mask)
    assert read_georeference(path) == PIXELS


def test_names_of_bands(path, caplog):
    values = make_bands(5)
    roles = ["blue", "green", "undefined", "red", "undefined"]
    write_geotiff(path, values, roles=roles, **UTM)
    np.testing.assert_array_equal(read_geotiff(path).pixels, values[..., [3, 1, 0]])
    assert "a.tif has 5 bands: 4 2 1 are red, green and blue by name" in caplog.messages[0]
    np.testing.assert_array_equal(read_geotiff(path, bands=(5,)).pixels, values[..., 4:])


@pytest.mark.parametrize("n_bands", [2, 4, 100])
def test_bands_without_names_must_be_chosen(n_bands, path):
    write_geotiff(path, make_bands(n_bands), photometric="minisblack", **UTM)
    for read in (read_geotiff, ImageReader().read_masked):
        with pytest.raises(InputError, match=rf"a\.tif has {n_bands} bands; `bands` chooses three, as red"):
            read(path)
    with pytest.raises(InputError, match=rf"a\.tif has {n_bands} bands, and so no band 101 of `bands`"):
        read_geotiff(path, bands=(1, 2, 101))
    with pytest.raises(InputError, match="`bands` 1 2: expected three bands"):
        read_geotiff(path, bands=(1, 2))


def test_palette(path):
    values = make_bands(1, np.uint8)
    write_geotiff(path, values, nodata=7, photometric="palette", **UTM)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {index: (index, 255 - index, 9) for index in range(256)})
    image = read_geotiff(path)
    expected = np.concatenate([values, 255 - values, np.full_like(values, 9)], axis=2)
    np.testing.assert_array_equal(image.pixels.data, expected)
    np.testing.assert_array_equal(image.pixels.mask[..., 0], values[..., 0] == 7)


def test_files_that_need_no_gdal(tmp_path, caplog):
    values = make_bands(4, np.uint8)
    for suffix in ("tif", "png"):
        Image.fromarray(values).save(tmp_path / f"transparent.{suffix}")
    write_geotiff(tmp_path / "rgb.tif", values[..., :3], photometric="rgb")
    (tmp_path / "broken.tif").write_bytes(b"II*\0broken")
    (tmp_path / "empty.tif").write_bytes(b"")
    for file in tmp_path.iterdir():
        assert not is_geotiff(file)
        assert read_georeference(file) == PIXELS
    assert not is_geotiff(tmp_path / "missing.tif")
    transparent = tmp_path / "transparent.tif"
    assert caplog.messages == []
    np.testing.assert_array_equal(ImageReader().read_masked(transparent), read_image(transparent))


@pytest.mark.parametrize(
    "options",
    [UTM, {"crs": "EPSG:4326"}, {"transform": NORTH_UP}, {"transform": TURNED}, {"nodata": 3}],
    ids=["place", "CRS", "scale", "turned", "nodata"],
)
def test_files_that_need_gdal(options, path, monkeypatch, caplog):
    values = make_bands(1, np.uint8)
    write_geotiff(path, values, **options)
    assert is_geotiff(path)
    assert caplog.messages == []
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert not is_geotiff(path)
    assert not is_geotiff(path)
    (message,) = caplog.messages
    assert message.endswith(
        "a.tif has a georeference or nodata, not used here and in other such files; to use them: "
        "pip install rasterio pyogrio"
    )
    np.testing.assert_array_equal(ImageReader().read_masked(path)[..., 0], values[..., 0])
    assert read_georeference(path) == PIXELS


@pytest.mark.usefixtures("no_rasterio")
def test_files_without_a_place_need_no_rasterio(tmp_path, caplog):
    Image.fromarray(make_bands(3, np.uint8)).save(tmp_path / "a.tif")
    assert not is_geotiff(tmp_path / "a.tif")
    assert caplog.messages == []
    for call in (lambda: read_geotiff(tmp_path / "a.tif"), lambda: to_label_geotiff(np.zeros((2, 3), int))):
        with pytest.raises(InputError, match="need rasterio: pip install rasterio pyogrio"):
            call()


def test_control_points_are_reported(path, caplog):
    points = [
        rasterio.control.GroundControlPoint(row, col, 10 + col, 50 - row) for row in (0, 9) for col in (0, 9)
    ]
    write_geotiff(path, make_bands(1, np.uint8), gcps=points, crs="EPSG:4326")
    assert read_georeference(path) == PIXELS
    assert "a.tif has a place by control points alone" in caplog.messages[0]


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_pixels_are_refused(dtype, path):
    write_geotiff(path, make_bands(1, np.complex64), dtype=dtype, **UTM)
    with pytest.raises(InputError, match=r"a\.tif has complex pixels; convert it to their amplitude"):
        ImageReader().read_masked(path)
    with pytest.raises(InputError, match=r"a\.tif has complex pixels"):
        next(read_each_band(path))


def test_truncated_files_are_named(path):
    write_geotiff(path, make_bands(3, np.uint8), **UTM)
    path.write_bytes(path.read_bytes()[:900])
    assert is_geotiff(path)
    with pytest.raises(InputError, match=r"a\.tif is not a readable image \(Read failed"):
        ImageReader().read_masked(path)


@pytest.mark.parametrize(
    ("largest", "dtype"), [(0, "uint8"), (254, "uint8"), (255, "uint16"), (65_535, "uint32")]
)
def test_label_maps(largest, dtype, path):
    labels = np.full(SHAPE, -1, dtype=np.int32)
    labels[3:, 4:] = largest
    georeference = Georeference(rasterio.CRS.from_epsg(2056).to_wkt(), tuple(TURNED)[:6])
    path.write_bytes(to_label_geotiff(labels, georeference))
    with rasterio.open(path) as file:
        assert file.dtypes == (dtype,)
        assert file.nodata == np.iinfo(dtype).max
        assert file.compression.name == "deflate"
        assert file.crs == rasterio.CRS.from_epsg(2056)
        assert file.transform.almost_equals(TURNED, 1e-9)
        read = file.read(1, masked=True)
    np.testing.assert_array_equal(read.filled(0), np.where(labels < 0, 0, labels))
    np.testing.assert_array_equal(read.mask, labels < 0)


def test_label_map_without_a_place(path):
    path.write_bytes(to_label_geotiff(np.zeros(SHAPE, dtype=np.int32)))
    with rasterio.open(path) as file:
        assert (file.crs, file.transform) == (None, rasterio.Affine.identity())


def test_mask_of_an_image(tmp_path):
    image, mask = tmp_path / "a.tif", tmp_path / "m.tif"
    write_geotiff(image, make_bands(1, np.uint8), **UTM)
    inside = np.zeros((*SHAPE, 1), dtype=np.float32)
    inside[3:9], inside[12:] = 1, -9999
    write_geotiff(mask, inside, nodata=-9999, **UTM)
    np.testing.assert_array_equal(read_mask(mask), inside[..., 0] == 1)
    check_same_place(image, mask)
    write_geotiff(mask, inside, nodata=-9999)
    check_same_place(image, mask)  # a mask without a place has that of its image
    write_geotiff(mask, inside, crs="EPSG:32632", transform=NORTH_UP)
    with pytest.raises(InputError, match=r"m\.tif is in EPSG:32632, but .*a\.tif in EPSG:32633; warp"):
        check_same_place(image, mask)
    write_geotiff(
        mask, inside, crs="EPSG:32633", transform=rasterio.Affine(10, 0, 500_030, 0, -10, 4_600_000)
    )
    with pytest.raises(InputError, match=r"m\.tif lies elsewhere than .*a\.tif, by 3\.0 pixels"):
        check_same_place(image, mask)


def test_reader_of_other_files(tmp_path):
    Image.fromarray(make_bands(3, np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(ImageReader().read_masked(tmp_path / "a.png"), make_bands(3, np.uint8))
    with pytest.raises(InputError, match=r"no image file .*b\.png"):
        ImageReader().read_masked(tmp_path / "b.png")
