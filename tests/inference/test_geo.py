"""GeoTIFF files in, label maps and polygons on the ground out."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

import inference_base_model
from helpers import fails_with, make_quadrants, write_geotiff
from lib.files.geotiff import PIXELS, Georeference
from lib.inference.geo import bands_of, to_polygon_layer
from lib.runtime.errors import InputError, RunError
from lib.runtime.notices import forget_logged
from lib.superpixels.connectivity import enforce_connectivity
from lib.superpixels.regions import Superpixels
from properties import arrays, given, settings, st

pyogrio = pytest.importorskip("pyogrio", reason="needs pyogrio")
rasterio = pytest.importorskip("rasterio", reason="needs rasterio")
rasterize = pytest.importorskip("rasterio.features").rasterize
shapely = pytest.importorskip("shapely", reason="needs shapely")

UTM = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 4_600_000)}
TURNED = Georeference(rasterio.CRS.from_epsg(32633).to_wkt(), (8.1, 5.9, 500_000.3, 5.9, -8.1, 4_600_000.7))


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    forget_logged()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def segment(*argv):
    """Run the script without a network, because that is fast."""
    return inference_base_model.main(["--base_model_weights=none", "--nspix=24", "--device=cpu", *argv])


def read_polygons(path):
    """Read the CRS, the polygons and the attributes by name of a GeoPackage."""
    meta, _, geometry, values = pyogrio.raw.read(path, layer="superpixels")
    return meta["crs"], shapely.from_wkb(geometry), dict(zip(meta["fields"], values, strict=True))


def make_layer(path, superpixels, bands=(), georeference=PIXELS, **options):
    path.write_bytes(to_polygon_layer(superpixels, bands, georeference, **options))
    return read_polygons(path)


def make_labels():
    rows, cols = np.indices((12, 20))
    labels = (rows // 6 * 2 + cols // 10).astype(np.int32)
    labels[2:4, 3:5] = 4
    labels[11, 19] = -1
    return labels


def superpixels_of(labels):
    return Superpixels(labels, np.zeros((*labels.shape, 3), dtype=np.uint8), labels.max() + 1)


def test_polygons_and_their_statistics(tmp_path):
    labels = make_labels()
    values = np.ma.masked_less(np.random.default_rng(0).normal(1000, 5, (2, *labels.shape)), 997)
    values[1, labels == 2] = np.ma.masked
    bands = [(3, values[0]), (7, values[1])]
    crs, polygons, fields = make_layer(tmp_path / "a.gpkg", superpixels_of(labels), bands, TURNED)
    assert crs == "EPSG:32633"
    assert list(fields) == ["label", "n_pixels", "area", "mean_3", "std_3", "mean_7", "std_7"]
    assert fields["label"].tolist() == [0, 1, 2, 3, 4]
    assert fields["n_pixels"].tolist() == [56, 60, 60, 59, 4]
    np.testing.assert_allclose(fields["area"], fields["n_pixels"] * (8.1**2 + 5.9**2))
    np.testing.assert_allclose(shapely.area(polygons), fields["area"], rtol=1e-9)
    for label in range(5):
        for band, of_band in bands:
            inside = of_band[labels == label].compressed()
            if (label, band) == (2, 7):
                assert np.isnan([fields["mean_7"][2], fields["std_7"][2]]).all()
                continue
            assert fields[f"mean_{band}"][label] == pytest.approx(inside.mean(), rel=1e-6)
            assert fields[f"std_{band}"][label] == pytest.approx(inside.std(), rel=1e-6)
    outer = shapely.get_coordinates(polygons[2].exterior)
    expected = TURNED.place(np.array([[0, 6], [10, 6], [10, 12], [0, 12]]))
    assert {*map(tuple, outer)} == {*map(tuple, expected)}
    assert len(polygons[0].interiors) == 1


@settings(deadline=None, max_examples=30)
@given(
    arrays(np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)),
    st.sampled_from([0, 1.5]),
    st.sampled_from([PIXELS, TURNED]),
    st.booleans(),
)
def test_polygons_meet_without_gaps(tmp_path_factory, labels, tolerance, georeference, with_mask):
    labels = enforce_connectivity(labels, labels.size * 2)  # single pixels stay
    if with_mask and labels.max() > 0:
        labels[labels == labels.max()] = -1
    path = tmp_path_factory.mktemp("polygons") / "a.gpkg"
    _, polygons, fields = make_layer(path, superpixels_of(labels), (), georeference, tolerance=tolerance)
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    assert shapely.is_ccw(shapely.get_exterior_ring(polygons)).all()
    if tolerance == 0:
        np.testing.assert_allclose(shapely.area(polygons), fields["area"], rtol=1e-9)


def test_no_gap_opens_where_a_border_meets_a_straight_one(tmp_path):
    labels = np.repeat([[0, 0, 0, 0, 0], [1, 1, 2, 2, 3]], 3, axis=0).repeat(3, axis=1)
    _, polygons, _ = make_layer(tmp_path / "a.gpkg", superpixels_of(labels), (), TURNED)
    assert shapely.union_all(polygons).geom_type == "Polygon"


def test_too_many_bands(tmp_path):
    write_geotiff(tmp_path / "a.tif", np.zeros((2, 3, 998), np.uint8))
    with pytest.raises(InputError, match=r"a\.tif has 998 bands; .* statistics of at most 997"):
        list(bands_of(tmp_path / "a.tif", np.zeros((2, 3, 3), np.uint8)))
    bands = [(band, np.zeros((12, 20))) for band in range(1, 998)]
    _, _, fields = make_layer(tmp_path / "a.gpkg", superpixels_of(make_labels()), bands)
    assert len(fields) == 3 + 2 * 997


def write_scene(path, *, n_bands=100, seed=0, **place):
    """Write a float scene of quadrants, its upper left corner NaN; return its bands and what is known."""
    image_rgb, _ = make_quadrants(seed=seed)
    gains = np.linspace(0.5, 1.5, n_bands)
    values = (image_rgb[..., [0, 1, 2] * (n_bands // 3 + 1)][..., :n_bands] * gains).astype(np.float32)
    values[:15, :20] = np.nan
    write_geotiff(path, values, **place)
    return values, ~np.isnan(values[..., 0])


def test_scene_of_a_hundred_bands(in_tmp_path, caplog):
    caplog.set_level("INFO")
    values, is_known = write_scene("a.tif", **UTM)
    segment(
        *("--image=a.tif", "--bands", "34", "2", "3", "--value_range", "0", "260", "--out=o.png"),
        *("--save_labels=l.tif", "--save_outlines=p.gpkg"),
    )
    with rasterio.open("l.tif") as file:
        assert (file.crs, file.transform) == (UTM["crs"], UTM["transform"])
        assert (file.dtypes, file.nodata) == (("uint8",), 255)
        labels = file.read(1, masked=True)
    np.testing.assert_array_equal(~labels.mask, is_known)
    crs, polygons, fields = read_polygons("p.gpkg")
    assert crs == UTM["crs"]
    assert len(polygons) == len(np.unique(labels.compressed())) == 24
    assert len(fields) == 3 + 2 * 100
    for label in range(24):
        inside = values[(labels == label).filled(False)].astype(np.float64)
        assert fields["n_pixels"][label] == len(inside)
        means = [fields[f"mean_{band}"][label] for band in range(1, 101)]
        np.testing.assert_allclose(means, inside.mean(axis=0), rtol=1e-6)
        stds = [fields[f"std_{band}"][label] for band in range(1, 101)]
        np.testing.assert_allclose(stds, inside.std(axis=0), rtol=1e-5)
    painted = rasterize(
        zip(polygons, fields["label"].tolist(), strict=True),
        out_shape=labels.shape,
        fill=255,
        transform=UTM["transform"],
        dtype="uint8",
    )
    np.testing.assert_array_equal(painted, labels.filled(255))
    assert "Created" not in caplog.text  # a line of GDAL


def test_files_of_different_places_have_their_own_outputs(in_tmp_path):
    Path("scenes").mkdir()
    crs_of = {"a": "EPSG:32633", "b": "EPSG:4326", "c": None}
    for name, crs in crs_of.items():
        write_scene(f"scenes/{name}.tif", n_bands=1, crs=crs, transform=UTM["transform"])
    argv = ["--image=scenes", "--value_range", "0", "255", "--out=o"]
    assert segment(*argv, "--save_labels=l/{name}.tif", "--save_outlines=l/{name}.gpkg").n_done == 3
    for name, crs in crs_of.items():
        with rasterio.open(f"l/{name}.tif") as file:
            assert (file.crs, file.transform) == (crs, UTM["transform"])
        found, polygons, _ = read_polygons(f"l/{name}.gpkg")
        assert found == crs
        assert shapely.total_bounds(polygons).tolist() == [500_000, 4_599_400, 500_920, 4_600_000]
    with pytest.raises(InputError, match=r"`outlines` all\.gpkg is a single file, but several images are po"):
        segment(*argv, "--save_outlines=all.gpkg")


def test_mask_in_another_place_is_refused(in_tmp_path):
    write_scene("a.tif", **UTM)
    write_geotiff("m.tif", np.ones((60, 92, 1), np.uint8), **{**UTM, "crs": "EPSG:32632"})
    argv = ["--image=a.tif", "--mask=m.tif", "--bands=1", "--value_range", "0", "255"]
    with pytest.raises(InputError, match=r"m\.tif is in EPSG:32632, but a\.tif in EPSG:32633"):
        segment(*argv)


def test_images_without_a_place(in_tmp_path, caplog):
    image_rgb, _ = make_quadrants()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(image_rgb).save("turned.tif", exif=exif)
    Image.fromarray(image_rgb).save("plain.png")
    for name in ("turned.tif", "plain.png"):
        forget_logged()
        segment(f"--image={name}", "--save_outlines=p.gpkg", "--save_labels=l.tif", "--out=o.png")
        assert f"{name} has no georeference: its polygons are in pixels, y down" in caplog.text
        labels = np.asarray(Image.open("l.tif"))
        assert labels.dtype == np.int32
        crs, polygons, fields = read_polygons("p.gpkg")
        height, width = labels.shape
        assert crs is None
        assert shapely.total_bounds(polygons).tolist() == [0, 0, width, height]
        np.testing.assert_array_equal(fields["area"], fields["n_pixels"])
        seen = np.rot90(image_rgb, -1) if name == "turned.tif" else image_rgb
        assert seen.shape[:2] == (height, width)
        means = np.stack([fields[f"mean_{band}"] for band in (1, 2, 3)], axis=1)
        np.testing.assert_allclose(means, [seen[labels == label].mean(axis=0) for label in range(24)], 1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_out_of_core_is_equal(in_tmp_path, monkeypatch, dtype):
    """In rows of 8 bits, or decoded whole; one band of rows has no data at all."""
    monkeypatch.setattr("lib.files.images._ROWS_AT_ONCE", 7)
    values = make_quadrants(60, 92)[0].astype(dtype) + dtype(1)
    values[14:21] = values[40:, 80:] = 0
    write_geotiff("a.tif", values, nodata=0, **UTM)
    for name, extra in (("in", []), ("out", ["--out_of_core"])):
        segment("--image=a.tif", f"--save_labels={name}.tif", f"--out={name}.png", *extra)
    with rasterio.open("in.tif") as expected, rasterio.open("out.tif") as found:
        assert expected.profile == found.profile
        assert expected.crs == found.crs == UTM["crs"]
        np.testing.assert_array_equal(found.read(), expected.read())
        assert (found.read(1)[14:21] == found.nodata).all()
        assert (found.read(1) == found.nodata).sum() == 7 * 92 + 20 * 12
    np.testing.assert_array_equal(np.asarray(Image.open("in.png")), np.asarray(Image.open("out.png")))


def test_out_of_core_refuses_outlines_on_the_ground(in_tmp_path, capsys):
    write_geotiff("a.tif", make_quadrants(60, 92)[0], **UTM)
    argv = ["--base_model_weights=none", "--image=a.tif", "--out_of_core", "--save_outlines=a.gpkg"]
    error = fails_with(inference_base_model.main, argv, capsys)
    assert "a.gpkg is not possible for an image that does not fit the memory" in error


@pytest.mark.parametrize("missing", ["rasterio", "pyogrio"])
def test_missing_packages_are_named_before_any_work(in_tmp_path, missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    Image.fromarray(make_quadrants()[0]).save("a.png")
    message = fails_with(
        inference_base_model.main, ["--image=a.png", "--save_outlines={name}.gpkg", "--out=o.png"], capsys
    )
    assert f"need {missing}: pip install rasterio pyogrio" in message
    assert not Path("o.png").exists()


def test_scene_without_rasterio(in_tmp_path, monkeypatch, caplog):
    image_rgb, _ = make_quadrants()
    write_geotiff("a.tif", image_rgb, photometric="rgb", **UTM)
    segment("--image=a.tif", "--save_labels=geo.tif", "--out=o.png")
    assert caplog.messages == []
    monkeypatch.setitem(sys.modules, "rasterio", None)
    segment("--image=a.tif", "--save_labels=plain.tif", "--out=o.png")
    assert [message for message in caplog.messages if "pip install rasterio pyogrio" in message] == [
        "a.tif has a georeference or nodata, not used here and in other such files; to use them: "
        "pip install rasterio pyogrio"
    ]
    np.testing.assert_array_equal(np.asarray(Image.open("plain.tif")), np.asarray(Image.open("geo.tif")))


def test_scene_without_data_is_reported(in_tmp_path):
    write_geotiff("a.tif", np.zeros((20, 31, 3), np.uint8), photometric="rgb", nodata=0, **UTM)
    with pytest.raises(InputError, match=r"a\.tif has no unmasked pixel"):
        segment("--image=a.tif")


def test_failed_layer_is_an_error_of_the_run(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise pyogrio.errors.DataLayerError("no space")

    monkeypatch.setattr(pyogrio.raw, "write", fail)
    with pytest.raises(RunError, match=r"cannot write the GeoPackage \(no space\)"):
        make_layer(tmp_path / "a.gpkg", superpixels_of(make_labels()))
