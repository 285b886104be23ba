"""Output files of an image."""

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from helpers import make_quadrants
from lib.files.atomic import check_output_file
from lib.inference.outputs import ExportStyle, OutputFiles, OverlayStyle, write_outputs
from lib.inference.segmenter import Segmenter
from lib.network.inputs import InputScales
from lib.optflow.drawing import draw_flow
from lib.runtime.errors import InputError, RunError
from lib.superpixels.drawing import BOUNDARY_COLOR, draw_boundaries
from lib.superpixels.regions import Superpixels
from model import SSNPix


def make_superpixels(height=60, width=92, **more):
    image_rgb, quadrants = make_quadrants(height, width)
    return Superpixels(quadrants, image_rgb, 4, **more)


def every_pixel(height, width):
    """Make a superpixel of every pixel."""
    labels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    return Superpixels(labels, np.zeros((height, width, 3), dtype=np.uint8), labels.size)


def read_labels(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file["labels"][:]
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("suffix", ["npy", "png", "tif", "h5"])
def test_labels_round_trip(tmp_path, suffix):
    superpixels = every_pixel(256, 256)
    path = tmp_path / f"labels.{suffix}"
    write_outputs(superpixels, OutputFiles(tmp_path / "overlay.png", labels=path))
    np.testing.assert_array_equal(read_labels(path), superpixels.labels)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "overlay.png"]


@pytest.mark.parametrize("suffix", ["NPY", "tif", "h5"])
def test_labels_above_16_bits(tmp_path, suffix):
    superpixels = every_pixel(256, 257)
    overlay, path = tmp_path / "overlay.png", tmp_path / f"labels.{suffix}"
    with pytest.raises(InputError, match=r"`save_labels` .*label 65791 .*PNG.*\.npy, \.tif or \.h5"):
        write_outputs(superpixels, OutputFiles(overlay, labels=tmp_path / "labels.png"))
    assert list(tmp_path.iterdir()) == []
    write_outputs(superpixels, OutputFiles(overlay, labels=path))
    labels = np.load(path) if suffix == "NPY" else read_labels(path)
    np.testing.assert_array_equal(labels, superpixels.labels)


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("overlay.webp", 16_400, r"overlay\.webp: "),
        ("overlay.JPG", 65_501, r"overlay\.JPG: .*65500 pixels"),
    ],
)
def test_overlay_too_large_for_its_format_leaves_nothing(tmp_path, name, width, message):
    files = OutputFiles(tmp_path / name, labels=tmp_path / "labels.npy")
    with pytest.raises(InputError, match=message):
        write_outputs(make_superpixels(2, width), files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["labels", "flow", "outlines"])
def test_failed_write_leaves_no_file_of_the_image(tmp_path, kind):
    names = {"labels": "l.npy", "flow": "f.png", "outlines": "x.svg"}
    paths = {name: tmp_path / file for name, file in names.items()}
    (paths[kind] / "inside").mkdir(parents=True)
    before = tmp_path / "o.png"
    before.write_bytes(b"old")
    flow = np.zeros((5, 6, 4), dtype=np.float32)
    with pytest.raises(RunError, match=rf"{paths[kind]} \(Is a directory\)"):
        write_outputs(make_superpixels(), OutputFiles(before, **paths), flow=flow)
    assert sorted(tmp_path.iterdir()) == sorted([before, paths[kind]])
    assert before.read_bytes() == b"old"


def test_failed_rename_leaves_no_file_of_the_image(tmp_path, monkeypatch):
    replace = Path.replace

    def fail_for_labels(path, target):
        if target.name == "l.npy":
            raise PermissionError(1, "Operation not permitted")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_for_labels)
    files = OutputFiles(tmp_path / "o.png", labels=tmp_path / "l.npy", outlines=tmp_path / "x.svg")
    with pytest.raises(RunError, match=r"l\.npy \(Operation not permitted\)"):
        write_outputs(make_superpixels(), files)
    assert list(tmp_path.iterdir()) == []


def test_overlay_and_flow(tmp_path):
    superpixels = make_superpixels()
    flow = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)
    files = OutputFiles(tmp_path / "overlay.png", flow=tmp_path / "flow.png")
    write_outputs(superpixels, files, flow=flow)
    overlay = np.asarray(Image.open(tmp_path / "overlay.png"))
    np.testing.assert_array_equal(overlay, draw_boundaries(superpixels.image_rgb, superpixels.labels))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "flow.png")), draw_flow(flow))


