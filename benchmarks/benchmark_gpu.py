"""Measure inference, a folder of images and training on one device, relative to what they need at least.

Every figure is measured in a fresh process. One that cannot be measured is reported, and the others follow;
the exit status is then 1.

    python -m benchmarks.benchmark_gpu --bsds_root BSR --device cuda
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from benchmarks.measuring import MIB, describe, in_process, make_photograph, measure
from lib.cli.options import DEFAULT_BASE_WEIGHTS
from lib.cli.types import existing_dir, positive_int
from lib.datasets.bsds import BSDSDataset
from lib.datasets.synthetic import SyntheticDataset
from lib.files.images import read_image
from lib.inference import Segmenter
from lib.inference.images import ImageJob, count_threads, segment_files
from lib.inference.outputs import OutputFiles, write_outputs
from lib.network.inputs import InputScales
from lib.runtime.device import resolve_precision
from lib.runtime.stopwatch import Stopwatch
from lib.training.recipe import CountRange, Recipe, RunSettings
from lib.training.run import run_training
from model import SSNModel

N_SPIXELS = 200


class Sizes(NamedTuple):
    """How much is measured."""

    frame: tuple[int, int]
    image: tuple[int, int]  # in the folder
    n_repeats: int
    batch_size: int  # in inference
    n_crops: int  # in a training step
    crop_size: int
    n_steps: int
    max_workers: int  # that read crops


FULL = Sizes(
    (480, 854), (321, 481), n_repeats=20, batch_size=8, n_crops=32, crop_size=256, n_steps=60, max_workers=12
)
QUICK = Sizes(
    (60, 92), (41, 61), n_repeats=1, batch_size=2, n_crops=2, crop_size=32, n_steps=4, max_workers=0
)


def image_time(device: torch.device, sizes: Sizes) -> str:
    """Measure an array in, labels out: merged and one level, and the stages of both."""
    image_rgb = make_photograph(*sizes.frame)
    lines = []
    for name, fine_factor in (("merged", None), ("one level", 1)):
        load = partial(
            Segmenter.from_checkpoint, DEFAULT_BASE_WEIGHTS, device=device, fine_factor=fine_factor
        )
        segmenter = load()
        cost = measure(lambda segmenter=segmenter: segmenter(image_rgb, N_SPIXELS), device, sizes.n_repeats)
        timed = load(stopwatch=Stopwatch(device))  # waits for the device after each stage
        timed(image_rgb, N_SPIXELS)
        timed.stopwatch.seconds.clear()
        for _ in range(sizes.n_repeats):
            timed(image_rgb, N_SPIXELS)
        stages = {
            stage: 1000 * seconds / sizes.n_repeats for stage, seconds in timed.stopwatch.seconds.items()
        }
        shown = ", ".join(f"{stage} {milliseconds:.1f}" for stage, milliseconds in stages.items())
        lines.append(
            f"{_size(sizes.frame)}, {N_SPIXELS} superpixels, {name}: {1000 * cost.seconds:.1f} ms; "
            f"stages, ms: {shown}"
        )
    return "\n".join(lines)


def batch_time(device: torch.device, sizes: Sizes) -> str:
    """Measure a batch, arrays in and labels out, relative to its images one by one."""
    segmenter = Segmenter.from_checkpoint(DEFAULT_BASE_WEIGHTS, device=device)
    n_images = sizes.batch_size
    image_rgb = make_photograph(sizes.frame[0] + n_images, sizes.frame[1])
    height = sizes.frame[0]
    images = torch.stack(
        [torch.from_numpy(image_rgb[idx : idx + height]).movedim(-1, 0) for idx in range(n_images)]
    )
    together = measure(lambda: segmenter.segment_batch(images, N_SPIXELS), device, sizes.n_repeats)
    arrays = [image.movedim(0, -1).numpy() for image in images]
    alone = measure(lambda: [segmenter(image, N_SPIXELS) for image in arrays], device, sizes.n_repeats)
    return (
        f"{_size(sizes.frame)}, a batch of {n_images}: {n_images / together.seconds:.1f} frames/s, "
        f"{alone.seconds / together.seconds:.2f} times as fast as one by one"
    )


def folder_time(device: torch.device, sizes: Sizes, n_images: int) -> str:
    """Measure a folder of JPEGs to overlays and labels, relative to reading and writing them alone."""
    segmenter = Segmenter.from_checkpoint(DEFAULT_BASE_WEIGHTS, device=device)
    n_threads = 2 * count_threads(device)  # of the pipeline: half of them read, half write
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = _write_jpegs(folder, sizes.image, n_images)
        segment_files(segmenter, jobs[: sizes.batch_size], N_SPIXELS, batch_size=sizes.batch_size)  # warm up
        superpixels = segmenter(read_image(jobs[0].image), N_SPIXELS)

        def read_and_write(job: ImageJob) -> None:
            read_image(job.image)
            write_outputs(superpixels, job.files)

        start = time.perf_counter()
        with ThreadPoolExecutor(n_threads) as threads:
            list(threads.map(read_and_write, jobs))
        files_alone = time.perf_counter() - start
        start = time.perf_counter()
        summary = segment_files(segmenter, jobs, N_SPIXELS, batch_size=sizes.batch_size)
        seconds = time.perf_counter() - start
    if summary.n_done != n_images:
        raise RuntimeError(f"{len(summary.failures)} images failed, the first: {summary.failures[0]}")
    return (
        f"{n_images} JPEGs of {_size(sizes.image)} to overlays and labels: {seconds:.1f} s, "
        f"{n_images / seconds:.1f} images/s, {seconds / files_alone:.2f} times reading and writing alone "
        f"in {n_threads} threads ({files_alone:.1f} s)"
    )


def _write_jpegs(folder: Path, size: tuple[int, int], n_images: int) -> list[ImageJob]:
    height, width = size
    n_shifts = 50
    photograph = make_photograph(height + n_shifts, width)
    jobs = []
    for idx in range(n_images):
        top = idx % n_shifts
        file = folder / f"{idx:05}.jpg"
        Image.fromarray(photograph[top : top + height]).save(file, quality=92)
        jobs.append(ImageJob(file, OutputFiles(folder / f"{idx:05}_overlay.jpg", folder / f"{idx:05}.png")))
    return jobs


def training_time(device: torch.device, sizes: Sizes, bsds_root: Path) -> str:
    """Measure training steps on crops of BSDS500; a GPU holds the data and computes in bfloat16."""
    precision = resolve_precision("bf16" if device.type == "cuda" else "auto", device)
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(
            out_dir=Path(folder),
            val_n_spixels=20,
            test_interval=sizes.n_steps,
            log_interval=sizes.n_steps // 2,  # the first interval holds the start of workers and kernels
            save_interval=sizes.n_steps,
            n_workers=min(os.cpu_count() or 1, sizes.max_workers),
        )
        recipe = Recipe(
            n_steps=sizes.n_steps,
            batch_size=sizes.n_crops,
            crop_size=sizes.crop_size,
            n_spixels=CountRange(50, 300),
            precision=precision,
        )
        run_training(
            SSNModel(n_iter=7),
            InputScales(pos_scale=5.0),
            recipe,
            settings,
            train_set=BSDSDataset(bsds_root, "train"),
            validation_sets={"synthetic": SyntheticDataset(1)},
            score="synthetic_asa",
            device=device,
        )
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    figures = [line for line in lines if "loader_share" in line][-1]
    peak = f"{torch.cuda.max_memory_allocated(device) / MIB:.0f} MiB" if device.type == "cuda" else "unknown"
    return (
        f"training, {sizes.n_crops} crops of {sizes.crop_size}x{sizes.crop_size} in {precision}, "
        f"{settings.n_workers} workers: {1000 * sizes.n_crops / figures['images_per_s']:.1f} ms a step, "
        f"{figures['images_per_s']:.0f} crops/s, loader_share {figures['loader_share']:.2f}, "
        f"peak memory {peak}"
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bsds_root", type=existing_dir, help="folder that contains BSDS500/, for training")
    parser.add_argument("--device", default="cuda", help="cpu or cuda[:N]")
    parser.add_argument("--n_images", type=positive_int, default=1000, help="JPEGs in the folder")
    parser.add_argument("--quick", action="store_true", help="measure small sizes, to try the program")
    args = parser.parse_args()
    device = torch.device(args.device)
    sizes = QUICK if args.quick else FULL
    print(f"torch {torch.__version__} on {describe(device)}, {os.cpu_count()} CPU cores", flush=True)

    figures: list[tuple[Callable[..., str], tuple]] = [
        (image_time, ()),
        (batch_time, ()),
        (folder_time, (args.n_images,)),
    ]
    if args.bsds_root:
        figures.append((training_time, (args.bsds_root,)))
    status = 0
    for figure, arguments in figures:
        try:
            print(in_process(figure, device, sizes, *arguments), flush=True)
        except Exception as error:  # the other figures do not depend on this one
            print(f"{figure.__name__} failed: {error!r}", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
