"""Merge neighbouring superpixels, the most similar ones first, into a tree that can be cut at any number.

The linkage is Ward's: a merge costs the growth of the sum of squared distances between the features of the
pixels and the mean of their region. Only regions that share a border are merged.

References
----------
.. [1] Ward, "Hierarchical Grouping to Optimize an Objective Function", JASA 1963.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import InputError
from lib.superpixels.components import connected_components, touching_pairs, unique_pairs
from lib.superpixels.connectivity import OUTSIDE

_SCATTER = 2_654_435_761  # 2**32 over the golden ratio: multiples of it spread evenly (Knuth's hashing)
_MAX_FLOAT32_PIXELS = 2**16  # a sum of more numbers than this in float32 would be off by over 1e-3


@dataclass(frozen=True, eq=False)
class MergeTree:
    """Merges of the regions of a label map; the result of `build_merge_tree`.

    Attributes
    ----------
    leaves : ndarray, shape (H, W), int32
        Regions before any merge, 4-connected and numbered from 0 by first pixel in reading order; -1 outside
        the mask.
    merges : ndarray, shape (M, 2), int64
        The two nodes of each merge, cheapest first. Nodes 0 to n_leaves - 1 are leaves, node n_leaves + m is
        the result of merge m.
    costs : ndarray, shape (M,), float64
        Cost of each merge, never below the cost of an earlier one.
    """

    leaves: np.ndarray
    merges: np.ndarray
    costs: np.ndarray

    @property
    def n_leaves(self) -> int:
        """Number of regions before any merge, the highest number to cut."""
        return int(self.leaves.max()) + 1

    @property
    def n_pieces(self) -> int:
        """Number of regions after all merges, the lowest number to cut: parts of a mask that do not touch."""
        return self.n_leaves - len(self.merges)

    @property
    def table(self) -> np.ndarray:
        """Merges and costs, (M, 3) float64: child, child, cost."""
        return np.column_stack([self.merges, self.costs])

    def cut(self, n_spixels: int) -> np.ndarray:
        """Return the label map of exactly `n_spixels` regions.

        Cuts nest: each region of a cut is a union of regions of every finer cut.

        Returns
        -------
        ndarray, shape (H, W), int32
            4-connected regions, numbered from 0 by first pixel in reading order; -1 outside the mask.

        Raises
        ------
        ValueError
            If `n_spixels` is not between `n_pieces` and `n_leaves`.
        """
        if not self.n_pieces <= n_spixels <= self.n_leaves:
            raise ValueError(
                f"n_spixels must lie between {self.n_pieces} and {self.n_leaves}, got {n_spixels}"
            )
        region_of_leaf = self._region_of_leaf(n_spixels)
        return np.append(region_of_leaf, np.int32(OUTSIDE))[self.leaves]  # index -1 maps to itself

    def _region_of_leaf(self, n_spixels: int) -> np.ndarray:
        """Return the region of each leaf, (n_leaves,) int32, in a cut."""
        n_leaves = self.n_leaves
        done = self.merges[: n_leaves - n_spixels]
        parent = np.arange(n_leaves + len(done))
        parent[done] = n_leaves + np.arange(len(done))[:, None]
        grandparent = parent[parent]
        while not np.array_equal(parent, grandparent):
            parent, grandparent = grandparent, grandparent[grandparent]
        # Leaves are in reading order, so the first leaf of a region holds the first pixel of the region.
        _, first_leaf, root = np.unique(parent[:n_leaves], return_index=True, return_inverse=True)
        rank = np.empty(n_spixels, dtype=np.int32)
        rank[np.argsort(first_leaf)] = np.arange(n_spixels, dtype=np.int32)
        return rank[root]


def build_merge_tree(labels: Tensor, features: Tensor) -> MergeTree:
    """Merge the connected components of a label map until no two of them touch.

    Each round merges all pairs of regions that are each other's cheapest neighbour, as the order of merges
    far apart does not matter. A merge can bring two regions together that are cheaper to merge than any pair
    before; its cost is then raised to the cost of the merges that it needs.

    Tensors of the image's size stay on its device. The graph of some thousand regions is merged on the CPU.

    Parameters
    ----------
    labels : Tensor, shape (H, W), integer
        Label map; -1 outside the mask. Each 4-connected component of a label becomes a leaf.
    features : Tensor, shape (C, H, W), float32
        Features of the pixels, on the same device.

    Raises
    ------
    InputError
        If a mean of the features is not finite.
    """
    components = connected_components(labels)
    n_leaves = int(components.max()) + 1
    sizes = torch.bincount((components - OUTSIDE).flatten(), minlength=n_leaves + 1)[1:].cpu().numpy()
    means = _pixel_sums(components, n_leaves, features) / sizes[:, None]
    if not np.isfinite(means).all():
        raise InputError("the features are too large to be merged; lower `merge_pos_scale`")
    merges, costs = _merge_in_rounds(sizes.astype(np.float64), means, touching_pairs(components, n_leaves))
    leaves = components.to(torch.int32).cpu().numpy()
    return MergeTree(leaves, *_sort_by_cost(merges, costs, n_leaves))


def _pixel_sums(components: Tensor, n_components: int, features: Tensor) -> np.ndarray:
    """Return the sum of the features (C, H, W) in every component, (n_components, C) float64."""
    n_channels, _, width = features.shape
    if features.device.type != "cpu":
        # A GPU adds in any order. On a grid this coarse the sums are exact, whatever the order.
        bits = math.ceil(math.log2(components.numel()))
        exponent = math.frexp(float(features.abs().max()))[1] + bits - 52
        features = (features.double() * 2.0**-exponent).round() * 2.0**exponent
    # Even and odd columns have sums of their own: an addition need not wait for its left neighbour's.
    is_odd = torch.arange(width, device=features.device) % 2
    places = 2 * (components - OUTSIDE) + is_odd
    n_places = 2 * (n_components + 1)
    sums = torch.zeros(n_channels, n_places, dtype=torch.float64, device=features.device)
    # With many components, which are small then, larger strips: adding their sums up takes time too.
    n_rows = max(1, max(_MAX_FLOAT32_PIXELS, 8 * n_places) // width)
    for pixels, rows in zip(features.split(n_rows, dim=1), places.split(n_rows), strict=True):
        part = torch.zeros_like(sums, dtype=pixels.dtype)
        sums += part.scatter_add_(1, rows.reshape(1, -1).expand(n_channels, -1), pixels.flatten(1))
    return sums.view(n_channels, -1, 2).sum(dim=2)[:, 1:].T.contiguous().cpu().numpy()


def _merge_in_rounds(
    sizes: np.ndarray, means: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Merge pairs that are each other's cheapest neighbour, until no edge is left.

    A merged region takes the place of its first part in `sizes` and `means`, which are changed. Returns the
    merges and costs of a `MergeTree`, but in the order of the rounds.
    """
    n_leaves = n_nodes = len(sizes)
    node = np.arange(n_leaves)
    height = np.zeros(n_leaves)  # cost of the last merge of a region
    merges, costs = [np.empty((0, 2), dtype=np.int64)], [np.empty(0)]
    while edges.shape[1] > 0:
        cost = _ward_costs(sizes, means, edges)
        is_merged = _are_cheapest_for_both(cost, edges, n_leaves)
        kept, gone = edges[:, is_merged]
        height[kept] = np.maximum.reduce([cost[is_merged], height[kept], height[gone]])
        merges.append(np.stack([node[kept], node[gone]], axis=1))
        costs.append(height[kept])
        node[kept] = n_nodes + np.arange(len(kept))
        n_nodes += len(kept)
        total = sizes[kept] + sizes[gone]
        means[kept] += (sizes[gone] / total)[:, None] * (means[gone] - means[kept])
        sizes[kept] = total
        place = np.arange(n_leaves)
        place[gone] = kept
        edges = place[edges]
        edges = unique_pairs(edges[:, edges[0] != edges[1]], n_leaves)
    return np.concatenate(merges), np.concatenate(costs)


