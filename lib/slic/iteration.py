"""Differentiable SLIC: soft k-means of pixel features over a grid of superpixels.

Implements the iteration of Jampani et al., "Superpixel Sampling Networks", ECCV 2018, cell by cell. All
pixels in a cell share the same nine candidate superpixels (`lib.slic.grid`). A step is therefore a batched
matrix product over the cells. No tensor of size (superpixels) x (pixels) is built.

`lib.slic.fast` holds faster forms of these functions; `lib.slic.reference` holds the per-pixel form.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.slic.grid import CellGrid, check_devices
from lib.slic.soft_assignment import SoftAssignment

DISTANCES = ("euclidean", "squared")

# Squared distance to a candidate that does not exist. Infinity would not do: infinity times zero is NaN.
FAR = 1e30

# Least squared distance. It keeps the gradient of the square root finite where a pixel equals its superpixel.
MIN_SQUARED_DISTANCE = 1e-12

# Largest gap between a distance and the nearest candidate's distance in the softmax. exp(-55) is negligible,
# but it and its products are normal float32 numbers. Subnormal numbers take up to 100 times longer.
MAX_DISTANCE_GAP = 55.0

# Weight of the previous centroid in an update. A superpixel that loses all its pixels to underflow stays in
# place instead of becoming NaN.
INERTIA = 1e-16


class Cells(NamedTuple):
    """Pixels laid out by cell, relative to the first centroid of their cell.

    Without this shift, float32 would lose small distances, which are differences of large squares.
    """

    grid: CellGrid
    points: Tensor  # (B, S, C + 1, P): features and a 1, which counts pixels; zero where not occupied
    squared_norms: Tensor  # (B, S, 1, P): squared norms of the features
    origins: Tensor  # (B, S, C): mean of each cell; zero for cells outside the mask
    occupied: Tensor  # (1 or B, S, P), bool: the slot holds a pixel of the mask
    exists: Tensor  # (1 or B, S, 9), bool: the candidate lies in the grid and its cell is not empty


def slic(
    pixel_features: Tensor,
    n_spixels: int,
    *,
    n_iter: int = 5,
    distance: str = "euclidean",
    mask: Tensor | None = None,
    assign_step: Callable[[Cells, Tensor, str], Tensor] | None = None,
) -> SoftAssignment:
    """Cluster pixel features into superpixels.

    Every iteration computes the affinity as the softmax of the negative distances to the candidates,
    then moves each superpixel to its affinity-weighted mean.

    Parameters
    ----------
    pixel_features : Tensor, shape (B, C, H, W)
        float32 or float64, on any device. The channels should include the position.
    n_spixels : int
        Requested number of superpixels. The result has S = n_rows * n_cols; see `compute_grid_shape`.
    n_iter : int
        Number of iterations, at least 1.
    distance : {"euclidean", "squared"}
        "euclidean" as in the published PyTorch weights, "squared" as in the paper.
    mask : Tensor, shape (B, H, W), bool, optional
        Pixels to cluster; all by default. Pixels outside the mask are ignored, may be NaN and have zero
        affinity. A cell without pixels in the mask has no superpixel.
    assign_step : callable, optional
        Twin of `assign` to use instead; see `lib.slic.fast`.

    Returns
    -------
    SoftAssignment
        Affinities of the last iteration, differentiable in `pixel_features`. The method call
        `spixel_means(pixel_features)` returns the final superpixel features.

    Raises
    ------
    ValueError
        If an argument is out of range, or tensors are on several devices.
    """
    assign_step = assign_step or assign
    check_arguments(pixel_features, n_iter, distance, mask=mask)
    cells = lay_out(pixel_features, n_spixels, mask)
    centroids = cells.origins
    for _ in range(n_iter - 1):
        affinity = assign_step(cells, centroids, distance)
        centroids = update(cells, affinity, centroids)
    affinity = assign_step(cells, centroids, distance)
    return SoftAssignment(cells.grid, affinity if mask is None else affinity * cells.occupied[:, :, None])


def assign(cells: Cells, centroids: Tensor, distance: str) -> Tensor:
    """Compute the affinity (B, S, 9, P): softmax of the negative distances of pixels to their candidates.

    `centroids` has shape (B, S, C). The distances follow from |p - s|^2 = [-2 s, |s|^2] . [p, 1] + |p|^2.
    """
    squared = candidate_weights(cells, centroids) @ cells.points + cells.squared_norms
    return softmin(squared if distance == "squared" else squared.clamp(min=MIN_SQUARED_DISTANCE).sqrt())


def softmin(distances: Tensor) -> Tensor:
    """Return the softmax over dimension 2 of the negative distances."""
    gaps = distances - distances.detach().amin(dim=2, keepdim=True)
    return torch.softmax(-gaps.clamp(max=MAX_DISTANCE_GAP), dim=2)


def candidate_weights(cells: Cells, centroids: Tensor) -> Tensor:
    """Compute [-2 s, |s|^2] for the candidates s of each cell, relative to its origin, (B, S, 9, C + 1)."""
    candidates = cells.grid.to_candidates(centroids) - cells.origins[:, :, None]  # (B, S, 9, C)
    squared_norms = candidates.square().sum(dim=3, keepdim=True).masked_fill(~cells.exists[..., None], FAR)
    return torch.cat([-2 * candidates, squared_norms], dim=3)


def update(cells: Cells, affinity: Tensor, centroids: Tensor) -> Tensor:
    """Compute the affinity-weighted mean of each superpixel, (B, S, C)."""
    return mean_of_sums(cells, affinity @ cells.points.transpose(2, 3), centroids)


def mean_of_sums(cells: Cells, sums: Tensor, centroids: Tensor) -> Tensor:
    """Compute the means (B, S, C) from the sums that each cell adds to its candidates, (B, S, 9, C + 1)."""
    sums, weight = sums[..., :-1], sums[..., -1:]
    sums = sums + weight * cells.origins[:, :, None]
    totals = cells.grid.sum_over_candidates(torch.cat([sums, weight], dim=3))
    return (totals[..., :-1] + INERTIA * centroids) / (totals[..., -1:] + INERTIA)


def lay_out(pixel_features: Tensor, n_spixels: int, mask: Tensor | None) -> Cells:
    """Lay the pixels (B, C, H, W) out by grid cell."""
    grid = CellGrid.for_image(*pixel_features.shape[2:], n_spixels, pixel_features.device)
    occupied, exists = find_occupied(grid, mask)
    origins = grid.initial_centroids(pixel_features, mask)
    points, squared_norms = to_points(grid.to_cells(pixel_features), origins, occupied)
    return Cells(grid, points, squared_norms, origins, occupied, exists)


def to_points(features: Tensor, origins: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `points` and `squared_norms` of `Cells` from pixel features (B, S, C, P)."""
    features = (features - origins[..., None]).masked_fill(~occupied[:, :, None], 0)
    count = occupied[:, :, None].to(features.dtype).expand(len(features), -1, -1, -1)
    return torch.cat([features, count], dim=2), features.square().sum(dim=2, keepdim=True)


def find_occupied(grid: CellGrid, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute `occupied` and `exists` of `Cells`."""
    if mask is None:
        return grid.pixel_mask[None], grid.neighbor_mask[None]
    occupied = grid.to_cells(mask[:, None]).squeeze(2)
    return occupied, grid.neighbor_mask & occupied.any(dim=2)[:, grid.neighbor_idx]


def check_arguments(
    pixel_features: Tensor,
    n_iter: int,
    distance: str,
    *,
    mask: Tensor | None = None,
) -> None:
    """Raise a ValueError if an argument of `slic` is out of range or on another device than the features."""
    if pixel_features.ndim != 4 or pixel_features.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "pixel_features must be float32 or float64 of shape (B, C, H, W), got "
            f"{pixel_features.dtype} of shape {tuple(pixel_features.shape)}"
        )
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}")
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
    check_devices(pixel_features=pixel_features, mask=mask)
