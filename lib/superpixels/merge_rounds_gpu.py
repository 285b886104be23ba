"""The form of `lib.superpixels.merge_rounds` for a GPU; its only purpose is speed.

A round is about 60 operations of fixed size, and each takes the CPU some microseconds to start, however many
graphs are merged. Merged regions stay at their places, and edges within a region are ignored. So no size
depends on values, and the CPU rarely waits for the GPU.
"""

import math

import numpy as np
import torch
from torch import Tensor

from lib.superpixels.merge_rounds import Merges, scatter_factor, sum_by_halves

# Rounds until the open edges are counted, which waits for the GPU. Rounds without such edges change nothing.
_N_ROUNDS_AT_ONCE = 8

_LARGEST = torch.iinfo(torch.int64).max


def merge_in_rounds(sizes: Tensor, means: Tensor, edges: Tensor, numbers: Tensor) -> Merges:
    """Merge regions until no edge is left; see `lib.superpixels.merge_rounds.merge_in_rounds`."""
    place = torch.arange(len(sizes), device=sizes.device)
    round_idx, into = torch.full_like(place, -1), place
    cost = height = torch.zeros_like(sizes)
    n_rounds = 0
    while edges.shape[1] > 0:
        for idx in range(n_rounds, n_rounds + _N_ROUNDS_AT_ONCE):
            low, high, is_merged, cheapest = _cheapest_for_both(sizes, means, edges, numbers, idx)
            # An edge that is not merged leaves both its ends as they are.
            target = place.scatter_reduce(0, high, torch.where(is_merged, low, high), "amin")
            partner = place.scatter_reduce(0, low, torch.where(is_merged, high, low), "amax")
            is_gone, is_kept = target != place, partner != place
            needed = torch.maximum(torch.maximum(cheapest, height), height[partner])
            height = torch.where(is_kept, needed, height)
            round_idx = round_idx.masked_fill(is_gone, idx)
            into = torch.where(is_gone, target, into)
            cost = torch.where(is_gone, height[target], cost)
            gained = sizes[partner]
            total = sizes + gained
            means = means + (gained / total)[:, None] * (means[partner] - means)
            sizes = torch.where(is_kept, total, sizes)
            edges = target[torch.stack([low, high])]
        n_rounds += _N_ROUNDS_AT_ONCE
        edges = edges[:, edges[0] != edges[1]]
    found = torch.stack([round_idx, into, cost.view(torch.int64)]).cpu().numpy()  # one copy, one wait
    return Merges(found[0], found[1], found[2].view(np.float64))


def _cheapest_for_both(
    sizes: Tensor, means: Tensor, edges: Tensor, numbers: Tensor, round_idx: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return both ends of the edges, if an edge is the cheapest of both ends, and the lowest cost of regions.

    Shapes are (E,), (E,), (E,) and (n_regions,). The smaller end comes first.
    """
    low, high = torch.minimum(*edges), torch.maximum(*edges)
    is_open = low != high
    ends = torch.cat([low, high])
    size_low, size_high = sizes[ends].chunk(2)
    mean_low, mean_high = means[ends].chunk(2)
    gaps = mean_low - mean_high
    squares = sum_by_halves((gaps * gaps).T)
    cost = size_low * size_high / (size_low + size_high) * squares
    cost = torch.where(is_open, cost, math.inf)
    cheapest = torch.full_like(sizes, math.inf).scatter_reduce_(0, ends, cost.repeat(2), "amin")
    is_candidate = is_open & (cost == cheapest[low]) & (cost == cheapest[high])
    number_low, number_high = numbers[ends].chunk(2)
    priority = number_low * scatter_factor(round_idx) + number_high
    candidates = torch.where(is_candidate, priority, _LARGEST)
    first = torch.full_like(numbers, _LARGEST).scatter_reduce_(0, ends, candidates.repeat(2), "amin")
    is_merged = is_candidate & (first[low] == priority) & (first[high] == priority)
    return low, high, is_merged, cheapest
