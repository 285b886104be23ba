"""Weight files: ours, the published ones, and those that cannot be used."""

import pytest
import torch

from helpers import full_disk
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError, RunError
from lib.weights import (
    check_base_of_composite,
    file_sha256,
    load_base_model,
    load_composite_model,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from model import CompositeSSNModel, SSNModel, SSNPix


def test_our_checkpoint_rebuilds_its_model(base_weights):
    model, scales, _ = load_base_model(base_weights)
    expected = read_checkpoint(base_weights)["weights"]
    for name, value in model.state_dict().items():
        assert value.equal(expected[name]), name
    assert model.n_iter == 3
    assert not model.training
    assert scales == InputScales(color_scale=0.3, pos_scale=7.0)


def test_bare_state_dict_tells_its_architecture(tmp_path):
    torch.save(SSNModel(6).state_dict(), tmp_path / "published.pth")
    model, scales, _ = load_base_model(tmp_path / "published.pth", n_iter=8)
    assert model.feature_extract.output_conv[0].out_channels == 6
    assert model.n_iter == 8
    assert model.distance == "euclidean"
    assert scales == InputScales(color_scale=0.26, pos_scale=10.0)


def test_none_is_the_model_without_network():
    model, *_ = load_base_model("none", n_iter=7)
    assert isinstance(model, SSNPix)
    assert model.n_iter == 7


def test_none_learns_no_features():
    with pytest.raises(InputError, match="--deepfdim 15: without a network nothing is learned"):
        load_base_model("none", n_learned_features=15)


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        ({"n_learned_features": 15}, "--deepfdim 15 contradicts .*base.pth, made with 4"),
        ({"n_iter": 5}, "--niter 5 contradicts .*base.pth, made with 3"),
    ],
)
def test_contradicting_the_file_is_an_error(base_weights, expectation, message):
    with pytest.raises(InputError, match=message):
        load_base_model(base_weights, **expectation)


def test_deepfdim_contradicting_a_bare_state_dict_is_an_error(tmp_path):
    torch.save(SSNModel(6).state_dict(), tmp_path / "published.pth")
    with pytest.raises(InputError, match="--deepfdim 15 contradicts"):
        load_base_model(tmp_path / "published.pth", n_learned_features=15)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("missing", "no weight file"),
        ("folder", "no weight file"),
        ("empty", "not a readable weight file"),
        ("truncated", "not a readable weight file"),
        ("pickle", "not a readable weight file"),
        ("list", "neither a state dict nor one of our checkpoints"),
        ("other network", "holds no model of this repo, as its first tensor is 'fc.weight'"),
        ("composite", "holds a composite model, not a base model"),
        ("other width", "of another architecture: size mismatch for feature_extract"),
        ("missing tensor", "of another architecture: Missing key"),
        ("no model_args", "neither a state dict nor one of our checkpoints"),
        ("unknown argument", "describes a model that this version cannot build"),
        ("unknown distance", "cannot build .*distance must be one of"),
        ("nan", "holds values that are not finite, in feature_extract.scale1.0.0.weight"),
    ],
)
def test_unusable_file_is_named(base_weights, content, message):
    weights = read_checkpoint(base_weights)["weights"]
    if content == "missing":
        base_weights.unlink()
    elif content == "folder":
        base_weights.unlink()
        base_weights.mkdir()
    elif content == "empty":
        base_weights.write_bytes(b"")
    elif content == "truncated":
        base_weights.write_bytes(base_weights.read_bytes()[:5000])
    elif content == "pickle":
        torch.save({"weights": weights, "path": base_weights}, base_weights)
    elif content == "list":
        torch.save([1, 2], base_weights)
    elif content == "other network":
        torch.save({"fc.weight": torch.zeros(2, 2)}, base_weights)
    elif content == "composite":
        torch.save({"feature_extract_color.scale1.0.0.weight": torch.zeros(1)}, base_weights)
    elif content == "other width":
        weights["feature_extract.scale1.0.0.weight"] = torch.zeros(32, 5, 3, 3)
        torch.save(weights, base_weights)
    elif content == "missing tensor":
        del weights["feature_extract.scale1.0.0.weight"]
        torch.save(weights, base_weights)
    elif content == "no model_args":
        torch.save({"weights": weights}, base_weights)
    elif content == "unknown argument":
        torch.save({"weights": weights, "model_args": {"n_heads": 2}}, base_weights)
    elif content == "unknown distance":
        torch.save({"weights": weights, "model_args": {"distance": "cosine"}}, base_weights)
    elif content == "nan":
        weights["feature_extract.scale1.0.0.weight"][0] = torch.nan
        save_checkpoint({"weights": weights, "model_args": {"n_learned_features": 4}}, base_weights)
    with pytest.raises(InputError, match=message) as caught:
        load_base_model(base_weights)
    assert str(base_weights) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_our_composite_rebuilds_its_model(composite_weights, base_weights):
    model, scales, base_sha256 = load_composite_model(composite_weights)
    expected = read_checkpoint(composite_weights)["weights"]
    for name, value in model.state_dict().items():
        assert value.equal(expected[name]), name
    assert model.n_iter == 3
    assert not model.training
    assert scales == InputScales(color_scale=0.3, pos_scale=7.0, extra_scale=2.0)
    assert base_sha256 == file_sha256(base_weights)


