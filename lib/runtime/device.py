"""Choice of the device and of the number format of the convolutions."""

import logging
import platform
import re
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.backends import cudnn

from lib.runtime.errors import InputError
from lib.runtime.ranks import local_rank, n_ranks

logger = logging.getLogger(__name__)

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


def precise_convolutions() -> AbstractContextManager[None]:
    """Keep all bits of float32 in the convolutions of a block.

    By default cuDNN rounds their input to the 11 bits of TF32, too few for positions.
    """
    return cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)


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
