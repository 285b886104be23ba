"""Compare the regularity of superpixels with hand-computed values and with slow, literal implementations."""

import math

import numpy as np
import pytest
from skimage.measure import label

from lib.metrics import registry
from lib.metrics.registry import DEFAULT_METRICS, METRICS, score_label_maps
from lib.metrics.regularity import shape_regularity, smooth_matching
from properties import arrays, given, settings, st

DIAGONAL = math.sqrt(0.5)  # distance of neighbouring diagonals


@st.composite
def connected_maps(draw):
    """Draw a label map of 4-connected superpixels, of any shape up to 7 x 9."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 9)))
    return label(draw(arrays(np.uint8, shape, elements=st.integers(0, 1))), background=-1, connectivity=1)


def slow_hull(pixels):
    """Return the pixels that no line through two pixels of the shape separates from it."""
    points = np.array(sorted(pixels))
    (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0)
    grid = np.stack(np.mgrid[top : bottom + 1, left : right + 1], axis=-1).reshape(-1, 2)
    is_inside = np.ones(len(grid), dtype=bool)
    for start in points:
        for dy, dx in points - start:
            normal = np.array([-dx, dy])
            if ((points - start) @ normal >= 0).all():
                is_inside &= (grid - start) @ normal >= 0
    return set(map(tuple, grid[is_inside].tolist()))


def slow_perimeter(pixels):
    """Return the number of runs in rows, columns and diagonals, weighted by the distance of the lines."""
    steps = {(0, 1): 1, (1, 0): 1, (1, 1): DIAGONAL, (1, -1): DIAGONAL}
    return sum(
        distance * sum((y + dy, x + dx) not in pixels for y, x in pixels)
        for (dy, dx), distance in steps.items()
    )


def slow_regularity(labels):
    total = 0
    for number in np.unique(labels):
        coordinates = np.argwhere(labels == number)
        pixels = set(map(tuple, coordinates.tolist()))
        hull = slow_hull(pixels)
        convexity = (slow_perimeter(hull) / len(hull)) / (slow_perimeter(pixels) / len(pixels))
        smaller, larger = sorted(np.std(coordinates, axis=0))
        balance = math.sqrt(smaller / larger) if larger > 0 else 1
        total += len(pixels) * convexity * balance
    return total / labels.size


def slow_matching(labels):
    height, width = labels.shape
    shapes = []
    for number in np.unique(labels):
        coordinates = np.argwhere(labels == number)
        center = np.floor(coordinates.mean(axis=0) + 0.5).astype(int)
        shape = np.zeros((2 * height + 1, 2 * width + 1))
        for y, x in coordinates - center + (height, width):
            shape[y, x] = 1
        shapes.append(shape)
    mean_shape = sum(shapes) / labels.size
    distances = [shape.sum() * np.abs(mean_shape - shape / shape.sum()).sum() for shape in shapes]
    return 1 - sum(distances) / (2 * labels.size)


@settings(max_examples=60, deadline=None)
@given(connected_maps())
def test_measures_agree_with_slow_versions(labels):
    assert shape_regularity(labels) == pytest.approx(slow_regularity(labels), abs=1e-12)
    assert smooth_matching(labels) == pytest.approx(slow_matching(labels), abs=1e-12)


def blocks(shape, height, width):
    """Return blocks of one size as a label map (H, W)."""
    rows, cols = np.indices(shape)
    return rows // height * (-(-shape[1] // width)) + cols // width


def test_squares():
    labels = blocks((30, 50), 10, 10)
    assert shape_regularity(labels) == pytest.approx(1)
    assert smooth_matching(labels) == pytest.approx(1)


def test_stripes():
    # The standard deviation of n numbers in a row is sqrt((n * n - 1) / 12).
    for labels in (blocks((60, 60), 10, 60), blocks((60, 60), 60, 10)):
        assert shape_regularity(labels) == pytest.approx(((10**2 - 1) / (60**2 - 1)) ** 0.25)
        assert smooth_matching(labels) == pytest.approx(1)


def test_lines_one_pixel_wide():
    labels = blocks((4, 7), 1, 7)
    assert shape_regularity(labels) == 0  # no spread across the line
    assert smooth_matching(labels) == pytest.approx(1)


def test_single_pixels():
    labels = np.arange(20).reshape(4, 5)
    assert shape_regularity(labels) == pytest.approx(1)
    assert smooth_matching(labels) == pytest.approx(1)


def test_disc():
    rows, cols = np.indices((41, 41)) - 20
    disc = rows**2 + cols**2 <= 15**2
    # Single pixels around the disc have 1, so all that is lost is lost by the disc.
    labels = np.where(disc, 0, np.arange(disc.size).reshape(disc.shape) + 1)
    assert shape_regularity(labels) == pytest.approx(1)


def test_corner_shape():
    labels = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 1]])
    # The hull of the corner has one more pixel, in the centre. This joins two pixels on a diagonal.
    corner_runs = 3 + 3 + (5 + 4) * DIAGONAL
    hull_runs = 3 + 3 + (5 + 3) * DIAGONAL
    convexity = (hull_runs / 6) / (corner_runs / 5)
    assert shape_regularity(labels) == pytest.approx((5 * convexity + 4) / 9)


def test_hole():
    labels = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    ring_runs, hull_runs = 4 + 4 + (6 + 6) * DIAGONAL, 3 + 3 + (5 + 5) * DIAGONAL
    convexity = (hull_runs / 9) / (ring_runs / 8)
    assert shape_regularity(labels) == pytest.approx((8 * convexity + 1) / 9)


def test_matching_of_two_shapes():
    # A square of 4 pixels and two bars of 2. Halves are rounded up, so the square moves to (-1, -1), (-1, 0),
    # (0, -1), (0, 0), and the bars to (-1, 0), (0, 0). The mean shape is 3 / 8 at pixels of both, else 1 / 8.
    labels = np.array([[0, 0, 1, 2], [0, 0, 1, 2]])
    square = 2 * (3 / 8 - 1 / 4) + 2 * (1 / 4 - 1 / 8)
    bar = 2 * (1 / 2 - 3 / 8) + 2 * (1 / 8)
    assert smooth_matching(labels) == pytest.approx(1 - (4 * square + 4 * bar) / (2 * 8))
    assert smooth_matching(labels) == pytest.approx(0.75)


def test_equal_shapes_match_at_odd_and_even_places():
    # Barycenters of the pairs are at 0.5 and 3.5, and both pairs move to -1, 0.
    pair, single = 2 * (1 / 2 - 2 / 5), (1 - 3 / 5) + 2 / 5
    assert smooth_matching(np.array([[0, 0, 1, 2, 2]])) == pytest.approx(1 - (4 * pair + single) / (2 * 5))


@pytest.mark.parametrize("compute", [shape_regularity, smooth_matching])
def test_gaps_and_large_labels_keep_values(compute):
    labels = np.array([[0, 0, 1, 1, 2], [0, 1, 1, 2, 2], [3, 3, 3, 2, 2]])
    assert 0.1 < compute(labels) < 0.9
    for numbers in ([3, 9, 4, 14], [10**12, 5, 0, 2**62]):
        assert compute(np.array(numbers)[labels]) == pytest.approx(compute(labels))


@settings(max_examples=100, deadline=None)
@given(connected_maps())
def test_connected_superpixels_stay_in_range(labels):
    assert 0 <= shape_regularity(labels) <= 1 + 1e-12
    assert 0 <= smooth_matching(labels) <= 1 + 1e-12
    assert shape_regularity(labels[:, ::-1]) == pytest.approx(shape_regularity(labels))


def test_metrics_share_their_measures(monkeypatch):
    calls = []

    def counted(labels):
        calls.append(labels)
        return 0.5

    monkeypatch.setattr(registry, "shape_regularity", counted)
    monkeypatch.setattr(registry, "smooth_matching", counted)
    labels, image_rgb = np.zeros((4, 5), dtype=int), np.zeros((4, 5, 3), dtype=np.uint8)
    (scores,) = score_label_maps([labels], image_rgb, [labels], ["gr", "src", "smf"])
    assert scores.spixels == {"src": 0.5, "smf": 0.5, "gr": 0.25}
    assert len(calls) == 2


def test_regularity_is_computed_only_if_chosen(monkeypatch):
    def fail(labels):
        raise AssertionError("computed")

    monkeypatch.setattr(registry, "shape_regularity", fail)
    monkeypatch.setattr(registry, "smooth_matching", fail)
    labels, image_rgb = np.zeros((4, 5), dtype=int), np.zeros((4, 5, 3), dtype=np.uint8)
    score_label_maps([labels], image_rgb, [labels], DEFAULT_METRICS)
    assert set(METRICS) - set(DEFAULT_METRICS) == {"src", "smf", "gr"}
