"""Faster forms of functions in `lib.slic.iteration`; the models use these.

Each function has, except for rounding, the result of its plain twin. Their only purpose is speed and memory.
Factors were measured on two CPU cores with trained features of a 480x854 image.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.slic import iteration
from lib.slic.grid import CellGrid, check_devices, gather_pixels
from lib.slic.iteration import (
    MAX_DISTANCE_GAP,
    MIN_SQUARED_DISTANCE,
    Cells,
    candidate_weights,
    check_arguments,
    mean_of_sums,
)

# From this size of features on, `slic_labels` lays cells out chunk by chunk in every iteration. This avoids a
# copy of the features.
LARGE_BYTES = 2**32

# Size of the rows of features that `slic_label_rows` holds; at least those of one chunk. Fewer are read twice
# more often.
WINDOW_BYTES = 2**28

# Size of a chunk on a GPU. Larger chunks take more memory.
GPU_CHUNK_BYTES = 2**24

# Size of a chunk on a CPU, about the second-level caches of two cores. Larger chunks spill out of the caches.
CPU_CHUNK_BYTES = 4 * 2**20


def assign(cells: Cells, centroids: Tensor, distance: str) -> Tensor:
    """Return the affinity (B, S, 9, P); see `lib.slic.iteration.assign`.

    Clustering in a training step takes 0.6 of the memory and is 1.1 times as fast: soft-min works in place.
    """
    squared = candidate_weights(cells, centroids) @ cells.points
    return _softmin(squared.add_(cells.squared_norms), distance)


slic = partial(iteration.slic, assign_step=assign)  # same arguments and result as the plain form


@torch.no_grad()
def slic_labels(
    pixel_features: Tensor,
    n_spixels: int,
    *,
    n_iter: int = 5,
    distance: str = "euclidean",
    mask: Tensor | None = None,
) -> Tensor:
    """Return the most likely superpixel of every pixel, (B, H, W) int64: `slic(...).labels()` in less time.

    Labels outside the mask are arbitrary. For parameters and errors see `lib.slic.iteration.slic`.

    Every step works on chunks of cells, whose tensors stay in the CPU caches; features of large images are
    laid out again in every iteration. It is 1.2 times as fast at 200 superpixels and 1.3 times at 1000.
    """
    check_arguments(pixel_features, n_iter, distance, mask=mask)
    if len(pixel_features) > 1:
        masks = [None] * len(pixel_features) if mask is None else mask.split(1)
        images = zip(pixel_features.split(1), masks, strict=True)
        cluster = partial(slic_labels, n_iter=n_iter, distance=distance)
        return torch.cat([cluster(image, n_spixels, mask=image_mask) for image, image_mask in images])
    grid = CellGrid.for_image(*pixel_features.shape[2:], n_spixels, pixel_features.device)
    chunks = _Chunks(_WholeImage(pixel_features), grid, mask, is_kept=pixel_features.nbytes < LARGE_BYTES)
    centroids = _find_centroids(chunks, n_iter, distance)
    nearest = [_nearest(squared) for _, squared in _squared_distances(chunks, centroids)]
    labels = grid.neighbor_idx.gather(1, torch.cat(nearest, dim=1)[0])
    return grid.to_pixels(labels[None, :, None]).squeeze(1)


class FeatureRows(Protocol):
    """Pixel features of an image that need not be in memory."""

    shape: tuple[int, int, int]  # (C, H, W)
    device: torch.device  # of the rows that are read

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows of pixels, (C, n_rows, W) float32; valid until the next call."""


