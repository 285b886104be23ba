"""What every data set yields, whatever its files look like."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset


class SegmentedImage(NamedTuple):
    """An image and the segmentations people drew of it."""

    name: str
    image_rgb: np.ndarray  # (H, W, 3), uint8
    annotations: list[np.ndarray]  # each (H, W), int32; 0 is the background of DAVIS, BSDS500 starts at 1
    extra: np.ndarray | None = None  # (H, W, n_extra_channels), float32: flow, depth, ...
    # So many extra channels, the first ones, are pairs (dy, dx) in pixels of this image, as flow is: they are
    # flipped and scaled with it.
    n_vector_channels: int = 0


class FileDataset(Dataset[SegmentedImage], ABC):
    """A data set that lies in files, of which some things can be told before an image is read."""

    @property
    @abstractmethod
    def sources(self) -> list[str]:
        """Name and size of every file, which tell one set of images from another."""

    @abstractmethod
    def image_shapes(self) -> Mapping[str, tuple[int, int]]:
        """Height and width in pixels of every image, by its name.

        Raises
        ------
        InputError
            If an annotation has another size than its image, or a file cannot be read.
        """
