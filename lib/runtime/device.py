"""Choice of the device and of the number formats of convolutions and matrix products."""

import logging
import platform
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch.backends import cuda, cudnn, mkldnn

from lib.runtime.errors import InputError
from lib.runtime.ranks import local_rank, n_ranks

logger = logging.getLogger(__name__)

T = TypeVar("T")

PRECISIONS = ("fp32", "bf16", "auto")

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FLAGS = r"\b(avx512_bf16|amx_bf16|bf16)\b"  # flags of x86, x86 and Arm


def resolve_precision(name: str, device: torch.device) -> str:
    """Resolve "auto" to "bf16" on a device with bfloat16 instructions, else to "fp32".

    On a CPU without such instructions, "bf16" works several times slower than "fp32"; a warning is logged. A
    GPU without them raises an InputError.
    """
    is_native = _has_bfloat16(device)
    if name == "auto":
        return "bf16" if is_native else "fp32"
    if name == "bf16" and not is_native:
        if device.type == "cuda":
            gpu = torch.cuda.get_device_name(device)
            raise InputError(f"bf16: {gpu} has no bfloat16; use fp32", parameter="precision")
        logger.warning("`precision` bf16: this processor has no bfloat16, fp32 will be several times faster")
    return name


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.system() != "Linux":
        return False
    return re.search(_CPU_FLAGS, _CPU_INFO.read_text()) is not None


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep all bits of float32 in convolutions and matrix products of a block, whatever the caller allows.

    By default cuDNN rounds the input of convolutions to the 11 bits of TF32, too few for positions. Callers
    may allow the same, or bfloat16, in matrix products. The settings belong to the process: the first open
    block of all threads stores the caller's, and the last one to end restores them. Benchmark mode of cuDNN
    is off too, as images differ in size.
    """
    global _n_blocks, _callers
    with _lock:
        if _n_blocks == 0:
            _callers = _Precision()
            _Precision.set_full()
        _n_blocks += 1
    try:
        yield
    finally:
        with _lock:
            _n_blocks -= 1
            if _n_blocks == 0:
                _callers.restore()


@contextmanager
def fast_convolutions() -> Iterator[None]:
    """Let cuDNN round to TF32 and search for the fastest algorithms in a block, and restore the settings.

    This suits training: TF32 is precise enough for gradients, and all batches have one size. Matrix products,
    which the clustering consists of, keep all bits of float32. Blocks of `full_precision` may lie within.
    """
    with _lock:
        before = _Precision()
        _Precision.set_full()
        cudnn.benchmark = True
        cudnn.allow_tf32 = True  # sets the newer settings too
    try:
        yield
    finally:
        with _lock:
            before.restore()


class _Precision:
    """Settings of convolutions and matrix products in float32 at the time of construction.

    From version 2.9 on, PyTorch has two interfaces. A caller that mixes them makes the older one raise a
    RuntimeError, in `torch.compile` too. `set_full` therefore uses both, so that they agree.
    """

    def __init__(self) -> None:
        self._benchmark = cudnn.benchmark
        self._convolutions = _unless_mixed(lambda: cudnn.allow_tf32)
        self._products = _unless_mixed(torch.get_float32_matmul_precision)
        self._by_backend = [(backend, backend.fp32_precision) for backend in _backends()]

    @staticmethod
    def set_full() -> None:
        """Keep all bits from now on."""
        cudnn.benchmark = False
        cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        for backend in _backends():
            backend.fp32_precision = "ieee"

    def restore(self) -> None:
        """Set what was set at the time of construction."""
        cudnn.benchmark = self._benchmark
        if self._convolutions is not None:
            cudnn.allow_tf32 = self._convolutions
        if self._products is not None:
            torch.set_float32_matmul_precision(self._products)
        for backend, precision in self._by_backend:
            backend.fp32_precision = precision


_lock = threading.Lock()
_n_blocks = 0  # open blocks of `full_precision`, in all threads
_callers: _Precision  # valid while a block is open


def _unless_mixed(setting: Callable[[], T]) -> T | None:
    try:
        return setting()
    except RuntimeError:
        return None


def _backends() -> list[ModuleType]:
    """Return what has a setting in the interface of PyTorch 2.9; nothing in older versions."""
    if not hasattr(cuda.matmul, "fp32_precision"):
        return []
    return [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv]


def resolve_device(name: str) -> torch.device:
    """Resolve auto, cpu or cuda[:N] to an available device, and make it the current device.

    Raises an InputError if `name` is not one of the choices, or the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"{name}: expected auto, cpu or cuda[:N]", parameter="device")
    if device.type == "cuda":
        n_devices = torch.cuda.device_count()
        if n_ranks() > 1 and device.index is not None:
            raise InputError(f"{name}: each rank needs its own device; use cuda", parameter="device")
        idx = local_rank() if n_ranks() > 1 else device.index or 0
        if idx >= n_devices:
            needed = f", and each of {n_ranks()} ranks needs one" if n_ranks() > 1 else ""
            raise InputError(f"{name}: this machine has {n_devices} CUDA devices{needed}", parameter="device")
        torch.cuda.set_device(idx)
        return torch.device("cuda", idx)
    return device
