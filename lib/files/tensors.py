"""Tensors with settings in .safetensors files, and checksums of tensors."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.runtime.errors import DamagedFileError, InputError, is_out_of_memory
from lib.runtime.memory import check_memory

_CHECKSUM = "sha256"  # entry of the metadata: covers the tensors and all other entries
_FORMAT = "format"  # entry that other programs write and expect


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def encode_safetensors(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> bytes:
    """Return the content of a .safetensors file: tensors, and settings as JSON in its metadata.

    Raises
    ------
    InputError
        If safetensors is not installed.
    """
    safetensors = _import_safetensors()
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    texts = {name: json.dumps(value) for name, value in settings.items()}
    metadata = {_FORMAT: "pt", **texts, _CHECKSUM: _content_sha256(tensors, texts)}
    return safetensors.torch.save(tensors, metadata)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the settings of a .safetensors file; those of other programs have no settings.

    Numbers that were keys of a dict are strings in the result, as JSON has no others.

    Raises
    ------
    InputError
        If safetensors is not installed, or the file cannot be read.
    DamagedFileError
        If the content is damaged, or does not match its checksum.
    """
    safetensors = _import_safetensors()
    try:
        check_memory(path.stat().st_size, f"{path}: its content")
        with safetensors.safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            names = file.keys()
            # Copies, because the tensors of the file change with it.
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except Exception as error:  # the package raises various errors for broken bytes
        if is_out_of_memory(error) or isinstance(error, InputError):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        raise DamagedFileError(f"{path} is not a readable safetensors file: it is damaged") from error
    texts.pop(_FORMAT, None)
    if not texts:
        return tensors, {}
    if texts.pop(_CHECKSUM, None) != _content_sha256(tensors, texts):
        raise DamagedFileError(
            f"{path} is damaged or edited: its tensors and metadata do not match its {_CHECKSUM}"
        )
    return tensors, {name: json.loads(text) for name, text in texts.items()}


def _content_sha256(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """Return the SHA-256 over tensors and texts in the order of their names, for files keep no order."""
    in_order = tensors_sha256(dict(sorted(tensors.items())))
    digests = [in_order, *(f"{name} {texts[name]}" for name in sorted(texts))]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _import_safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise InputError(".safetensors files need another package: pip install safetensors") from error
    return safetensors
