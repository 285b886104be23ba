"""Measure the speed of optical flow, from estimation to training, and the cost of a composite training step.

Flow and frames are synthetic, 480x854. Each training step is measured in a fresh process, relative to a step
of the base model in the same program.

    python -m benchmarks.benchmark_composite_model
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import MIB, Cost, describe, in_process, make_photograph, measure
from lib.datasets.crops import TrainingCrops
from lib.datasets.davis import FRAME_SHAPE, DAVISDataset, find_frames
from lib.datasets.loaders import training_loader
from lib.files.frames import FrameFolder
from lib.files.opencv import cv2
from lib.losses import compute_loss_terms
from lib.network.inputs import DEFAULT_OPTFLOW_SCALE, InputScales, model_input, pixel_positions
from lib.optflow.archive import FlowArchive, archive_name
from lib.optflow.production import ArchiveJob, make_archives
from lib.optflow.sources import DIS_PRESETS, DISFlow
from model import N_FLOW_CHANNELS, CompositeSSNModel, SSNModel

SCALES = InputScales(extra_scale=DEFAULT_OPTFLOW_SCALE)
VIDEOS = ("first", "second")
N_FRAMES = 24
N_SAMPLES, BATCH_SIZE = 300, 6


def write_davis(root: Path) -> None:
    """Write videos of a panning photograph, with a mask of its centre."""
    height, width = FRAME_SHAPE
    photograph = make_photograph(height + 2 * N_FRAMES, width + 5 * N_FRAMES)
    mask = np.zeros(FRAME_SHAPE, dtype=np.uint8)
    mask[100:300, 300:600] = 255
    for video in VIDEOS:
        frame_dir, mask_dir = (
            root / "DAVIS" / kind / "480p" / video for kind in ("JPEGImages", "Annotations")
        )
        frame_dir.mkdir(parents=True)
        mask_dir.mkdir(parents=True)
        for idx in range(N_FRAMES):
            frame = photograph[2 * idx : 2 * idx + height, 5 * idx : 5 * idx + width]
            Image.fromarray(frame).save(frame_dir / f"{idx:05}.jpg")
            Image.fromarray(mask).save(mask_dir / f"{idx:05}.png")
    (root / "videos.txt").write_text("\n".join(VIDEOS))


def fields_per_second(root: Path, preset: str) -> float:
    """Return the flow fields per second on one core, from image files to the finished archive."""
    cv2.setNumThreads(1)
    jobs = [
        ArchiveJob(DISFlow(FrameFolder(video, frames), preset), root / archive_name(preset, video), {})
        for video, frames in find_frames(root).items()
    ]
    start = time.perf_counter()
    for _ in make_archives(jobs, n_workers=0, with_consistency=False, on_progress=lambda n_pairs: None):
        pass
    return 2 * (N_FRAMES - 1) * len(jobs) / (time.perf_counter() - start)


def reading_seconds(root: Path) -> float:
    """Return the median time to read a frame's flow in both directions."""
    archive = FlowArchive(root / archive_name("medium", VIDEOS[0]))
    durations = []
    for frame_idx in range(1, N_FRAMES - 1):
        start = time.perf_counter()
        archive.read_frame(frame_idx)
        durations.append(time.perf_counter() - start)
    return float(np.median(durations))


def samples_per_second(root: Path, n_workers: int) -> float:
    """Return the training crops with flow per second."""
    dataset = DAVISDataset(root, str(root / "videos.txt"), optflow_folder=root, optflow_method="medium")
    crops = TrainingCrops(dataset, n_annotations=1, seed=0)
    n_steps = N_SAMPLES // BATCH_SIZE
    batches = iter(training_loader(crops, batch_size=BATCH_SIZE, n_steps=n_steps, n_workers=n_workers))
    next(batches)  # waits until the workers have started
    start = time.perf_counter()
    n_batches = sum(1 for _ in batches)
    return n_batches * BATCH_SIZE / (time.perf_counter() - start)


def step_cost(device: torch.device, kind: str, with_bfloat16: bool, n_repeats: int) -> Cost:
    """Measure forward, loss and backward on 6 crops of 200x200 with two segments each."""
    torch.manual_seed(0)
    image_lab = 50 + 20 * torch.randn(BATCH_SIZE, 3, 200, 200, device=device)
    flow = torch.randn(BATCH_SIZE, N_FLOW_CHANNELS, 200, 200, device=device)
    gt_labels = (pixel_positions(image_lab)[:, 0] > 100).to(torch.int64)
    model = SSNModel() if kind == "base" else CompositeSSNModel()
    model.train().to(device, memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=with_bfloat16):
            output = model(model_input(model, image_lab, 200, SCALES, extra=flow), 200)
        terms = compute_loss_terms(
            output.assignment,
            output.labels,
            gt_labels[:, None],
            2,
            reconstruction="cross_entropy",
            compactness=1e-5,
        )
        sum(terms.values()).backward()

    return measure(step, device, n_repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:N], for the training steps")
    device = torch.device(parser.parse_args().device)
    print(f"torch {torch.__version__} on {describe(device)}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_davis(root)
        for preset in DIS_PRESETS:
            print(
                f"DIS {preset}: {fields_per_second(root, preset):.1f} fields/s on one core, file to archive"
            )
        print(f"reading the flow of a frame: {1000 * reading_seconds(root):.1f} ms")
        print(f"training crops with flow: {samples_per_second(root, 2):.0f} a second with two workers")
    for with_bfloat16 in (False, True):
        base, composite = (
            in_process(step_cost, device, kind, with_bfloat16, 7) for kind in ("base", "composite")
        )
        print(
            f"training step{', bfloat16 convolutions' if with_bfloat16 else ''}: composite "
            f"{composite.seconds:.2f} s, {composite.seconds / base.seconds:.2f} times the base's "
            f"{base.seconds:.2f} s; peak memory {composite.total_bytes / MIB:.0f} MiB against "
            f"{base.total_bytes / MIB:.0f} MiB"
        )


if __name__ == "__main__":
    main()
