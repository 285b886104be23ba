"""Superpixels that keep their track ID from frame to frame of a video."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.inference.segmenter import PreprocessedImage, Segmenter
from lib.slic.grid import compute_grid_shape
from lib.superpixels.regions import Superpixels

# In cells. Without it, superpixels at the edge of a cell switch back and forth; 0.5 is no better than 0.25.
_STAY_BONUS = 0.25


class TrackedSuperpixels(NamedTuple):
    """Superpixels of a frame with their track IDs."""

    superpixels: Superpixels  # connected, numbered from 0
    labels: np.ndarray  # (H, W), int32: track ID of each pixel


class Tracker:
    """Starts the superpixels of each frame from those of the frame before, moved by the optical flow.

    A superpixel can only reach pixels of its own cell and of the eight cells around it. A superpixel that the
    flow moves therefore changes to the cell at its new position. Its track ID ends if no cell near it is
    free, or if it leaves the frame. A cell without a superpixel starts one with a new track ID.
    """

    def __init__(self, segmenter: Segmenter, n_spixels: int) -> None:
        self._segmenter = segmenter
        self._n_spixels = n_spixels
        self._features: Tensor | None = None  # (C, S) of the superpixels of the last frame, by cell
        self._track_ids = np.empty(0, dtype=np.int32)  # (S,)
        self._last_labels: np.ndarray | None = None  # (H, W), cells
        self._n_track_ids = 0

    def segment(self, image: PreprocessedImage, flow_from_last: np.ndarray | None) -> TrackedSuperpixels:
        """Segment the next frame.

        Parameters
        ----------
        image : PreprocessedImage
            The frame, of the size of the one before.
        flow_from_last : ndarray, shape (H, W, 2), optional
            Flow (dy, dx) in pixels from the last frame to this one; None for the first frame.

        Raises
        ------
        InputError
            If the frame has fewer pixels than the requested superpixels, or a mask.
        """
        start = None if flow_from_last is None else self._move(flow_from_last)
        superpixels, self._features = self._segmenter.segment_from(image, self._n_spixels, start)
        if start is None:
            self._track_ids = self._new_track_ids(self._features.shape[1])
        self._last_labels = superpixels.labels
        connected = superpixels.connected()
        track_ids = self._identify(superpixels.labels, connected.labels)
        return TrackedSuperpixels(connected, track_ids[connected.labels])

    def _move(self, flow: np.ndarray) -> Tensor:
        """Return the features to start from, (C, S), NaN for new superpixels; track IDs move along."""
        shape, n_cells = flow.shape[:2], len(self._track_ids)
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
        source = _assign_cells(position, sizes, shape, compute_grid_shape(*shape, self._n_spixels))
        is_kept = source >= 0
        track_ids = np.empty(n_cells, dtype=np.int32)
        track_ids[is_kept] = self._track_ids[source[is_kept]]
        track_ids[~is_kept] = self._new_track_ids(np.count_nonzero(~is_kept))
        self._track_ids = track_ids
        start = torch.full_like(moved, torch.nan)
        start[:, torch.from_numpy(is_kept)] = moved[:, torch.from_numpy(source[is_kept])]
        return start

    def _identify(self, cells: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        """Return the track ID of each connected component, given the cell of the superpixel of each pixel.

        The largest component of a superpixel keeps its track ID; the others get new ones.
        """
        n_cells = len(self._track_ids)
        pairs, counts = np.unique(pieces.astype(np.int64) * n_cells + cells, return_counts=True)
        piece, cell = np.divmod(pairs, n_cells)
        track_id = np.full(pieces.max() + 1, -1, dtype=np.int32)
        is_taken = np.zeros(n_cells, dtype=bool)
        for idx in np.argsort(-counts, kind="stable"):
            if track_id[piece[idx]] < 0 and not is_taken[cell[idx]]:
                track_id[piece[idx]] = self._track_ids[cell[idx]]
                is_taken[cell[idx]] = True
        is_new = track_id < 0
        track_id[is_new] = self._new_track_ids(np.count_nonzero(is_new))
        return track_id

    def _new_track_ids(self, number: int) -> np.ndarray:
        first = self._n_track_ids
        self._n_track_ids += number
        return np.arange(first, self._n_track_ids, dtype=np.int32)


def share_that_follows(last_labels: np.ndarray, labels: np.ndarray, flow: np.ndarray) -> float:
    """Return the share of pixels that have the same label as the pixel the flow leads them to.

    Pixels that leave the frame are ignored; NaN if all do.

    Parameters
    ----------
    last_labels, labels : ndarray, shape (H, W), integer
        Labels of two neighbouring frames.
    flow : ndarray, shape (H, W, 2)
        Flow (dy, dx) in pixels from the first to the second.
    """
    target = np.rint(np.indices(labels.shape) + np.moveaxis(flow, -1, 0)).astype(np.int64)
    is_inside = ((target >= 0) & (target < np.array(labels.shape)[:, None, None])).all(axis=0)
    if not is_inside.any():
        return float("nan")
    y, x = target[:, is_inside]
    return float((labels[y, x] == last_labels[is_inside]).mean())


def _assign_cells(
    position: np.ndarray, sizes: np.ndarray, image_shape: tuple[int, int], grid_shape: tuple[int, int]
) -> np.ndarray:
    """Return the superpixel that each cell continues, (S,); -1 for none.

    `position` (2, S) holds the new positions in pixels; superpixels of size 0 end. Pairs of a superpixel and
    one of the nine cells around it are accepted in the order of their distance, from the position to the
    middle of the cell. A superpixel's previous cell counts as nearer than it is.
    """
    grid = np.array(grid_shape)[:, None]
    extent = np.array(image_shape)[:, None]
    is_inside = (sizes > 0) & (position > -0.5).all(axis=0) & (position < extent - 0.5).all(axis=0)
    spixel = np.repeat(np.flatnonzero(is_inside), 9)
    in_cells = (position[:, spixel] + 0.5) * grid / extent  # (2, 9 x inside), cells from the corner
    offset = np.stack(np.divmod(np.arange(9), 3)) - 1
    cell = np.floor(in_cells).astype(np.int64) + np.tile(offset, len(spixel) // 9)
    is_in_grid = ((cell >= 0) & (cell < grid)).all(axis=0)
    distance = np.linalg.norm(in_cells - cell - 0.5, axis=0)
    distance -= _STAY_BONUS * (cell[0] * grid_shape[1] + cell[1] == spixel)
    source = np.full(sizes.size, -1)
    is_placed = np.zeros(sizes.size, dtype=bool)
    pairs = np.flatnonzero(is_in_grid)
    for pair in pairs[np.argsort(distance[pairs], kind="stable")]:
        slot = cell[0, pair] * grid_shape[1] + cell[1, pair]
        if source[slot] < 0 and not is_placed[spixel[pair]]:
            source[slot] = spixel[pair]
            is_placed[spixel[pair]] = True
    return source
