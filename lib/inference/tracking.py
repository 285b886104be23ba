"""Superpixels that keep their identity from frame to frame of a video."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.inference.segmenter import PreparedImage, Segmenter
from lib.slic.grid import compute_grid_shape
from lib.superpixels.counts import check_n_spixels
from lib.superpixels.regions import Superpixels

# In cells. Without it superpixels at the edge of a cell would go to and fro; 0.5 is no better than 0.25.
_STAY_BONUS = 0.25


class TrackedSuperpixels(NamedTuple):
    """The superpixels of a frame, and who they are."""

    superpixels: Superpixels  # connected, numbered from 0
    identities: np.ndarray  # (S,), int32: of each of them, the same in all frames

    @property
    def labels(self) -> np.ndarray:
        """Identity of the superpixel of each pixel, (H, W) int32."""
        return self.identities[self.superpixels.labels]


class Tracker:
    """Starts the superpixels of each frame from those of the frame before, moved by the optical flow.

    A superpixel reaches the pixels of its cell of the grid and of the eight around it, so those that the flow
    leads on go over to the cells they have come to. The identity of one that finds no free cell there, or
    leaves the frame, ends. A cell without a superpixel starts one of a new identity.

    Parameters
    ----------
    segmenter : Segmenter
        Segments the frames.
    n_spixels : int
        Requested number of superpixels.
    """

    def __init__(self, segmenter: Segmenter, n_spixels: int) -> None:
        self._segmenter = segmenter
        self._n_spixels = n_spixels
        self._features: Tensor | None = None  # (C, S) of the superpixels of the last frame, by cell
        self._identities = np.empty(0, dtype=np.int32)  # (S,)
        self._last_labels: np.ndarray | None = None  # (H, W), cells
        self._n_identities = 0

    def segment(self, image: PreparedImage, flow_from_last: np.ndarray | None) -> TrackedSuperpixels:
        """Segment the next frame.

        Parameters
        ----------
        image : PreparedImage
            The frame, of the size of the one before.
        flow_from_last : ndarray, shape (H, W, 2), optional
            Flow (dy, dx) in pixels from the last frame to this one; None for the first frame.

        Returns
        -------
        TrackedSuperpixels

        Raises
        ------
        InputError
            If the frame has fewer pixels than superpixels are wanted.
        """
        check_n_spixels(self._n_spixels, image.n_pixels, image.name)
        start = None
        shape = image.image_rgb.shape[:2]
        n_rows, n_cols = compute_grid_shape(*shape, self._n_spixels)
        if flow_from_last is None:
            self._identities = self._new_identities(n_rows * n_cols)
        else:
            start = self._move(flow_from_last, (n_rows, n_cols))
        superpixels, self._features = self._segmenter.cluster_from(image, self._n_spixels, start)
        self._last_labels = superpixels.labels
        connected = superpixels.connected()
        return TrackedSuperpixels(connected, self._identify(superpixels.labels, connected.labels))

    def _move(self, flow: np.ndarray, grid_shape: tuple[int, int]) -> Tensor:
        """Features to start from, (C, S), NaN for cells that start anew; identities move along."""
        shape = flow.shape[:2]
        n_cells = grid_shape[0] * grid_shape[1]
        flat = self._last_labels.ravel()
        sizes = np.bincount(flat, minlength=n_cells)

        def mean_of(values: np.ndarray) -> np.ndarray:  # NaN for superpixels without pixels
            return np.bincount(flat, values.ravel(), n_cells) / sizes

        with np.errstate(invalid="ignore"):
            shift = np.stack([mean_of(flow[..., axis]) for axis in (0, 1)])  # (2, S)
            position = np.stack([mean_of(axis) for axis in np.indices(shape)]) + shift
        moved = self._features.clone()
        scale = self._segmenter.position_scale(shape, self._n_spixels)
        moved[self._segmenter.model.position_channels] += scale * torch.from_numpy(shift).to(moved)
        source = _assign_cells(position, sizes, shape, grid_shape)
        is_kept = source >= 0
        identities = np.empty(n_cells, dtype=np.int32)
        identities[is_kept] = self._identities[source[is_kept]]
        identities[~is_kept] = self._new_identities(np.count_nonzero(~is_kept))
        self._identities = identities
        start = torch.full_like(moved, torch.nan)
        start[:, torch.from_numpy(is_kept)] = moved[:, torch.from_numpy(source[is_kept])]
        return start

    def _identify(self, cells: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        """Identity of each connected piece, given the cell whose superpixel each pixel belongs to.

        The largest piece of a superpixel keeps its identity, other pieces get new ones.
        """
        n_cells = len(self._identities)
        pairs, counts = np.unique(pieces.astype(np.int64) * n_cells + cells, return_counts=True)
        piece, cell = np.divmod(pairs, n_cells)
        identity = np.full(pieces.max() + 1, -1, dtype=np.int32)
        is_taken = np.zeros(n_cells, dtype=bool)
        for idx in np.argsort(-counts, kind="stable"):
            if identity[piece[idx]] < 0 and not is_taken[cell[idx]]:
                identity[piece[idx]] = self._identities[cell[idx]]
                is_taken[cell[idx]] = True
        is_new = identity < 0
        identity[is_new] = self._new_identities(np.count_nonzero(is_new))
        return identity

    def _new_identities(self, number: int) -> np.ndarray:
        first = self._n_identities
        self._n_identities += number
        return np.arange(first, self._n_identities, dtype=np.int32)


def share_that_follows(last_labels: np.ndarray, labels: np.ndarray, flow: np.ndarray) -> float:
    """Share of pixels whose label is that of the pixel that the flow leads them to.

    Parameters
    ----------
    last_labels, labels : ndarray, shape (H, W), integer
        Labels of two neighbouring frames.
    flow : ndarray, shape (H, W, 2)
        Flow (dy, dx) in pixels from the first to the second.

    Returns
    -------
    float
        Of the pixels that stay within the frame; NaN if there are none.
    """
    height, width = labels.shape
    y, x = np.indices(labels.shape)
    y_there = np.rint(y + flow[..., 0]).astype(np.int64)
    x_there = np.rint(x + flow[..., 1]).astype(np.int64)
    is_inside = (y_there >= 0) & (y_there < height) & (x_there >= 0) & (x_there < width)
    if not is_inside.any():
        return float("nan")
    return float((labels[y_there[is_inside], x_there[is_inside]] == last_labels[is_inside]).mean())


def _assign_cells(
    position: np.ndarray, sizes: np.ndarray, image_shape: tuple[int, int], grid_shape: tuple[int, int]
) -> np.ndarray:
    """Which superpixel each cell continues, (S,); -1 for none.

    `position` (2, S), in pixels, is where the superpixels have come to; those of size 0 end. Of all pairs of
    a superpixel and one of the nine cells around its position, the one with the least distance between that
    and the middle of the cell goes first; the superpixel's own cell counts as nearer than it is.
    """
    grid = np.array(grid_shape)[:, None]
    extent = np.array(image_shape)[:, None]
    is_inside = (sizes > 0) & (position > -0.5).all(axis=0) & (position < extent - 0.5).all(axis=0)
    spixel = np.repeat(np.flatnonzero(is_inside), 9)
    in_cells = (position[:, spixel] + 0.5) * grid / extent  # (2, 9 x inside), cells from the corner
    offset = np.stack(np.divmod(np.arange(9), 3)) - 1
    cell = np.floor(in_cells).astype(np.int64) + np.tile(offset, len(spixel) // 9)
    is_there = ((cell >= 0) & (cell < grid)).all(axis=0)
    distance = np.linalg.norm(in_cells - cell - 0.5, axis=0)
    distance -= _STAY_BONUS * (cell[0] * grid_shape[1] + cell[1] == spixel)
    source = np.full(sizes.size, -1)
    is_placed = np.zeros(sizes.size, dtype=bool)
    pairs = np.flatnonzero(is_there)
    for pair in pairs[np.argsort(distance[pairs], kind="stable")]:
        slot = cell[0, pair] * grid_shape[1] + cell[1, pair]
        if source[slot] < 0 and not is_placed[spixel[pair]]:
            source[slot] = spixel[pair]
            is_placed[spixel[pair]] = True
    return source
