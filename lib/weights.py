"""Weight files: our checkpoints, which store the settings of the model, and published state dicts."""

import errno
import hashlib
import inspect
import io
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.files.atomic import atomic_path
from lib.files.tensors import encode_safetensors, read_safetensors, tensors_sha256
from lib.files.values import FLAG, Expected, check_value, number, one_of, show
from lib.network.convolution import PADDING_MODES
from lib.network.inputs import DEFAULT_OPTFLOW_SCALE, InputScales
from lib.runtime.errors import DamagedFileError, InputError, is_out_of_memory, missing_path
from lib.runtime.memory import check_memory
from lib.slic.iteration import DISTANCES
from lib.superpixels.merge_settings import MergeSettings
from model import CompositeSSNModel, SSNModel, SSNPix

DEFAULT_N_LEARNED_FEATURES = 15
DEFAULT_N_ITER = 5
DEFAULT_N_EXTRA_FEATURES = 10

BASE, COMPOSITE = "base", "composite"  # kinds of models
NO_NETWORK = "none"  # third kind, given in place of a weight file: clusters colour and position

SAFETENSORS = ".safetensors"  # suffix of weight files in that format; all others are PyTorch's

# Files that come with the code; a wheel puts them beside `lib` as well.
_SHIPPED_DIR = Path(__file__).resolve().parents[1] / "trained_models"
_SHIPPED = {BASE: "best_model.pth", "small": "small_model.pth", COMPOSITE: "best_composite_model.pth"}

_CONTENTS = {BASE: "a base model", COMPOSITE: "a composite model", NO_NETWORK: "no network"}

# Entries of a checkpoint that `load_model` reads, besides the weights.
_SETTINGS_OF_MODEL = ("model_args", "input_args", "merge_args", "base_sha256")

# Constructor arguments that a state dict determines: argument -> (tensor, dimension).
_SIZES = {
    SSNModel: {
        "n_learned_features": ("feature_extract.output_conv.0.bias", 0),
        "n_mid_channels": ("feature_extract.scale1.0.0.weight", 0),
    },
    CompositeSSNModel: {
        "n_learned_features": ("feature_extract_color.output_conv.0.bias", 0),
        "n_mid_channels": ("feature_extract_color.scale1.0.0.weight", 0),
        "n_extra_features": ("feature_extract_optflow.output_conv.0.bias", 0),
        "n_extra_channels": ("feature_extract_optflow.scale1.0.0.weight", 1),
    },
}


class LoadedModel(NamedTuple):
    """Model in evaluation mode, its input scales, the checksum of its base, and settings of the merges."""

    model: nn.Module
    scales: InputScales
    base_sha256: str | None = None  # checksum of a composite's base weight file; None if unknown
    merging: MergeSettings = MergeSettings()

    @property
    def kind(self) -> str:
        """`BASE`, `COMPOSITE` or `NO_NETWORK`."""
        return {SSNModel: BASE, CompositeSSNModel: COMPOSITE, SSNPix: NO_NETWORK}[type(self.model)]

    def settings(self) -> dict[str, Any]:
        """Return all but the weights, in plain types, as in a weight file."""
        input_args = {name: value for name, value in self.scales._asdict().items() if value is not None}
        merge_args = {name: dict(values) for name, values in self.merging._asdict().items()}
        settings = {"model_args": self.model.config(), "input_args": input_args, "merge_args": merge_args}
        return settings if self.base_sha256 is None else {**settings, "base_sha256": self.base_sha256}


