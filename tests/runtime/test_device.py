"""The number formats of convolutions and matrix products."""

import logging
import operator
from contextlib import nullcontext

import pytest
import torch

from helpers import in_thread
from lib.runtime import device
from lib.runtime.device import fast_convolutions, full_precision, resolve_precision
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


@pytest.mark.parametrize("is_supported", [True, False])
def test_gpu_is_asked_for_bfloat16_without_emulation(monkeypatch, is_supported):
    """Old GPUs compute in bfloat16 too, but slowly."""

    def is_bf16_supported(including_emulation=True):
        return is_supported or including_emulation

    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    monkeypatch.setattr("torch.cuda.is_bf16_supported", is_bf16_supported)
    assert resolve_precision("auto", torch.device("cuda", 0)) == ("bf16" if is_supported else "fp32")


def read_settings():
    settings = {
        "convolutions": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "products": torch.get_float32_matmul_precision(),
    }
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        for name in ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv"):
            settings[name] = operator.attrgetter(name)(torch.backends).fp32_precision
    return settings


@pytest.fixture
def restored():
    before = device._Precision()
    yield
    before.restore()


def check_full_precision():
    """Check the settings in blocks, and that the caller's come back."""
    with full_precision():
        pass
    with full_precision(), full_precision():
        inside = read_settings()
        assert not inside["convolutions"]
        assert not inside["benchmark"]
        assert inside["products"] == "highest"
        assert {value for name, value in inside.items() if "." in name} <= {"ieee"}


@pytest.mark.parametrize("products", ["highest", "high", "medium"])
@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.usefixtures("restored")
def test_block_keeps_all_bits_and_restores_settings(allowed, products):
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = allowed
    torch.set_float32_matmul_precision(products)
    before = read_settings()
    check_full_precision()
    assert read_settings() == before


def check_fast_convolutions():
    """Check the settings in a block, also around one of full precision, and that the caller's come back."""
    with fast_convolutions():
        inside = read_settings()
        assert inside["convolutions"]
        assert inside["benchmark"]
        assert inside.get("cudnn.conv", "tf32") == "tf32"
        assert inside["products"] == "highest"
        check_full_precision()
        assert read_settings() == inside


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.usefixtures("restored")
def test_fast_block_allows_tf32_and_restores_settings(allowed):
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = allowed
    before = read_settings()
    check_fast_convolutions()
    assert read_settings() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="needs the settings of PyTorch 2.9"
)
@pytest.mark.parametrize("name", ["cuda.matmul", "cudnn.conv", "mkldnn.conv"])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.usefixtures("restored")
def test_callers_may_use_the_newer_settings(name, precision):
    backend = operator.attrgetter(name)(torch.backends)
    backend.fp32_precision = precision  # makes some of the older settings unreadable
    for check in (check_full_precision, check_fast_convolutions):
        check()
        assert backend.fp32_precision == precision


@pytest.mark.usefixtures("restored")
def test_last_of_several_threads_restores_settings():
    torch.set_float32_matmul_precision("high")
    first, second = full_precision(), full_precision()
    first.__enter__()
    in_thread(second.__enter__)
    first.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "highest"
    in_thread(second.__exit__, None, None, None)
    assert torch.get_float32_matmul_precision() == "high"
