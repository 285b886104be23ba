"""Test the statistics of superpixels."""

import numpy as np
import pytest

from lib.superpixels.regions import Superpixels
from properties import arrays, given, st

LABELS = np.array([[0, 0, 2], [2, 2, -1]], dtype=np.int32)  # label 1 does not occur
IMAGE_RGB = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def test_means_with_gaps_and_outside_pixels():
    features = np.array([[[1, 2, 3], [4, 5, 99]], [[0, 0, 1], [1, 1, 99]]], dtype=np.float32)
    superpixels = Superpixels(LABELS, IMAGE_RGB, 2, pixel_features=features, n_base_features=2)
    assert superpixels.n_measured == 2
    np.testing.assert_array_equal(superpixels.sizes, [2, 0, 3])
    np.testing.assert_allclose(superpixels.features[[0, 2]], [[1.5, 0], [4, 1]])
    np.testing.assert_allclose(superpixels.colors[[0, 2]], [[1.5, 2.5, 3.5], [9, 10, 11]])
    np.testing.assert_allclose(superpixels.positions[[0, 2]], [[0, 0.5], [2 / 3, 1]])
    assert np.isnan(superpixels.features[1]).all()
    depth = np.array([[1, 3, 5], [7, 9, np.inf]])
    np.testing.assert_allclose(superpixels.mean_of(depth)[[0, 2]], [2, 7])


def test_deviations_are_those_of_valid_values():
    superpixels = Superpixels(LABELS, IMAGE_RGB, 2)
    values = np.random.default_rng(0).normal(1e6, 3, (*LABELS.shape, 2))
    values[1, 0, 0] = np.nan
    is_masked = np.zeros(values.shape, dtype=bool)
    is_masked[1, 1, 1] = True
    found = superpixels.std_of(np.ma.masked_array(values, is_masked))
    for label in (0, 2):
        for channel in range(2):
            chosen = (label == LABELS) & ~is_masked[..., channel] & ~np.isnan(values[..., channel])
            assert found[label, channel] == pytest.approx(values[chosen, channel].std(), rel=1e-6)
    assert np.isnan(found[1]).all()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(superpixels.std_of(values[..., 1]), superpixels.std_of(values)[:, 1])


def test_means_leave_out_nan_and_masked_values():
    superpixels = Superpixels(LABELS, IMAGE_RGB, 2)
    depth = np.array([[1, np.nan, 5], [7, -9999, 3]])
    is_masked = np.array([[False, False, False], [False, True, False]])
    masked = np.ma.masked_array(depth, is_masked)
    np.testing.assert_array_equal(superpixels.mean_of(masked), [1, np.nan, 6])
    np.testing.assert_allclose(superpixels.valid_share_of(masked), [0.5, np.nan, 2 / 3])
    np.testing.assert_allclose(superpixels.mean_of(depth), [1, np.nan, (5 + 7 - 9999) / 3])
    integers = np.ma.masked_array([[1, 2, 3], [4, 5, 6]], is_masked)
    np.testing.assert_array_equal(superpixels.mean_of(integers), [1.5, np.nan, 3.5])
    channels = np.ma.stack([masked, np.ma.masked_array(np.ones((2, 3)))], axis=2)
    np.testing.assert_array_equal(superpixels.mean_of(channels), [[1, 1], [np.nan, np.nan], [6, 1]])
    np.testing.assert_allclose(superpixels.valid_share_of(channels)[[0, 2]], [[0.5, 1], [2 / 3, 1]])
    nothing = np.full((2, 3), np.nan)
    assert np.isnan(superpixels.mean_of(nothing)).all()
    np.testing.assert_array_equal(superpixels.valid_share_of(nothing)[[0, 2]], 0)


def test_features_are_none_without_pixel_features():
    assert Superpixels(LABELS, IMAGE_RGB, 2).features is None


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1, 1), (2, 4, 3)])
def test_values_of_wrong_shape_are_rejected(shape):
    with pytest.raises(ValueError, match=r"values .*\(2, 3\)"):
        Superpixels(LABELS, IMAGE_RGB, 2).mean_of(np.zeros(shape))


def test_edges_by_hand():
    labels = np.array([[0, 1, 1], [2, 2, 1], [2, -1, 3]])
    np.testing.assert_array_equal(Superpixels(labels, None, 2).edges, [[0, 1], [0, 2], [1, 2], [1, 3]])
    assert Superpixels(np.zeros((2, 2), dtype=np.int32), None, 2).edges.shape == (0, 2)


@given(arrays(np.int32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(-1, 4)))
def test_edges_equal_loop(labels):
    if labels.max() < 0:
        return
    expected = set()
    for (row, col), label in np.ndenumerate(labels):
        for other in (*labels[row + 1 : row + 2, col], *labels[row, col + 1 : col + 2]):
            if label != other and -1 not in (label, other):
                expected.add((min(label, other), max(label, other)))
    assert [tuple(edge) for edge in Superpixels(labels, None, 2).edges] == sorted(expected)
