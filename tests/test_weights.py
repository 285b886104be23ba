"""Weight files: our checkpoints, published files, and unusable files."""

import re

import pytest
import torch

from helpers import full_disk
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError, RunError
from lib.superpixels.merge_settings import MergeSettings
from lib.weights import (
    LoadedModel,
    check_base_of_composite,
    expect,
    file_sha256,
    load_model,
    read_checkpoint,
    save_checkpoint,
    shipped_weights,
    store_settings,
)
from model import CompositeSSNModel, SSNModel, SSNPix


def test_our_checkpoint_rebuilds_its_model(base_weights):
    model, scales, *_ = load_model(base_weights)
    expected = read_checkpoint(base_weights)["weights"]
    for name, value in model.state_dict().items():
        assert value.equal(expected[name]), name
    assert model.n_iter == 3
    assert not model.training
    assert scales == InputScales(color_scale=0.3, pos_scale=7.0)


@pytest.mark.parametrize(
    ("name", "kind", "n_mid_channels"),
    [("base", "base", 64), ("small", "base", 32), ("composite", "composite", 64)],
)
def test_shipped_weights(name, kind, n_mid_channels):
    loaded = load_model(shipped_weights(name))
    assert (loaded.kind, loaded.model.n_mid_channels) == (kind, n_mid_channels)


def test_shipped_weights_of_another_name():
    with pytest.raises(InputError, match="no shipped weights 'large'; choose from base, small, composite"):
        shipped_weights("large")


def test_architecture_of_a_bare_state_dict(tmp_path):
    torch.save(SSNModel(6).state_dict(), tmp_path / "published.pth")
    model, scales, _, _ = load_model(tmp_path / "published.pth")
    assert model.feature_extract.output_conv[0].out_channels == 6
    assert model.n_iter == 5
    assert model.distance == "euclidean"
    assert scales == InputScales(color_scale=0.26, pos_scale=10.0)


def test_none_is_the_model_without_network():
    loaded = load_model("none")
    assert isinstance(loaded.model, SSNPix)
    assert loaded.kind == "none"
    assert expect(loaded, "none", kind="base") is loaded
    with pytest.raises(InputError, match="none holds no network; expected a composite model"):
        expect(loaded, "none", kind="composite")


def test_none_learns_no_features():
    with pytest.raises(InputError, match="n_learned_features` 15 contradicts none, made with 0"):
        expect(load_model("none"), "none", n_learned_features=15)


def test_expected_sizes_that_contradict_the_file(base_weights, composite_weights):
    for path in (base_weights, composite_weights):
        loaded = load_model(path)
        assert expect(loaded, path, n_learned_features=4, n_extra_channels=4) is loaded
        with pytest.raises(InputError, match=rf"`n_learned_features` 15 contradicts {path}, made with 4"):
            expect(loaded, path, n_learned_features=15)
    with pytest.raises(InputError, match=rf"`n_extra_features` 10 contradicts {path}, made with 3"):
        expect(loaded, path, n_extra_features=10)
    with pytest.raises(InputError, match=rf"{path} reads 4 extra channels, but the data has 1"):
        expect(loaded, path, n_extra_channels=1)


def test_features_of_a_bare_state_dict_are_compared(tmp_path):
    path = tmp_path / "published.pth"
    torch.save(SSNModel(6).state_dict(), path)
    with pytest.raises(
        InputError, match=r"`n_learned_features` 15 contradicts .*published\.pth, made with 6"
    ):
        expect(load_model(path), path, n_learned_features=15)


