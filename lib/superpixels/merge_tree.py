"""Merge neighbouring superpixels, the most similar ones first, into a tree that can be cut at any number.

The linkage is Ward's: a merge costs the growth of the sum of squared distances between the features of the
pixels and the mean of their region. Only regions that share a border are merged.

References
----------
.. [1] Ward, "Hierarchical Grouping to Optimize an Objective Function", JASA 1963.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.superpixels import merge_rounds_gpu
from lib.superpixels.connectivity import OUTSIDE
from lib.superpixels.merge_rounds import Merges, merge_in_rounds
from lib.superpixels.region_graph import RegionGraph, build_region_graph, graph_on_gpu

# Fewest images of a batch whose graphs are merged on the GPU. For fewer, a CPU is as fast: it merges a graph
# of 2600 regions in the time that it takes to start the some 2500 operations of all graphs on the GPU.
_MIN_IMAGES_ON_GPU = 3


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
    """Merge the connected components of a label map, which become leaves, until no two of them touch.

    For parameters and errors see `build_region_graph`, for the order of the merges `merge_graph`.
    """
    return merge_graph(build_region_graph(labels, features))


def merge_graph(graph: RegionGraph) -> MergeTree:
    """Merge the regions of a graph until no two of them touch.

    Each round merges all pairs of regions that are each other's cheapest neighbour, as the order of merges
    far apart does not matter. A merge can bring two regions together that are cheaper to merge than any pair
    before; its cost is then raised to the cost of the merges that it needs.
    """
    numbers = np.arange(len(graph.sizes))
    merges = merge_in_rounds(graph.sizes, graph.means, graph.edges, numbers)
    return MergeTree(graph.leaves, *_sort_by_cost(merges))


def build_merge_trees(labels: Tensor, features: Tensor) -> list[MergeTree]:
    """Return the merge tree of each image of a batch: labels (B, H, W), features (B, C, H, W).

    See `build_merge_tree`. On a GPU, a tree takes less time in a batch than alone.
    """
    if labels.device.type != "cpu":
        return trees_on_gpu(labels, features)
    return list(map(build_merge_tree, labels, features))


def trees_on_gpu(labels: Tensor, features: Tensor) -> list[MergeTree]:
    """Return `build_merge_trees(labels, features)` by whole-array operations, for a GPU.

    The regions of all images form one graph. Sums of features are exact; a CPU rounds them to float32.
    """
    graph = graph_on_gpu(labels, features)
    starts, stops = [0, *graph.stops[:-1]], graph.stops
    numbers = torch.cat([torch.arange(n, device=labels.device) for n in np.subtract(stops, starts).tolist()])
    regions = (graph.sizes, graph.means, graph.edges, numbers)
    if len(labels) < _MIN_IMAGES_ON_GPU:
        merges = merge_in_rounds(*(values.cpu().numpy() for values in regions))
    else:
        merges = merge_rounds_gpu.merge_in_rounds(*regions)
    leaves = graph.components.to(torch.int32).cpu().numpy()
    return [
        MergeTree(np.maximum(of_image - start, OUTSIDE), *_sort_by_cost(_cut_out(merges, start, stop)))
        for of_image, start, stop in zip(leaves, starts, stops, strict=True)
    ]


def _cut_out(merges: Merges, start: int, stop: int) -> Merges:
    """Return the merges of one of several graphs, with its regions from `start` to `stop`."""
    round_idx, into, cost = (values[start:stop] for values in merges)
    return Merges(round_idx, into - start, cost)


def _sort_by_cost(merges: Merges) -> tuple[np.ndarray, np.ndarray]:
    """Return `merges` and `costs` of a `MergeTree`; of equal merges, the earlier round comes first."""
    round_idx, into, cost = merges
    gone = np.flatnonzero(round_idx >= 0)
    gone = gone[np.lexsort([into[gone], round_idx[gone], cost[gone]])]
    kept = into[gone]
    nodes = len(into) + np.arange(len(gone))
    last_node = np.arange(len(into))  # of each place; a region is only merged by others before it is gone
    last_node[kept] = nodes  # of several, the last one stays
    by_place = np.argsort(kept, kind="stable")
    again = np.flatnonzero(kept[by_place][1:] == kept[by_place][:-1])
    first = kept.copy()
    first[by_place[again + 1]] = nodes[by_place[again]]
    return np.stack([first, last_node[gone]], axis=1), cost[gone]
