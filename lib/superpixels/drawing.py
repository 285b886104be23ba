"""Pictures of superpixels."""

import numpy as np
from scipy.ndimage import binary_dilation
from skimage.segmentation import find_boundaries

from lib.superpixels.connectivity import OUTSIDE

BOUNDARY_COLOR = (255, 255, 0)  # RGB, yellow: rare in photographs


def draw_boundaries(
    image_rgb: np.ndarray,
    labels: np.ndarray,
    *,
    color: tuple[int, int, int] = BOUNDARY_COLOR,
    width: int = 2,
) -> np.ndarray:
    """Draw the borders between superpixels over an image.

    Parameters
    ----------
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    labels : ndarray, shape (H, W), integer
        Its superpixels.
    color : tuple of int
        RGB colour of the borders.
    width : int
        Width of a border in pixels, half on either side. An odd width has one more pixel above or left.

    Returns
    -------
    ndarray, shape (H, W, 3), uint8
    """
    is_first = np.zeros(labels.shape, dtype=bool)  # pixels above or left of a border
    is_first[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    is_first[:-1] |= labels[:-1] != labels[1:]
    is_border = is_first if width % 2 else find_boundaries(labels, mode="thick")
    if width > 2:
        is_border = binary_dilation(is_border, iterations=(width - 1) // 2)
    overlay = image_rgb.copy()
    overlay[is_border] = color
    return overlay


def draw_mean_colors(image_rgb: np.ndarray, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Paint every superpixel in its colour; pixels outside all superpixels keep their own.

    Parameters
    ----------
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    labels : ndarray, shape (H, W), integer
        Its superpixels; -1 outside.
    colors : ndarray, shape (S, 3)
        RGB colour of each superpixel, 0 to 255.

    Returns
    -------
    ndarray, shape (H, W, 3), uint8
    """
    rounded = np.nan_to_num(np.round(colors)).astype(np.uint8)  # NaN for labels that do not occur
    return np.where((labels == OUTSIDE)[..., None], image_rgb, rounded[labels])