def _ward_costs(sizes: np.ndarray, means: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the growth of the sum of squared distances to the means by merging each edge, (E,)."""
    one, other = edges
    gaps = means.take(one, axis=0) - means.take(other, axis=0)
    squares = np.einsum("ec,ec->e", gaps, gaps)
    return sizes[one] * sizes[other] / (sizes[one] + sizes[other]) * squares


def _are_cheapest_for_both(cost: np.ndarray, edges: np.ndarray, n_leaves: int) -> np.ndarray:
    """Find the edges, (E,) bool, that are the cheapest of both their regions.

    Of equal ones, the first in a fixed scattered order is taken. In reading order, a row of equal regions
    would merge one pair a round.
    """
    priority = np.arange(len(cost)) * _SCATTER % 2**32  # all different, as the factor is odd
    cheapest = np.full(n_leaves, np.inf)
    first = np.full(n_leaves, 2**32)
    for ends in edges:
        np.minimum.at(cheapest, ends, cost)
    for ends in edges:
        ties = np.flatnonzero(cost == cheapest[ends])
        np.minimum.at(first, ends[ties], priority[ties])
    return (first[edges] == priority).all(axis=0)


def _sort_by_cost(merges: np.ndarray, costs: np.ndarray, n_leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort merges by cost and number their nodes anew; of equal merges, the earlier round comes first."""
    order = np.argsort(costs, kind="stable")
    number = np.arange(n_leaves + len(merges))
    number[n_leaves + order] = n_leaves + np.arange(len(merges))
    return number[merges[order]], costs[order]