def test_bare_state_dict_of_a_composite_tells_its_architecture(tmp_path):
    torch.save(CompositeSSNModel(6, 3, n_extra_channels=1).state_dict(), tmp_path / "published.pth")
    model, scales, base_sha256 = load_composite_model(tmp_path / "published.pth", n_iter=8)
    assert model.config() == {
        "n_learned_features": 6,
        "n_extra_features": 3,
        "n_extra_channels": 1,
        "n_iter": 8,
        "distance": "euclidean",
        "sees_position": True,
    }
    assert scales == InputScales(color_scale=0.26, pos_scale=10.0, extra_scale=15.0)
    assert base_sha256 is None


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        ({"n_learned_features": 15}, "--deepfdim 15 contradicts .*composite.pth, made with 4"),
        ({"n_extra_features": 10}, "--optflow_deepfdim 10 contradicts .*composite.pth, made with 3"),
        ({"n_iter": 5}, "--niter 5 contradicts .*composite.pth, made with 3"),
    ],
)
def test_contradicting_the_file_of_a_composite_is_an_error(composite_weights, expectation, message):
    with pytest.raises(InputError, match=message):
        load_composite_model(composite_weights, **expectation)


def test_either_kind_is_loaded_and_read_once(base_weights, composite_weights, monkeypatch):
    read = []

    def load(path, **options):
        read.append(path)
        return torch_load(path, **options)

    torch_load = torch.load
    monkeypatch.setattr(torch, "load", load)
    assert isinstance(load_model(base_weights).model, SSNModel)
    assert isinstance(load_model(composite_weights).model, CompositeSSNModel)
    assert isinstance(load_model("none").model, SSNPix)
    assert read == [base_weights, composite_weights]


def test_composite_that_reads_other_channels(composite_weights):
    with pytest.raises(InputError, match=r"composite\.pth reads 4 extra channels, but there are 1"):
        load_composite_model(composite_weights, n_extra_channels=1)


def test_base_weights_are_no_composite(base_weights, composite_weights):
    with pytest.raises(InputError, match=r"base\.pth holds a base model, not a composite model"):
        load_composite_model(base_weights)
    with pytest.raises(InputError, match=r"composite\.pth holds a composite model, not a base model"):
        load_base_model(composite_weights)


def test_composite_with_a_tensor_missing(composite_weights):
    weights = read_checkpoint(composite_weights)["weights"]
    del weights["feature_extract_optflow.scale1.0.0.weight"]
    torch.save(weights, composite_weights)
    with pytest.raises(InputError, match="of another architecture: Missing key"):
        load_composite_model(composite_weights)


def save_base(path, n_learned_features):
    model = SSNModel(n_learned_features, n_iter=3)
    save_checkpoint({"weights": model.state_dict(), "model_args": model.config()}, path)


def test_base_that_a_composite_was_not_trained_on(composite_weights, base_weights, tmp_path):
    composite = load_composite_model(composite_weights)

    def check(base_path, composite=composite):
        check_base_of_composite(load_base_model(base_path), base_path, composite, composite_weights)

    check(base_weights)
    save_base(tmp_path / "other.pth", 4)
    told = f"trained on top of other base weights .*SHA-256 {file_sha256(base_weights)}"
    with pytest.raises(InputError, match=told):
        check(tmp_path / "other.pth")
    check(tmp_path / "other.pth", composite._replace(base_sha256=None))  # published files do not tell
    save_base(tmp_path / "wide.pth", 5)
    with pytest.raises(InputError, match=r"wide\.pth does not fit .*composite\.pth"):
        check(tmp_path / "wide.pth", composite._replace(base_sha256=None))
    with pytest.raises(InputError, match=r"--base_model_weights none: the base of .* has a network"):
        check("none")


def test_failed_write_leaves_the_old_file(base_weights):
    before = base_weights.read_bytes()
    with full_disk(10_000), pytest.raises(RunError, match=r"cannot write .*base\.pth"):
        save_checkpoint({"weights": {"large": torch.zeros(100_000)}}, base_weights)
    assert base_weights.read_bytes() == before
    assert list(base_weights.parent.glob(".*")) == []
