"""Differentiable SLIC: soft k-means of pixel features over a grid of superpixels.

The iteration of Jampani et al., "Superpixel Sampling Networks", ECCV 2018, computed cell by cell: all pixels
of a cell of the grid share the same nine candidate superpixels (`lib.slic.grid`). A step is therefore a
batched product of matrices over the cells, and nothing of size (superpixels) x (pixels) is built.

`lib.slic.fast` holds faster forms of these functions, `lib.slic.reference` the per-pixel form of the paper.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lib.slic.grid import CellGrid
from lib.slic.soft_assignment import SoftAssignment

DISTANCES = ("euclidean", "squared")

# Squared distance to a candidate that does not exist. It is finite, because infinity times zero is NaN.
FAR = 1e30

# Keeps the gradient of the square root finite where a pixel coincides with a superpixel.
MIN_SQUARED_DISTANCE = 1e-12

# A distance counts at most this much more than the nearest candidate's in the softmax. exp(-55) is nothing
# beside 1, but a normal number in float32, as are its products: subnormal ones take up to 100 times longer.
MAX_DISTANCE_GAP = 55.0

# Weight of the previous centroid in an update: a superpixel that lost all its pixels to underflow stays.
INERTIA = 1e-16


class Cells(NamedTuple):
    """Pixels laid out by cell, relative to the first centroid of their cell.

    Without the shift, differences of large squares would cost float32 the small distances.
    """

    grid: CellGrid
    points: Tensor  # (B, S, C + 1, P): features and a 1, which counts pixels; zero where not occupied
    squared_norms: Tensor  # (B, S, 1, P), of the features
    origins: Tensor  # (B, S, C): mean of each cell, or zero where no pixel is in the mask
    occupied: Tensor  # (1 or B, S, P), bool: the slot holds a pixel of the mask
    exists: Tensor  # (1 or B, S, 9), bool: the candidate lies in the grid and its cell is not empty


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
        Pixels to cluster, by default all. Other pixels may hold any value, NaN included: they move no
        superpixel and have no affinity. A cell without any pixel in the mask has no superpixel.
    start : Tensor, shape (B, C, S), optional
        Features that the superpixels start from. The default is the mean of each cell, which also
        replaces single superpixels that hold NaN.

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
    check_arguments(pixel_features, n_iter, distance)
    cells = lay_out(pixel_features, n_spixels, mask)
    centroids = first_centroids(cells.origins, start)
    for _ in range(n_iter - 1):
        affinity = assign(cells, centroids, distance)
        centroids = update(cells, affinity, centroids)
    affinity = assign(cells, centroids, distance)
    return SoftAssignment(cells.grid, affinity if mask is None else affinity * cells.occupied[:, :, None])


def assign(cells: Cells, centroids: Tensor, distance: str) -> Tensor:
    """Return the affinity (B, S, 9, P): softmax of the negative distances of pixels to their candidates.

    `centroids` has shape (B, S, C). The distances follow from |p - s|^2 = [-2 s, |s|^2] . [p, 1] + |p|^2.
    """
    squared = candidate_weights(cells, centroids) @ cells.points + cells.squared_norms
    distances = squared if distance == "squared" else squared.clamp(min=MIN_SQUARED_DISTANCE).sqrt()
    gaps = distances - distances.detach().amin(dim=2, keepdim=True)
    return torch.softmax(-gaps.clamp(max=MAX_DISTANCE_GAP), dim=2)


def candidate_weights(cells: Cells, centroids: Tensor) -> Tensor:
    """Return [-2 s, |s|^2] for the candidates s of each cell, (B, S, 9, C + 1), relative to its origin."""
    candidates = cells.grid.to_candidates(centroids) - cells.origins[:, :, None]  # (B, S, 9, C)
    squared_norms = candidates.square().sum(dim=3, keepdim=True).masked_fill(~cells.exists[..., None], FAR)
    return torch.cat([-2 * candidates, squared_norms], dim=3)


def update(cells: Cells, affinity: Tensor, centroids: Tensor) -> Tensor:
    """Return the affinity-weighted mean of each superpixel (B, S, C); every cell adds to its candidates."""
    return mean_of_sums(cells, affinity @ cells.points.transpose(2, 3), centroids)


def mean_of_sums(cells: Cells, sums: Tensor, centroids: Tensor) -> Tensor:
    """Return the means (B, S, C), given the sums of weighted points (B, S, 9, C + 1) of each cell."""
    sums, weight = sums[..., :-1], sums[..., -1:]
    sums = sums + weight * cells.origins[:, :, None]
    totals = cells.grid.sum_over_candidates(torch.cat([sums, weight], dim=3))
    return (totals[..., :-1] + INERTIA * centroids) / (totals[..., -1:] + INERTIA)


def slic_labels(
    pixel_features: Tensor,
    n_spixels: int,
    *,
    n_iter: int = 5,
    distance: str = "euclidean",
    mask: Tensor | None = None,
) -> Tensor:
    """Cluster pixel features and return the most likely superpixel of every pixel, (B, H, W) int64.

    Labels outside the mask are arbitrary. Parameters and errors are the same as for `slic`.
    """
    with torch.no_grad():
        return slic(pixel_features, n_spixels, n_iter=n_iter, distance=distance, mask=mask).labels()


def lay_out(pixel_features: Tensor, n_spixels: int, mask: Tensor | None) -> Cells:
    """Group the pixels (B, C, H, W) by the cells of their grid."""
    grid = CellGrid.for_image(*pixel_features.shape[2:], n_spixels, pixel_features.device)
    occupied, exists = find_occupied(grid, mask)
    origins = grid.initial_centroids(pixel_features, mask)
    points, squared_norms = to_points(grid.to_cells(pixel_features), origins, occupied)
    return Cells(grid, points, squared_norms, origins, occupied, exists)


def to_points(features: Tensor, origins: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return `points` and `squared_norms` of `Cells`, from features (B, S, C, P) of the pixels."""
    features = (features - origins[..., None]).masked_fill(~occupied[:, :, None], 0)
    count = occupied[:, :, None].to(features.dtype).expand(len(features), -1, -1, -1)
    return torch.cat([features, count], dim=2), features.square().sum(dim=2, keepdim=True)


def find_occupied(grid: CellGrid, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return which slots hold a pixel of the mask, and which candidates of each cell exist; see `Cells`."""
    if mask is None:
        return grid.pixel_mask[None], grid.neighbor_mask[None]
    occupied = grid.to_cells(mask[:, None]).squeeze(2)
    return occupied, grid.neighbor_mask & occupied.any(dim=2)[:, grid.neighbor_idx]


def first_centroids(origins: Tensor, start: Tensor | None) -> Tensor:
    """Return `start` (B, C, S) as (B, S, C), with the mean of the cell for superpixels that hold NaN."""
    if start is None:
        return origins
    start = start.transpose(1, 2)
    return torch.where(start.isnan().any(dim=2, keepdim=True), origins, start)


def check_arguments(pixel_features: Tensor, n_iter: int, distance: str) -> None:
    """Raise a ValueError if `slic` cannot work with these arguments."""
    if pixel_features.ndim != 4 or pixel_features.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "pixel_features must be float32 or float64 of shape (B, C, H, W), got "
            f"{pixel_features.dtype} of shape {tuple(pixel_features.shape)}"
        )
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}")
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
