"""Connected components of a label map and the pairs of them that touch, where the label map is."""

import numpy as np
import torch
from skimage.measure import label
from torch import Tensor

from lib.superpixels.connectivity import OUTSIDE, border_sides

_N_JUMPS = 3  # per hook; more would cost more than they save


def connected_components(labels: Tensor) -> Tensor:
    """Number the 4-connected components of a label map.

    Parameters
    ----------
    labels : Tensor, shape (H, W), integer
        Label map on any device; -1 outside the mask.

    Returns
    -------
    Tensor, shape (H, W), int64
        Components on the same device, numbered from 0 by first pixel in reading order; -1 outside the mask.
    """
    if labels.device.type == "cpu":
        return torch.from_numpy(label(labels.numpy(), background=OUTSIDE, connectivity=1)) + OUTSIDE
    return components_by_hooking(labels)


def components_by_hooking(labels: Tensor) -> Tensor:
    """Return `connected_components(labels)` by whole-array operations, for a GPU.

    Every pixel points to a pixel of its component, at first to the start of its run in the row. If two pixels
    touch across rows, the later of their targets is hooked to the earlier one; then each pixel jumps to the
    target of its target. This ends when pixels that touch have the same target, the first pixel of all.
    """
    height, width = labels.shape
    idx = torch.arange(height * width, device=labels.device)
    starts_run = torch.ones_like(labels, dtype=torch.bool)
    starts_run[:, 1:] = labels[:, 1:] != labels[:, :-1]
    target = torch.where(starts_run.flatten(), idx, 0).cummax(dim=0).values
    touches = (labels[1:] == labels[:-1]).flatten()
    while True:
        upper, lower = target[:-width], target[width:]
        is_open = touches & (upper != lower)
        if not is_open.any():
            break
        # Where nothing is open, pixel 0 is hooked to itself.
        early = torch.where(is_open, torch.minimum(upper, lower), 0)
        late = torch.where(is_open, torch.maximum(upper, lower), 0)
        target = target.scatter_reduce(0, late, early, "amin")
        for _ in range(_N_JUMPS):
            target = target[target]
    is_inside = labels.flatten() != OUTSIDE
    number = ((target == idx) & is_inside).cumsum(dim=0) - 1
    return torch.where(is_inside, number[target], OUTSIDE).view(height, width)


def touching_pairs(components: Tensor, n_components: int) -> np.ndarray:
    """Return the pairs of components that share a border, as `unique_pairs` does; -1 is no component."""
    if components.device.type == "cpu":
        return unique_pairs(border_sides(components.numpy()), n_components)
    return pairs_by_sorting(components, n_components)


def pairs_by_sorting(components: Tensor, n_components: int) -> np.ndarray:
    """Return `touching_pairs(components, n_components)` by whole-array operations, for a GPU."""
    keys = []
    for one, other in ((components[:, :-1], components[:, 1:]), (components[:-1], components[1:])):
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        keys.append(torch.where((low != high) & (low != OUTSIDE), low * n_components + high, -1).flatten())
    keys = torch.unique(torch.cat(keys)).cpu().numpy()
    return np.stack(np.divmod(keys[keys >= 0], n_components))


def unique_pairs(pairs: np.ndarray, n_components: int) -> np.ndarray:
    """Return each pair (2, n) once, sorted and with the smaller number first, (2, E) int64."""
    keys = np.minimum(*pairs).astype(np.int64) * n_components + np.maximum(*pairs)
    keys.sort()  # np.unique is slower: it hashes before it sorts
    is_first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    return np.stack(np.divmod(keys[is_first], n_components))
