"""Pictures of superpixels."""

import numpy as np
from skimage.segmentation import mark_boundaries

BOUNDARY_COLOR = (1.0, 1.0, 0.0)  # RGB, yellow: rare in photographs


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
    overlay = mark_boundaries(image_rgb, labels, color=BOUNDARY_COLOR, mode="thick")
    return (overlay * 255).round().astype(np.uint8)
