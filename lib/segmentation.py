"""What training, evaluation and inference share between an image and its superpixels."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from lib.cell_grid import compute_grid_shape
from lib.connectivity import MIN_SIZE_SHARE
from lib.errors import InputError
from lib.features import InputScales, input_channels

_MAX_FEATURE = 1e17  # the sum of some hundred squares of differences still is a float32


def model_input(
    model: nn.Module, image_lab: Tensor, n_spixels: int, scales: InputScales, *, extra: Tensor | None = None
) -> Tensor:
    """The scaled channels that a model reads, (B, 5 + its extra channels, H, W), innermost in memory.

    Parameters
    ----------
    model : SSNModel, CompositeSSNModel or SSNPix
        On the images' device.
    image_lab : Tensor, shape (B, 3, H, W), float32
        CIELAB images.
    n_spixels : int
        Requested number of superpixels.
    scales : InputScales
        Weights of colour, position and extra channels.
    extra : Tensor, shape (B, n_extra_channels, H, W), float32, optional
        Extra channels; left aside by models that read none.

    Raises
    ------
    InputError
        If the model reads extra channels, but the images have another number of them or they have no scale.
    """
    n_extra_channels = 0 if extra is None else extra.shape[1]
    if model.n_extra_channels == 0:
        extra = None
    elif model.n_extra_channels != n_extra_channels:
        raise InputError(
            f"the model reads {model.n_extra_channels} extra channels, but the image has {n_extra_channels}"
        )
    elif scales.extra_scale is None:
        raise InputError("extra channels need a scale; see InputScales")
    channels = input_channels(image_lab, extra, n_spixels, scales)
    # The convolutions run up to twice as fast with the channels innermost.
    return channels.contiguous(memory_format=torch.channels_last)


def check_features(pixel_features: Tensor, image_name: str) -> None:
    """Check that the distances of features (B, C, H, W) can be computed in float32.

    Raises
    ------
    InputError
        If one is NaN, infinite or so large that its square may not be finite.
    """
    low, high = torch.aminmax(pixel_features)
    if not (low > -_MAX_FEATURE and high < _MAX_FEATURE):
        raise InputError(
            f"{image_name}: features of {low:.3g} to {high:.3g} cannot be clustered; look at the weights, "
            "the scales and the extra channels"
        )


def check_n_spixels(n_spixels: int, n_pixels: int, image_name: str, *, option: str = "--nspix") -> None:
    """Check that at least one superpixel of an image is asked for, by an option, and no more than its pixels.

    Raises
    ------
    InputError
        If not.
    """
    if n_spixels < 1:
        raise InputError(f"{option} {n_spixels} is below 1")
    if n_spixels > n_pixels:
        raise InputError(f"{option} {n_spixels} is above the {n_pixels} pixels of {image_name}")


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
