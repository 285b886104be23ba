"""Time per image of each method, measured while nothing else runs."""

import time
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from lib.datasets.base import SegmentedImage
from lib.datasets.loaders import EvaluationImages
from lib.evaluation.loop import Run, list_settings
from lib.evaluation.methods import Method
from lib.runtime.notices import hides_progress
from lib.runtime.signals import stop_flag
from lib.superpixels.counts import check_n_spixels

N_TIMED_IMAGES = 5


def seconds_per_image(
    methods: Sequence[Method], dataset: Dataset[SegmentedImage], n_spixels: Sequence[int]
) -> dict[Run, float]:
    """Return the median time in seconds of every method with every setting.

    Every method starts from the RGB image. The first five images are timed, after an untimed warm-up on the
    first. Raises `InputError` if one cannot be used or has too few pixels.
    """
    images = [EvaluationImages(dataset)[idx] for idx in range(min(N_TIMED_IMAGES, len(dataset)))]
    for image in images:
        check_n_spixels(max(n_spixels), image.image_rgb[..., 0].size, image.name)
    work = [(method, setting) for method in methods for setting in list_settings(method, n_spixels)]
    medians = {}
    for method, setting in tqdm(work, desc="timing", unit="setting", leave=False, disable=hides_progress()):
        stop_flag.raise_if_set()
        durations = []
        for image in [images[0], *images]:
            start = time.perf_counter()
            method.segment(image, [setting])
            durations.append(time.perf_counter() - start)
        medians[Run(method.name, *setting)] = float(np.median(durations[1:]))
    return medians
