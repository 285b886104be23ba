"""Script that exports the network of a weight file, end to end."""

import json
import re
import sys

import numpy as np
import pytest
import torch

import export_model
from helpers import fails_with, full_disk, make_quadrants
from lib import export
from lib.cli.options import REPO_ROOT
from lib.inference import Segmenter
from lib.network.inputs import model_input, rgb_to_lab
from lib.runtime.errors import RunError
from lib.weights import load_model, read_checkpoint, save_checkpoint

# Sizes that differ from the recorded one, odd and even, portrait and landscape: (images, rows, columns).
SIZES = [(1, 20, 31), (3, 61, 7), (2, 48, 64), (1, 5, 130)]


@pytest.fixture(params=["base", "composite"])
def weights(request):
    """A weight file of each kind; the base network reads no position and replicates the border."""
    path = request.getfixturevalue(f"{request.param}_weights")
    checkpoint = read_checkpoint(path)
    if request.param == "base":
        checkpoint["model_args"] |= {"sees_position": False, "padding_mode": "replicate"}
    checkpoint["merge_args"] = {"fine_factor": {10: 2.0}, "merge_pos_scale": {10: 0.3, 100: 0.5}}
    save_checkpoint(checkpoint, path)
    return path


def read_onnx(path):
    """Return the network of an ONNX file as a function of arrays, and its metadata."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (channels,), (features,) = session.get_inputs(), session.get_outputs()
    assert (channels.name, features.name) == ("channels", "pixel_features")
    assert [channels.shape[0], *channels.shape[2:]] == ["batch", "height", "width"]
    assert [features.shape[0], *features.shape[2:]] == ["batch", "height", "width"]
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda x: session.run(None, {"channels": x.numpy()})[0], metadata


def read_program(path):
    """Return a program of `torch.export` as a function of tensors, and its metadata."""
    extra_files = {"metadata.json": ""}
    network = torch.export.load(path, extra_files=extra_files).module()
    return network, json.loads(extra_files["metadata.json"])


def check_features(loaded, network):
    """Compare a network with a model on scaled images of sizes that it has not seen."""
    random = torch.Generator().manual_seed(1)
    for batch, height, width in SIZES:
        image_rgb = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=random)
        extra = torch.randn(batch, loaded.model.n_extra_channels, height, width, generator=random)
        channels = model_input(loaded.model, rgb_to_lab(image_rgb), 24, loaded.scales, extra=extra)
        with torch.no_grad():
            expected = loaded.model.pixel_features(channels)
        np.testing.assert_allclose(network(channels), expected, rtol=1e-5, atol=1e-4)


def check_metadata(metadata, loaded):
    """Check that metadata, with JSON parsed, hold what reproduces the channels and the clustering."""
    metadata = dict(metadata)
    scales = {name: value for name, value in loaded.scales._asdict().items() if value is not None}
    assert metadata.pop("model_args") == loaded.model.config()
    assert metadata.pop("input_args") == scales
    assert metadata.pop("merge_args") == {
        "fine_factor": {"10": 2.0},
        "merge_pos_scale": {"10": 0.3, "100": 0.5},
    }
    assert metadata.pop("base_sha256", None) == loaded.base_sha256
    is_composite = loaded.model.n_extra_channels > 0
    channels, features = metadata.pop("channels"), metadata.pop("pixel_features")
    assert "from 0, times pos_scale * max(k / height, k / width)" in channels
    assert ("4 extra channels times extra_scale" in channels) == is_composite
    assert "4 learned features" in features
    assert ("3 features learned from the extra channels" in features) == is_composite
    assert metadata == {}


def check_report(result, loaded, out, caplog):
    n_channels, n_features = (9, 12) if loaded.kind == "composite" else (5, 9)
    assert result[:2] == (n_channels, n_features)
    assert result.largest_difference < 1e-4
    assert caplog.messages == [
        f"{out}: {loaded.kind} model, {n_channels} channels to {n_features} pixel features, "
        f"largest difference from PyTorch {result.largest_difference:.6f}"
    ]
    assert [path for path in out.parent.iterdir() if "partial" in path.name] == []


@pytest.mark.slow
def test_onnx(weights, tmp_path, caplog, capfd, recwarn):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    caplog.set_level("INFO")
    out, loaded = tmp_path / "model.onnx", load_model(weights)
    result = export_model.main([f"--weights={weights}", f"--out={out}"])
    check_report(result, loaded, out, caplog)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    network, metadata = read_onnx(out)
    check_features(loaded, network)
    texts = ("channels", "pixel_features", "base_sha256")
    check_metadata({name: v if name in texts else json.loads(v) for name, v in metadata.items()}, loaded)
    onnx.checker.check_model(str(out), full_check=True)
    assert [opset.version for opset in onnx.load(out).opset_import] == [18]
    assert str(REPO_ROOT).encode() not in out.read_bytes()


@pytest.mark.slow
def test_program(weights, tmp_path, caplog, capfd, recwarn):
    caplog.set_level("INFO")
    out, loaded = tmp_path / "model.pt2", load_model(weights)
    result = export_model.main([f"--weights={weights}", f"--out={out}"])
    check_report(result, loaded, out, caplog)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert str(REPO_ROOT).encode() not in out.read_bytes()
    network, metadata = read_program(out)
    check_features(loaded, network)
    check_metadata(metadata, loaded)


def test_safetensors(weights, tmp_path, caplog):
    pytest.importorskip("safetensors")
    caplog.set_level("INFO")
    out, loaded = tmp_path / "model.safetensors", load_model(weights)
    result = export_model.main([f"--weights={weights}", f"--out={out}"])
    check_report(result, loaded, out, caplog)
    assert result.largest_difference == 0
    image_rgb, _ = make_quadrants(30, 44)
    extra = np.ones((30, 44, 4), np.float32)
    expected, read = (Segmenter.from_checkpoint(path)(image_rgb, 12, extra=extra) for path in (weights, out))
    np.testing.assert_array_equal(read.labels, expected.labels)


@pytest.fixture
def differing_program(monkeypatch):
    """Return a function that makes a written program differ from PyTorch by a number."""

    def differ(difference):
        written = lambda path: lambda channels: channels + difference  # noqa: E731
        monkeypatch.setattr(export, "_encode_program", lambda loaded: b"program")
        monkeypatch.setattr(export, "_read_program", written)
        monkeypatch.setattr("model.SSNModel.pixel_features", lambda model, channels: channels)

    return differ


@pytest.mark.parametrize("difference", [3e-4, -1.0, float("nan")])
def test_a_file_that_differs_is_not_left(base_weights, tmp_path, differing_program, difference):
    differing_program(difference)
    out = tmp_path / "out" / "model.pt2"
    out.parent.mkdir()
    with pytest.raises(RunError, match=rf"cannot write {out}: its features differ from PyTorch's by up to"):
        export_model.main([f"--weights={base_weights}", f"--out={out}"])
    assert list(out.parent.iterdir()) == []


def test_rounding_is_allowed(base_weights, tmp_path, differing_program):
    differing_program(5e-5)
    result = export_model.main([f"--weights={base_weights}", f"--out={tmp_path / 'model.pt2'}"])
    assert result.largest_difference == pytest.approx(5e-5, rel=0.2)
    assert (tmp_path / "model.pt2").read_bytes() == b"program"


def test_full_disk(base_weights, tmp_path):
    pytest.importorskip("safetensors")
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"old")
    with full_disk(10_000), pytest.raises(RunError, match=f"cannot write {out}"):
        export_model.main([f"--weights={base_weights}", f"--out={out}"])
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("suffix", "missing", "command"),
    [
        (".onnx", ["onnxscript"], "pip install onnxscript"),
        (".onnx", ["onnxruntime", "onnx"], "pip install onnx onnxruntime"),
        (".safetensors", ["safetensors"], "pip install safetensors"),
    ],
)
def test_missing_packages(base_weights, tmp_path, monkeypatch, capsys, suffix, missing, command):
    present = {"onnx", "onnxscript", "onnxruntime", "safetensors"} - {*missing}
    for name in present:
        monkeypatch.setitem(sys.modules, name, sys)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / f"model{suffix}"
    error = fails_with(export_model.main, [f"--weights={base_weights}", f"--out={out}"], capsys)
    assert error.endswith(f"error: --out {out} needs other packages: {command}\n")
    assert not out.exists()


def test_unusable_arguments(base_weights, tmp_path, capsys):
    for arguments, message in {
        (base_weights, tmp_path / "model.pth"): "--out .*model.pth: the name must end in .onnx, .pt2, .safet",
        (base_weights, tmp_path / "missing" / "model.pt2"): "--out .*cannot write to folder",
        (tmp_path / "missing.pth", tmp_path / "model.pt2"): "no weight file .*missing.pth",
        ("none", tmp_path / "model.pt2"): "--weights none has no network to export",
    }.items():
        error = fails_with(export_model.main, [f"--weights={arguments[0]}", f"--out={arguments[1]}"], capsys)
        assert re.search(message, error), error
