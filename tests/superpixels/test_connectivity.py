"""Test connectivity on small examples, and its guarantees on random label maps."""

import numpy as np
import pytest
from skimage.measure import label

from lib.superpixels.connectivity import (
    MIN_SIZE_SHARE,
    enforce_connectivity,
    enforce_count,
    join_small_components,
)
from properties import arrays, given, settings, st


def test_connected_map_is_unchanged():
    labels = np.repeat(np.repeat([[0, 1, 2], [3, 4, 5]], 5, axis=0), 4, axis=1)
    np.testing.assert_array_equal(enforce_connectivity(labels, 6), labels)


def test_components_of_a_label_become_superpixels():
    labels = np.repeat([[5, 8, 5]], 6, axis=0).repeat(4, axis=1)
    expected = np.repeat([[0, 1, 2]], 6, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(enforce_connectivity(labels, 3), expected)


def test_diagonal_pixels_are_not_connected():
    labels = np.array([[1, 0], [0, 1]])
    assert enforce_connectivity(labels, 4).max() == 3


def test_small_component_joins_neighbour_with_longest_border():
    labels = np.zeros((20, 20), dtype=np.int64)
    labels[:, 10:] = 1
    labels[5, 9:12] = 2  # borders 0 with three pixel sides and 1 with five
    result = enforce_connectivity(labels, 4)
    expected = np.zeros((20, 20), dtype=np.int64)
    expected[:, 10:] = 1
    expected[5, 9] = 1
    np.testing.assert_array_equal(result, expected)


def test_small_components_join_each_other_first():
    # Two components of 3 pixels in the corner, below the minimum of 0.06 * 100 = 6. Together they reach it.
    labels = np.zeros((10, 10), dtype=np.int64)
    labels[0, :3] = 1
    labels[1, :3] = 2
    result = enforce_connectivity(labels, 1)
    assert result.max() == 1
    assert (result[:2, :3] == result[0, 0]).all()


def test_zero_and_negative_labels_are_regions():
    labels = np.full((8, 12), -4)
    labels[:, 6:] = 0
    expected = np.zeros((8, 12), dtype=np.int64)
    expected[:, 6:] = 1
    np.testing.assert_array_equal(enforce_connectivity(labels, 2), expected)


@settings(deadline=None, max_examples=150)
@given(
    labels=st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
        lambda shape: arrays(np.int64, shape, elements=st.integers(0, 4))
    ),
    n_spixels=st.integers(1, 20),
)
def test_connectivity_guarantees(labels, n_spixels):
    result = enforce_connectivity(labels, n_spixels)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(np.unique(result), np.arange(result.max() + 1))
    assert label(result + 1, background=0, connectivity=1).max() == result.max() + 1
    sizes = np.bincount(result.ravel())
    assert len(sizes) == 1 or sizes.min() >= MIN_SIZE_SHARE * labels.size / n_spixels
    # No component is split: each lies in one superpixel.
    components = label(labels + 1, background=0, connectivity=1)
    for component in range(1, components.max() + 1):
        assert len(np.unique(result[components == component])) == 1
    first_pixels = np.unique(result, return_index=True)[1]
    assert (np.diff(first_pixels) > 0).all()


@settings(deadline=None, max_examples=150)
@given(
    maps=st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
        lambda shape: st.tuples(
            arrays(np.int64, shape, elements=st.integers(0, 3)), arrays(bool, shape, elements=st.booleans())
        )
    ),
    n_spixels=st.integers(1, 20),
)
def test_connectivity_guarantees_with_mask(maps, n_spixels):
    labels, mask = maps
    mask[0, 0] = True
    result = enforce_connectivity(labels, n_spixels, mask=mask)
    np.testing.assert_array_equal(result == -1, ~mask)
    np.testing.assert_array_equal(np.unique(result[mask]), np.arange(result.max() + 1))
    assert label(result + 1, background=0, connectivity=1).max() == result.max() + 1
    islands = label(mask, connectivity=1)
    for number, size in enumerate(np.bincount(result[mask])):
        island = islands[result == number][0]
        assert size >= MIN_SIZE_SHARE * labels.size / n_spixels or size == (islands == island).sum()


