"""What training and evaluation draw from a data set, as tensors."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.datasets.augmentation import DEFAULT_CROP_SIZE, Crop
from lib.datasets.segmented_image import SegmentedImage
from lib.distributed import n_ranks, rank
from lib.errors import InputError, RunError
from lib.features import rgb_to_lab
from lib.interruption import StopSignals, blocked_stop_signals, start_worker
from lib.workers import LOST_WORKER, usable_workers

PREFETCHED_BATCHES = 4  # per worker


class TrainingCrops(Dataset):
    """The endless stream of random crops that a training run sees.

    Sample i is a function of the seed and of i alone: neither the number of workers nor an interruption
    changes it. Every epoch visits all images in an order of its own.

    Parameters
    ----------
    dataset : Dataset of SegmentedImage
        Source of the images.
    n_annotations : int
        Annotations drawn per sample, without repetition until all of the image's have been drawn.
    seed : int
        Seed of all random choices.
    crop_size : int
        Rows and columns of a crop, in pixels.
    """

    def __init__(
        self,
        dataset: Dataset[SegmentedImage],
        *,
        n_annotations: int,
        seed: int,
        crop_size: int = DEFAULT_CROP_SIZE,
    ) -> None:
        self.dataset = dataset
        self.n_annotations = n_annotations
        self.seed = seed
        self.crop_size = crop_size

    def __getitem__(self, sample_idx: int) -> dict[str, Tensor]:
        """Return `image_lab`, `gt_labels`, and `extra` where the data set has extra channels.

        They are (3, H, W) float32, (n_annotations, H, W) int64, each annotation numbered from 0 without
        gaps, and (n_extra_channels, H, W) float32, where H and W are the size of a crop.

        Raises
        ------
        InputError
            As `EvaluationImages`.
        """
        epoch, position = divmod(sample_idx, len(self.dataset))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.dataset))
        rng = np.random.default_rng([self.seed, 1, sample_idx])
        image = _usable(self.dataset[int(order[position])])
        shuffled = rng.permutation(len(image.annotations))
        annotations = [image.annotations[idx] for idx in np.resize(shuffled, self.n_annotations)]
        crop = Crop.draw(annotations[0], rng, self.crop_size).apply(image._replace(annotations=annotations))
        # The inverse is flat before NumPy 2.
        gt_labels = [
            np.unique(labels, return_inverse=True)[1].reshape(labels.shape) for labels in crop.annotations
        ]
        sample = {
            "image_lab": rgb_to_lab(crop.image_rgb),
            "gt_labels": torch.from_numpy(np.stack(gt_labels)),
        }
        if crop.extra is not None:
            sample["extra"] = _channels_first(crop.extra)
        return sample


class EvaluationImage(NamedTuple):
    """A whole image with all its annotations."""

    name: str
    image_rgb: np.ndarray  # (H, W, 3), uint8
    image_lab: Tensor  # (1, 3, H, W), float32
    annotations: list[np.ndarray]  # each (H, W), int32
    extra: Tensor | None  # (1, n_extra_channels, H, W), float32


class EvaluationImages(Dataset):
    """Every image of a data set, checked and ready for a network."""

    def __init__(self, dataset: Dataset[SegmentedImage]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> EvaluationImage:
        """Return an image.

        Raises
        ------
        InputError
            If it has no annotation, one of another size, or values that cannot be used.
        """
        image = _usable(self.dataset[idx])
        extra = None if image.extra is None else _channels_first(image.extra)[None]
        image_lab = rgb_to_lab(image.image_rgb)[None]
        return EvaluationImage(image.name, image.image_rgb, image_lab, image.annotations, extra)


def training_loader(
    crops: TrainingCrops,
    *,
    batch_size: int,
    n_steps: int,
    first_sample: int = 0,
    n_workers: int,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of crops for `n_steps` steps, from sample `first_sample` on; each rank gets its own.

    Pinned memory is for batches that go to the current CUDA device.
    """
    stride = batch_size * n_ranks()
    starts = range(first_sample + rank() * batch_size, first_sample + n_steps * stride, stride)
    return _Loader(
        crops,
        batch_sampler=_Batches(starts, batch_size),
        num_workers=usable_workers(n_workers),
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCHED_BATCHES if usable_workers(n_workers) else None,
    )


def evaluation_loader(dataset: Dataset[SegmentedImage], *, n_workers: int, first_idx: int = 0) -> DataLoader:
    """Yield an `EvaluationImage` at a time, in order, from `first_idx` on; with several ranks, every n-th."""
    return _Loader(
        EvaluationImages(dataset),
        batch_size=None,
        sampler=range(first_idx + rank(), len(dataset), n_ranks()),
        num_workers=usable_workers(n_workers),
        worker_init_fn=_start_worker,
        collate_fn=_leave_as_is,
    )


class _Batches:
    """The samples of each batch, given the first one."""

    def __init__(self, starts: range, batch_size: int) -> None:
        self.starts = starts
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[range]:
        return (range(start, start + self.batch_size) for start in self.starts)


class _Loader(DataLoader):
    """A loader whose workers never see the signals that are meant to stop the main process.

    Such a signal does not cut short the receipt of a batch either, on which the worker would complain.
    """

    def __iter__(self) -> Iterator[Any]:
        with blocked_stop_signals():
            batches = super().__iter__()
        return self._receive(batches)

    @staticmethod
    def _receive(batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            with StopSignals.deferred_if_active():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if is_lost_worker(error):
                        raise RunError(LOST_WORKER) from error
                    raise
            yield batch


def _usable(image: SegmentedImage) -> SegmentedImage:
    """The image with annotations in int32 and extra channels in float32, if it has all that is needed."""
    if image.image_rgb.dtype != np.uint8 or image.image_rgb.shape[2:] != (3,):
        raise InputError(
            f"{image.name}: an image must be (H, W, 3) uint8, got {image.image_rgb.dtype} of shape "
            f"{image.image_rgb.shape}"
        )
    if not image.annotations:
        raise InputError(f"{image.name} has no annotation")
    for annotation in image.annotations:
        if annotation.shape != image.image_rgb.shape[:2]:
            raise InputError(
                f"{image.name}: an annotation is {annotation.shape}, but the image is "
                f"{image.image_rgb.shape[:2]}"
            )
        if (
            annotation.dtype.kind not in "iub"
            or annotation.min() < 0
            or annotation.max() > np.iinfo(np.int32).max
        ):
            raise InputError(
                f"{image.name}: the labels of an annotation must be integers from 0 to 2**31 - 1"
            )
    annotations = [annotation.astype(np.int32, copy=False) for annotation in image.annotations]
    if image.extra is None:
        return image._replace(annotations=annotations)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        extra = image.extra.astype(np.float32, copy=False)
    if not np.isfinite(extra).all():
        raise InputError(f"{image.name}: extra channels hold NaN or infinite values")
    return image._replace(annotations=annotations, extra=extra)


def _channels_first(channels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))


def is_lost_worker(error: RuntimeError) -> bool:
    """Whether PyTorch tells by an error that a worker process is gone."""
    return "DataLoader worker (pid" in str(error)


def _start_worker(worker_idx: int) -> None:
    # PyTorch's own check for the main process waits for batches to be fetched that nobody will fetch.
    start_worker()


def _leave_as_is(image: EvaluationImage) -> EvaluationImage:
    return image
