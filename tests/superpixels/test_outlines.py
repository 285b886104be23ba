"""Test the outlines of superpixels as polygons."""

import json
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image, ImageDraw

from lib.superpixels.connectivity import enforce_connectivity
from lib.superpixels.outlines import to_geojson, to_svg, trace_outlines
from lib.superpixels.regions import Superpixels
from properties import arrays, given, settings, st


def signed_area(ring):
    x, y = np.array(ring).T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def test_outlines_by_hand():
    labels = np.array([[0, 0, 0], [0, 1, 0], [0, 0, -1]])  # the hole touches the outside at a corner
    outer, hole = trace_outlines(labels)[0]
    assert set(outer) == {(0, 0), (3, 0), (3, 2), (2, 2), (2, 3), (0, 3)}
    assert set(hole) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert trace_outlines(labels)[1] == [[(1, 1), (2, 1), (2, 2), (1, 2)]]


def test_rings_keep_the_corners_where_borders_meet():
    labels = np.array([[0, 0, 0, 0], [1, 1, 2, 2]])
    top = {(0, 0), (4, 0), (4, 1), (0, 1)}
    assert set(trace_outlines(labels)[0][0]) == top
    assert set(trace_outlines(labels, with_junctions=True)[0][0]) == {*top, (2, 1)}
    assert set(trace_outlines(labels, with_junctions=True)[1][0]) == {(0, 1), (2, 1), (2, 2), (0, 2)}


@settings(deadline=None, max_examples=100)
@given(arrays(np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_rings_enclose_their_pixels(labels):
    labels = enforce_connectivity(labels, labels.size * 2)  # single pixels stay
    labels[labels == labels.max() // 2] = -1
    for label, rings in enumerate(trace_outlines(labels)):
        size = (labels == label).sum()
        assert sum(signed_area(ring) for ring in rings) == size
        if size:
            assert signed_area(rings[0]) > 0
            assert all(signed_area(ring) < 0 for ring in rings[1:])
        assert all(len(ring) == len(set(ring)) for ring in rings)
        assert (fill(rings, labels.shape) == (labels == label)).all()


def fill(rings, shape):
    """Find the pixels whose centre lies within the rings by the even-odd rule."""
    inside = np.zeros(shape, dtype=bool)
    y, x = np.indices(shape) + 0.5
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            inside ^= (min(y0, y1) < y) & (y < max(y0, y1)) & (x < x0) & (x0 == x1)
    return inside


def make_superpixels():
    rows, cols = np.indices((12, 20))
    labels = (rows // 6 * 2 + cols // 10).astype(np.int32)
    labels[2:4, 3:5] = 4
    image_rgb = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return Superpixels(labels, image_rgb, 5)


def test_geojson():
    superpixels = make_superpixels()
    collection = json.loads(to_geojson(superpixels))
    assert collection["type"] == "FeatureCollection"
    assert [feature["properties"]["label"] for feature in collection["features"]] == [0, 1, 2, 3, 4]
    with_hole = collection["features"][0]
    assert with_hole["properties"]["size"] == 56
    assert with_hole["properties"]["color"] == np.round(superpixels.colors[0]).astype(int).tolist()
    outer, hole = with_hole["geometry"]["coordinates"]
    assert outer[0] == outer[-1] == [0, 0]
    picture = Image.new("1", (21, 13))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in outer], fill=1)
    assert np.asarray(picture)[1:5, 1:9].all()
    assert len(hole) == 5


def test_svg():
    root = ET.fromstring(to_svg(make_superpixels()))
    assert root.get("viewBox") == "0 0 20 12"
    paths = list(root)
    assert [path.get("data-label") for path in paths] == ["0", "1", "2", "3", "4"]
    assert paths[0].get("d").count("M") == 2
    assert paths[3].get("d") == "M10,6 20,6 20,12 10,12Z"
