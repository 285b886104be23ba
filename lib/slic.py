"""Differentiable SLIC: soft k-means of pixel features over a grid of superpixels.

The iteration of Jampani et al., "Superpixel Sampling Networks", ECCV 2018, computed cell by cell. All
pixels of a cell of the grid, see `lib.cell_grid`, share the same nine candidates, so one batched matrix
product per step replaces the per-pixel gathering of candidates, and nothing of size (number of superpixels)
x (number of pixels) is ever built.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.cell_grid import CellGrid

DISTANCES = ("euclidean", "squared")

# Squared distance to a candidate beyond the border. Finite, because infinity times zero is NaN, and so
# large that its softmax weight is the smallest there is.
_BEYOND_BORDER = 1e30

# Distances beyond the nearest candidate's count no further in the softmax. exp(-55) is nothing beside 1, but
# it and products with it are normal numbers of float32: processors take up to a hundred times longer for
# subnormal ones.
_MAX_DISTANCE_GAP = 55.0

# Keeps the gradient of the square root finite where a pixel coincides with a superpixel.
_MIN_SQUARED_DISTANCE = 1e-12

# Weight of the previous centroid in an update. It only matters for a superpixel that lost all its
# pixels to underflow: that one stays where it was.
_INERTIA = 1e-16

# Features of that size and above are not laid out by cell as a whole where labels alone are wanted.
_LARGE_BYTES = 2**32

# What is laid out by cell at a time where no gradient is wanted, on any device: no tensor of gigabytes, whose
# pages Linux clears anew each time, nor blocks so large that gaps between them add up.
_PIECE_BYTES = 2**24

# Working set of a step on the CPU: about what the second-level caches of two cores hold.
_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, eq=False)
class SoftAssignment:
    """Share of every pixel in each of its nine candidate superpixels (Q in the paper).

    Attributes
    ----------
    grid : CellGrid
        Which pixels and which candidates the shares belong to.
    affinity : Tensor, shape (B, S, 9, P)
        Sums to 1 over the nine candidates, of which those beyond the border get at most exp(-55), but is zero
        where a mask left a pixel out; differentiable. Without a mask, arbitrary in empty slots.
    """

    grid: CellGrid
    affinity: Tensor

    def of_image(self, idx: int) -> Self:
        """The part of one image of the batch."""
        return replace(self, affinity=self.affinity[idx : idx + 1])

    def labels(self) -> Tensor:
        """Most likely superpixel of every pixel (H in the paper), shape (B, H, W), int64."""
        # `max` is several times faster on CPU than `argmax` over an axis that is not the last.
        choice = self.affinity.detach().max(dim=2).indices  # (B, S, P)
        neighbor_idx = self.grid.neighbor_idx.expand(choice.shape[0], -1, -1)
        cell_labels = neighbor_idx.gather(2, choice)
        return self.grid.to_pixels(cell_labels.unsqueeze(2)).squeeze(1)

    def spixel_means(self, values: Tensor) -> Tensor:
        """Affinity-weighted mean of a per-pixel quantity in each superpixel.

        Parameters
        ----------
        values : Tensor, shape (B, K, H, W)
            Anything per pixel, of the affinity's dtype and device.

        Returns
        -------
        Tensor, shape (B, K, S)
            Differentiable in `values` and in the affinity.
        """
        cells = self.grid.to_cells(values)
        occupied = self.grid.pixel_mask.to(cells.dtype)[None, :, None].expand(len(cells), -1, -1, -1)
        cells = torch.cat([cells, occupied], dim=2)  # (B, S, K+1, P)
        totals = self.grid.sum_over_candidates(self.affinity @ cells.transpose(2, 3))
        sums, weight = totals[..., :-1], totals[..., -1:]
        return (sums / (weight + _INERTIA)).transpose(1, 2)

    def to_pixels(self, spixel_values: Tensor) -> Tensor:
        """Blend superpixel values by affinity: (B, K, S) to (B, K, H, W), differentiable."""
        candidates = self.grid.to_candidates(spixel_values.transpose(1, 2))  # (B, S, 9, K)
        return self.grid.to_pixels(candidates.transpose(2, 3) @ self.affinity)

    def reconstruct(self, values: Tensor) -> Tensor:
        """Average a per-pixel quantity into superpixels and spread it back, both by affinity.

        `values` and the result have shape (B, K, H, W).
        """
        return self.to_pixels(self.spixel_means(values))

    def to_sparse(self) -> Tensor:
        """Affinity as a sparse COO tensor of shape (B, S, H*W), differentiable.

        Each of its columns has the pixel's existing candidates as entries and sums to 1.
        """
        grid, batch = self.grid, self.affinity.shape[0]
        exists = grid.neighbor_mask[:, :, None] & grid.pixel_mask[:, None, :]  # (S, 9, P)
        spixel = grid.neighbor_idx[:, :, None].expand_as(exists)[exists]
        pixel = grid.pixel_idx[:, None, :].expand_as(exists)[exists]
        item = torch.arange(batch, device=pixel.device).repeat_interleave(len(pixel))
        indices = torch.stack([item, spixel.repeat(batch), pixel.repeat(batch)])
        size = (batch, grid.n_cells, math.prod(grid.image_shape))
        values = self.affinity[:, exists].flatten()
        return torch.sparse_coo_tensor(indices, values, size, check_invariants=True)


def slic(
    pixel_features: Tensor,
    n_spixels: int,
    *,
    n_iter: int = 5,
    distance: str = "euclidean",
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> SoftAssignment:
    """Cluster pixel features into superpixels.

    Every iteration computes the affinity as the softmax of the negative distances to the candidates,
    then moves each superpixel to its affinity-weighted mean.

    Parameters
    ----------
    pixel_features : Tensor, shape (B, C, H, W)
        float32 or float64, on any device; the position is expected among its channels.
    n_spixels : int
        Requested number of superpixels; S = n_rows * n_cols of `compute_grid_shape` are made.
    n_iter : int
        Number of iterations, at least 1.
    distance : {"euclidean", "squared"}
        Euclidean as in the published PyTorch weights, squared as in the paper.
    mask : Tensor, shape (B, H, W), bool, optional
        Pixels to cluster, by default all. Others move no superpixel and have no affinity to any; a cell
        without any pixel to cluster has no superpixel.
    start : Tensor, shape (B, C, S), optional
        Features that the superpixels start from, by default the means of their cells; NaN for single
        superpixels does the same.

    Returns
    -------
    SoftAssignment
        The affinities of the last iteration, differentiable in `pixel_features`. Its
        `spixel_means(pixel_features)` are the superpixel features that follow from them.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    .. [1] Jampani et al., "Superpixel Sampling Networks", ECCV 2018.
    """
    problem = _Problem(pixel_features, n_spixels, n_iter, distance, mask, start)
    chunks = problem.points_in_chunks()
    spixel_features = problem.iterate(chunks)
    affinities = [affinity for _, affinity in problem.soft_assign(chunks, spixel_features)]
    affinity = torch.cat(affinities).unflatten(0, problem.origins.shape[:2])
    return SoftAssignment(problem.grid, affinity if mask is None else affinity * problem.occupied[:, :, None])


@torch.no_grad()
def slic_labels(
    pixel_features: Tensor,
    n_spixels: int,
    *,
    n_iter: int = 5,
    distance: str = "euclidean",
    mask: Tensor | None = None,
) -> Tensor:
    """Cluster pixel features; the labels of `slic` alone, for little memory beside large features.

    Parameters and errors are those of `slic`.

    Returns
    -------
    Tensor, shape (B, H, W), int64
        Most likely superpixel of every pixel; arbitrary outside the mask.
    """
    if len(pixel_features) > 1:
        masks = [None] * len(pixel_features) if mask is None else mask.split(1)
        labels = [
            slic_labels(one, n_spixels, n_iter=n_iter, distance=distance, mask=one_mask)
            for one, one_mask in zip(pixel_features.split(1), masks, strict=True)
        ]
        return torch.cat(labels)
    problem = _Problem(pixel_features, n_spixels, n_iter, distance, mask, None)
    grid = problem.grid
    chunks = _PointsOnDemand(problem)
    if pixel_features.nbytes < _LARGE_BYTES:
        chunks = list(chunks)
    spixel_features = problem.iterate(chunks)
    cell_labels = []
    first = 0
    for points, squared_distance in problem.squared_distances(chunks, spixel_features):
        candidates = grid.neighbor_idx[first : first + len(points)]
        labels = candidates.gather(1, _nearest(squared_distance))
        cell_labels.append(labels.to(torch.int32))
        first += len(points)
    return grid.to_pixels(torch.cat(cell_labels)[None, :, None]).squeeze(1).long()


class _Problem:
    """What an iteration works on; parameters as for `slic`."""

    def __init__(
        self,
        pixel_features: Tensor,
        n_spixels: int,
        n_iter: int,
        distance: str,
        mask: Tensor | None,
        start: Tensor | None,
    ) -> None:
        if pixel_features.ndim != 4 or pixel_features.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "pixel_features must be float32 or float64 of shape (B, C, H, W), got "
                f"{pixel_features.dtype} of shape {tuple(pixel_features.shape)}"
            )
        if n_iter < 1:
            raise ValueError(f"n_iter must be at least 1, got {n_iter}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
        self.n_iter = n_iter
        self.distance = distance
        self.grid = grid = CellGrid.for_image(*pixel_features.shape[2:], n_spixels, pixel_features.device)
        self.occupied = grid.pixel_mask[None]  # (1 or B, S, P)
        self.exists = grid.neighbor_mask[None]  # (1 or B, S, 9)
        if mask is not None:
            self.occupied = grid.to_cells(mask[:, None]).squeeze(2)
            self.exists = self.exists & self.occupied.any(dim=2)[:, grid.neighbor_idx]

        # Channels are read one at a time, which is slow where a convolution left them innermost.
        self.pixels = pixel_features.contiguous()
        # A cell's pixels and candidates are taken relative to its first centroid: differences of large
        # squares would cost float32 the small distances.
        self.origins = grid.initial_centroids(self.pixels, mask)  # (B, S, C)
        self.start = self.origins
        if start is not None:
            start = start.transpose(1, 2)
            self.start = torch.where(start.isnan().any(dim=2, keepdim=True), self.origins, start)

    def points_in_chunks(self) -> Sequence[Tensor]:
        """The pixels of some cells at a time, (cells, C+2, P); see `_gather_points`."""
        occupied = self.occupied.to(self.pixels.dtype)
        points = _LocalPoints.apply(self.pixels, self.origins, occupied, self.grid)
        return points.flatten(0, 1).split(_cells_per_chunk(points.shape, points))

    def iterate(self, chunks: "Sequence[Tensor] | _PointsOnDemand") -> Tensor:
        """Superpixel features (B, S, C) before the last assignment, from points (cells, C+2, P) in chunks."""
        spixel_features = self.start
        for _ in range(self.n_iter - 1):
            local_sums = [
                affinity @ points.transpose(1, 2)
                for points, affinity in self.soft_assign(chunks, spixel_features)
            ]
            local_sums = torch.cat(local_sums).unflatten(0, self.origins.shape[:2])  # (B, S, 9, C+2)
            spixel_features = _update_centroids(local_sums, self.origins, spixel_features, self.grid)
        return spixel_features

    def soft_assign(
        self, chunks: "Sequence[Tensor] | _PointsOnDemand", spixel_features: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every chunk of cells with the affinity of its points, (cells, 9, P)."""
        for points, squared_distance in self.squared_distances(chunks, spixel_features):
            if self.distance == "squared":
                gap = squared_distance - squared_distance.detach().amin(dim=1, keepdim=True)
                yield points, torch.softmax(-gap.clamp(max=_MAX_DISTANCE_GAP), dim=1)
            else:
                yield points, _EuclideanSoftmin.apply(squared_distance)

    def squared_distances(
        self, chunks: "Sequence[Tensor] | _PointsOnDemand", spixel_features: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every chunk of cells with the squared distances of its points, (cells, 9, P)."""
        weights = _distance_weights(spixel_features, self.origins, self.exists, self.grid).flatten(0, 1)
        first = 0
        for points in chunks:
            yield points, weights[first : first + len(points)] @ points
            first += len(points)


class _PointsOnDemand:
    """The points of a single image in chunks of cells, gathered anew whenever they are asked for."""

    def __init__(self, problem: _Problem) -> None:
        self._problem = problem
        n_channels, n_slots = problem.pixels.shape[1], problem.grid.pixel_idx.shape[1]
        shape = (1, problem.grid.n_cells, n_channels + 2, n_slots)
        self._cells_per_piece = _cells_in(_PIECE_BYTES, shape, problem.pixels)
        self._cells_per_chunk = _cells_per_chunk(shape, problem.pixels)

    def __iter__(self) -> Iterator[Tensor]:
        problem = self._problem
        pixels = problem.pixels.flatten(2)
        for idx, origins, occupied in zip(
            problem.grid.pixel_idx.split(self._cells_per_piece),
            problem.origins[0].split(self._cells_per_piece),
            problem.occupied[0].split(self._cells_per_piece),
            strict=True,
        ):
            piece = _gather_points(pixels, idx[None], origins[None], occupied[None].to(pixels.dtype))[0]
            yield from piece.split(self._cells_per_chunk)


def _cells_per_chunk(points_shape: Sequence[int], like: Tensor) -> int:
    """Number of cells to iterate over at a time: on CPU as many as fit its cache, elsewhere all."""
    if like.device.type != "cpu":
        return points_shape[0] * points_shape[1]
    return _cells_in(_CHUNK_BYTES, points_shape, like)


def _cells_in(n_bytes: int, points_shape: Sequence[int], like: Tensor) -> int:
    """Number of cells whose points and affinities take so much memory, at least 1."""
    _, _, n_rows, n_slots = points_shape
    return max(1, n_bytes // ((n_rows + 9) * n_slots * like.element_size()))


def _nearest(squared_distance: Tensor) -> Tensor:
    """Which candidate is nearest, (cells, P), of (cells, 9, P); the first of equals.

    Three times as fast as `Tensor.argmin` would be on CPU, which is slow where the dimension is not the last.
    """
    is_nearest = squared_distance == squared_distance.amin(dim=1, keepdim=True)
    n_candidates = squared_distance.shape[1]
    from_last = torch.arange(n_candidates, 0, -1, dtype=torch.uint8, device=squared_distance.device)
    return (n_candidates - (is_nearest * from_last[:, None]).amax(dim=1)).long()


def _distance_weights(spixel_features: Tensor, origins: Tensor, exists: Tensor, grid: CellGrid) -> Tensor:
    """What turns points into squared distances to a cell's candidates: (B, S, 9, C+2).

    |p - s|^2 = [-2 s, |s|^2, 1] . [p, 1, |p|^2]
    """
    beyond = ~exists[..., None]
    candidates = grid.to_candidates(spixel_features) - origins[:, :, None]  # (B, S, 9, C)
    candidates = candidates.masked_fill(beyond, 0)
    squared_norm = candidates.square().sum(dim=3, keepdim=True).masked_fill(beyond, _BEYOND_BORDER)
    return torch.cat([-2 * candidates, squared_norm, torch.ones_like(squared_norm)], dim=3)


def _update_centroids(local_sums: Tensor, origins: Tensor, spixel_features: Tensor, grid: CellGrid) -> Tensor:
    """Affinity-weighted mean of the pixels of each superpixel: (B, S, C)."""
    weight = local_sums[..., -2:-1]
    sums = local_sums[..., :-2] + weight * origins[:, :, None]
    totals = grid.sum_over_candidates(torch.cat([sums, weight], dim=3))
    return (totals[..., :-1] + _INERTIA * spixel_features) / (totals[..., -1:] + _INERTIA)


def _gather_points(pixels: Tensor, pixel_idx: Tensor, origins: Tensor, occupied: Tensor) -> Tensor:
    """Stack [p, 1, |p|^2] for the pixels p of some cells, relative to their origins: (B, cells, C+2, P).

    All rows are zero in slots that are not occupied. The 1 makes sums of weights, and |s|^2, part of the same
    products. Written channel by channel, because at full image size every temporary tensor costs as much
    time as the arithmetic.

    Parameters
    ----------
    pixels : Tensor, shape (B, C, H*W)
        Pixel features.
    pixel_idx : Tensor, shape (B, cells, P)
        Pixel of each slot, counted through the batch.
    origins, occupied : Tensor, shape (B, cells, C); (1 or B, cells, P), of the pixels' dtype
        What to subtract; 1 where a slot counts, else 0.
    """
    batch, n_channels = pixels.shape[:2]
    n_cells, n_slots = pixel_idx.shape[1:]
    flat_idx = pixel_idx.flatten()
    points = pixels.new_empty(batch, n_cells, n_channels + 2, n_slots)
    squared_norm = pixels.new_zeros(batch, n_cells, n_slots)
    for channel in range(n_channels):
        cells = pixels[:, channel].flatten().index_select(0, flat_idx).view(batch, n_cells, n_slots)
        cells.sub_(origins[:, :, channel, None]).mul_(occupied)
        points[:, :, channel] = cells
        squared_norm.addcmul_(cells, cells)
    points[:, :, -2] = occupied
    points[:, :, -1] = squared_norm
    return points


class _LocalPoints(torch.autograd.Function):
    """`_gather_points` of all cells, with a gradient."""

    @staticmethod
    def forward(ctx, pixels: Tensor, origins: Tensor, occupied: Tensor, grid: CellGrid) -> Tensor:
        # One flat index over the batch: `index_select` is fastest along a single dimension.
        offset = torch.arange(len(pixels), device=pixels.device) * math.prod(grid.image_shape)
        points = _gather_points(pixels.flatten(2), grid.pixel_idx + offset[:, None, None], origins, occupied)
        ctx.grid = grid
        ctx.save_for_backward(points, occupied)
        return points

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        points, occupied = ctx.saved_tensors
        grad_local = torch.addcmul(grad[:, :, :-2], points[:, :, :-2], grad[:, :, -1:], value=2)
        grad_local.mul_(occupied[:, :, None])
        return ctx.grid.to_pixels(grad_local), -grad_local.sum(dim=3), None, None


class _EuclideanSoftmin(torch.autograd.Function):
    """softmax(-sqrt(x)) over dimension 1 of squared distances x, in place.

    As composed PyTorch operations it would touch six tensors of this size, and hold three for the
    gradient; here it is one, and two.
    """

    @staticmethod
    def forward(ctx, squared_distance: Tensor) -> Tensor:
        ctx.mark_dirty(squared_distance)
        distance = squared_distance.clamp_(min=_MIN_SQUARED_DISTANCE).sqrt_()
        kept_distance = distance.clone() if ctx.needs_input_grad[0] else None
        affinity = torch.sub(distance.amin(dim=1, keepdim=True), distance, out=distance)
        affinity = affinity.clamp_(min=-_MAX_DISTANCE_GAP).exp_()
        affinity.div_(affinity.sum(dim=1, keepdim=True))
        ctx.save_for_backward(kept_distance, affinity)
        return affinity

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        distance, affinity = ctx.saved_tensors
        grad = grad * affinity
        grad.addcmul_(affinity, grad.sum(dim=1, keepdim=True), value=-1)  # of the softmax
        # d(-sqrt(x)) / dx = -1 / (2 sqrt(x)); a coinciding pixel and superpixel do not attract.
        is_clamped = distance <= math.sqrt(_MIN_SQUARED_DISTANCE)
        return grad.div_(-2 * distance).masked_fill_(is_clamped, 0)
