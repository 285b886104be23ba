"""Data loaders that yield tensors for training and evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from lib.datasets.base import SegmentedImage, check_image
from lib.datasets.crops import CropStream
from lib.runtime.errors import RunError
from lib.runtime.ranks import n_ranks, rank
from lib.runtime.signals import start_worker
from lib.runtime.workers import LOST_WORKER, usable_workers

T = TypeVar("T")

PREFETCHED_BATCHES = 4  # per worker


@dataclass(eq=False)
class EvaluationImages(Dataset):
    """Whole images of a dataset with all their annotations, checked."""

    dataset: Dataset[SegmentedImage]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> SegmentedImage:
        """Return an image; raises `InputError` as `TrainingCrops` does."""
        return check_image(self.dataset[idx])


def training_loader(
    crops: CropStream,
    *,
    batch_size: int,
    n_steps: int,
    first_sample: int = 0,
    n_workers: int,
    pin_memory: bool = False,
) -> DataLoader:
    """Load batches of crops for `n_steps` steps, from sample `first_sample` on; each rank loads its own.

    Pin memory only if the batches are copied to the current CUDA device.
    """
    stride = batch_size * n_ranks()
    starts = range(first_sample + rank() * batch_size, first_sample + n_steps * stride, stride)
    n_workers = usable_workers(n_workers)
    return _Loader(
        crops,
        batch_sampler=_Batches(starts, batch_size),
        num_workers=n_workers,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCHED_BATCHES if n_workers else None,
    )


def evaluation_loader(dataset: Dataset[SegmentedImage], *, n_workers: int, first_idx: int = 0) -> DataLoader:
    """Load `EvaluationImages` one at a time, in order from `first_idx`; each of n ranks loads every n-th."""
    order = range(first_idx + rank(), len(dataset), n_ranks())
    return item_loader(EvaluationImages(dataset), order, n_workers=n_workers)


def item_loader(items: Dataset, order: range, *, n_workers: int) -> DataLoader:
    """Load single items of a dataset in this order."""
    return _Loader(
        items,
        batch_size=None,
        sampler=order,
        num_workers=usable_workers(n_workers),
        worker_init_fn=_start_worker,
        collate_fn=_identity,
    )


@dataclass
class _Batches:
    """Sample numbers of each batch, given its first sample."""

    starts: range
    batch_size: int

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[range]:
        return (range(start, start + self.batch_size) for start in self.starts)


class _Loader(DataLoader):
    """Data loader that raises `RunError` if a worker process is lost."""

    def __iter__(self) -> Iterator[Any]:
        return _name_lost_worker(super().__iter__())  # starts the workers now


def _name_lost_worker(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except RuntimeError as error:
        if is_lost_worker(error):
            raise RunError(LOST_WORKER) from error
        raise


def is_lost_worker(error: RuntimeError) -> bool:
    """Return True for PyTorch's error that a worker process died."""
    return "DataLoader worker (pid" in str(error)


def _start_worker(worker_idx: int) -> None:
    # If the main process dies, PyTorch's own check can hang: it waits until a process fetches the batches.
    start_worker()


def _identity(item: T) -> T:
    return item