def shipped_weights(name: str = BASE) -> Path:
    """Return the path of a weight file that comes with the code: "base", "small" or "composite".

    Raises an InputError for another name.
    """
    if name not in _SHIPPED:
        raise InputError(f"no shipped weights {name!r}; choose from {', '.join(_SHIPPED)}")
    return _SHIPPED_DIR / _SHIPPED[name]


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint in the format of its suffix; a failed write keeps the old file."""
    content = encode_checkpoint(checkpoint, path.suffix)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def encode_checkpoint(checkpoint: dict[str, Any], suffix: str) -> bytes:
    """Return the content of a weight file, with a checksum.

    A .safetensors file holds what `load_model` reads, and nothing else of the checkpoint of a training.
    """
    if suffix.lower() == SAFETENSORS:
        settings = {name: checkpoint[name] for name in _SETTINGS_OF_MODEL if name in checkpoint}
        return encode_safetensors(checkpoint["weights"], settings)
    checkpoint = {**checkpoint, "weights_sha256": tensors_sha256(checkpoint["weights"])}
    buffer = io.BytesIO()  # torch.save to a file hides why a write failed
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints or a bare state dict, onto the CPU.

    The result has at least "weights" (a state dict) and "model_args" (empty for a bare state dict). All
    checksums of the file are compared: one for each record, unless PyTorch's old format has none, and in our
    files one for the weights, in .safetensors files one for all.

    Raises
    ------
    InputError
        If the file is missing or cannot be read.
    DamagedFileError
        If it is damaged, or is not a weight file.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_path(path, "weight file")
    content = (_read_safetensors if path.suffix.lower() == SAFETENSORS else _read_torch_file)(path)
    if _is_state_dict(content):
        content = {"weights": content, "model_args": {}}
    if not (
        isinstance(content, dict)
        and _is_state_dict(content.get("weights"))
        and isinstance(content.get("model_args"), dict)
    ):
        raise DamagedFileError(f"{path} holds neither a state dict nor one of our checkpoints")
    for name, value in content["weights"].items():
        check_value(f"{path}: {name}", value, _TENSOR)
    # A tensor may announce a large shape and hold one number, which is repeated.
    check_memory(_count_bytes(content["weights"]), f"{path}: the state dict")
    sha256 = tensors_sha256(content["weights"])
    # Drop the checksum, so that an edited copy of the dict does not keep it.
    if content.pop("weights_sha256", sha256) != sha256:
        raise DamagedFileError(f"{path} is damaged or edited: its weights do not match its weights_sha256")
    return content


def store_settings(path: Path, out: Path, *, pos_scale: float, n_iter: int, merging: MergeSettings) -> None:
    """Write a copy of a weight file with other settings of use; `out` may be the same file."""
    checkpoint = read_checkpoint(path)
    input_args = load_model(path).scales._replace(pos_scale=pos_scale)._asdict()
    settings = {
        "model_args": {**checkpoint["model_args"], "n_iter": n_iter},
        "input_args": {name: value for name, value in input_args.items() if value is not None},
        "merge_args": merging._asdict(),
    }
    save_checkpoint({**checkpoint, **settings}, out)


def load_model(path: Path | str) -> LoadedModel:
    """Rebuild the model of a checkpoint or a published state dict; "none" gives the model without a network.

    Raises
    ------
    InputError
        If the file does not hold a model of this repo, or describes one that cannot be built.
    """
    if str(path) == NO_NETWORK:
        return LoadedModel(SSNPix(n_iter=DEFAULT_N_ITER).eval(), InputScales())
    checkpoint = read_checkpoint(path)
    weights, model_args = checkpoint["weights"], checkpoint["model_args"]
    model_class = _find_model_class(weights, path)
    sizes = {
        name: weights[tensor].shape[dim]
        for name, (tensor, dim) in _SIZES[model_class].items()
        if tensor in weights and weights[tensor].ndim > dim
    }
    _check_settings(sizes | model_args, inspect.signature(model_class).parameters, path)
    for name, size in sizes.items():
        if model_args.get(name, size) != size:
            raise InputError(f"{path} has {name} {model_args[name]}, but its weights have {size}")
    with torch.device("meta"):  # without memory
        expected = model_class(**sizes | model_args).state_dict()
    check_memory(_count_bytes(expected), f"{path}: the network")
    check_tensors(weights, expected, f"{path}: weights")
    model = model_class(**sizes | model_args)
    model.load_state_dict(weights)
    input_args = checkpoint.get("input_args", {})
    _check_settings(input_args, InputScales._fields, path)
    extra_scale = DEFAULT_OPTFLOW_SCALE if model_class is CompositeSSNModel else None
    scales = InputScales(extra_scale=extra_scale)._replace(**input_args)
    merge_args = checkpoint.get("merge_args", {})
    _check_settings(merge_args, MergeSettings._fields, path)
    base_sha256 = checkpoint.get("base_sha256")
    if base_sha256 is not None:
        check_value(f"{path}: base_sha256", base_sha256, _SHA256)
    model = model.eval().to(memory_format=torch.channels_last)
    return LoadedModel(model, scales, base_sha256, MergeSettings(**merge_args))


def expect(
    loaded: LoadedModel,
    path: Path | str,
    *,
    kind: str | None = None,
    n_learned_features: int | None = None,
    n_extra_features: int | None = None,
    n_extra_channels: int | None = None,
) -> LoadedModel:
    """Return the loaded model of `path` if it has the expected kind and sizes, else raise an InputError.

    The model without a network counts as a base. `n_extra_channels` are available; a model that reads none
    ignores them.
    """
    if kind not in (None, BASE if loaded.kind == NO_NETWORK else loaded.kind):
        raise InputError(f"{path} holds {_CONTENTS[loaded.kind]}; expected {_CONTENTS[kind]}")
    expected = {"n_learned_features": n_learned_features, "n_extra_features": n_extra_features}
    for name, value in expected.items():
        found = getattr(loaded.model, name, 0)
        if value not in (None, found):
            raise InputError(f"{value} contradicts {path}, made with {found}", parameter=name)
    n_read = loaded.model.n_extra_channels
    if n_read > 0 and n_extra_channels not in (None, n_read):
        raise InputError(f"{path} reads {n_read} extra channels, but the data has {n_extra_channels}")
    return loaded


def check_base_of_composite(
    base: LoadedModel, base_path: Path | str, composite: LoadedModel, composite_path: Path | str
) -> None:
    """Check that a composite was trained on top of a base model.

    A published composite does not name its base, and its batch norm statistics differ from its base. For
    such a file, only the architectures are compared. Raises an InputError if they differ.
    """
    if base.kind == NO_NETWORK:
        raise InputError(
            f"{base_path} is no base of {composite_path}, which needs a network",
            parameter="base_model_weights",
        )
    ours = base.model.feature_extract.state_dict()
    theirs = composite.model.feature_extract_color.state_dict()
    if any(value.shape != theirs[name].shape for name, value in ours.items()):
        raise InputError(f"{base_path} does not fit {composite_path}: its network has another size")
    if composite.base_sha256 and not all(value.equal(theirs[name]) for name, value in ours.items()):
        raise InputError(
            f"{composite_path} was trained on top of other base weights than {base_path}: a file with "
            f"SHA-256 {composite.base_sha256}"
        )


def file_sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_torch_file(path: Path) -> Any:
    """Return the content of a file of PyTorch, whatever it holds."""
    try:
        _compare_checksums(path)
        with warnings.catch_warnings(action="ignore"):  # of kinds of tensors that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises various errors for broken bytes
        if is_out_of_memory(error) or isinstance(error, InputError):
            raise
        # EINVAL: torch seeks beyond the end of a truncated file, which is damage, not a read error.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        raise DamagedFileError(
            f"{path} is not a readable weight file: damaged, or holds more than tensors and plain types"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the content of a .safetensors file as a checkpoint."""
    tensors, settings = read_safetensors(path)
    if isinstance(settings.get("merge_args"), dict):
        settings["merge_args"] = {
            name: _with_counts(values) for name, values in settings["merge_args"].items()
        }
    return {"weights": tensors, "model_args": {}, **settings}


