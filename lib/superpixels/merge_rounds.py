"""Merge the regions of a graph in rounds: in each, all pairs that are each other's cheapest neighbour.

The order of merges far apart does not matter, so that this gives about the merges of one pair at a time.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from lib.superpixels.components import unique_pairs

_GOLDEN = 11_400_714_819_323_198_485  # 2**64 over the golden ratio: multiples modulo 2**64 spread evenly


class Merges(NamedTuple):
    """Merges of regions, each at the place of the region that is gone afterwards.

    A merged region takes the place of its first part. A place that never goes has round -1.
    """

    round_idx: np.ndarray  # (n_regions,), int64
    into: np.ndarray  # (n_regions,), int64: place of the other part
    cost: np.ndarray  # (n_regions,), float64: largest cost of this merge and the merges it needs


def merge_in_rounds(sizes: np.ndarray, means: np.ndarray, edges: np.ndarray, numbers: np.ndarray) -> Merges:
    """Merge regions until no edge is left.

    Parameters
    ----------
    sizes : ndarray, shape (n_regions,), float64
        Number of pixels of each region.
    means : ndarray, shape (n_regions, C), float64
        Mean features of each region; finite.
    edges : ndarray, shape (2, E), int64
        Pairs of neighbours, the smaller place first. A pair of equal places is ignored.
    numbers : ndarray, shape (n_regions,), int64
        Numbers of the regions, which break ties. If several graphs are merged as one, the regions of each are
        numbered from 0 on. Its merges then do not depend on the others.
    """
    sizes, means = sizes.copy(), means.copy()
    n_regions = len(sizes)
    merges = Merges(np.full(n_regions, -1), np.arange(n_regions), np.zeros(n_regions))
    height = np.zeros(n_regions)  # cost of the last merge of a region
    edges = edges[:, edges[0] != edges[1]]
    round_idx = 0
    while edges.shape[1] > 0:
        cost = _ward_costs(sizes, means, edges)
        merged = _find_cheapest_for_both(cost, edges, numbers, round_idx)
        kept, gone = edges[:, merged]
        height[kept] = np.maximum.reduce([cost[merged], height[kept], height[gone]])
        merges.round_idx[gone] = round_idx
        merges.into[gone] = kept
        merges.cost[gone] = height[kept]
        total = sizes[kept] + sizes[gone]
        means[kept] += (sizes[gone] / total)[:, None] * (means[gone] - means[kept])
        sizes[kept] = total
        place = np.arange(n_regions)
        place[gone] = kept
        edges = place[edges]
        edges = unique_pairs(edges[:, edges[0] != edges[1]], n_regions)
        round_idx += 1
    return merges


def _ward_costs(sizes: np.ndarray, means: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the growth of the sum of squared distances to the means by merging each edge, (E,)."""
    one, other = edges
    squares = means.take(one, axis=0)
    squares -= means.take(other, axis=0)
    squares *= squares
    squares = np.ascontiguousarray(squares.T)
    return sizes[one] * sizes[other] / (sizes[one] + sizes[other]) * sum_by_halves(squares)


def sum_by_halves(channels: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Return the sum of the rows of an array (C, E), which is overwritten.

    The order of additions is fixed, so that the sum is the same on every device.
    """
    n_rows = len(channels)
    while n_rows > 1:
        half = n_rows // 2
        upper = channels[:half]
        upper += channels[n_rows - half : n_rows]
        n_rows -= half
    return channels[0]


def scatter_factor(round_idx: int) -> int:
    """Return the int64 that scatters the ties of a round: `low * factor + high`, modulo 2**64, orders edges.

    Edges of up to 10**8 regions all differ, as multiples of the factor are further apart. In the order of the
    numbers, a row of equal regions would merge one pair a round. In one order for all rounds, a large region
    and its many neighbours would.
    """
    factor = _GOLDEN * (2 * round_idx + 1) % 2**64
    return factor - 2**64 if factor >= 2**63 else factor


def _find_cheapest_for_both(
    cost: np.ndarray, edges: np.ndarray, numbers: np.ndarray, round_idx: int
) -> np.ndarray:
    """Return indices of edges that are the cheapest of both their regions; of equal ones, scattered ones."""
    cheapest = np.full(len(numbers), np.inf)
    for ends in edges:
        np.minimum.at(cheapest, ends, cost)
    candidates = np.flatnonzero((cost == cheapest[edges]).all(axis=0))
    edges = edges[:, candidates]
    low, high = numbers[edges]
    priority = low * scatter_factor(round_idx) + high
    first = np.full(len(numbers), np.iinfo(np.int64).max)
    for ends in edges:
        np.minimum.at(first, ends, priority)
    return candidates[(first[edges] == priority).all(axis=0)]
