"""Compare the time and the scores of the shipped base models with SLIC and SEEDS of other libraries.

One frame of each DAVIS video of a list, 480x854, is segmented by every method in turn, from array to labels.
The models run on the CPU. ASA and BR are means over the frames, at the measured number of superpixels, which
differs between methods.

    pip install opencv-contrib-python-headless SimpleITK
    python -m benchmarks.benchmark_methods --davis2017_root DAVIS2017 \\
        --davis_split trained_models/davis_test.txt
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from skimage.measure import label
from skimage.segmentation import slic

from benchmarks.measuring import describe
from lib import cli
from lib.cli.types import positive_int
from lib.datasets.davis import DAVISDataset
from lib.evaluation.methods import SLIC_COMPACTNESS
from lib.inference import Segmenter
from lib.metrics import score_label_maps
from lib.runtime.memory import keep_freed_memory
from lib.superpixels.connectivity import enforce_connectivity
from lib.weights import shipped_weights

FRAME_IDX = 12  # in each video
N_REPEATS = 3  # of which the fastest counts

Segment = Callable[[np.ndarray, int], np.ndarray]  # labels (H, W) of an image (H, W, 3), uint8


def opencv_slic(image_rgb: np.ndarray, n_spixels: int) -> np.ndarray:
    """Segment with OpenCV's SLIC; its smoothness of 20 is SLIC_COMPACTNESS."""
    side = round(np.sqrt(image_rgb.shape[0] * image_rgb.shape[1] / n_spixels))
    lab = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2LAB)
    superpixels = cv2.ximgproc.createSuperpixelSLIC(lab, cv2.ximgproc.SLIC, side, SLIC_COMPACTNESS)
    superpixels.iterate(10)
    superpixels.enforceLabelConnectivity()
    return superpixels.getLabels()


def opencv_seeds(image_rgb: np.ndarray, n_spixels: int) -> np.ndarray:
    """Segment with OpenCV's SEEDS, in the settings of docs/results.md."""
    height, width = image_rgb.shape[:2]
    seeds = cv2.ximgproc.createSuperpixelSEEDS(width, height, 3, n_spixels, 4, 2, 5, False)
    seeds.iterate(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2HSV), 10)
    return seeds.getLabels()


def simpleitk_slic(image_rgb: np.ndarray, n_spixels: int) -> np.ndarray:
    """Segment with SimpleITK's SLIC on CIELAB; the weight of the position is SLIC_COMPACTNESS."""
    import SimpleITK

    side = round(np.sqrt(image_rgb.shape[0] * image_rgb.shape[1] / n_spixels))
    lab = cv2.cvtColor(image_rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    image = SimpleITK.GetImageFromArray(lab, isVector=True)
    labels = SimpleITK.SLIC(image, superGridSize=[side, side], spatialProximityWeight=SLIC_COMPACTNESS)
    return SimpleITK.GetArrayFromImage(labels).astype(np.int64)


def connected(labels: np.ndarray, n_spixels: int) -> np.ndarray:
    """Enforce connectivity, which also merges small pieces, where superpixels are in pieces."""
    n_pieces = label(labels, background=-1, connectivity=1).max()
    return labels if n_pieces == len(np.unique(labels)) else enforce_connectivity(labels, n_spixels)


def list_methods() -> dict[str, Segment]:
    """Return the methods by name; those whose package is missing are left out and named."""
    methods: dict[str, Segment] = {}
    for name in ("base", "small"):
        segmenter = Segmenter.from_checkpoint(shipped_weights(name))
        methods[f"ours, {name}"] = lambda image, n, run=segmenter: run(image, n).labels
    methods["scikit-image SLIC"] = lambda image, n: slic(
        image, n, compactness=SLIC_COMPACTNESS, start_label=0
    )
    if hasattr(cv2, "ximgproc"):
        methods |= {"OpenCV SLIC": opencv_slic, "OpenCV SEEDS": opencv_seeds}
    else:
        print("OpenCV has no SLIC and SEEDS: pip install opencv-contrib-python-headless")
    try:
        import SimpleITK  # noqa: F401
    except ImportError:
        print("no SimpleITK: pip install SimpleITK")
    else:
        methods["SimpleITK SLIC"] = simpleitk_slic
    return methods


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    cli.add_shared(parser, "davis2017_root", "davis_split", required=True)
    parser.add_argument("--nspix", type=positive_int, nargs="+", default=[200, 1000])
    args = parser.parse_args(argv)
    keep_freed_memory()
    dataset = DAVISDataset(args.davis2017_root, args.davis_split, max_frames=FRAME_IDX + 1)
    images = [dataset[idx] for idx in range(FRAME_IDX, len(dataset), FRAME_IDX + 1)]
    print(f"torch {torch.__version__} on {describe(torch.device('cpu'))}; {len(images)} frames")
    methods = list_methods()
    for n_spixels in args.nspix:
        found = defaultdict(list)  # by method: seconds, measured number, ASA and BR of each frame
        for image in images:
            seconds, labels = defaultdict(list), {}
            for _ in range(N_REPEATS):
                for name, segment in methods.items():
                    start = time.perf_counter()
                    labels[name] = segment(image.image_rgb, n_spixels)
                    seconds[name].append(time.perf_counter() - start)
            maps = [connected(each, n_spixels) for each in labels.values()]
            scores = score_label_maps(maps, image.image_rgb, image.annotations, ["asa", "boundary_recall"])
            for name, label_map, score in zip(labels, maps, scores, strict=True):
                (pair,) = score.pairs
                measured = len(np.unique(label_map))
                found[name].append((min(seconds[name]), measured, pair["asa"], pair["boundary_recall"]))
        print(f"\n{n_spixels} superpixels requested\n\n| method | seconds | measured | ASA | BR |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, values in found.items():
            mean = np.mean(values, axis=0)
            print(f"| {name} | {mean[0]:.3f} | {mean[1]:.0f} | {mean[2]:.4f} | {mean[3]:.4f} |")


if __name__ == "__main__":
    main()
