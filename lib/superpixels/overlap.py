"""Overlap of the regions of two label maps, and the pairs of regions that it links."""

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

NO_REGION = -1


def count_overlaps(one: Tensor, other: Tensor, shape: tuple[int, int]) -> csr_array:
    """Count the pixels that every pair of regions of two label maps shares, on their device.

    Parameters
    ----------
    one, other : Tensor, shape (H, W), integer
        Label maps. Pixels with a negative label in either are left out.
    shape : pair of int
        Number of regions of each.

    Returns
    -------
    sparse array, shape `shape`, float64
    """
    if one.device.type != "cpu":
        return _count_by_sorting(one, other, shape)
    one, other = one.numpy(), other.numpy()
    is_in_both = (one >= 0) & (other >= 0)
    pairs = one[is_in_both], other[is_in_both]
    return coo_array((np.ones(len(pairs[0])), pairs), shape=shape).tocsr()


def _count_by_sorting(one: Tensor, other: Tensor, shape: tuple[int, int]) -> csr_array:
    """Return `count_overlaps(one, other, shape)` by whole-array operations, for a GPU."""
    is_in_both = (one >= 0) & (other >= 0)
    keys, n_pixels = torch.unique((one.long() * shape[1] + other)[is_in_both], return_counts=True)
    keys, n_pixels = torch.stack([keys, n_pixels]).cpu().numpy()
    return coo_array((n_pixels.astype(np.float64), np.divmod(keys, shape[1])), shape=shape).tocsr()


def intersection_over_union(overlaps: csr_array, sizes: np.ndarray, other_sizes: np.ndarray) -> csr_array:
    """Divide the pixels that two regions share by the pixels of both, from the sizes of all regions.

    Sizes that are smaller than what is shared, as along a rounded flow, count as what is shared.
    """
    pairs = overlaps.tocoo()
    n_more, n_others_more = sizes[pairs.row] - pairs.data, other_sizes[pairs.col] - pairs.data
    n_pixels = pairs.data + np.maximum(n_more, 0) + np.maximum(n_others_more, 0)
    return coo_array((pairs.data / n_pixels, (pairs.row, pairs.col)), shape=overlaps.shape).tocsr()


def link_regions(scores: csr_array, *, min_score: float = 0.0) -> np.ndarray:
    """Link pairs of regions, the highest score first; a region is in one pair at most.

    Of equal scores, the pair with the smaller numbers comes first.

    Parameters
    ----------
    scores : sparse array, shape (n_regions, n_others)
        Scores of the pairs that may be linked.
    min_score : float
        Lower scores link nothing.

    Returns
    -------
    ndarray, shape (n_regions,), int64
        The other region of each region; `NO_REGION` for none.
    """
    pairs = scores.tocoo()
    linked = np.full(scores.shape[0], NO_REGION)
    is_taken = np.zeros(scores.shape[1], dtype=bool)
    order = np.lexsort([pairs.col, pairs.row, -pairs.data])
    order = order[pairs.data[order] >= min_score]
    for region, other in zip(pairs.row[order].tolist(), pairs.col[order].tolist(), strict=True):
        if linked[region] == NO_REGION and not is_taken[other]:
            linked[region] = other
            is_taken[other] = True
    return linked
