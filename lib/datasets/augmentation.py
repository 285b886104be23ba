"""Random crops for training."""

from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from lib.datasets.segmented_image import SegmentedImage

DEFAULT_CROP_SIZE = 200  # pixels, both ways

SCALE_MEAN, SCALE_STD = 1.0, 0.75
SCALE_MIN, SCALE_MAX = 0.75, 3.0

MAX_REDRAWS = 9


class Crop(NamedTuple):
    """A square region of an image, resized to `size` x `size` pixels and perhaps flipped left to right.

    Only the region is resized, never the whole image.
    """

    top: float  # pixels of the image
    left: float
    extent: float  # side of the square
    is_flipped: bool
    size: int = DEFAULT_CROP_SIZE

    @classmethod
    def draw(cls, gt_labels: np.ndarray, rng: np.random.Generator, size: int = DEFAULT_CROP_SIZE) -> Self:
        """Draw a crop of `size` x `size` pixels of an image with labels (H, W).

        The scale comes from a normal distribution and is clipped; images too small for it are enlarged as
        far as needed. A crop within a single segment, from which nothing can be learnt, is drawn anew, up
        to `MAX_REDRAWS` times.
        """
        height, width = gt_labels.shape
        for _ in range(1 + MAX_REDRAWS):
            scale = np.clip(rng.normal(SCALE_MEAN, SCALE_STD), SCALE_MIN, SCALE_MAX)
            extent = min(max(1, size / scale), height, width)
            top, left = rng.uniform(0, height - extent), rng.uniform(0, width - extent)
            crop = cls(top, left, extent, is_flipped=bool(rng.random() < 0.5), size=size)
            region = gt_labels[int(top) : int(top + extent), int(left) : int(left + extent)]
            if region.min() != region.max():
                break
        return crop

    def apply(self, image: SegmentedImage) -> SegmentedImage:
        """Crop the image, its annotations and its extra channels alike.

        Colours and extra channels are resized bilinearly, with antialiasing, labels by nearest neighbour.
        Vectors are scaled with the image, and the flip negates their dx.
        """
        image_rgb = self._resize(image.image_rgb, Image.Resampling.BILINEAR)
        annotations = [self._resize(labels, Image.Resampling.NEAREST) for labels in image.annotations]
        extra = image.extra
        if extra is not None:
            channels = np.moveaxis(extra, -1, 0)
            extra = np.stack([self._resize(c, Image.Resampling.BILINEAR) for c in channels], axis=-1)
            vectors = extra[..., : image.n_vector_channels]
            vectors *= self.size / self.extent
            if self.is_flipped:
                vectors[..., 1::2] *= -1
        return image._replace(image_rgb=image_rgb, annotations=annotations, extra=extra)

    def _resize(self, pixels: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        box = (self.left, self.top, self.left + self.extent, self.top + self.extent)
        resized = Image.fromarray(pixels).resize((self.size, self.size), resampling, box=box)
        return np.asarray(resized)[:, :: -1 if self.is_flipped else 1]