def test_styles_of_overlays(tmp_path):
    superpixels = make_superpixels()
    path = tmp_path / "overlay.png"
    write_outputs(superpixels, OutputFiles(path), style=OverlayStyle("mean_colors"))
    painted = np.asarray(Image.open(path))
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) == 4
    write_outputs(superpixels, OutputFiles(path), style=OverlayStyle(color=(255, 0, 0), width=1))
    expected = draw_boundaries(superpixels.image_rgb, superpixels.labels, color=(255, 0, 0), width=1)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


def test_jpeg_overlays_keep_the_colour_of_thin_lines(tmp_path):
    superpixels = make_superpixels()
    path = tmp_path / "overlay.jpg"
    write_outputs(superpixels, OutputFiles(path), style=OverlayStyle(color=(255, 0, 0), width=1))
    with Image.open(path) as image:
        assert image.layer[0][1:3] == image.layer[1][1:3] == (1, 1)  # colours have the full resolution
        stored = np.asarray(image).astype(int)
    expected = draw_boundaries(superpixels.image_rgb, superpixels.labels, color=(255, 0, 0), width=1)
    assert np.abs(stored - expected).mean() < 6


def test_a_border_wider_than_the_image_covers_it():
    superpixels = make_superpixels()
    overlay = draw_boundaries(superpixels.image_rgb, superpixels.labels, color=(1, 2, 3), width=10**20)
    np.testing.assert_array_equal(overlay, np.full_like(overlay, 1) * [1, 2, 3])


LEVELS = (3, 10, 24)


def make_levels():
    """Return superpixels of an image with a mask, and three cuts of their merge tree."""
    image_rgb, quadrants = make_quadrants()
    superpixels = Segmenter(SSNPix(), InputScales())(image_rgb, LEVELS[-1], mask=quadrants > 0)
    return superpixels, [superpixels.at(n_spixels) for n_spixels in LEVELS]


def merge_leaves(leaves, merges, n_regions):
    """Cut a tree with a union-find."""
    n_leaves = leaves.max() + 1
    parent = list(range(n_leaves + len(merges)))
    for idx, children in enumerate(merges[: n_leaves - n_regions, :2].astype(int)):
        for child in children:
            parent[child] = n_leaves + idx

    def find(node):
        return node if parent[node] == node else find(parent[node])

    return np.array([*map(find, range(n_leaves)), -1])[leaves]


def count_pairs(one, other):
    return np.unique(np.stack([one.ravel(), other.ravel()]), axis=1).shape[1]


def test_saved_levels_nest_and_follow_from_the_merges(tmp_path):
    superpixels, levels = make_levels()
    files = OutputFiles(tmp_path / "o.png", labels=tmp_path / "l.h5")
    write_outputs(superpixels, files, levels=levels)
    with h5py.File(files.labels) as file:
        saved = {name: dataset[:] for name, dataset in file.items()}
        assert {dataset.compression for dataset in file.values()} == {"gzip"}
        assert dict(file["merges"].attrs).keys() == {"columns", "nodes"}
    assert saved.keys() == {"level_3", "level_10", "level_24", "leaves", "merges"}
    merges, leaves = saved["merges"], saved["leaves"]
    assert (merges.dtype, merges.shape[1], leaves.dtype) == (np.float64, 3, np.int32)
    finer = leaves
    for n_spixels in reversed(LEVELS):
        labels = saved[f"level_{n_spixels}"]
        assert labels.dtype == np.int32
        assert labels.max() + 1 == n_spixels
        np.testing.assert_array_equal(labels == -1, make_quadrants()[1] == 0)
        n_finer = finer.max() + 1
        assert count_pairs(finer, labels) == n_finer + 1  # with the pixels outside the mask
        assert count_pairs(merge_leaves(leaves, merges, n_spixels), labels) == n_spixels + 1
        finer = labels


def test_overlay_of_levels(tmp_path):
    superpixels, levels = make_levels()
    path = tmp_path / "overlay.png"
    write_outputs(superpixels, OutputFiles(path), levels=levels, style=OverlayStyle(width=1))
    overlay = np.asarray(Image.open(path))
    coarsest = draw_boundaries(superpixels.image_rgb, levels[0].labels, width=3)
    is_coarsest = (coarsest == BOUNDARY_COLOR).all(axis=2)
    np.testing.assert_array_equal((overlay == BOUNDARY_COLOR).all(axis=2), is_coarsest)
    finest = draw_boundaries(superpixels.image_rgb, superpixels.labels, width=1)
    is_finest = (finest == BOUNDARY_COLOR).all(axis=2)
    changed = (overlay != superpixels.image_rgb).any(axis=2)
    assert changed[is_finest].all()
    painted = OverlayStyle("mean_colors")
    write_outputs(superpixels, OutputFiles(path), levels=levels, style=painted)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), painted.draw(superpixels))


