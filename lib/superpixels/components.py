"""Connected components of a label map and the pairs of them that touch, on a CPU and on a GPU."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as linked_nodes
from skimage.measure import label
from torch import Tensor

from lib.superpixels.connectivity import OUTSIDE, border_sides_in_bands

_N_HOOKS = 2  # until the open pairs are looked for, which waits for the GPU
_N_JUMPS = 3  # per hook; more would cost more than they save


def connected_components(labels: Tensor) -> Tensor:
    """Number the 4-connected components of a label map.

    Parameters
    ----------
    labels : Tensor, shape (H, W), integer
        Label map on the CPU; -1 outside the mask.

    Returns
    -------
    Tensor, shape (H, W), int64
        Components, numbered from 0 by first pixel in reading order; -1 outside the mask.
    """
    return torch.from_numpy(label(labels.numpy(), background=OUTSIDE, connectivity=1)) + OUTSIDE


class ComponentsInBands:
    """Finds the `connected_components` of a label map that comes in bands of rows, from the top."""

    def __init__(self) -> None:
        self._n_pieces = 0
        self._last_row: tuple[np.ndarray, np.ndarray] | None = None  # labels, pieces
        self._links: list[np.ndarray] = [np.empty((2, 0), np.int32)]

    def add(self, labels: np.ndarray) -> np.ndarray:
        """Return the pieces of components in the next band (n_rows, W), int32; -1 outside the mask.

        Pieces are numbered by first pixel in reading order, from band to band.
        """
        pieces = label(labels, background=OUTSIDE, connectivity=1).astype(np.int32) + OUTSIDE
        n_new = int(pieces.max()) + 1
        pieces[pieces != OUTSIDE] += self._n_pieces
        self._n_pieces += n_new
        if self._last_row is not None:
            touches = (self._last_row[0] == labels[0]) & (labels[0] != OUTSIDE)
            links = np.stack([self._last_row[1][touches], pieces[0][touches]])
            self._links.append(np.unique(links, axis=1))
        self._last_row = labels[-1].copy(), pieces[-1].copy()
        return pieces

    def components_of_pieces(self) -> np.ndarray:
        """Return the component of each piece, int32, once all bands are added.

        Components are numbered by first pixel in reading order.
        """
        one, other = np.concatenate(self._links, axis=1)
        links = coo_array((np.ones(len(one), bool), (one, other)), shape=(self._n_pieces, self._n_pieces))
        _, component = linked_nodes(links, directed=False)
        _, first_piece = np.unique(component, return_index=True)
        number = np.empty(len(first_piece), np.int32)
        number[np.argsort(first_piece)] = np.arange(len(first_piece), dtype=np.int32)
        return number[component]


def components_by_hooking(labels: Tensor) -> Tensor:
    """Return `connected_components(labels)` by whole-array operations, for a GPU.

    Maps (B, H, W) may be given together; numbers then go on from map to map.

    Every pixel points to a pixel of its component, at first to the start of its run in the row. If two pixels
    touch across rows, the later of their targets is hooked to the earlier one; then each pixel jumps to the
    target of its target. This ends when pixels that touch have the same target, the first pixel of all.
    """
    width = labels.shape[-1]
    idx = torch.arange(labels.numel(), device=labels.device)
    starts_run = torch.ones_like(labels, dtype=torch.bool)
    starts_run[..., 1:] = labels[..., 1:] != labels[..., :-1]
    target = torch.where(starts_run.flatten(), idx, 0).cummax(dim=0).values
    touches = torch.zeros_like(labels, dtype=torch.bool)  # the pixel below
    touches[..., :-1, :] = labels[..., 1:, :] == labels[..., :-1, :]
    touches = touches.flatten()[:-width]
    while True:
        for _ in range(_N_HOOKS):
            upper, lower = target[:-width], target[width:]
            is_open = touches & (upper != lower)
            # Where nothing is open, pixel 0 is hooked to itself.
            early = torch.where(is_open, torch.minimum(upper, lower), 0)
            late = torch.where(is_open, torch.maximum(upper, lower), 0)
            target = target.scatter_reduce(0, late, early, "amin")
            for _ in range(_N_JUMPS):
                target = target[target]
        if not (touches & (target[:-width] != target[width:])).any():
            break
    is_inside = labels.flatten() != OUTSIDE
    number = ((target == idx) & is_inside).cumsum(dim=0) - 1
    return torch.where(is_inside, number[target], OUTSIDE).view(labels.shape)


def touching_pairs(bands: Iterable[np.ndarray], n_components: int) -> np.ndarray:
    """Return pairs of components that share a border, as `unique_pairs` does; -1 is no component.

    `bands` are bands of rows of their map (H, W), from the top.
    """
    pairs = [unique_pairs(sides, n_components) for sides in border_sides_in_bands(bands)]
    return pairs[0] if len(pairs) == 1 else unique_pairs(np.concatenate(pairs, axis=1), n_components)


def pairs_by_sorting(components: Tensor, n_components: int) -> Tensor:
    """Return `touching_pairs` by whole-array operations, for a GPU, as a tensor on the same device.

    The first pair may be (0, 0): to leave it out would wait for the GPU. Maps (B, H, W) that share no
    component may be given together.
    """
    keys = []
    sides = (
        (components[..., :-1], components[..., 1:]),
        (components[..., :-1, :], components[..., 1:, :]),
    )
    for one, other in sides:
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        keys.append(torch.where((low != high) & (low != OUTSIDE), low * n_components + high, 0).flatten())
    keys = torch.unique(torch.cat(keys))
    return torch.stack([keys.div(n_components, rounding_mode="floor"), keys % n_components])


def unique_pairs(pairs: np.ndarray, n_components: int) -> np.ndarray:
    """Return each pair (2, n) once, sorted and with the smaller number first, (2, E) int64."""
    keys = np.minimum(*pairs).astype(np.int64) * n_components + np.maximum(*pairs)
    keys.sort()  # np.unique is slower: it hashes before it sorts
    is_first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    return np.stack(np.divmod(keys[is_first], n_components))