def test_unexpected_kind(base_weights, composite_weights):
    with pytest.raises(InputError, match=r"base\.pth holds a base model; expected a composite model"):
        expect(load_model(base_weights), base_weights, kind="composite")
    with pytest.raises(InputError, match=r"composite\.pth holds a composite model; expected a base model"):
        expect(load_model(composite_weights), composite_weights, kind="base")


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
        (
            "other width",
            r"of another architecture, as feature_extract\.scale1\.0\.1\.weight is \(64,\), not \(32,\)",
        ),
        ("missing tensor", "of another architecture, as it lacks feature_extract"),
        ("no model_args", "neither a state dict nor one of our checkpoints"),
        ("edited", "damaged or edited: .* weights_sha256"),
        ("nan", r"feature_extract\.scale1\.0\.0\.weight holds values that are not finite"),
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
    elif content == "other width":
        weights["feature_extract.scale1.0.0.weight"] = torch.zeros(32, 5, 3, 3)
        torch.save(weights, base_weights)
    elif content == "missing tensor":
        del weights["feature_extract.scale1.0.0.weight"]
        torch.save(weights, base_weights)
    elif content == "no model_args":
        torch.save({"weights": weights}, base_weights)
    elif content == "edited":
        checkpoint = torch.load(base_weights, weights_only=True)
        checkpoint["weights"]["feature_extract.output_conv.0.bias"][1] += 1e-6
        torch.save(checkpoint, base_weights)
    elif content == "nan":
        weights["feature_extract.scale1.0.0.weight"][0] = torch.nan
        save_checkpoint({"weights": weights, "model_args": {"n_learned_features": 4}}, base_weights)
    with pytest.raises(InputError, match=message) as caught:
        load_model(base_weights)
    assert str(base_weights) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale1.0.0.weight", torch.ones(64, 5, 3, 3) + 1j, "a dense tensor of real numbers"),
        ("scale1.0.0.weight", torch.ones(64, 5, 3, 3).to_sparse(), "a dense tensor of real numbers"),
        ("scale1.0.0.weight", torch.ones(64, 5, 3, 3, device="meta"), "a dense tensor of real numbers"),
        ("scale1.0.0.weight", torch.ones(64, 5, 3, 3).int(), "holds torch.int32; expected torch.float32"),
        ("scale1.0.0.weight", torch.ones(64, 5, 3, 3).double() * 1e39, "not finite"),
        ("scale1.0.1.running_var", torch.full((64,), -1.0), "negative"),
        ("scale1.0.1.num_batches_tracked", torch.zeros(0).long(), r"is \(0,\), not \(\)"),
        ("scale1.0.1.num_batches_tracked", torch.tensor(3.0), "holds torch.float32; expected torch.int64"),
    ],
)
def test_odd_tensor_is_named(base_weights, name, value, message, recwarn):
    weights = read_checkpoint(base_weights)["weights"]
    torch.save(weights | {f"feature_extract.{name}": value}, base_weights)
    recwarn.clear()
    with pytest.raises(InputError, match=f"{base_weights}: .*feature_extract.{name} .*{message}"):
        load_model(base_weights)
    assert not recwarn.list


def test_half_and_double_precision_are_read(base_weights):
    weights = read_checkpoint(base_weights)["weights"]
    for dtype in (torch.float16, torch.float64):
        torch.save(
            {
                name: value.to(dtype) if value.is_floating_point() else value
                for name, value in weights.items()
            },
            base_weights,
        )
        assert {value.dtype for value in load_model(base_weights).model.parameters()} == {torch.float32}


def test_our_composite_rebuilds_its_model(composite_weights, base_weights):
    model, scales, base_sha256, _ = load_model(composite_weights)
    expected = read_checkpoint(composite_weights)["weights"]
    for name, value in model.state_dict().items():
        assert value.equal(expected[name]), name
    assert model.n_iter == 3
    assert not model.training
    assert scales == InputScales(color_scale=0.3, pos_scale=7.0, extra_scale=2.0)
    assert base_sha256 == file_sha256(base_weights)


