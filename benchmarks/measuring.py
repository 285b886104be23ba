"""Measure time and memory for the benchmarks. Needs Linux."""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

MIB = 2**20


class Cost(NamedTuple):
    """Time and memory of a workload."""

    seconds: float  # fastest repetition, which other programs disturbed least
    extra_bytes: int  # peak above the memory of inputs and imports
    total_bytes: int  # peak of the whole process, or of PyTorch on the GPU


def measure(step: Callable[[], object], device: torch.device, n_repeats: int) -> Cost:
    """Run `step` once to warm up, then time it `n_repeats` times."""
    before = _occupied_bytes(device)
    step()
    durations = []
    for _ in range(n_repeats):
        _synchronize(device)
        start = time.perf_counter()
        step()
        _synchronize(device)
        durations.append(time.perf_counter() - start)
    peak = _peak_bytes(device)
    return Cost(min(durations), peak - before, peak)


def in_process(workload: Callable[..., Cost], *args: object) -> Cost:
    """Run a workload in a fresh process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(workload, *args).result()


def _occupied_bytes(device: torch.device) -> int:
    """Return the memory in use; on the GPU, also reset the peak to it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return n_pages * resource.getpagesize()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    """Return the name of a device, for the first line of a report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def make_photograph(height: int, width: int) -> np.ndarray:
    """Make random patches with soft borders and camera-like noise, (height, width, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)
