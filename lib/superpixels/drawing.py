"""Pictures of superpixels."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_dilation
from skimage.segmentation import find_boundaries

from lib.superpixels.connectivity import OUTSIDE

BOUNDARY_COLOR = (255, 255, 0)  # RGB, yellow: rare in photographs


def draw_boundaries(
    image_rgb: np.ndarray, labels: np.ndarray, *, color: Sequence[int] = BOUNDARY_COLOR, width: int = 2
) -> np.ndarray:
    """Return an image (H, W, 3), uint8, with the borders between its superpixels (H, W) drawn over it.

    A border is `width` pixels wide, half on either side; an odd width has one more pixel above or left.
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
    """Paint every superpixel in its colour, RGB from 0 to 255, (S, 3); pixels labelled -1 keep their own."""
    rounded = np.nan_to_num(np.round(colors)).astype(np.uint8)  # NaN for labels that do not occur
    return np.where((labels == OUTSIDE)[..., None], image_rgb, rounded[labels])