def test_architecture_of_a_bare_composite_state_dict(tmp_path):
    model = CompositeSSNModel(6, 3, n_extra_channels=1, n_mid_channels=12)
    torch.save(model.state_dict(), tmp_path / "published.pth")
    model, scales, base_sha256, _ = load_model(tmp_path / "published.pth")
    assert model.config() == {
        "n_learned_features": 6,
        "n_extra_features": 3,
        "n_extra_channels": 1,
        "n_iter": 5,
        "distance": "euclidean",
        "sees_position": True,
        "padding_mode": "zeros",
        "n_mid_channels": 12,
    }
    assert scales == InputScales(color_scale=0.26, pos_scale=10.0, extra_scale=15.0)
    assert base_sha256 is None


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        *(("model_args", "n_iter", value) for value in (0, -1, True, 7.0, "7", None, 10**6, 10**400)),
        ("model_args", "n_learned_features", True),
        ("model_args", "n_learned_features", 10**9),
        ("model_args", "n_extra_features", 2),
        ("model_args", "n_extra_channels", 1),
        ("model_args", "n_heads", 2),
        ("model_args", 3, 2),
        ("model_args", "distance", "cosine"),
        ("model_args", "distance", torch.zeros(2, 2)),
        *(("model_args", "sees_position", value) for value in (1, "False", None)),
        *(("model_args", "padding_mode", value) for value in ("reflect", 0, None, ["zeros"])),
        *(
            ("input_args", "color_scale", value)
            for value in (-1, float("inf"), float("nan"), True, "1", None, 10**400)
        ),
        *(("input_args", "extra_scale", value) for value in (-0.5, [1.0])),
        ("input_args", "depth_scale", 1.0),
        *(
            ("merge_args", "fine_factor", value)
            for value in (3.0, {}, {0: 3.0}, {100: 0.5}, {"100": 3.0}, {100: 1e308}, {2**40: 2.0})
        ),
        *(("merge_args", "merge_pos_scale", value) for value in ([0.5], {100: -0.5}, {100: float("nan")})),
        *(("base_sha256", None, value) for value in ("", "abc", 3, "G" * 64, "A" * 64)),
    ],
)
def test_unusable_setting_is_named(composite_weights, place, name, value):
    checkpoint = read_checkpoint(composite_weights)
    if name is None:
        checkpoint[place] = value
    else:
        checkpoint.setdefault(place, {})[name] = value
    save_checkpoint(checkpoint, composite_weights)
    with pytest.raises(InputError) as caught:
        load_model(composite_weights)
    assert str(composite_weights) in str(caught.value)
    assert str(name or place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padding_is_that_of_the_file_and_zeros_in_older_files(base_weights, composite_weights):
    x = torch.randn(1, 9, 20, 31)
    for path in (base_weights, composite_weights):
        checkpoint = read_checkpoint(path)
        checkpoint["model_args"].pop("padding_mode", None)
        features = []
        for padding in ({}, {"padding_mode": "zeros"}, {"padding_mode": "replicate"}):
            save_checkpoint(checkpoint | {"model_args": checkpoint["model_args"] | padding}, path)
            model = load_model(path).model
            features.append(model.pixel_features(x[:, : 5 + model.n_extra_channels]))
        assert features[0].equal(features[1])
        assert not features[0].equal(features[2])


@pytest.mark.parametrize("settings", [None, [1], "x"])
def test_settings_must_be_a_dict(base_weights, settings):
    save_checkpoint(read_checkpoint(base_weights) | {"input_args": settings}, base_weights)
    with pytest.raises(InputError, match=rf"{base_weights} .*{re.escape(repr(settings))}"):
        load_model(base_weights)


def test_checksum_covers_names_types_shapes_and_values(tmp_path):
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.zeros(2).bfloat16()}
    others = [
        weights | {"a": weights["a"].reshape(3, 2)},
        weights | {"b": torch.tensor(4)},
        weights | {"b": torch.tensor(3, dtype=torch.int32)},
        {"a": weights["a"], "d": weights["b"], "c": weights["c"]},
    ]
    seen = set()
    for each in (weights, *others):
        save_checkpoint({"weights": each, "model_args": {}}, tmp_path / "w.pth")
        seen.add(torch.load(tmp_path / "w.pth", weights_only=True)["weights_sha256"])
        assert read_checkpoint(tmp_path / "w.pth").keys() == {"weights", "model_args"}
    assert len(seen) == 5
    strided = weights | {"a": weights["a"].T.contiguous().T}
    save_checkpoint({"weights": strided, "model_args": {}}, tmp_path / "w.pth")
    assert torch.load(tmp_path / "w.pth", weights_only=True)["weights_sha256"] in seen


def test_every_kind_is_loaded_in_one_read(base_weights, composite_weights, monkeypatch):
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


def test_composite_with_a_tensor_missing(composite_weights):
    weights = read_checkpoint(composite_weights)["weights"]
    del weights["feature_extract_optflow.scale1.0.0.weight"]
    torch.save(weights, composite_weights)
    with pytest.raises(InputError, match="of another architecture, as it lacks feature_extract_optflow"):
        load_model(composite_weights)


def save_base(path, n_learned_features):
    model = SSNModel(n_learned_features, n_iter=3)
    save_checkpoint({"weights": model.state_dict(), "model_args": model.config()}, path)


def test_base_that_a_composite_was_not_trained_on(composite_weights, base_weights, tmp_path):
    composite = load_model(composite_weights)

    def check(base_path, composite=composite):
        check_base_of_composite(load_model(base_path), base_path, composite, composite_weights)

    check(base_weights)
    save_base(tmp_path / "other.pth", 4)
    message = f"trained on top of other base weights .*SHA-256 {file_sha256(base_weights)}"
    with pytest.raises(InputError, match=message):
        check(tmp_path / "other.pth")
    check(
        tmp_path / "other.pth", composite._replace(base_sha256=None)
    )  # published files do not name their base
    save_base(tmp_path / "wide.pth", 5)
    with pytest.raises(InputError, match=r"wide\.pth does not fit .*composite\.pth"):
        check(tmp_path / "wide.pth", composite._replace(base_sha256=None))
    with pytest.raises(InputError, match=r"`base_model_weights` none is no base of .*composite\.pth"):
        check("none")


