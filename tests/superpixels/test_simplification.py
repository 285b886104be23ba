"""Test simplified outlines of superpixels."""

import json

import numpy as np
import pytest
import shapely

from lib.superpixels.connectivity import enforce_connectivity
from lib.superpixels.outlines import to_geojson, to_svg, trace_outlines
from lib.superpixels.regions import Superpixels
from properties import arrays, given, settings, st


def polygons(labels, tolerance):
    outlines = trace_outlines(labels, tolerance=tolerance)
    return [shapely.Polygon(rings[0], rings[1:]) for rings in outlines if rings]


def block_labels(*, seed, height=40, width=62, block=4):
    """Make random regions of blocks with jagged borders, with holes among them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 3, (height // block, -(-width // block)))
    labels = np.kron(blocks, np.ones((block, block), dtype=np.int64))[:, :width]
    rows, cols = np.indices(labels.shape)
    jag = rng.integers(-1, 2, labels.shape)
    labels = labels[np.clip(rows + jag, 0, labels.shape[0] - 1), np.clip(cols + jag, 0, width - 1)]
    return enforce_connectivity(labels, labels.size)


def check(labels, tolerance):
    simplified = polygons(labels, tolerance)
    assert all(polygon.is_valid for polygon in simplified)
    assert shapely.coverage_is_valid(simplified)  # no overlap, no gap, same corners on both sides
    if labels.min() >= 0:
        assert sum(polygon.area for polygon in simplified) == labels.size
    for full, polygon in zip(polygons(labels, 0), simplified, strict=True):
        assert len(full.interiors) == len(polygon.interiors)
        assert polygon.area > 0
        corners = shapely.points(shapely.get_coordinates(full))
        assert shapely.distance(corners, polygon.boundary).max() <= tolerance + 1e-9


@settings(deadline=None, max_examples=100)
@given(
    arrays(np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)),
    st.sampled_from([0.5, 0.75, 1.0, 1.5, 3.0, 20.0]),
    st.booleans(),
)
def test_simplified_outlines_tile_the_image(labels, tolerance, with_mask):
    labels = enforce_connectivity(labels, labels.size * 2)  # single pixels stay
    if with_mask and labels.max() > 0:
        labels[labels == labels.max() // 2] = -1
    check(labels, tolerance)


@pytest.mark.parametrize("tolerance", [1.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_large_regions_tile_the_image(seed, tolerance):
    labels = block_labels(seed=seed)
    check(labels, tolerance)
    n_corners = [sum(shapely.get_num_coordinates(polygons(labels, t))) for t in (0, tolerance)]
    assert n_corners[1] < 0.8 * n_corners[0]


def test_staircase_becomes_a_diagonal():
    labels = np.tri(6, dtype=np.int64)[:, ::-1]  # 1 below the diagonal from bottom left to top right
    above, below = trace_outlines(labels, tolerance=1)
    assert above == [[(0, 0), (5, 0), (0, 5)]]
    assert set(below[0]) == {(5, 0), (6, 0), (6, 6), (0, 6), (0, 5)}


def test_borders_within_the_tolerance_only():
    labels = np.zeros((8, 12), dtype=np.int64)
    labels[4:] = 1
    labels[1, 3] = labels[2:4, 3] = 1  # a peak, three pixels high
    assert min(y for _, y in trace_outlines(labels, tolerance=2.5)[1][0]) == 1
    assert set(trace_outlines(labels, tolerance=3)[1][0]) == {(0, 4), (12, 4), (12, 8), (0, 8)}


def test_a_border_that_runs_beyond_its_ends():
    labels = np.zeros((6, 14), dtype=np.int64)
    labels[:3, :3] = 1
    labels[3, :10] = 2  # its border with 0 runs from (0, 4) to (10, 4) and back to (3, 3)
    assert max(x for x, _ in trace_outlines(labels, tolerance=4)[2][0]) == 10


def test_an_island_keeps_an_area_and_its_place():
    labels = np.zeros((9, 13), dtype=np.int64)
    labels[:, 6:] = 1
    labels[3:6, 4:6] = 1  # a bay around an island at its end
    labels[4, 5] = 2
    outlines = trace_outlines(labels, tolerance=100)
    assert len(outlines[2][0]) == 3
    left, right, island = polygons(labels, 100)
    assert (left.area + right.area + island.area, len(right.interiors)) == (labels.size, 1)
    assert island.area > 0


def test_corners_of_the_image_stay():
    labels = np.zeros((5, 7), dtype=np.int64)
    labels[0, 0] = 1
    assert trace_outlines(labels, tolerance=50)[1] == [[(0, 0), (1, 0), (0, 1)]]


@pytest.mark.parametrize("write", [to_geojson, to_svg])
def test_files_of_simplified_outlines(write):
    labels = np.tri(6, 8, dtype=np.int32)
    superpixels = Superpixels(labels, np.zeros((6, 8, 3), dtype=np.uint8), 2)
    text = write(superpixels, tolerance=1)
    if write is to_svg:
        assert 'd="M0,0 1,0 6,6 0,6Z"' in text
    else:
        ring = json.loads(text)["features"][1]["geometry"]["coordinates"][0]
        assert ring == [[0, 0], [1, 0], [6, 6], [0, 6], [0, 0]]
