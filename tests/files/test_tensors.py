"""Tensors and settings in .safetensors files."""

import json
import sys

import pytest
import torch

from lib.files.tensors import encode_safetensors, read_safetensors
from lib.runtime.errors import DamagedFileError, InputError

safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs safetensors")

TENSORS = {
    "weight": torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "bias": torch.tensor([1.5, -2.0]).bfloat16(),
    "count": torch.tensor(3),
}
SETTINGS = {"model_args": {"n_iter": 7, "sees_position": True}, "scale": 0.1, "sha": "é", "none": None}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def test_what_is_written_is_read(path):
    path.write_bytes(encode_safetensors(TENSORS, SETTINGS))
    tensors, settings = read_safetensors(path)
    assert settings == SETTINGS
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].tolist()) == (value.dtype, value.tolist())


def test_other_programs_read_it(path):
    path.write_bytes(encode_safetensors(TENSORS, SETTINGS))
    assert safetensors_torch.load_file(path)["weight"].equal(TENSORS["weight"])
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    metadata = json.loads(header)["__metadata__"]
    assert metadata["format"] == "pt"
    assert json.loads(metadata["model_args"]) == SETTINGS["model_args"]


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_files_of_other_programs_have_no_settings(path, metadata):
    safetensors_torch.save_file({"weight": torch.ones(2)}, path, metadata)
    tensors, settings = read_safetensors(path)
    assert tensors["weight"].tolist() == [1, 1]
    assert settings == {}


def test_tensors_do_not_depend_on_the_file(path):
    path.write_bytes(encode_safetensors(TENSORS, SETTINGS))
    tensors, _ = read_safetensors(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)
    assert tensors["weight"].equal(TENSORS["weight"])


@pytest.mark.parametrize("old", [b"model_args", b"n_iter", b'"0.1"', b"sha256", b"\x00\x00\xc0\x3f", b"bias"])
def test_changed_content_does_not_match_the_checksum(path, old):
    content = encode_safetensors(TENSORS | {"one": torch.tensor(1.5)}, SETTINGS)
    assert content.count(old) > 0
    at = content.index(old) + 1
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(DamagedFileError, match=f"{path} is .*damaged"):
        read_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"abc", bytes(8), b"\xff" * 100, b"cut"])
def test_unreadable_content_is_damage(path, content):
    whole = encode_safetensors(TENSORS, SETTINGS)
    path.write_bytes(whole[:-1] if content == b"cut" else content)
    with pytest.raises(DamagedFileError, match=f"{path} is not a readable safetensors file"):
        read_safetensors(path)


def test_without_the_package(path, monkeypatch):
    path.write_bytes(encode_safetensors(TENSORS, SETTINGS))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for use in (lambda: read_safetensors(path), lambda: encode_safetensors(TENSORS, SETTINGS)):
        with pytest.raises(InputError, match="another package: pip install safetensors"):
            use()