def test_png_cannot_hold_pixels_outside_the_mask(tmp_path):
    superpixels = make_superpixels()
    superpixels.labels[0, 0] = -1
    files = OutputFiles(tmp_path / "o.png", labels=tmp_path / "labels.png")
    with pytest.raises(InputError, match=r"labels\.png: PNG .*-1"):
        write_outputs(superpixels, files)
    write_outputs(superpixels, files._replace(labels=tmp_path / "labels.tif"))
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.tif"), superpixels.labels)


@pytest.mark.parametrize(("name", "start"), [("o.geojson", '{"type": "Feature'), ("o.SVG", "<svg")])
def test_outlines(tmp_path, name, start):
    write_outputs(make_superpixels(), OutputFiles(tmp_path / "o.png", outlines=tmp_path / name))
    assert (tmp_path / name).read_text().startswith(start)


def test_simplified_outlines(tmp_path):
    labels = np.tri(30, 40, dtype=np.int32)
    superpixels = Superpixels(labels, np.zeros((30, 40, 3), dtype=np.uint8), 2)
    files = OutputFiles(tmp_path / "o.png", outlines=tmp_path / "o.geojson")
    n_corners = []
    for tolerance in (0, 1):
        write_outputs(superpixels, files, export=ExportStyle(tolerance))
        features = json.loads(files.outlines.read_text())["features"]
        n_corners.append(len(features[1]["geometry"]["coordinates"][0]))
    assert n_corners == [63, 5]


@pytest.mark.parametrize(
    ("name", "annotation_format", "keys"),
    [
        ("a.json", None, {"info", "images", "categories", "annotations"}),
        ("a.JSON", "coco", {"info", "images", "categories", "annotations"}),
        ("a.json", "labelme", {"version", "flags", "shapes", "imagePath"}),
    ],
)
def test_annotations_in_json(tmp_path, name, annotation_format, keys):
    (tmp_path / "out").mkdir()
    files = OutputFiles(tmp_path / "o.png", annotations=tmp_path / "out" / name)
    image = tmp_path / "photos" / "b.jpg"
    export = ExportStyle(annotation_format=annotation_format)
    write_outputs(make_superpixels(), files, export=export, image=image)
    content = json.loads(files.annotations.read_text())
    assert keys <= set(content)
    if annotation_format == "labelme":
        assert content["imagePath"] == "../photos/b.jpg"
    else:
        assert content["images"][0]["file_name"] == "b.jpg"


def test_annotations_for_cvat(tmp_path):
    files = OutputFiles(tmp_path / "o.png", annotations=tmp_path / "a.ZIP")
    write_outputs(make_superpixels(), files, image=Path("photos/b.jpg"))
    with zipfile.ZipFile(files.annotations) as archive:
        assert "SegmentationObject/b.png" in archive.namelist()
    with pytest.raises(InputError, match="at most 255"):
        write_outputs(every_pixel(16, 17), files, image=Path("b.jpg"))
    with zipfile.ZipFile(files.annotations) as archive:  # the file before stays
        assert "SegmentationObject/b.png" in archive.namelist()


def test_saved_features(tmp_path):
    features = np.random.default_rng(0).random((4, 60, 92), dtype=np.float32)
    superpixels = make_superpixels(pixel_features=features, n_base_features=4)
    write_outputs(superpixels, OutputFiles(tmp_path / "o.png", features=tmp_path / "features.NPZ"))
    with np.load(tmp_path / "features.NPZ") as saved:
        assert sorted(saved) == ["labels", "n_base_features", "pixel_features", "spixel_features"]
        np.testing.assert_array_equal(saved["labels"], superpixels.labels)
        np.testing.assert_array_equal(saved["pixel_features"], features)
        np.testing.assert_array_equal(saved["spixel_features"], superpixels.features)
        assert saved["n_base_features"] == 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["features.NPZ", "o.png"]


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
    with pytest.raises(InputError, match=f"`labels` .*{message}"):
        check_output_file("labels", tmp_path / name, (".npy", ".png"))
