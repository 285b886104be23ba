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
from skimage.measure import label
from torch import Tensor

from lib.superpixels.connectivity import OUTSIDE


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


def build_merge_tree(labels: np.ndarray, features: Tensor) -> MergeTree:
    """Merge the connected components of a label map until no two of them touch.

    Each round merges all pairs of regions that are each other's cheapest neighbour, as the order of merges
    far apart does not matter. A merge can bring two regions together that are cheaper to merge than any pair
    before; its cost is then raised to the cost of the merges that it needs.

    Parameters
    ----------
    labels : ndarray, shape (H, W), integer
        Label map; -1 outside the mask. Each 4-connected component of a label becomes a leaf.
    features : Tensor, shape (C, H, W), float
        Features of the pixels, on the device that computes the merges.

    Returns
    -------
    MergeTree
    """
    leaves = label(labels, background=OUTSIDE, connectivity=1).astype(np.int32) - 1
    n_leaves = int(leaves.max()) + 1
    leaf_of_pixel = torch.from_numpy(leaves).to(features.device)
    sizes, means = _pixel_means(leaf_of_pixel, features, n_leaves)
    merges, costs = _merge_in_rounds(sizes, means, _edges(leaf_of_pixel, n_leaves))
    return MergeTree(leaves, *_sort_by_cost(merges.cpu().numpy(), costs.cpu().numpy(), n_leaves))


def _pixel_means(leaf_of_pixel: Tensor, features: Tensor, n_leaves: int) -> tuple[Tensor, Tensor]:
    """Return the size of every leaf, (S,), and its mean features, (C, S), both float64.

    Sums are exact, so that neither threads nor the device change them: features are rounded to a grid that is
    coarse enough for float64 to add all pixels without rounding.
    """
    inside = (leaf_of_pixel != OUTSIDE).flatten()
    idx = leaf_of_pixel.flatten().long() + 1  # 0 collects the pixels outside the mask
    sizes = torch.bincount(idx, minlength=n_leaves + 1)[1:].double()
    values = features.flatten(1).double()
    values = values.where(inside, 0)
    bits = 52 - math.ceil(math.log2(idx.numel()))
    step = 2.0 ** (math.frexp(float(values.abs().max()))[1] - bits)
    values = (values / step).round() * step
    sums = values.new_zeros(len(features), n_leaves + 1).scatter_add_(
        1, idx.expand(len(features), -1), values
    )
    return sizes, sums[:, 1:] / sizes


def _edges(leaf_of_pixel: Tensor, n_leaves: int) -> Tensor:
    """Return the pairs of leaves that share a border, (2, E) int64, each once and sorted."""
    pairs = [
        torch.stack([one, other])[:, (one != other) & (one != OUTSIDE) & (other != OUTSIDE)]
        for one, other in (
            (leaf_of_pixel[:, :-1], leaf_of_pixel[:, 1:]),
            (leaf_of_pixel[:-1], leaf_of_pixel[1:]),
        )
    ]
    return _unique_pairs(torch.cat(pairs, dim=1).long(), n_leaves)


def _unique_pairs(pairs: Tensor, n_leaves: int) -> Tensor:
    low, high = pairs.amin(0), pairs.amax(0)
    unique = torch.unique(low * n_leaves + high)
    return torch.stack([unique // n_leaves, unique % n_leaves])


def _merge_in_rounds(sizes: Tensor, means: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Merge pairs that are each other's cheapest neighbour, until no edge is left.

    A merged region takes the place of its first part in `sizes` and `means`, which are changed.

    Returns
    -------
    merges : Tensor, shape (M, 2), int64
        Nodes as in `MergeTree`, but in the order of the rounds.
    costs : Tensor, shape (M,), float64
        Costs, at least those of the merges that a merge needs.
    """
    n_leaves = len(sizes)
    node = torch.arange(n_leaves, device=sizes.device)
    height = torch.zeros_like(sizes)  # cost of the last merge of a region
    merges, costs = [node.new_empty(0, 2)], [sizes.new_empty(0)]
    n_nodes = n_leaves
    while edges.shape[1] > 0:
        cost = _ward_costs(sizes, means, edges)
        is_merged = _are_cheapest_for_both(cost, edges, n_leaves)
        kept, gone = edges[:, is_merged]
        height[kept] = torch.maximum(cost[is_merged], torch.maximum(height[kept], height[gone]))
        merges.append(torch.stack([node[kept], node[gone]], dim=1))
        costs.append(height[kept])
        node[kept] = torch.arange(n_nodes, n_nodes + len(kept), device=node.device)
        n_nodes += len(kept)
        total = sizes[kept] + sizes[gone]
        means[:, kept] += sizes[gone] / total * (means[:, gone] - means[:, kept])
        sizes[kept] = total
        place = torch.arange(n_leaves, device=node.device)
        place[gone] = kept
        edges = place[edges]
        edges = _unique_pairs(edges[:, edges[0] != edges[1]], n_leaves)
    return torch.cat(merges), torch.cat(costs)


def _ward_costs(sizes: Tensor, means: Tensor, edges: Tensor) -> Tensor:
    """Return the growth of the sum of squared distances to the means by merging each edge, (E,)."""
    one, other = edges
    squares = (means[:, one] - means[:, other]).square()
    while len(squares) > 1:  # add the channels in a fixed order, so that all devices round alike
        half = len(squares) // 2
        squares = torch.cat([squares[:half] + squares[half : 2 * half], squares[2 * half :]])
    return sizes[one] * sizes[other] / (sizes[one] + sizes[other]) * squares[0]


def _are_cheapest_for_both(cost: Tensor, edges: Tensor, n_leaves: int) -> Tensor:
    """Find the edges, (E,) bool, that are the cheapest of both their regions; of equal ones, the first."""
    n_edges = len(cost)
    ends, cost_of_end = edges.flatten(), cost.repeat(2)
    cheapest = cost.new_full((n_leaves,), torch.inf).scatter_reduce_(0, ends, cost_of_end, "amin")
    edge_idx = torch.arange(n_edges, device=cost.device)
    candidate = edge_idx.repeat(2).where(cost_of_end == cheapest[ends], n_edges)
    first = torch.full_like(cheapest, n_edges, dtype=torch.int64).scatter_reduce_(0, ends, candidate, "amin")
    return (first[edges] == edge_idx).all(0)


def _sort_by_cost(merges: np.ndarray, costs: np.ndarray, n_leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort merges by cost and number their nodes anew; of equal merges, the earlier round comes first."""
    order = np.argsort(costs, kind="stable")
    number = np.arange(n_leaves + len(merges))
    number[n_leaves + order] = n_leaves + np.arange(len(merges))
    return number[merges[order]], costs[order]
