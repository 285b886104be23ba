"""Differentiable SLIC: soft k-means of pixel features over a grid of superpixels.

The iteration of Jampani et al., "Superpixel Sampling Networks", ECCV 2018, computed cell by cell. All
pixels of a cell of the grid, see `lib.slic.grid`, share the same nine candidates, so one batched matrix
product per step replaces the per-pixel gathering of candidates, and nothing of size (number of superpixels)
x (number of pixels) is ever built.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lib.slic.fast import (
    _MAX_DISTANCE_GAP,
    _PIECE_BYTES,
    _cells_in,
    _cells_per_chunk,
    _EuclideanSoftmin,
    _gather_points,
    _LocalPoints,
    _nearest,
)
from lib.slic.grid import CellGrid
from lib.slic.soft_assignment import _INERTIA, SoftAssignment

DISTANCES = ("euclidean", "squared")

# Squared distance to a candidate beyond the border. Finite, because infinity times zero is NaN, and so
# large that its softmax weight is the smallest there is.
_BEYOND_BORDER = 1e30

# Features of that size and above are not laid out by cell as a whole where labels alone are wanted.
_LARGE_BYTES = 2**32


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
