"""Measure the time of each metric, and of an evaluation relative to inference.

Images and annotations are synthetic, 321x481.

    python -m benchmarks.benchmark_evaluation
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.measuring import describe, make_photograph
from lib.cli.options import DEFAULT_BASE_WEIGHTS
from lib.datasets.base import SegmentedImage
from lib.datasets.loaders import EvaluationImages, evaluation_loader
from lib.evaluation.loop import evaluate
from lib.evaluation.methods import NetworkMethod, Setting
from lib.inference import Segmenter
from lib.metrics.registry import DEFAULT_METRICS, METRICS, score_label_maps
from lib.superpixels.connectivity import enforce_connectivity
from lib.weights import load_model

HEIGHT, WIDTH = 321, 481
N_IMAGES, N_ANNOTATIONS = 40, 5
N_SPIXELS = 600


class Photographs(Dataset):
    """Dataset of photographs with annotations of about twenty segments with wavy borders."""

    def __init__(self) -> None:
        photograph = make_photograph(HEIGHT + N_IMAGES, WIDTH + N_IMAGES)
        row, col = np.mgrid[:HEIGHT, :WIDTH]
        self.images = []
        for idx in range(N_IMAGES):
            image_rgb = photograph[idx : idx + HEIGHT, idx : idx + WIDTH]
            annotations = [
                ((row + 9 * np.sin(col / (5 + shift + idx))) // 80 * 9 + (col + 7 * np.cos(row / 6)) // 100)
                .astype(np.int32)
                .clip(0)
                for shift in range(N_ANNOTATIONS)
            ]
            self.images.append(SegmentedImage(f"{idx}", image_rgb, annotations))

    def __len__(self) -> int:
        return N_IMAGES

    def __getitem__(self, idx: int) -> SegmentedImage:
        return self.images[idx]


def fastest(step: Callable[[], object], n_repeats: int) -> float:
    """Return the seconds of the fastest repetition."""
    durations = []
    for _ in range(n_repeats):
        start = time.perf_counter()
        step()
        durations.append(time.perf_counter() - start)
    return min(durations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:N], for the network")
    parser.add_argument(
        "--nworkers", type=int, default=2, help="worker processes for reading, and for metrics"
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    print(f"torch {torch.__version__} on {describe(device)}, {args.nworkers} workers")

    dataset = Photographs()
    loaded = load_model(DEFAULT_BASE_WEIGHTS)
    method = NetworkMethod(
        "base", Segmenter(loaded.model, loaded.scales, device=device, merging=loaded.merging)
    )
    setting = Setting(N_SPIXELS, loaded.scales.pos_scale)
    image = EvaluationImages(dataset)[0]
    (labels,) = method.segment(image, [setting])

    def score(*metrics: str, n_annotations: int = 1) -> None:
        score_label_maps([labels], image.image_rgb, image.annotations[:n_annotations], metrics)

    for name in METRICS:
        print(f"{name}: {1000 * fastest(lambda name=name: score(name), 20):.1f} ms")
    print(f"all default metrics: {1000 * fastest(lambda: score(*DEFAULT_METRICS), 20):.1f} ms")
    several = fastest(lambda: score(*DEFAULT_METRICS, n_annotations=N_ANNOTATIONS), 20)
    print(f"all default metrics against {N_ANNOTATIONS} annotations: {1000 * several:.1f} ms")
    (raw,) = method.segment(image, [setting])
    print(f"connectivity: {1000 * fastest(lambda: enforce_connectivity(raw, N_SPIXELS), 20):.1f} ms")

    def infer() -> None:
        for image in evaluation_loader(dataset, n_workers=args.nworkers):
            method.segment(image, [setting])

    def infer_and_measure() -> None:
        for _ in evaluate([method], dataset, n_spixels=[N_SPIXELS], n_workers=args.nworkers):
            pass

    infer()
    inference, evaluation = (fastest(step, 3) for step in (infer, infer_and_measure))
    print(
        f"inference of {N_IMAGES} images: {inference:.1f} s; with all default metrics against "
        f"{N_ANNOTATIONS} annotations: {evaluation:.1f} s, {evaluation / inference:.2f} times"
    )


if __name__ == "__main__":
    main()
