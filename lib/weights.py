"""Weight files: our checkpoints, which carry what rebuilds the model, and the published state dicts."""

import errno
import hashlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.files.atomic import atomic_path
from lib.network.inputs import InputScales
from lib.runtime.errors import DamagedFileError, InputError, is_out_of_memory
from model import N_FLOW_CHANNELS, CompositeSSNModel, SSNModel, SSNPix

DEFAULT_N_LEARNED_FEATURES = 15
DEFAULT_N_ITER = 5
DEFAULT_COLOR_SCALE = 0.26
DEFAULT_POS_SCALE = 10.0
DEFAULT_N_EXTRA_FEATURES = 10
DEFAULT_OPTFLOW_SCALE = 15.0

NO_NETWORK = "none"  # in place of a weight file: cluster colour and position alone

# First and last tensor of a feature extractor, whose shapes tell its size.
_FIRST_WEIGHT, _LAST_BIAS = "scale1.0.0.weight", "output_conv.0.bias"

# Options that tell a script what to expect of a weight file.
_OPTIONS = {
    "n_learned_features": "--deepfdim",
    "n_extra_features": "--optflow_deepfdim",
    "n_iter": "--niter",
}


class LoadedModel(NamedTuple):
    """A model in eval mode, and what its file tells of its training."""

    model: nn.Module
    scales: InputScales
    base_sha256: str | None = None  # checksum of the weight file of a composite's base, where it is known


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a dict of plain types and tensors, under a temporary name first."""
    buffer = io.BytesIO()  # torch.save itself hides why a write failed
    torch.save(checkpoint, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints or a bare state dict, onto the CPU.

    Returns
    -------
    dict
        With at least "weights" (a state dict) and "model_args" (empty for a bare state dict).

    Raises
    ------
    InputError
        If the file is missing or cannot be read.
    DamagedFileError
        If it is damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weight file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the broken bytes led it to
        if is_out_of_memory(error):
            raise
        # An invalid argument is a place beyond the end of a file that was cut short.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        raise DamagedFileError(
            f"{path} is not a readable weight file: damaged, or more than tensors and plain types"
        ) from error
    if _is_state_dict(content):
        return {"weights": content, "model_args": {}}
    if (
        isinstance(content, dict)
        and _is_state_dict(content.get("weights"))
        and isinstance(content.get("model_args"), dict)
    ):
        return content
    raise DamagedFileError(f"{path} holds neither a state dict nor one of our checkpoints")


def load_base_model(
    path: Path | str, *, n_learned_features: int | None = None, n_iter: int | None = None
) -> LoadedModel:
    """Rebuild a base model from its weight file.

    Parameters
    ----------
    path : Path or str
        One of our checkpoints, a published state dict, or "none" for the model without a network.
    n_learned_features, n_iter : int, optional
        What the caller expects (`--deepfdim`, `--niter`). Needed only for what the file does not say,
        which is the number of iterations of a bare state dict.

    Raises
    ------
    InputError
        If the file does not hold a base model, or contradicts an expectation.
    """
    if str(path) == NO_NETWORK:
        if n_learned_features is not None:
            raise InputError(f"--deepfdim {n_learned_features}: without a network nothing is learned")
        return LoadedModel(
            SSNPix(n_iter=DEFAULT_N_ITER if n_iter is None else n_iter).eval(),
            InputScales(DEFAULT_COLOR_SCALE, DEFAULT_POS_SCALE),
        )
    return _rebuild_base(path, read_checkpoint(path), n_learned_features=n_learned_features, n_iter=n_iter)


def load_composite_model(
    path: Path | str,
    *,
    n_learned_features: int | None = None,
    n_extra_features: int | None = None,
    n_iter: int | None = None,
    n_extra_channels: int | None = None,
) -> LoadedModel:
    """Rebuild a composite model from its weight file.

    Parameters
    ----------
    path : Path or str
        One of our checkpoints, or a published state dict.
    n_learned_features, n_extra_features, n_iter : int, optional
        What the caller expects (`--deepfdim`, `--optflow_deepfdim`, `--niter`); see `load_base_model`.
    n_extra_channels : int, optional
        Extra channels that the caller has.

    Raises
    ------
    InputError
        If the file does not hold a composite model, or contradicts an expectation.
    """
    return _rebuild_composite(
        path,
        read_checkpoint(path),
        n_learned_features=n_learned_features,
        n_extra_features=n_extra_features,
        n_iter=n_iter,
        n_extra_channels=n_extra_channels,
    )


def load_model(
    path: Path | str, *, n_iter: int | None = None, n_extra_channels: int | None = None
) -> LoadedModel:
    """Rebuild a base or a composite model, whichever a weight file holds.

    Parameters and errors are those of `load_base_model` and `load_composite_model`.
    """
    if str(path) == NO_NETWORK:
        return load_base_model(path, n_iter=n_iter)
    checkpoint = read_checkpoint(path)
    if _has_extractor(checkpoint["weights"], "feature_extract_color"):
        return _rebuild_composite(path, checkpoint, n_iter=n_iter, n_extra_channels=n_extra_channels)
    return _rebuild_base(path, checkpoint, n_iter=n_iter)


def check_base_of_composite(
    base: LoadedModel, base_path: Path | str, composite: LoadedModel, composite_path: Path | str
) -> None:
    """Check that a composite was trained on top of a base model.

    A published composite does not tell its base, and its batch norm statistics have moved away from it;
    there only the architectures are compared.

    Raises
    ------
    InputError
        If not.
    """
    if str(base_path) == NO_NETWORK:
        raise InputError(f"--base_model_weights {NO_NETWORK}: the base of {composite_path} has a network")
    ours = base.model.feature_extract.state_dict()
    theirs = composite.model.feature_extract_color.state_dict()
    if any(value.shape != theirs[name].shape for name, value in ours.items()):
        raise InputError(f"{base_path} does not fit {composite_path}: its network is of another size")
    if composite.base_sha256 and not all(value.equal(theirs[name]) for name, value in ours.items()):
        raise InputError(
            f"{composite_path} was trained on top of other base weights than {base_path}: of a file with "
            f"SHA-256 {composite.base_sha256}"
        )


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rebuild_base(
    path: Path | str,
    checkpoint: dict[str, Any],
    *,
    n_learned_features: int | None = None,
    n_iter: int | None = None,
) -> LoadedModel:
    weights = checkpoint["weights"]
    if not _has_extractor(weights, "feature_extract"):
        raise InputError(f"{path} {_describe_weights(weights)}, not a base model")
    model_args = {
        "n_learned_features": _n_out_features(weights, "feature_extract"),
        **checkpoint["model_args"],
    }
    expected = {"n_learned_features": n_learned_features, "n_iter": n_iter}
    return _rebuild(
        SSNModel, path, checkpoint, model_args, expected, InputScales(DEFAULT_COLOR_SCALE, DEFAULT_POS_SCALE)
    )


def _rebuild_composite(
    path: Path | str,
    checkpoint: dict[str, Any],
    *,
    n_learned_features: int | None = None,
    n_extra_features: int | None = None,
    n_iter: int | None = None,
    n_extra_channels: int | None = None,
) -> LoadedModel:
    weights = checkpoint["weights"]
    base, extra = "feature_extract_color", "feature_extract_optflow"
    if not _has_extractor(weights, base) or not _has_extractor(weights, extra):
        raise InputError(f"{path} {_describe_weights(weights)}, not a composite model")
    model_args = {
        "n_learned_features": _n_out_features(weights, base),
        "n_extra_features": _n_out_features(weights, extra),
        "n_extra_channels": _n_in_channels(weights, extra),
        **checkpoint["model_args"],
    }
    if n_extra_channels not in (None, model_args["n_extra_channels"]):
        raise InputError(
            f"{path} reads {model_args['n_extra_channels']} extra channels, but there are {n_extra_channels}"
        )
    expected = {
        "n_learned_features": n_learned_features,
        "n_extra_features": n_extra_features,
        "n_iter": n_iter,
    }
    return _rebuild(
        CompositeSSNModel,
        path,
        checkpoint,
        model_args,
        expected,
        InputScales(DEFAULT_COLOR_SCALE, DEFAULT_POS_SCALE, DEFAULT_OPTFLOW_SCALE),
    )


def _rebuild(
    model_class: type[nn.Module],
    path: Path | str,
    checkpoint: dict[str, Any],
    model_args: dict[str, Any],
    expected: dict[str, int | None],
    default_scales: InputScales,
) -> LoadedModel:
    for name, value in expected.items():
        if value is not None and model_args.setdefault(name, value) != value:
            raise InputError(f"{_OPTIONS[name]} {value} contradicts {path}, made with {model_args[name]}")
    try:
        model = model_class(**model_args)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} describes a model that this version cannot build ({error})") from error
    _load_weights(model, checkpoint["weights"], path)
    try:
        scales = default_scales._replace(**checkpoint.get("input_args", {}))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} describes inputs that this version does not know ({error})") from error
    model = model.eval().to(memory_format=torch.channels_last)
    return LoadedModel(model, scales, checkpoint.get("base_sha256"))


def _load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path | str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first_problem = re.sub(r"\s+", " ", str(error).split("\n\t")[1])
        raise InputError(f"{path} is of another architecture: {first_problem}") from error
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise InputError(f"{path} holds values that are not finite, in {broken[0]}")


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _has_extractor(weights: dict[str, Tensor], extractor: str) -> bool:
    output_bias = weights.get(f"{extractor}.{_LAST_BIAS}")
    return output_bias is not None and output_bias.ndim == 1


def _n_in_channels(weights: dict[str, Tensor], extractor: str) -> int:
    shape = weights.get(f"{extractor}.{_FIRST_WEIGHT}", torch.empty(0)).shape
    return shape[1] if len(shape) == 4 else N_FLOW_CHANNELS  # without that weight no model will fit


def _n_out_features(weights: dict[str, Tensor], extractor: str) -> int:
    return len(weights[f"{extractor}.{_LAST_BIAS}"])


def _describe_weights(weights: dict[str, Tensor]) -> str:
    extractors = {name.split(".")[0] for name in weights}
    if "feature_extract_color" in extractors:
        return "holds a composite model"
    if "feature_extract" in extractors:
        return "holds a base model"
    return f"holds no model of this repo, as its first tensor is {next(iter(weights))!r}"