def test_full_mask_equals_no_mask():
    labels = np.random.default_rng(0).integers(0, 4, (15, 17))
    whole = enforce_connectivity(labels, 12, mask=np.ones(labels.shape, dtype=bool))
    np.testing.assert_array_equal(whole, enforce_connectivity(labels, 12))


@settings(deadline=None, max_examples=150)
@given(
    maps=st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
        lambda shape: st.tuples(
            arrays(np.int64, shape, elements=st.integers(0, 3)),
            arrays(bool, shape, elements=st.booleans()),
            st.integers(1, shape[0] * shape[1]),
        )
    )
)
def test_exact_count_guarantees(maps):
    labels, mask, n_requested = maps
    mask |= labels > 0  # few islands
    mask[0, 0] = True
    connected = enforce_connectivity(labels, 5, mask=mask)
    n_islands = label(mask, connectivity=1).max()
    if not n_islands <= n_requested <= mask.sum():
        with pytest.raises(ValueError, match=r"n_spixels must lie between|cannot cover"):
            enforce_count(connected, n_requested)
        return
    result = enforce_count(connected, n_requested)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result == -1, ~mask)
    assert result.max() + 1 == n_requested == len(np.unique(result[mask]))
    assert label(result + 1, background=0, connectivity=1).max() == n_requested
    # Superpixels are only merged or only split, never both.
    coarse, fine = (result, connected) if n_requested <= connected.max() + 1 else (connected, result)
    for idx in range(fine.max() + 1):
        assert len(np.unique(coarse[fine == idx])) == 1


def test_exact_count_splits_largest():
    labels = np.zeros((4, 12), dtype=np.int32)
    labels[:, 9:] = 1
    result = enforce_count(labels, 3)
    sizes = np.bincount(result.ravel())
    assert sorted(sizes)[0] == 12
    assert sorted(sizes)[1] >= 15


@pytest.mark.parametrize(
    ("labels", "n_spixels", "message"),
    [
        (np.zeros((4, 4)), 3, "integer map"),
        (np.zeros((0, 4), dtype=int), 3, "non-empty"),
        (np.zeros((4, 4), dtype=int), 0, "at least 1"),
    ],
)
def test_bad_input_is_rejected(labels, n_spixels, message):
    with pytest.raises(ValueError, match=message):
        enforce_connectivity(labels, n_spixels)


def test_exact_count_rejects_unconnected_superpixels():
    labels = np.array([[0, 1, 0]], dtype=np.int32)
    with pytest.raises(ValueError, match="labels must be connected superpixels"):
        enforce_count(labels, 2)


def test_mask_of_wrong_shape_is_rejected():
    with pytest.raises(ValueError, match=r"mask .*\(3, 4\).*\(4, 4\)"):
        enforce_connectivity(np.zeros((4, 4), dtype=np.int32), 1, mask=np.ones((3, 4), dtype=bool))


@pytest.mark.parametrize("n_rows", [1, 3, 7])
def test_components_of_bands_are_joined_as_those_of_the_map(n_rows):
    labels = np.random.default_rng(3).integers(0, 3, (20, 31))
    mask = np.ones_like(labels, dtype=bool)
    mask[4:9, 5:25] = False
    components = label(np.where(mask, labels, -1), background=-1, connectivity=1) - 1
    sizes = np.bincount(components[mask])
    bands = (components[row : row + n_rows] for row in range(0, 20, n_rows))
    joined = join_small_components(bands, sizes, labels.size, 6)
    expected = enforce_connectivity(labels, 6, mask=mask)
    assert 1 < expected.max() + 1 < len(sizes) / 4
    np.testing.assert_array_equal(np.append(joined, -1)[components], expected)