def test_failed_write_leaves_the_old_file(base_weights):
    before = base_weights.read_bytes()
    with full_disk(10_000), pytest.raises(RunError, match=r"cannot write .*base\.pth"):
        save_checkpoint({"weights": {"large": torch.zeros(100_000)}}, base_weights)
    assert base_weights.read_bytes() == before
    assert list(base_weights.parent.glob(".*")) == []


@pytest.mark.parametrize("is_bare", [False, True])
def test_narrow_network_is_rebuilt(tmp_path, is_bare):
    path, model = tmp_path / "narrow.pth", SSNModel(6, n_mid_channels=8)
    if is_bare:
        torch.save(model.state_dict(), path)
    else:
        save_checkpoint({"weights": model.state_dict(), "model_args": model.config()}, path)
    loaded = load_model(path).model
    assert loaded.config() == model.config()
    assert loaded.state_dict()["feature_extract.scale1.0.0.weight"].shape == (8, 5, 3, 3)
    x = torch.randn(1, 5, 20, 31)
    torch.testing.assert_close(loaded.pixel_features(x), model.eval().pixel_features(x))


def test_composite_keeps_the_width_of_its_base(tmp_path):
    base = SSNModel(6, n_mid_channels=8)
    composite = CompositeSSNModel.on_top_of(base, 3, n_extra_channels=4)
    assert composite.feature_extract_optflow.scale1[0][0].out_channels == 32
    torch.save(base.state_dict(), tmp_path / "base.pth")
    save_checkpoint(
        {"weights": composite.state_dict(), "model_args": composite.config()}, tmp_path / "composite.pth"
    )
    base, composite = (load_model(tmp_path / name) for name in ("base.pth", "composite.pth"))
    assert composite.model.n_mid_channels == 8
    x = torch.randn(1, 9, 20, 31)
    features = composite.model.pixel_features(x)[:, :11]
    torch.testing.assert_close(features, base.model.pixel_features(x[:, :5]))
    check_base_of_composite(base, "base.pth", composite, "composite.pth")
    wide = LoadedModel(SSNModel(6), InputScales())
    with pytest.raises(InputError, match=r"wide\.pth does not fit composite\.pth: its network has another"):
        check_base_of_composite(wide, "wide.pth", composite, "composite.pth")


