"""Weight files: our checkpoints, which carry what rebuilds the model, and the published state dicts."""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.errors import InputError
from lib.files import atomic_path
from model import SSNModel, SSNPix

DEFAULT_N_LEARNED_FEATURES = 15
DEFAULT_N_ITER = 5
DEFAULT_COLOR_SCALE = 0.26
DEFAULT_POS_SCALE = 10.0

NO_NETWORK = "none"  # in place of a weight file: cluster colour and position alone


class InputScales(NamedTuple):
    """Weights of the input channels; see `lib.features`."""

    color_scale: float
    pos_scale: float


class LoadedModel(NamedTuple):
    """A model in eval mode, and the input scales it was trained with."""

    model: nn.Module
    scales: InputScales


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
        If the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weight file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # torch raises whatever the broken bytes led it to
        raise InputError(
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
    raise InputError(f"{path} holds neither a state dict nor one of our checkpoints")


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
            SSNPix(n_iter=n_iter or DEFAULT_N_ITER).eval(),
            InputScales(DEFAULT_COLOR_SCALE, DEFAULT_POS_SCALE),
        )
    checkpoint = read_checkpoint(path)
    weights, model_args = checkpoint["weights"], dict(checkpoint["model_args"])
    output_bias = weights.get("feature_extract.output_conv.0.bias")
    if output_bias is None or output_bias.ndim != 1:
        raise InputError(f"{path} {_describe_foreign_weights(weights)}")
    model_args.setdefault("n_learned_features", len(output_bias))
    for option, name, expected in (
        ("--deepfdim", "n_learned_features", n_learned_features),
        ("--niter", "n_iter", n_iter),
    ):
        if expected is not None and model_args.setdefault(name, expected) != expected:
            raise InputError(f"{option} {expected} contradicts {path}, made with {model_args[name]}")
    try:
        model = SSNModel(**model_args)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} describes a model that this version cannot build ({error})") from error
    _load_weights(model, weights, path)
    input_args = checkpoint.get("input_args", {})
    scales = InputScales(
        input_args.get("color_scale", DEFAULT_COLOR_SCALE),
        input_args.get("pos_scale", DEFAULT_POS_SCALE),
    )
    return LoadedModel(model.eval().to(memory_format=torch.channels_last), scales)


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


def _describe_foreign_weights(weights: dict[str, Tensor]) -> str:
    if any(name.startswith("feature_extract_color.") for name in weights):
        return "holds a composite model, not a base model"
    return f"holds no model of this repo: its first tensor is {next(iter(weights))!r}"
