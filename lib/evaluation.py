"""Evaluation: the same protocol for validation during training and for the reported figures.

Every pair of an image and one of its annotations is a sample; all samples weigh the same. Connectivity
is enforced first, and no random number is drawn.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from lib.connectivity import enforce_connectivity
from lib.datasets.samples import EvaluationImage, evaluation_loader
from lib.datasets.segmented_image import SegmentedImage
from lib.metrics import achievable_segmentation_accuracy, contingency_table, mean_iou


class EvaluationResult(NamedTuple):
    """Means over all (image, annotation) pairs, and over all images for the superpixel count."""

    asa: float
    mean_iou: float
    n_spixels: float  # measured, connectivity enforced
    n_images: int
    n_pairs: int

    def __str__(self) -> str:
        return (
            f"ASA {self.asa:.4f} mIoU {self.mean_iou:.4f} superpixels {self.n_spixels:.1f} "
            f"({self.n_images} images, {self.n_pairs} pairs)"
        )


@torch.inference_mode()
def evaluate(
    segment: Callable[[EvaluationImage], np.ndarray],
    dataset: Dataset[SegmentedImage],
    *,
    n_spixels: int,
    n_workers: int,
    ignore_background: bool = False,
    title: str = "evaluating",
) -> EvaluationResult:
    """Score superpixels on a data set.

    Parameters
    ----------
    segment : callable
        Maps an `EvaluationImage` to its label map (H, W), before connectivity.
    dataset : Dataset of SegmentedImage
        Images with their annotations.
    n_spixels : int
        Requested number of superpixels.
    n_workers : int
        Processes that read images; 0 reads them here.
    ignore_background : bool
        Leave segment 0 out of the mean IoU. Pairs without any other segment then have no IoU, and are
        left out of its mean.
    title : str
        Shown in the progress bar.
    """
    asa, iou, counts = [], [], []
    loader = evaluation_loader(dataset, n_workers=n_workers)
    for image in tqdm(loader, desc=title, unit="image", leave=False, disable=None):
        labels = enforce_connectivity(segment(image), n_spixels)
        counts.append(int(labels.max()) + 1)
        for annotation in image.annotations:
            table = contingency_table(labels, annotation)
            asa.append(achievable_segmentation_accuracy(table))
            iou.append(mean_iou(table, ignore_background=ignore_background))
    return EvaluationResult(
        asa=float(np.mean(asa)),
        mean_iou=float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan"),
        n_spixels=float(np.mean(counts)),
        n_images=len(counts),
        n_pairs=len(asa),
    )
