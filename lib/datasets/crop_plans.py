"""Plans of training crops: the CPU draws a crop and lists its pixels, the device looks them up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.datasets.base import label_numbers
from lib.datasets.crops import SCALE_MIN, CropStream

# Largest number of pixels that a pixel of a crop is averaged from, along an axis. A crop reduces the image by
# 1 / SCALE_MIN at most, and the filter is twice as wide.
_N_TAPS = math.ceil(2 / SCALE_MIN)


class ImagePlace(NamedTuple):
    """Place of an image and its annotations in the tensors of `ResidentData`."""

    shape: tuple[int, int]  # rows, columns
    first_pixel: int
    first_label: int
    n_annotations: int

    @property
    def end_pixel(self) -> int:
        return self.first_pixel + math.prod(self.shape)

    @property
    def end_label(self) -> int:
        return self.first_label + self.n_annotations * math.prod(self.shape)


class CropPlan(NamedTuple):
    """Pixels to look up for a crop, or with a leading axis for a batch of crops.

    A position in a tensor of `ResidentData` is the sum of one number for the row and one for the column of
    the crop. An axis of 2 holds rows first. R is the side of a square of pixels that contains the crop.
    """

    region: Tensor  # (2, R), int64, pixels of the square
    taps: Tensor  # (2, size, N_TAPS), int64, index in `region` of the pixels to average
    weights: Tensor  # (2, size, N_TAPS), float32, their weights
    label_rows: Tensor  # (n_annotations, size), int64
    label_columns: Tensor  # (size,), int64
    numbers: Tensor  # (n_annotations, labels of the dataset), int64: label in the crop, without gaps
    n_labels: int  # largest number of labels of an annotation in the crop
    augmentation: dict[str, Tensor]  # see `augment`

    def to(self, device: torch.device) -> Self:
        """Return the plan with all tensors on a device, except `n_labels`, which is used on the CPU."""
        move = partial(Tensor.to, device=device, non_blocking=True)
        augmentation = {name: move(value) for name, value in self.augmentation.items()}
        return CropPlan(*map(move, self[:-2]), n_labels=self.n_labels, augmentation=augmentation)


@dataclass(eq=False)
class CropPlans(CropStream):
    """Samples of a `CropStream` as plans for `ResidentData.cut`."""

    labels: Tensor  # all annotations, as in `ResidentData`, but on the CPU
    places: list[ImagePlace]

    def __post_init__(self) -> None:
        self._n_labels = int(self.labels.max()) + 1

    def __getitem__(self, sample_idx: int) -> CropPlan:
        place = self.places[self.image_idx(sample_idx, len(self.places))]
        height, width = place.shape
        annotations = self.labels[place.first_label : place.end_label].view(-1, height, width).numpy()
        drawn, crop = self.draw(sample_idx, annotations)
        rows = _Axis.of(crop.top, crop.extent, crop.size, height)
        columns = _Axis.of(crop.left, crop.extent, crop.size, width)
        found = [annotations[idx].take(rows.nearest, 0).take(columns.nearest, 1) for idx in drawn]
        numbers = np.stack([label_numbers(labels, self._n_labels) for labels in found])
        rows = rows._replace(region=width * rows.region, nearest=width * rows.nearest)
        if crop.is_flipped:
            columns = columns.reversed()
        if crop.is_upside_down:
            rows = rows.reversed()
        for _ in range(crop.n_quarter_turns):
            rows, columns = columns.reversed(), rows
        first_labels = place.first_label + height * width * drawn
        return CropPlan(
            region=_tensor([place.first_pixel + rows.region, columns.region]),
            taps=_tensor([rows.taps, columns.taps]),
            weights=_tensor([rows.weights, columns.weights]).float(),
            label_rows=_tensor(first_labels[:, None] + rows.nearest),
            label_columns=_tensor(columns.nearest),
            numbers=_tensor(numbers),
            n_labels=int(numbers.max()) + 1,
            augmentation=self.draw_augmentation(sample_idx),
        )


class _Axis(NamedTuple):
    """Rows or columns of a crop, resized as Pillow does it: colours bilinearly with antialiasing."""

    region: np.ndarray  # (R,), rows or columns of the image, or their positions in memory
    taps: np.ndarray  # (size, N_TAPS), index in `region` of the pixels to average
    weights: np.ndarray  # (size, N_TAPS), sums to 1 over the taps
    nearest: np.ndarray  # (size,), nearest neighbours, for labels; numbered as `region` is

    @classmethod
    def of(cls, start: float, extent: float, size: int, n_pixels: int) -> Self:
        """Resize `extent` of `n_pixels` pixels, from `start` on, to `size`."""
        scale = extent / size  # pixels of the image in a pixel of the crop
        support = max(scale, 1)  # half the width of the triangular filter
        centers = start + scale * (np.arange(size) + 0.5)
        first = np.maximum(np.floor(centers - support + 0.5), 0).astype(np.int64)
        taps = first[:, None] + np.arange(_N_TAPS)
        weights = np.maximum(1 - np.abs(taps + 0.5 - centers[:, None]) / support, 0)
        weights[taps >= n_pixels] = 0
        weights /= weights.sum(axis=1, keepdims=True)
        region_side = math.ceil(size / SCALE_MIN) + 2
        region = np.minimum(first[0] + np.arange(region_side), n_pixels - 1)
        taps = np.minimum(taps - first[0], region_side - 1)
        return cls(region, taps, weights, _nearest(start, extent, size, n_pixels))

    def reversed(self) -> Self:
        """Return the axis in the opposite direction."""
        return self._replace(taps=self.taps[::-1], weights=self.weights[::-1], nearest=self.nearest[::-1])


def _nearest(start: float, extent: float, size: int, n_pixels: int) -> np.ndarray:
    """Return the rows or columns of the image that Pillow takes for the nearest neighbours, (size,) int64.

    Pillow adds up rounded steps, so Pillow itself computes them.
    """
    line = Image.fromarray(np.arange(n_pixels, dtype=np.int32)[None])
    box = (start, 0, start + extent, 1)
    return np.asarray(line.resize((size, 1), Image.Resampling.NEAREST, box=box))[0].astype(np.int64)


def _tensor(values: np.ndarray | Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.array(values, order="C"))  # a copy: flipped arrays have negative strides
