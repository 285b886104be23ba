"""The number format of the convolutions."""

import logging
import platform
import re
from pathlib import Path

import torch

from lib.errors import InputError

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "auto")

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FLAGS = r"\b(avx512_bf16|amx_bf16|bf16)\b"  # of x86, x86 and Arm


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn "auto" into "bf16" where the device has such instructions, else into "fp32".

    Raises
    ------
    InputError
        If "bf16" is asked of a GPU that does not have it. A processor without it gets there, but several
        times slower than in float32, of which a warning tells.
    """
    is_native = _has_bfloat16(device)
    if name == "auto":
        return "bf16" if is_native else "fp32"
    if name == "bf16" and not is_native:
        if device.type == "cuda":
            raise InputError(
                f"--precision bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use fp32"
            )
        logger.warning("--precision bf16: this processor has no bfloat16, fp32 will be several times faster")
    return name


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.system() != "Linux":
        return False
    return re.search(_CPU_FLAGS, _CPU_INFO.read_text()) is not None
