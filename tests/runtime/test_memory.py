import ctypes
import multiprocessing
import platform
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.runtime import memory
from lib.runtime.memory import free_memory, keep_freed_memory


def resident_pages_after_large_array(is_kept):
    """Number of memory pages that a fresh process holds after it freed 128 MiB."""
    if is_kept:
        keep_freed_memory()
    values = np.ones(2**24)
    del values
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    n_pages = {}
    for is_kept in (False, True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            n_pages[is_kept] = pool.submit(resident_pages_after_large_array, is_kept).result()
    n_more_bytes = (n_pages[True] - n_pages[False]) * resource.getpagesize()
    assert n_more_bytes > 100 * 2**20


def free_memory_around_large_array():
    """Return the free memory of a fresh process, before it makes and frees an array of 512 MiB and after."""
    keep_freed_memory()
    before = free_memory(torch.device("cpu"))
    values = np.ones(2**26)
    del values
    return before, free_memory(torch.device("cpu")), memory._count_kept_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_kept_memory_is_free():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        before, after, kept = pool.submit(free_memory_around_large_array).result()
    assert kept > 500 * 2**20
    assert abs(after - before) < kept / 2  # other processes change it too


class OldLibrary:
    """C library whose `mallopt` refuses thresholds above 32 MiB for blocks with a mapping of their own."""

    def __init__(self):
        self.accepted = []

    def mallopt(self, parameter, value):
        is_accepted = parameter != memory._M_MMAP_THRESHOLD or value <= 2**25
        if is_accepted:
            self.accepted.append((parameter, value))
        return is_accepted


def test_old_glibc_gets_the_largest_threshold_it_accepts(monkeypatch):
    library = OldLibrary()
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    keep_freed_memory()
    assert library.accepted == [(memory._M_MMAP_THRESHOLD, 2**25), (memory._M_TRIM_THRESHOLD, 2**31 - 1)]


@pytest.mark.parametrize(("system", "n_opened"), [("linux", 1), ("darwin", 0)])
def test_systems_without_mallopt_are_unchanged(system, n_opened, monkeypatch):
    opened = []
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: opened.append(name) or object())
    keep_freed_memory()
    assert opened == n_opened * [None]


def test_free_memory_of_a_cpu(tmp_path, monkeypatch):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       16000 kB\nMemFree:          300 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(memory, "_MEMORY_INFO", info)
    monkeypatch.setattr(memory, "_count_kept_bytes", lambda: 7)
    assert free_memory(torch.device("cpu")) == 5000 * 1024 + 7
    info.write_text("MemTotal:       16000 kB\nMemFree:          300 kB\n")  # of an old kernel
    assert free_memory(torch.device("cpu")) is None
    info.unlink()
    assert free_memory(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_free_memory_of_a_gpu():
    device = torch.device("cuda", 0)
    assert 0 < free_memory(device) < torch.cuda.get_device_properties(device).total_memory


def test_free_memory_is_limited_by_control_groups(monkeypatch):
    monkeypatch.setattr(memory, "_count_kept_bytes", lambda: 5)
    monkeypatch.setattr(memory, "free_in_groups", lambda: 1000)
    assert free_memory(torch.device("cpu")) == 1005
