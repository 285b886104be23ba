"""Training data in the memory of the device: crops are cut there, a batch at a time.

`TrainingCrops` decodes the whole image for every sample. Here all images and annotations are decoded once.
Drawing a crop stays on the CPU, so that both have the same samples.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lib.datasets.augmentations import augment
from lib.datasets.base import VOID, FileDataset, SegmentedImage, channels_first, check_image, renumber
from lib.datasets.crop_plans import CropPlan, CropPlans, ImagePlace
from lib.datasets.loaders import item_loader
from lib.network.inputs import rgb_to_lab
from lib.runtime.errors import InputError
from lib.runtime.memory import check_memory, free_memory
from lib.runtime.ranks import gather, on_first_rank
from lib.runtime.signals import stop_flag

logger = logging.getLogger(__name__)

AUTO = "auto"

AutoBool = bool | Literal["auto"]

_LAB_BYTES = 3 * 2  # per pixel, float16: within 0.03 of CIELAB, a tenth of a step in RGB
_LABEL_BYTES = 1  # per pixel of an annotation of up to 255 segments

_SHARE_FOR_DATA = 0.5  # of the free memory; training needs the rest


class ResidentData(NamedTuple):
    """All images and annotations of a dataset, each row after row in one tensor, without padding."""

    image_lab: Tensor  # (3, n_pixels), float16 CIELAB, on the device
    labels: Tensor  # (n_label_pixels,), on the device; void is 0, labels count from 1 in each annotation
    host_labels: Tensor  # the same on the CPU, where crops are drawn
    places: list[ImagePlace]

    def plans(self, **drawing: Any) -> CropPlans:
        """Return the stream of samples; `drawing` are fields of `CropStream`."""
        return CropPlans(self.host_labels, self.places, **drawing)

    def cut(self, plan: CropPlan) -> dict[str, Tensor]:
        """Return a batch of `TrainingCrops` from the plans of its samples.

        The device computes `image_lab` and `gt_labels`; `n_labels` is left on the CPU.
        """
        plan = plan.to(self.labels.device)
        rows, columns = plan.region.unbind(1)
        region = self.image_lab[:, rows[:, :, None] + columns[:, None]].float()  # (3, B, R, R)
        weights = region.new_zeros(*plan.taps.shape[:3], rows.shape[1])
        of_rows, of_columns = weights.scatter_add_(3, plan.taps, plan.weights).unbind(1)  # each (B, size, R)
        image_lab = of_rows @ region @ of_columns.mT
        labels = self.labels[plan.label_rows[..., None] + plan.label_columns[:, None, None]]
        gt_labels = plan.numbers.gather(2, labels.flatten(2).long()).view_as(labels)
        crops = {"image_lab": image_lab.transpose(0, 1), "gt_labels": gt_labels, "n_labels": plan.n_labels}
        return augment(crops, plan.augmentation)


def find_places(
    dataset: Dataset[SegmentedImage], device: torch.device, *, data_on_device: AutoBool
) -> list[ImagePlace] | None:
    """Decide if a training set is kept on the device; return the places of its images, or None if not.

    "auto" keeps it on a GPU if it takes at most half of the free memory, so that training has the rest; if it
    does not, the reason is logged. All ranks decide the same. The memory is estimated before images are read:
    annotations of more than 255 segments take more.

    Raises
    ------
    InputError
        If `data_on_device` is True, but the data cannot be kept.
    """
    if data_on_device is False or (data_on_device == AUTO and device.type == "cpu"):
        return None
    places, obstacle = on_first_rank(lambda: _list_places(dataset))
    if places:
        share = _SHARE_FOR_DATA if data_on_device == AUTO else 1
        free = min(math.inf if each is None else each for each in gather(lambda: free_memory(device)))
        n_bytes = _LAB_BYTES * places[-1].end_pixel + _LABEL_BYTES * places[-1].end_label
        if n_bytes <= share * free:
            return places
        obstacle = f"needs {n_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on {device}"
        if share < 1:
            obstacle += f", and at most {share:.0%} of it is used"
    if data_on_device is True:
        raise InputError(f"True: {obstacle}", parameter="data_on_device")
    logger.info("training data stays with the loader: %s", obstacle)
    return None


def load_resident(
    dataset: FileDataset, places: list[ImagePlace], device: torch.device, *, n_workers: int
) -> ResidentData:
    """Decode all images of a dataset, and put them at their places on the device.

    Raises
    ------
    InputError
        If an image cannot be used.
    TooLargeError
        If annotations need more memory than `find_places` estimated, and more than is free.
    Stop
        If the stop flag is set.
    """
    image_lab = torch.empty(3, places[-1].end_pixel, dtype=torch.float16, device=device)
    labels = torch.empty(places[-1].end_label, dtype=torch.uint8)
    images = item_loader(_CompactImages(dataset), range(len(dataset)), n_workers=n_workers)
    for place, (lab_of_image, labels_of_image) in zip(places, images, strict=True):
        stop_flag.raise_if_set()
        if labels.dtype != labels_of_image.dtype == torch.int32:
            n_bytes = labels.numel() * torch.int32.itemsize
            check_memory(
                n_bytes, "`data_on_device`: a set with more than 255 segments in an image", device=device
            )
            labels = labels.int()
        image_lab[:, place.first_pixel : place.end_pixel] = lab_of_image
        labels[place.first_label : place.end_label] = labels_of_image
    data = ResidentData(image_lab, labels.to(device), labels, places)
    gigabytes = (data.image_lab.nbytes + data.labels.nbytes) / 1e9
    logger.info("training data on %s: %d images, %.2f GB", device, len(places), gigabytes)
    return data


def _list_places(dataset: Dataset[SegmentedImage]) -> tuple[list[ImagePlace], str]:
    """Return the place of every image, or none and the reason."""
    if not isinstance(dataset, FileDataset):
        return [], "it is not read from files"
    if dataset[0].extra is not None:
        return [], "its extra channels are read image by image"
    places, first_pixel, first_label = [], 0, 0
    for shape, n_annotations in zip(
        dataset.image_shapes().values(), dataset.annotation_counts(), strict=True
    ):
        places.append(ImagePlace(shape, first_pixel, first_label, n_annotations))
        first_pixel, first_label = places[-1].end_pixel, places[-1].end_label
    return places, ""


@dataclass(eq=False)
class _CompactImages(Dataset):
    """Images as they are kept: CIELAB in float16, and labels in one byte where that is enough."""

    dataset: FileDataset

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        """Return (3, H*W) float16 and (n_annotations*H*W,) uint8 or int32."""
        image = check_image(self.dataset[idx])
        shifted = np.stack([renumber(each) for each in image.annotations]) - VOID
        labels = torch.from_numpy(shifted.ravel())
        labels = labels.to(torch.uint8 if labels.max() < 2**8 else torch.int32)
        return rgb_to_lab(channels_first(image.image_rgb)).flatten(1).half(), labels
