"""Pictures of superpixels."""

import numpy as np
from skimage.segmentation import find_boundaries

BOUNDARY_COLOR = (255, 255, 0)  # RGB, yellow: rare in photographs


def draw_boundaries(image_rgb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw the borders between superpixels over an image, one pixel on either side.

    Parameters
    ----------
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    labels : ndarray, shape (H, W), integer
        Its superpixels.

    Returns
    -------
    ndarray, shape (H, W, 3), uint8
    """
    overlay = image_rgb.copy()
    overlay[find_boundaries(labels, mode="thick")] = BOUNDARY_COLOR
    return overlay