def _with_counts(values: Any) -> Any:
    """Return a dict with numbers in place of keys that JSON made strings; other values as they are."""
    if not isinstance(values, dict):
        return values
    return {int(key) if re.fullmatch("[0-9]{1,10}", key) else key: value for key, value in values.items()}


def _find_model_class(weights: dict[str, Tensor], path: Path | str) -> type[nn.Module]:
    modules = {name.split(".")[0] for name in weights}
    if "feature_extract_color" in modules:
        return CompositeSSNModel
    if "feature_extract" in modules:
        return SSNModel
    raise InputError(f"{path} holds no model of this repo, as its first tensor is {next(iter(weights))!r}")


def _is_by_count(values: Any, value_of: Expected) -> bool:
    return (
        isinstance(values, dict)
        and len(values) > 0
        and all(_COUNT.is_valid(count) for count in values)
        and all(value_of.is_valid(value) for value in values.values())
    )


def _by_count(lowest: int) -> Expected:
    """Return the mappings from numbers of superpixels to numbers of at least `lowest`."""
    values = number(float, low=lowest, below=1e6)
    return Expected(lambda value: _is_by_count(value, values), f"numbers of at least {lowest} by count")


def _is_plain_tensor(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_complex() or value.is_quantized or value.is_nested)
    )