def test_stated_width_that_contradicts_the_weights(tmp_path):
    model = SSNModel(6, n_mid_channels=8)
    model_args = {**model.config(), "n_mid_channels": 16}
    save_checkpoint({"weights": model.state_dict(), "model_args": model_args}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth has n_mid_channels 16, but its weights have 8"):
        load_model(tmp_path / "w.pth")


SETTINGS = {"pos_scale": 8.4, "n_iter": 9, "merging": MergeSettings({100: 5.0}, {100: 0.2, 400: 1.0})}


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("kind", ["base", "composite"])
def test_stored_settings_replace_the_earlier_ones_alone(request, kind, with_out, tmp_path):
    path = request.getfixturevalue(f"{kind}_weights")
    content = path.read_bytes()
    before, loaded = read_checkpoint(path), load_model(path)
    out = tmp_path / "out.pth" if with_out else path
    store_settings(path, out, **SETTINGS)
    if with_out:
        assert path.read_bytes() == content
    after = read_checkpoint(out)
    for name, value in before["weights"].items():
        assert after["weights"][name].equal(value), name
    assert after.pop("model_args") == {**before["model_args"], "n_iter": 9}
    assert after.pop("input_args") == {**before["input_args"], "pos_scale": 8.4}
    assert after.pop("merge_args") == SETTINGS["merging"]._asdict()
    assert after.keys() == before.keys() - {"model_args", "input_args", "merge_args"}
    assert after.get("base_sha256") == before.get("base_sha256")

    stored = load_model(out)
    assert stored.model.config() == {**loaded.model.config(), "n_iter": 9}
    assert stored.scales == loaded.scales._replace(pos_scale=8.4)
    assert stored.merging == SETTINGS["merging"]


@pytest.mark.parametrize("kind", ["base", "composite"])
def test_settings_are_stored_with_a_bare_state_dict(tmp_path, kind):
    model = SSNModel(6) if kind == "base" else CompositeSSNModel(6, 3, n_extra_channels=1)
    path = tmp_path / "published.pth"
    torch.save(model.state_dict(), path)
    implied = load_model(path)
    store_settings(path, path, **SETTINGS)
    stored = load_model(path)
    for name, value in model.state_dict().items():
        assert stored.model.state_dict()[name].equal(value), name
    assert stored.model.config() == {**implied.model.config(), "n_iter": 9}
    assert stored.scales == implied.scales._replace(pos_scale=8.4)
    assert stored.merging == SETTINGS["merging"]


def test_settings_are_stored_with_every_entry_of_a_training(base_weights):
    """As in the best model of a run: options, recipe and score stay."""
    entries = {"options": {"lr": "0.01"}, "recipe": {"n_spixels": (24, 24)}, "step": 3, "score": 0.5}
    save_checkpoint({**read_checkpoint(base_weights), **entries}, base_weights)
    store_settings(base_weights, base_weights, **SETTINGS)
    stored = read_checkpoint(base_weights)
    assert {name: stored[name] for name in entries} == entries


@pytest.fixture
def as_safetensors(tmp_path):
    """Return a function that writes a checkpoint as a .safetensors file."""
    pytest.importorskip("safetensors", reason="needs safetensors")

    def write(checkpoint):
        save_checkpoint(checkpoint, tmp_path / "file.safetensors")
        return tmp_path / "file.safetensors"

    return write


def check_same_model(loaded, expected):
    for name, value in expected.model.state_dict().items():
        assert loaded.model.state_dict()[name].equal(value), name
    assert loaded.model.config() == expected.model.config()
    assert loaded[1:] == expected[1:]
    assert (loaded.kind, loaded.model.training) == (expected.kind, False)


@pytest.mark.parametrize("kind", ["base", "small", "composite"])
def test_safetensors_hold_the_same_model(kind, as_safetensors):
    loaded = load_model(shipped_weights(kind))
    written = as_safetensors({"weights": loaded.model.state_dict(), **loaded.settings()})
    check_same_model(load_model(written), loaded)


def test_safetensors_of_a_checkpoint_leave_the_training_out(base_weights, as_safetensors):
    checkpoint = {**read_checkpoint(base_weights), "step": 3, "optimizer": {"moments": torch.zeros(3)}}
    assert read_checkpoint(as_safetensors(checkpoint)).keys() == {"weights", "model_args", "input_args"}


def test_safetensors_of_a_bare_state_dict(tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    model = SSNModel(6)
    safetensors_torch.save_file(model.state_dict(), tmp_path / "converted.safetensors")
    check_same_model(load_model(tmp_path / "converted.safetensors"), LoadedModel(model.eval(), InputScales()))


def test_settings_are_stored_in_safetensors(as_safetensors, composite_weights):
    path = as_safetensors(read_checkpoint(composite_weights))
    store_settings(path, path, **SETTINGS)
    store_settings(composite_weights, composite_weights, **SETTINGS)
    check_same_model(load_model(path), load_model(composite_weights))
    assert load_model(path).merging == SETTINGS["merging"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model_args", {"n_iter": 0}),
        ("model_args", [3]),
        ("input_args", {"color_scale": -1}),
        ("input_args", None),
        ("merge_args", {"fine_factor": {0: 3.0}}),
        ("merge_args", {"fine_factor": {"x": 3.0}}),
        ("merge_args", {"merge_pos_scale": {10**12: 3.0}}),
        ("merge_args", {"fine_factor": 3.0}),
        ("merge_args", "x"),
        ("base_sha256", "abc"),
    ],
)
def test_unusable_setting_in_safetensors_is_named(base_weights, as_safetensors, place, value):
    path = as_safetensors({**read_checkpoint(base_weights), place: value})
    with pytest.raises(InputError, match=f"{path}") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_other_tensors_in_safetensors(as_safetensors):
    with pytest.raises(InputError, match="neither a state dict nor one of our checkpoints"):
        load_model(as_safetensors({"weights": {}, "model_args": {}}))
    with pytest.raises(InputError, match="holds no model of this repo"):
        load_model(as_safetensors({"weights": {"fc.weight": torch.zeros(2)}, "model_args": {}}))
    weights = {**SSNModel(4).state_dict(), "feature_extract.output_conv.0.bias": torch.full((4,), torch.inf)}
    with pytest.raises(InputError, match=r"output_conv\.0\.bias holds values that are not finite"):
        load_model(as_safetensors({"weights": weights, "model_args": {}}))


def test_suffix_chooses_the_format(base_weights, as_safetensors, tmp_path):
    written = as_safetensors(read_checkpoint(base_weights))
    upper = written.rename(tmp_path / "FILE.SAFETENSORS")
    check_same_model(load_model(upper), load_model(base_weights))
    with pytest.raises(InputError, match=r"file\.pth is not a readable weight file"):
        load_model(upper.rename(tmp_path / "file.pth"))
