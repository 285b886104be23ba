"""Connected components and touching pairs: the forms for a GPU against those for a CPU."""

import numpy as np
import pytest
import torch
from conftest import DEVICES

from lib.superpixels.components import (
    ComponentsInBands,
    components_by_hooking,
    connected_components,
    pairs_by_sorting,
    touching_pairs,
    unique_pairs,
)
from lib.superpixels.connectivity import OUTSIDE
from properties import given, settings, st


def found_by_sorting(components, n_components):
    """Pairs as `touching_pairs` returns them."""
    pairs = pairs_by_sorting(components, n_components).cpu().numpy()
    return pairs[:, pairs[0] != pairs[1]]


@pytest.mark.parametrize("device", DEVICES)
def test_components_and_pairs_of_small_maps(device):
    labels = torch.tensor([[5, 5, -1, 2], [5, 2, 2, 2], [-1, 5, 7, 7]])
    expected = np.array([[0, 0, -1, 1], [0, 1, 1, 1], [-1, 2, 3, 3]])
    pairs = np.array([[0, 1, 1, 2], [1, 2, 3, 3]])
    components = connected_components(labels)
    np.testing.assert_array_equal(components, expected)
    np.testing.assert_array_equal(touching_pairs([components.numpy()], 4), pairs)
    # The second map begins as the first one ends, and touches nothing of it.
    both = components_by_hooking(torch.stack([labels, labels.flip(0)]).to(device))
    np.testing.assert_array_equal(both[0].cpu(), expected)
    np.testing.assert_array_equal(both[1].cpu(), [[-1, 4, 5, 5], [6, 7, 7, 7], [6, 6, -1, 7]])
    np.testing.assert_array_equal(found_by_sorting(both[0], 4), pairs)
    all_pairs = np.concatenate([pairs, [[4, 4, 5, 6], [5, 7, 7, 7]]], axis=1)
    np.testing.assert_array_equal(found_by_sorting(both, 8), all_pairs)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    n_labels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_forms_for_a_gpu_equal_those_for_a_cpu(height, width, n_labels, seed):
    labels = torch.from_numpy(np.random.default_rng(seed).integers(-1, n_labels, (height, width)))
    components = connected_components(labels)
    torch.testing.assert_close(components_by_hooking(labels), components)
    n_components = int(components.max()) + 1
    pairs = touching_pairs([components.numpy()], n_components)
    np.testing.assert_array_equal(found_by_sorting(components, n_components), pairs)


def test_component_that_winds():
    """A spiral is one component although most of its rows hold many separate runs of it."""
    size = 61
    labels = np.zeros((size, size), dtype=np.int64)
    row, col, step = 0, -1, (0, 1)
    for length in [size, *(n for n in range(size - 1, 1, -2) for _ in range(2))]:
        for _ in range(length):
            row, col = row + step[0], col + step[1]
            labels[row, col] = 1
        step = (step[1], -step[0])
    components = components_by_hooking(torch.from_numpy(labels)).numpy()
    assert np.unique(components[labels == 1]).size == 1
    torch.testing.assert_close(torch.from_numpy(components), connected_components(torch.from_numpy(labels)))


def test_pairs_are_found_once_with_the_smaller_number_first():
    pairs = unique_pairs(np.array([[3, 0, 1, 3], [1, 2, 3, 1]]), 4)
    np.testing.assert_array_equal(pairs, [[0, 1], [2, 3]])
    assert unique_pairs(np.empty((2, 0), dtype=np.int32), 4).shape == (2, 0)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    n_labels=st.integers(1, 3),
    n_rows=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_bands_give_the_components_of_the_map(height, width, n_labels, n_rows, seed):
    labels = np.random.default_rng(seed).integers(-1, n_labels, (height, width))
    expected = connected_components(torch.from_numpy(labels)).numpy()
    bands = ComponentsInBands()
    pieces = np.concatenate([bands.add(labels[row : row + n_rows]) for row in range(0, height, n_rows)])
    component = np.append(bands.components_of_pieces(), OUTSIDE)
    np.testing.assert_array_equal(component[pieces], expected)
    n_components = expected.max() + 1
    pairs = touching_pairs([expected], n_components)
    in_bands = (expected[row : row + n_rows] for row in range(0, height, n_rows))
    np.testing.assert_array_equal(touching_pairs(in_bands, n_components), pairs)


def test_components_of_a_map_that_is_all_outside():
    bands = ComponentsInBands()
    assert (bands.add(np.full((3, 4), OUTSIDE)) == OUTSIDE).all()
    assert len(bands.components_of_pieces()) == 0
