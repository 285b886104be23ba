"""Synthetic images, to measure the speed of training without a dataset."""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from lib.datasets.base import SegmentedImage

IMAGE_SHAPE = (321, 481)  # of BSDS500
N_SEGMENTS = 20
N_ANNOTATIONS = 5


@dataclass(eq=False)
class SyntheticDataset(Dataset):
    """Noisy images of flat segments with straight borders."""

    n_images: int

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, idx: int) -> SegmentedImage:
        rng = np.random.default_rng(idx)
        yx = np.moveaxis(np.indices(IMAGE_SHAPE), 0, -1)[:, :, None]  # (H, W, 1, 2)
        seeds = rng.uniform(0, IMAGE_SHAPE, (N_SEGMENTS, 2))
        labels = np.square(yx - seeds).sum(axis=-1).argmin(axis=-1).astype(np.int32)
        colors = rng.integers(0, 256, (N_SEGMENTS, 3))
        noisy = colors[labels] + rng.integers(-20, 21, (*IMAGE_SHAPE, 3))
        image_rgb = noisy.clip(0, 255).astype(np.uint8)
        return SegmentedImage(f"synthetic_{idx}", image_rgb, [labels] * N_ANNOTATIONS)
