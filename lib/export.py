"""Write the network of a model for other runtimes: scaled channels in, pixel features out.

The clustering and the merges stay in Python. What reproduces the channels and the clustering is in the
metadata of the file.
"""

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim
from torch.fx import GraphModule

from lib.files.atomic import atomic_path, check_output_file
from lib.network.folded import FoldedModel
from lib.network.inputs import input_channels, rgb_to_lab
from lib.runtime.device import full_precision
from lib.runtime.errors import InputError, RunError
from lib.weights import NO_NETWORK, SAFETENSORS, LoadedModel, encode_checkpoint, load_model

logger = logging.getLogger(__name__)

ONNX, PROGRAM = ".onnx", ".pt2"
SUFFIXES = (ONNX, PROGRAM, SAFETENSORS)
METADATA = "metadata.json"  # extra file in a .pt2 file

_PACKAGES = {ONNX: ("onnx", "onnxscript", "onnxruntime"), PROGRAM: (), SAFETENSORS: ("safetensors",)}
_OPSET = 18  # of ONNX; the oldest one that PyTorch's exporter writes, for old runtimes
_SMALLEST_SIDE = 5  # pixels; where the coarsest scale has a single row, PyTorch would record another program

# (images, rows, columns) of the example to record, and of the images to compare.
_RECORDED = (2, 37, 53)
_COMPARED = ((1, 61, 97), (3, 40, 24))
_N_SPIXELS = 200  # scales the positions of the images to compare

# Largest difference from PyTorch. Large features may differ by more in float32, from the order of sums.
_TOLERANCE = 1e-4
_RELATIVE_TOLERANCE = 1e-6

Network = Callable[[Tensor], Tensor]  # from channels to pixel features


class Export(NamedTuple):
    """Channels in, pixel features out, and the largest difference of a feature from PyTorch."""

    n_channels: int
    n_features: int
    largest_difference: float


def export_model(loaded: LoadedModel, path: Path) -> Export:
    """Write the network of a model in the format of the suffix, and compare the file with PyTorch.

    Parameters
    ----------
    loaded : LoadedModel
        Base or composite model, on the CPU.
    path : Path
        `.onnx`: for ONNX runtimes. `.pt2`: a program of `torch.export`. Both map `channels`,
        (B, 5 + n_extra_channels, H, W) float32, to `pixel_features`, (B, C, H, W), for any B, H and W; a
        program needs H and W of at least 5. `.safetensors`: weights and settings, which `load_model` reads.

    Raises
    ------
    InputError
        If the model has no network, the file cannot be written, or a package is missing.
    RunError
        If the features differ from PyTorch's by more than 1e-4 and a millionth of the largest feature; then
        no file is written.
    """
    if loaded.kind == NO_NETWORK:
        raise InputError(f"{NO_NETWORK} has no network to export", parameter="weights")
    _check_output(path)
    suffix = path.suffix.lower()
    write, read = {
        ONNX: (_encode_onnx, _read_onnx),
        PROGRAM: (_encode_program, _read_program),
        SAFETENSORS: (_encode_weights, _read_weights),
    }[suffix]
    with atomic_path(path) as temporary:
        temporary.write_bytes(write(loaded))
        export = _compare(loaded, read(temporary), path)
    logger.info(
        "%s: %s model, %d channels to %d pixel features, largest difference from PyTorch %.6f",
        path,
        loaded.kind,
        *export,
    )
    return export


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """Return what reproduces the channels and the clustering: settings, and two texts in plain English."""
    model = loaded.model
    channels = (
        "(batch, channels, height, width) float32: L, a, b of CIELAB (D65) times color_scale; row and column "
        "of the pixel, from 0, times pos_scale * max(k / height, k / width), where k is the integer part of "
        "the square root of the number of superpixels"
    )
    features = (
        f"(batch, features, height, width) float32: {model.n_learned_features} learned features, then the "
        "channels of colour and position"
    )
    if model.n_extra_channels:
        channels += f"; {model.n_extra_channels} extra channels times extra_scale"
        features += f", then {model.n_extra_features} features learned from the extra channels"
    features += "; SLIC with n_iter iterations clusters them"
    return {**loaded.settings(), "channels": channels, "pixel_features": features}