_TENSOR = Expected(_is_plain_tensor, "a dense tensor of real numbers")
_SHA256 = Expected(
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)), "a SHA-256"
)
_COUNT = number(int, low=1, below=2**31)
_SCALE = number(float, low=0, below=1e30)  # far below the largest float32
_SETTINGS = {
    **dict.fromkeys(("n_learned_features", "n_mid_channels", "n_extra_features", "n_extra_channels"), _COUNT),
    "n_iter": number(int, low=1, below=10_000),
    "distance": one_of(DISTANCES),
    "sees_position": FLAG,
    "padding_mode": one_of(PADDING_MODES),
    **dict.fromkeys(InputScales._fields, _SCALE),
    "fine_factor": _by_count(1),
    "merge_pos_scale": _by_count(0),
}

_NEVER_NEGATIVE = ("running_var", "num_batches_tracked", "exp_avg_sq", "step")  # ends of names


def _check_settings(settings: Any, known: Collection[str], path: Path | str) -> None:
    if not isinstance(settings, dict):
        raise DamagedFileError(f"{path} holds settings that are no dict: {show(settings)}")
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"{path} holds a setting that this version does not know: {show(name)}")
        check_value(f"{path}: {name}", value, _SETTINGS[name])


def check_tensors(tensors: Any, expected: Mapping[str, Tensor], name: str) -> None:
    """Check the names, types, shapes and values of tensors that were read from a file.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Tensors of the file, of any type so far.
    expected : mapping of str to Tensor
        Tensors that they will replace; they may be on the meta device.
    name : str
        File and field, for errors.

    Raises
    ------
    InputError
        If names or shapes differ, or one tensor has integers and the other floats. If a tensor of the file is
        not dense and real, or a value is not finite, or negative where none may be.
    """
    if not isinstance(tensors, dict):
        raise DamagedFileError(f"{name} must be tensors by name, got {show(tensors)}")
    # Files of old versions of PyTorch do not count batches.
    absent = [key for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
    unknown = [key for key in tensors if key not in expected]
    if absent or unknown:
        problem = f"lacks {absent[0]}" if absent else f"holds {show(unknown[0])}"
        raise InputError(f"{name}: of another architecture, as it {problem}")
    for key, value in tensors.items():
        check_value(f"{name}: {key}", value, _TENSOR)
        like = expected[key]
        if value.shape != like.shape:
            raise InputError(
                f"{name}: of another architecture, as {key} is {tuple(value.shape)}, not {tuple(like.shape)}"
            )
        if value.is_floating_point() != like.is_floating_point():
            raise DamagedFileError(f"{name}: {key} holds {value.dtype}; expected {like.dtype}")
        value = value.to(like.dtype)
        if not value.isfinite().all():
            raise InputError(f"{name}: {key} holds values that are not finite")
        if key.endswith(_NEVER_NEGATIVE) and (value < 0).any():
            raise InputError(f"{name}: {key} holds negative values")


def _count_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _compare_checksums(path: Path) -> None:
    """Check the records of a zip file, which `torch.load` does not compare with their checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            check_memory(sum(record.file_size for record in file.infolist()), f"{path}: its content")
            damaged = file.testzip()
        if damaged is not None:
            raise DamagedFileError(f"{path} is damaged: {show(damaged)} in it does not match its checksum")


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )
