"""Checks and conversions of requested superpixel counts."""

import math

import numpy as np

from lib.runtime.errors import InputError
from lib.slic.grid import compute_grid_shape
from lib.superpixels.components import ComponentsInBands
from lib.superpixels.connectivity import MIN_SIZE_SHARE, OUTSIDE

_BAND_ROWS = 1024  # of a mask whose parts are counted at a time


def check_n_spixels(n_spixels: int, n_pixels: int, image_name: str, *, parameter: str = "n_spixels") -> None:
    """Raise an InputError if a requested number of superpixels is below 1 or above the number of pixels."""
    if n_spixels < 1:
        raise InputError(f"{n_spixels} is below 1", parameter=parameter)
    if n_spixels > n_pixels:
        raise InputError(f"{n_spixels} is above the {n_pixels} pixels of {image_name}", parameter=parameter)


def check_parts(mask: np.ndarray, n_spixels: int, image_name: str, *, parameter: str = "n_spixels") -> None:
    """Raise an InputError if a mask (H, W) has more 4-connected parts than requested superpixels."""
    n_parts = _count_parts(mask)
    if n_spixels < n_parts:
        raise InputError(
            f"{n_spixels} is too few: the mask of {image_name} is in {n_parts} parts; request at least "
            f"{n_parts}",
            parameter=parameter,
        )


def _count_parts(mask: np.ndarray) -> int:
    parts = ComponentsInBands()
    for first in range(0, len(mask), _BAND_ROWS):
        parts.add(np.where(mask[first : first + _BAND_ROWS], 0, OUTSIDE))
    return int(parts.components_of_pieces().max()) + 1


def fit_grid_to_mask(mask: np.ndarray, n_spixels: int) -> int:
    """Compute the number of superpixels to request for a whole image, to get about `n_spixels` in a mask.

    The grid for that number has at most `n_spixels` cells whose part of the mask (H, W) is large enough to
    stay a superpixel. Scaling by area alone would give thin masks several times too many: they touch more
    cells than they fill. `n_spixels` is at most the number of pixels in the mask.
    """
    fewest, most = n_spixels, max(n_spixels, math.ceil(n_spixels * mask.size / np.count_nonzero(mask)))
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if _count_cells(mask, middle) <= n_spixels:
            fewest = middle
        else:
            most = middle - 1
    return fewest


def _count_cells(mask: np.ndarray, n_on_grid: int) -> int:
    """Count the grid cells whose part of a mask is too large for connectivity to merge."""
    height, width = mask.shape
    n_rows, n_cols = compute_grid_shape(height, width, n_on_grid)
    # First row and column of each cell, as in `CellGrid`.
    rows = -(-np.arange(n_rows) * height // n_rows)
    cols = -(-np.arange(n_cols) * width // n_cols)
    row_sums = np.add.reduceat(mask, rows, axis=0, dtype=np.int32)
    n_pixels = np.add.reduceat(row_sums, cols, axis=1)
    return np.count_nonzero(n_pixels >= MIN_SIZE_SHARE * mask.size / n_on_grid)