def _check_output(path: Path) -> None:
    """Check that a file can be written and that its packages are installed."""
    check_output_file("out", path, SUFFIXES)
    missing = [name for name in _PACKAGES[path.suffix.lower()] if not _is_importable(name)]
    if missing:
        raise InputError(f"{path} needs other packages: pip install {' '.join(missing)}", parameter="out")


def _is_importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _encode_onnx(loaded: LoadedModel) -> bytes:
    with _quiet_exporter():
        program = torch.onnx.export(
            FoldedModel(loaded.model),
            (_random_channels(loaded, *_RECORDED),),
            input_names=["channels"],
            output_names=["pixel_features"],
            dynamic_shapes=_dynamic_shapes(),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    for node in program.model.graph:
        node.metadata_props.clear()  # names of files on this computer
    proto = program.model_proto
    for name, value in describe(loaded).items():
        text = value if isinstance(value, str) else json.dumps(value)
        proto.metadata_props.add(key=name, value=text)
    return proto.SerializeToString()


def _encode_program(loaded: LoadedModel) -> bytes:
    with _quiet_exporter():
        program = torch.export.export(
            FoldedModel(loaded.model),
            (_random_channels(loaded, *_RECORDED),),
            dynamic_shapes=_dynamic_shapes(),
        )
        graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, GraphModule)]
        for node in (node for graph in graphs for node in graph.nodes):
            node.meta.pop("stack_trace", None)  # names of files on this computer
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(describe(loaded), indent=2)})
    return buffer.getvalue()


def _encode_weights(loaded: LoadedModel) -> bytes:
    return encode_checkpoint({"weights": loaded.model.state_dict(), **loaded.settings()}, SAFETENSORS)


def _dynamic_shapes() -> tuple[dict[int, Any]]:
    height, width = (Dim(name, min=_SMALLEST_SIDE) for name in ("height", "width"))
    return ({0: Dim("batch"), 2: height, 3: width},)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Record without gradients, and hide notices of the exporter, which leave a user nothing to do."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _read_onnx(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda channels: torch.from_numpy(session.run(None, {"channels": channels.numpy()})[0])


def _read_program(path: Path) -> Network:
    with _quiet_exporter():
        return torch.export.load(path).module()


def _read_weights(path: Path) -> Network:
    return load_model(path).model.pixel_features


@torch.no_grad()
def _compare(loaded: LoadedModel, network: Network, path: Path) -> Export:
    """Compare a file with PyTorch on random images; raise a `RunError` if they differ by too much."""
    differences = []
    for size in _COMPARED:
        channels = _random_channels(loaded, *size)
        with full_precision():
            expected = loaded.model.pixel_features(channels)
            difference = (network(channels) - expected).abs().max().item()
        allowed = max(_TOLERANCE, _RELATIVE_TOLERANCE * expected.abs().max().item())
        if not difference <= allowed:  # NaN too
            raise RunError(
                f"cannot write {path}: its features differ from PyTorch's by up to {difference:.1e}, and "
                f"{allowed:.1e} is allowed"
            )
        differences.append(difference)
    return Export(channels.shape[1], expected.shape[1], max(differences))


def _random_channels(loaded: LoadedModel, batch: int, height: int, width: int) -> Tensor:
    """Return the channels of random colours, and random extra channels, always the same."""
    random = torch.Generator().manual_seed(0)
    image_rgb = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=random)
    n_extra_channels = loaded.model.n_extra_channels
    extra = (
        torch.randn(batch, n_extra_channels, height, width, generator=random) if n_extra_channels else None
    )
    return input_channels(rgb_to_lab(image_rgb), extra, _N_SPIXELS, loaded.scales)
