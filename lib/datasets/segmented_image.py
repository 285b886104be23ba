"""What every data set yields, whatever its files look like."""

from typing import NamedTuple

import numpy as np


class SegmentedImage(NamedTuple):
    """An image and the segmentations people drew of it."""

    name: str
    image_rgb: np.ndarray  # (H, W, 3), uint8
    annotations: list[np.ndarray]  # each (H, W), int32; 0 is the background of DAVIS, BSDS500 starts at 1
    extra: np.ndarray | None = None  # (H, W, n_extra_channels), float32: flow, depth, ...
    # So many extra channels, the first ones, are pairs (dy, dx) in pixels of this image, as flow is: they are
    # flipped and scaled with it.
    n_vector_channels: int = 0
