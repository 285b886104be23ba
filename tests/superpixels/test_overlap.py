"""Overlap of two label maps, and links between their regions."""

import numpy as np
import torch

from lib.superpixels.overlap import (
    NO_REGION,
    _count_by_sorting,
    count_overlaps,
    intersection_over_union,
    link_regions,
)

ONE = torch.tensor([[0, 0, 1, 1], [2, 2, 2, -1]])
OTHER = torch.tensor([[0, 0, 0, 1], [1, 1, -1, 1]])
SIZES, OTHER_SIZES = np.array([2, 2, 3]), np.array([3, 4, 0])


def test_by_hand(device):
    overlaps = count_overlaps(ONE.to(device), OTHER.to(device), (3, 3))
    np.testing.assert_array_equal(overlaps.toarray(), [[2, 0, 0], [1, 1, 0], [0, 2, 0]])
    np.testing.assert_allclose(
        intersection_over_union(overlaps, SIZES, OTHER_SIZES).toarray(),
        [[2 / 3, 0, 0], [1 / 4, 1 / 5, 0], [0, 2 / 5, 0]],
    )
    np.testing.assert_array_equal(link_regions(overlaps), [0, NO_REGION, 1])


def test_sizes_below_what_is_shared():
    overlaps = count_overlaps(ONE, OTHER, (3, 3))
    scores = intersection_over_union(overlaps, SIZES, np.array([0, 4, 0])).toarray()
    np.testing.assert_allclose(scores, [[1, 0, 0], [1 / 2, 1 / 5, 0], [0, 2 / 5, 0]])


def test_counting_by_sorting_is_equal():
    one, other = torch.randint(-1, 12, (2, 20, 31), generator=torch.Generator().manual_seed(1))
    expected = count_overlaps(one, other, (12, 14))
    assert expected.sum() == ((one >= 0) & (other >= 0)).sum() < one.numel()
    np.testing.assert_array_equal(_count_by_sorting(one, other, (12, 14)).toarray(), expected.toarray())


def test_low_scores_link_nothing():
    scores = intersection_over_union(count_overlaps(ONE, OTHER, (3, 3)), SIZES, OTHER_SIZES)
    assert link_regions(scores, min_score=0.7).tolist() == [NO_REGION, NO_REGION, NO_REGION]
    assert link_regions(scores, min_score=0.5).tolist() == [0, NO_REGION, NO_REGION]
    swapped = intersection_over_union(count_overlaps(OTHER, ONE, (3, 3)), OTHER_SIZES, SIZES)
    assert link_regions(swapped, min_score=0.4).tolist() == [0, 2, NO_REGION]


def test_links_equal_a_greedy_loop():
    one, other = torch.randint(12, (2, 20, 31), generator=torch.Generator().manual_seed(0))
    overlaps = count_overlaps(one, other, (12, 12))
    table = overlaps.toarray()
    assert table.sum() == one.numel()
    expected = np.full(12, NO_REGION)
    while table.max() > 0:
        region, partner = np.unravel_index(table.argmax(), table.shape)  # the first of equal ones
        expected[region] = partner
        table[region], table[:, partner] = 0, 0
    np.testing.assert_array_equal(link_regions(overlaps), expected)
