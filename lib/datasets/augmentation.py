"""Random crops for training."""

import numpy as np
from PIL import Image

CROP_SIZE = 200  # pixels, both ways

SCALE_MEAN, SCALE_STD = 1.0, 0.75
SCALE_MIN, SCALE_MAX = 0.75, 3.0


def random_crop(
    image_rgb: np.ndarray, gt_labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flip, scale and crop an image and its labels alike.

    The scale is drawn from a normal distribution and clipped; images too small for it are enlarged as far
    as needed. Only the crop is resized, never the whole image.

    Parameters
    ----------
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    gt_labels : ndarray, shape (H, W), int32
        Its labels.
    rng : numpy.random.Generator
        Source of all random choices.

    Returns
    -------
    crop_rgb : ndarray, shape (200, 200, 3), uint8
        Bilinearly resized, with antialiasing.
    crop_labels : ndarray, shape (200, 200), int32
        Nearest neighbour; a subset of the labels of `gt_labels`.
    """
    height, width = gt_labels.shape
    scale = np.clip(rng.normal(SCALE_MEAN, SCALE_STD), SCALE_MIN, SCALE_MAX)
    extent = min(CROP_SIZE / scale, height, width)  # side of the source region in pixels
    top, left = rng.uniform(0, height - extent), rng.uniform(0, width - extent)
    box = (left, top, left + extent, top + extent)
    size = (CROP_SIZE, CROP_SIZE)
    image = Image.fromarray(image_rgb).resize(size, Image.Resampling.BILINEAR, box=box)
    labels = Image.fromarray(gt_labels).resize(size, Image.Resampling.NEAREST, box=box)
    crop_rgb, crop_labels = np.asarray(image), np.asarray(labels)
    if rng.random() < 0.5:
        crop_rgb, crop_labels = crop_rgb[:, ::-1], crop_labels[:, ::-1]
    return crop_rgb, crop_labels
