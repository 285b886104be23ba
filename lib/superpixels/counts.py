"""What training, evaluation and inference share between an image and its superpixels."""

import math

import numpy as np

from lib.runtime.errors import InputError
from lib.slic.grid import compute_grid_shape
from lib.superpixels.connectivity import MIN_SIZE_SHARE


def check_n_spixels(n_spixels: int, n_pixels: int, image_name: str, *, parameter: str = "n_spixels") -> None:
    """Check that the requested number of superpixels is at least 1 and at most the number of pixels.

    Raises
    ------
    InputError
        If not.
    """
    if n_spixels < 1:
        raise InputError(f"{n_spixels} is below 1", parameter=parameter)
    if n_spixels > n_pixels:
        raise InputError(f"{n_spixels} is above the {n_pixels} pixels of {image_name}", parameter=parameter)


def fit_grid_to_mask(mask: np.ndarray, n_spixels: int) -> int:
    """Number of superpixels to request of a whole image for about `n_spixels` in a mask.

    With that number, `n_spixels` cells of the grid, or the next fewer that a grid can have, hold a piece of
    the mask that is large enough to stay a superpixel. By area alone, thin masks would get several times as
    many: they touch more cells than they fill.

    Parameters
    ----------
    mask : ndarray, shape (H, W), bool
        At least one pixel is in it.
    n_spixels : int
        At most the number of pixels in the mask.

    Returns
    -------
    int
        At least `n_spixels`.
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
    """Cells of a grid that hold a piece of a mask that connectivity would not merge with another."""
    height, width = mask.shape
    n_rows, n_cols = compute_grid_shape(height, width, n_on_grid)
    # Where cells start: the inverse of the floor that `CellGrid` numbers them by.
    rows = -(-np.arange(n_rows) * height // n_rows)
    cols = -(-np.arange(n_cols) * width // n_cols)
    of_rows = np.add.reduceat(mask, rows, axis=0, dtype=np.int32)
    n_pixels = np.add.reduceat(of_rows, cols, axis=1)
    return np.count_nonzero(n_pixels >= MIN_SIZE_SHARE * mask.size / n_on_grid)
