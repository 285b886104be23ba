"""Interface of all datasets: segmented images, and a fingerprint of their files."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lib.metrics.label_map import VOID
from lib.runtime.errors import InputError

HOLD_OUT_EVERY = 10  # a tenth of the images is enough to select the best model


class SegmentedImage(NamedTuple):
    """Image with its hand-drawn segmentations."""

    name: str
    image_rgb: np.ndarray  # (H, W, 3), uint8
    # Each (H, W), int32. 0 is the background of DAVIS, BSDS500 starts at 1. `VOID` is neither scored nor
    # trained on.
    annotations: list[np.ndarray]
    extra: np.ndarray | None = None  # (H, W, n_extra_channels), float32: flow, depth, ...
    # The first n_vector_channels of `extra` are pairs (dy, dx) in pixels of this image, such as flow. Crops
    # flip and scale them with the image.
    n_vector_channels: int = 0


class FileDataset(Dataset[SegmentedImage], ABC):
    """Dataset backed by files: names and sizes are known before an image is decoded."""

    image_files: list[Path]
    per_image: tuple[str, ...]  # attributes that are lists with one item for each image

    @property
    @abstractmethod
    def sources(self) -> list[str]:
        """Name and size in bytes of every file, in a fixed order, for `fingerprint`."""

    @abstractmethod
    def image_shapes(self) -> Mapping[str, tuple[int, int]]:
        """Return the height and width in pixels of every image, by name.

        Raises `InputError` if an annotation has another size than its image, or a file cannot be read.
        """

    @abstractmethod
    def annotation_counts(self) -> list[int]:
        """Return the number of annotations of every image, in the order of the images."""

    def subset(self, indices: Sequence[int]) -> Self:
        """Return a dataset of some of the images."""
        subset = copy.copy(self)
        for name in self.per_image:
            setattr(subset, name, [getattr(self, name)[idx] for idx in indices])
        return subset

    def __len__(self) -> int:
        return len(self.image_files)


AnyFileDataset = TypeVar("AnyFileDataset", bound=FileDataset)


def hold_out(dataset: AnyFileDataset) -> tuple[AnyFileDataset, AnyFileDataset]:
    """Split a dataset without a validation set into a training set and a validation set.

    Validation has every tenth image, starting with the first. A dataset of one image raises `InputError`.
    """
    if len(dataset) < 2:
        raise InputError(
            f"{dataset.image_files[0].parent} holds a single image; at least 2 are needed, one for validation"
        )
    indices = range(len(dataset))
    training = [idx for idx in indices if idx % HOLD_OUT_EVERY]
    return dataset.subset(training), dataset.subset(indices[::HOLD_OUT_EVERY])


def fingerprint(dataset: Dataset[SegmentedImage]) -> str:
    """Return a SHA-256 that distinguishes one set of images from another.

    It covers file names and sizes but not the folder, so a dataset may be moved. A dataset without files has
    the SHA-256 of the empty string.
    """
    sources = dataset.sources if isinstance(dataset, FileDataset) else []
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()


def check_image(image: SegmentedImage) -> SegmentedImage:
    """Check an image; return it with int32 annotations and float32 extra channels."""
    name, pixels = image.name, image.image_rgb
    if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
        raise InputError(
            f"{name}: an image must be (H, W, 3) uint8, got {pixels.dtype} of shape {pixels.shape}"
        )
    if not image.annotations:
        raise InputError(f"{name} has no annotation")
    for labels in image.annotations:
        if labels.shape != pixels.shape[:2]:
            raise InputError(f"{name}: an annotation is {labels.shape}, but the image is {pixels.shape[:2]}")
        if labels.dtype.kind not in "iub" or labels.min() < VOID or labels.max() > np.iinfo(np.int32).max:
            raise InputError(
                f"{name}: the labels of an annotation must be integers from 0 to 2**31 - 1, or {VOID}, void"
            )
    image = image._replace(annotations=[labels.astype(np.int32, copy=False) for labels in image.annotations])
    if image.extra is None:
        return image
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are reported below
        extra = image.extra.astype(np.float32, copy=False)
    if not np.isfinite(extra).all():
        raise InputError(f"{name}: extra channels hold NaN or infinite values")
    return image._replace(extra=extra)


def renumber(labels: np.ndarray) -> np.ndarray:
    """Number labels from 0 without gaps, in ascending order; void stays void. The result is int64."""
    shifted = labels - VOID
    if shifted.min() >= 0 and shifted.max() < labels.size:  # a table is over twice as fast as sorting
        return label_numbers(shifted, int(shifted.max()) + 1)[shifted]
    numbers, labels_flat = np.unique(labels, return_inverse=True)
    return labels_flat.reshape(labels.shape) - int(numbers[0] == VOID)  # flat before NumPy 2


def label_numbers(shifted: np.ndarray, n_shifted: int) -> np.ndarray:
    """Return the new number of each shifted label, `label - VOID`, counted from 0 without gaps, int64.

    Void gets `VOID`, and a label that does not occur the number of the next lower label that does.
    """
    occurs = np.bincount(shifted.ravel(), minlength=n_shifted) > 0
    occurs[0] = False
    return np.cumsum(occurs) + VOID


def channels_first(channels: np.ndarray) -> Tensor:
    return torch.from_numpy(channels.transpose(2, 0, 1).copy())  # flipped arrays have negative strides
