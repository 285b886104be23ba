"""Random crops for training."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lib.datasets.augmentations import augment, draw_color_jitter, draw_patch_jitter
from lib.datasets.base import SegmentedImage, channels_first, check_image, renumber
from lib.network.inputs import rgb_to_lab

DEFAULT_CROP_SIZE = 200  # rows and columns, in pixels

SCALE_MEAN, SCALE_STD = 1.0, 0.75
SCALE_MIN, SCALE_MAX = 0.75, 3.0

MAX_REDRAWS = 9


class Crop(NamedTuple):
    """Square region of an image, resized to `size` x `size` pixels, then flipped, then turned.

    Only the region is resized, never the whole image.
    """

    top: float  # pixels of the image
    left: float
    extent: float  # side of the square
    is_flipped: bool  # left to right
    size: int = DEFAULT_CROP_SIZE
    is_upside_down: bool = False  # flipped top to bottom
    n_quarter_turns: int = 0  # counterclockwise

    @classmethod
    def draw(cls, gt_labels: np.ndarray, rng: np.random.Generator, size: int = DEFAULT_CROP_SIZE) -> Self:
        """Draw a crop of `size` x `size` pixels of an image with labels (H, W).

        The scale is drawn from a clipped normal distribution. If the image is too small for it, the scale
        is increased. A crop within a single segment teaches nothing: it is drawn again, up to `MAX_REDRAWS`
        times.
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
        """Crop the image, its annotations and its extra channels.

        Colours and extra channels are resized bilinearly with antialiasing, labels by nearest neighbour.
        Vectors are scaled, flipped and turned with the image.
        """
        image_rgb = self._resize(image.image_rgb, Image.Resampling.BILINEAR)
        annotations = [self._resize(labels, Image.Resampling.NEAREST) for labels in image.annotations]
        image = image._replace(image_rgb=image_rgb, annotations=annotations)
        if image.extra is None:
            return image
        channels = np.moveaxis(image.extra, -1, 0)
        extra = np.stack([self._resize(c, Image.Resampling.BILINEAR) for c in channels], axis=-1)
        vectors = extra[..., : image.n_vector_channels]
        vectors *= self.size / self.extent
        dy, dx = vectors[..., ::2], vectors[..., 1::2]
        if self.is_flipped:
            dx *= -1
        if self.is_upside_down:
            dy *= -1
        for _ in range(self.n_quarter_turns):
            dy[:], dx[:] = -dx, dy.copy()
        return image._replace(extra=extra)

    def _resize(self, pixels: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        box = (self.left, self.top, self.left + self.extent, self.top + self.extent)
        resized = Image.fromarray(pixels).resize((self.size, self.size), resampling, box=box)
        flipped = np.asarray(resized)[:: -1 if self.is_upside_down else 1, :: -1 if self.is_flipped else 1]
        return np.rot90(flipped, self.n_quarter_turns)


@dataclass(eq=False)
class CropStream(Dataset):
    """Random choices of an endless stream of training samples: image, annotations and crop.

    They depend only on the seed and on the sample's number: neither the number of workers or ranks, nor the
    size of a batch, nor an interruption changes them. Every epoch visits all images in a new order.
    """

    _: KW_ONLY
    n_annotations: int  # per sample; none is repeated until all annotations of the image are drawn
    seed: int
    crop_size: int = DEFAULT_CROP_SIZE  # rows and columns, in pixels
    vertical_flips: bool = False  # flip half of the crops top to bottom
    quarter_turns: bool = False  # turn crops by 0 to 3 quarters
    color_jitter: float = 0.0  # scale; see `draw_color_jitter`
    patch_jitter: float = 0.0  # probability; see `draw_patch_jitter`

    def image_idx(self, sample_idx: int, n_images: int) -> int:
        """Return the image of a sample."""
        epoch, position = divmod(sample_idx, n_images)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(n_images)
        return int(order[position])

    def draw(self, sample_idx: int, annotations: Sequence[np.ndarray]) -> tuple[np.ndarray, Crop]:
        """Draw the indices of a sample's annotations, and its crop, from all annotations of its image.

        Labels may be numbered in any way; only their borders matter. Vertical flips and turns do not change
        the other choices.
        """
        rng = np.random.default_rng([self.seed, 1, sample_idx])
        drawn = np.resize(rng.permutation(len(annotations)), self.n_annotations)
        crop = Crop.draw(annotations[drawn[0]], rng, self.crop_size)
        is_upside_down, n_quarter_turns = bool(rng.random() < 0.5), int(rng.integers(4))
        if self.vertical_flips:
            crop = crop._replace(is_upside_down=is_upside_down)
        if self.quarter_turns:
            crop = crop._replace(n_quarter_turns=n_quarter_turns)
        return drawn, crop

    def draw_augmentation(self, sample_idx: int) -> dict[str, Tensor]:
        """Draw the changes of a sample for `augment`; they do not change the other choices."""
        drawn = {}
        if self.color_jitter > 0:
            drawn |= draw_color_jitter(self.color_jitter, np.random.default_rng([self.seed, 3, sample_idx]))
        if self.patch_jitter > 0:
            rng = np.random.default_rng([self.seed, 4, sample_idx])
            drawn |= draw_patch_jitter(self.patch_jitter, rng, self.crop_size)
        return drawn


@dataclass(eq=False)
class TrainingCrops(CropStream):
    """Samples of a `CropStream`, read from the dataset one by one."""

    dataset: Dataset[SegmentedImage]

    def __getitem__(self, sample_idx: int) -> dict[str, Tensor]:
        """Return the tensors of a sample; H and W are the crop size.

        `image_lab` is (3, H, W) float32. `gt_labels` is (n_annotations, H, W) int64, each annotation numbered
        from 0 without gaps; `n_labels` is their largest number of labels. `extra` is (n_extra_channels, H, W)
        float32, if the dataset has extra channels. Raises `InputError` if the image has no annotation, one of
        another size, or unusable values.
        """
        image = check_image(self.dataset[self.image_idx(sample_idx, len(self.dataset))])
        drawn, crop = self.draw(sample_idx, image.annotations)
        image = crop.apply(image._replace(annotations=[image.annotations[idx] for idx in drawn]))
        gt_labels = torch.from_numpy(np.stack([renumber(labels) for labels in image.annotations]))
        sample = {
            "image_lab": rgb_to_lab(channels_first(image.image_rgb)),
            "gt_labels": gt_labels,
            "n_labels": gt_labels.max() + 1,
        }
        if image.extra is not None:
            sample["extra"] = channels_first(image.extra)
        return augment(sample, self.draw_augmentation(sample_idx))
