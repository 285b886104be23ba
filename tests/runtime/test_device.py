"""The number format of the convolutions."""

import logging

import pytest
import torch

from lib.runtime.device import resolve_precision
from lib.runtime.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def cpu_info(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr("lib.runtime.device._CPU_INFO", path)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    return path


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : avx2 avx512f avx512_bf16", "bf16"),
        ("flags : avx2 amx_bf16 amx_tile", "bf16"),
        ("Features : asimd bf16 i8mm", "bf16"),
        ("flags : avx2 avx512f", "fp32"),
        ("Features : asimd svebf16x", "fp32"),
    ],
)
def test_auto_takes_bfloat16_where_the_processor_has_it(cpu_info, flags, expected):
    cpu_info.write_text(f"processor : 0\n{flags}\n")
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp32", CPU) == "fp32"


def test_slow_bfloat16_is_told(cpu_info, caplog):
    cpu_info.write_text("flags : avx2")
    with caplog.at_level(logging.WARNING):
        assert resolve_precision("bf16", CPU) == "bf16"
    assert "fp32 will be several times faster" in caplog.text


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr("lib.runtime.device._has_bfloat16", lambda device: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "an old GPU")
    with pytest.raises(InputError, match="`precision` bf16: an old GPU has no bfloat16; use fp32"):
        resolve_precision("bf16", torch.device("cuda", 0))
    assert resolve_precision("auto", torch.device("cuda", 0)) == "fp32"