@torch.no_grad()
def slic_label_rows(
    pixel_features: FeatureRows,
    n_spixels: int,
    *,
    n_iter: int = 5,
    distance: str = "euclidean",
    mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield `slic_labels` of an image from the top, in parts (n_rows, W) int64 of at least one row of cells.

    Features are read once for each iteration, and twice more. Memory is for `WINDOW_BYTES` of them, and for
    some 4 kB a superpixel. `mask` has the shape (1, H, W).
    """
    check_devices(pixel_features=pixel_features, mask=mask)
    grid = CellGrid.for_image(*pixel_features.shape[1:], n_spixels, pixel_features.device)
    chunks = _Chunks(_Window(pixel_features), grid, mask, is_kept=False)
    centroids = _find_centroids(chunks, n_iter, distance)
    row, waiting = 0, grid.neighbor_idx.new_empty(0, grid.n_slots)
    for _, squared in _squared_distances(chunks, centroids):
        waiting = torch.cat([waiting, _nearest(squared)[0]])
        n_rows = len(waiting) // grid.grid_shape[1]
        if n_rows == 0:
            continue
        cells = slice(row * grid.grid_shape[1], (row + n_rows) * grid.grid_shape[1])
        n_cells = cells.stop - cells.start
        labels = grid.neighbor_idx[cells].gather(1, waiting[:n_cells])
        yield labels.flatten()[grid.slots_of(slice(row, row + n_rows))].view(-1, grid.image_shape[1])
        row, waiting = row + n_rows, waiting[n_cells:]


class _WholeImage:
    """Features of an image in memory, (1, C, H, W)."""

    def __init__(self, pixel_features: Tensor) -> None:
        self._features = pixel_features.contiguous()
        self.shape = pixel_features.shape[1:]

    def covering(self, rows: slice) -> tuple[Tensor, int]:
        """Return rows of pixels, (1, C, n_rows, W), at least those given, and the number of the first."""
        return self._features, 0

    def initial_centroids(self, grid: CellGrid, mask: Tensor | None) -> Tensor:
        return grid.initial_centroids(self._features, mask)


class _Window:
    """Features of an image that are read when they are needed; rows from top to bottom are read once."""

    def __init__(self, pixel_features: FeatureRows) -> None:
        self._source = pixel_features
        self.shape = pixel_features.shape
        n_channels, self._height, width = self.shape
        self._n_rows = max(1, WINDOW_BYTES // (4 * n_channels * width))
        self._top = self._stop = 0

    def covering(self, rows: slice) -> tuple[Tensor, int]:
        """See `_WholeImage`."""
        if not self._top <= rows.start <= rows.stop <= self._stop:
            self._top = rows.start
            self._stop = min(self._height, max(rows.stop, rows.start + self._n_rows))
            self._held = self._source.read(self._top, self._stop)[None]
        return self._held, self._top

    def initial_centroids(self, grid: CellGrid, mask: Tensor | None) -> Tensor:
        def read(rows: slice) -> Tensor:
            held, top = self.covering(rows)
            return held[:, :, rows.start - top : rows.stop - top]

        of_rows = [grid.initial_centroids_of_row(row, read, mask) for row in range(grid.grid_shape[0])]
        return torch.cat(of_rows, dim=1)


class _Chunks:
    """Points and squared norms of an image, in chunks of cells.

    If `is_kept`, they are laid out once, in two large tensors; otherwise one chunk at a time, in every
    iteration. One tensor per chunk would fragment the memory and take up to 1.7 times as much.
    """

    def __init__(
        self, features: _WholeImage | _Window, grid: CellGrid, mask: Tensor | None, *, is_kept: bool
    ) -> None:
        self._features = features
        self._mask = None if mask is None else mask.flatten()
        origins = features.initial_centroids(grid, mask)
        n_channels, n_slots = features.shape[0], grid.n_slots
        bytes_per_cell = (n_channels + 10) * n_slots * origins.element_size()
        is_cpu = origins.device.type == "cpu"
        self._chunk_size = max(1, (CPU_CHUNK_BYTES if is_cpu else GPU_CHUNK_BYTES) // bytes_per_cell)
        nothing = origins.new_empty(0)
        self.cells = Cells(grid, nothing, nothing, origins, nothing, self._find_existing(grid))
        self._is_kept = is_kept
        self._is_filled = False
        n_held = grid.n_cells if is_kept else min(self._chunk_size, grid.n_cells)
        self._points = origins.new_empty(1, n_held, n_channels + 1, n_slots)
        self._squared_norms = origins.new_empty(1, n_held, 1, n_slots)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in self._slices(self.cells.grid):
            place = chunk if self._is_kept else slice(chunk.stop - chunk.start)
            points, squared_norms = self._points[:, place], self._squared_norms[:, place]
            if not self._is_filled:
                self._fill(points, squared_norms, chunk)
            yield points, squared_norms
        self._is_filled = self._is_kept

    def _slices(self, grid: CellGrid) -> Iterator[slice]:
        for first in range(0, grid.n_cells, self._chunk_size):
            yield slice(first, min(first + self._chunk_size, grid.n_cells))

    def _find_existing(self, grid: CellGrid) -> Tensor:
        """Compute `exists` of `Cells`."""
        if self._mask is None:
            return grid.neighbor_mask[None]
        is_filled = [self._occupied(*grid.pixels_of(chunk)).any(dim=1) for chunk in self._slices(grid)]
        return (grid.neighbor_mask & torch.cat(is_filled)[grid.neighbor_idx])[None]

    def _occupied(self, pixel_idx: Tensor, pixel_mask: Tensor) -> Tensor:
        """Compute `occupied` of `Cells` for a chunk, (n, P)."""
        return pixel_mask if self._mask is None else pixel_mask & self._mask[pixel_idx]

    def _fill(self, points: Tensor, squared_norms: Tensor, chunk: slice) -> None:
        """Compute what `to_points` does, in place."""
        grid = self.cells.grid
        pixel_idx, pixel_mask = grid.pixels_of(chunk)
        occupied = self._occupied(pixel_idx, pixel_mask)
        pixels, top = self._features.covering(grid.pixel_rows_of(chunk))
        if top > 0:  # in empty slots, pixel 0 lies above the window
            pixel_idx = (pixel_idx - top * grid.image_shape[1]).clamp_(min=0)
        features = gather_pixels(pixels.flatten(2), pixel_idx).transpose(1, 2)
        shifted = torch.sub(features, self.cells.origins[:, chunk, :, None], out=points[:, :, :-1])
        shifted.masked_fill_(~occupied[:, None], 0)
        points[:, :, -1] = occupied
        torch.sum(shifted.square(), dim=2, keepdim=True, out=squared_norms)


def _find_centroids(chunks: _Chunks, n_iter: int, distance: str) -> Tensor:
    """Return the centroids from which the last iteration assigns labels, (1, S, C)."""
    centroids = chunks.cells.origins
    for _ in range(n_iter - 1):
        sums = [
            _softmin(squared, distance) @ points.transpose(2, 3)
            for points, squared in _squared_distances(chunks, centroids)
        ]
        centroids = mean_of_sums(chunks.cells, torch.cat(sums, dim=1), centroids)
    return centroids


def _squared_distances(chunks: _Chunks, centroids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the points of each chunk, (1, cells, C + 1, P), and their squared distances, (1, cells, 9, P)."""
    weights = candidate_weights(chunks.cells, centroids)
    first = 0
    for points, squared_norms in chunks:
        stop = first + points.shape[1]
        yield points, (weights[:, first:stop] @ points).add_(squared_norms)
        first = stop


def _nearest(squared_distance: Tensor) -> Tensor:
    """Return the index (B, S, P) of the nearest candidate in (B, S, 9, P); the first one in a tie.

    On a CPU this is three times as fast as `argmin`, which is slow over any dimension but the last.
    """
    is_nearest = squared_distance == squared_distance.amin(dim=2, keepdim=True)
    n_candidates = squared_distance.shape[2]
    from_last = torch.arange(n_candidates, 0, -1, dtype=torch.uint8, device=squared_distance.device)
    return (n_candidates - (is_nearest * from_last[:, None]).amax(dim=2)).long()


def _softmin(squared: Tensor, distance: str) -> Tensor:
    """Return the softmax over dimension 2 of the negative distances; may overwrite `squared`."""
    return iteration.softmin(squared) if distance == "squared" else _EuclideanSoftmin.apply(squared)


class _EuclideanSoftmin(torch.autograd.Function):
    """Compute softmax(-sqrt(x)) over dimension 2 of squared distances x, in place.

    Composed PyTorch operations would touch six tensors of this size and keep three for the gradient. This
    function touches one and keeps two.
    """

    @staticmethod
    def forward(ctx, squared: Tensor) -> Tensor:
        ctx.mark_dirty(squared)
        distance = squared.clamp_(min=MIN_SQUARED_DISTANCE).sqrt_()
        kept_distance = distance.clone() if ctx.needs_input_grad[0] else None
        affinity = torch.sub(distance.amin(dim=2, keepdim=True), distance, out=distance)
        affinity = affinity.clamp_(min=-MAX_DISTANCE_GAP).exp_()
        affinity.div_(affinity.sum(dim=2, keepdim=True))
        ctx.save_for_backward(kept_distance, affinity)
        return affinity

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        distance, affinity = ctx.saved_tensors
        grad = grad * affinity
        grad.addcmul_(affinity, grad.sum(dim=2, keepdim=True), value=-1)  # gradient of the softmax
        # d(-sqrt(x)) / dx = -1 / (2 sqrt(x)). Where a pixel equals a superpixel, the gradient is zero.
        is_clamped = distance <= math.sqrt(MIN_SQUARED_DISTANCE)
        return grad.div_(-2 * distance).masked_fill_(is_clamped, 0)
