"""Test the architecture, the state-dict names and the outputs of the models."""

import pytest
import torch
import torch.nn.functional as F

from lib.network.bands import extract_in_bands
from lib.network.convolution import PADDING_MODES, ConvBlock, InputConvBlock
from lib.network.inputs import InputScales, model_input
from lib.runtime.device import full_precision
from lib.slic import slic
from model import CompositeSSNModel, FeatureExtractor, SSNModel, SSNPix, without_position


def published_shapes(extractor, n_in, n_mid, n_out):
    """Return the names and shapes of an extractor's tensors in the published weights."""
    shapes = {
        f"{extractor}.output_conv.0.weight": (n_out, n_in + 3 * n_mid, 3, 3),
        f"{extractor}.output_conv.0.bias": (n_out,),
    }
    for block in ("scale1.0", "scale1.1", "scale2.1", "scale2.2", "scale3.1", "scale3.2"):
        n_block_in = n_in if block == "scale1.0" else n_mid
        shapes[f"{extractor}.{block}.0.weight"] = (n_mid, n_block_in, 3, 3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{extractor}.{block}.1.{name}"] = (n_mid,)
        shapes[f"{extractor}.{block}.1.num_batches_tracked"] = ()
    return shapes


def shapes_of(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_state_dicts_have_published_names_and_shapes():
    assert shapes_of(SSNModel()) == published_shapes("feature_extract", 5, 64, 15)
    color = published_shapes("feature_extract_color", 5, 64, 15)
    flow = published_shapes("feature_extract_optflow", 4, 32, 10)
    assert shapes_of(CompositeSSNModel()) == color | flow


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_features_equal_plain_architecture(padding_mode):
    network = FeatureExtractor(5, 4, 8, padding_mode=padding_mode).eval()
    x = torch.randn(2, 5, 21, 30)
    scale1 = network.scale1(x)
    scale2 = network.scale2(scale1)
    scale3 = network.scale3(scale2)
    assert scale2.shape[2:] == (11, 15)
    assert scale3.shape[2:] == (6, 8)
    resized = [F.interpolate(s, size=(21, 30), mode="bilinear") for s in (scale2, scale3)]
    learned = network.output_conv(torch.cat([x, scale1, *resized], dim=1))
    torch.testing.assert_close(network(x), torch.cat([learned, x], dim=1))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_features_without_gradients_are_equal(padding_mode):
    network = FeatureExtractor(5, 4, 8, padding_mode=padding_mode)
    for module in network.modules():  # statistics and weights as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    x = torch.randn(2, 5, 21, 30)
    network.eval()
    with torch.no_grad():
        folded = network(x)
    torch.testing.assert_close(folded, network(x), rtol=1e-4, atol=1e-4)
    network.train()
    before = network.scale1[0][1].running_mean.clone()
    with torch.no_grad():
        network(x)
    assert not network.scale1[0][1].running_mean.equal(before)


@pytest.mark.parametrize("block_class", [ConvBlock, InputConvBlock])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_blocks_are_the_layers_they_hold(block_class, padding_mode):
    block = block_class(3, 4, padding_mode)
    x = torch.randn(2, 3, 9, 7)
    conv, norm, relu = block
    assert conv.padding_mode == padding_mode
    assert block(x).equal(relu(norm(conv(x))))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("extract", [FeatureExtractor.forward, extract_in_bands])
def test_replicated_borders_of_an_even_image_look_like_its_middle(extract, training, device):
    x = torch.randn(1, 5, 1, 1, device=device).expand(-1, -1, 37, 26)
    for padding_mode in PADDING_MODES:
        network = FeatureExtractor(5, 4, 8, padding_mode=padding_mode).train(training).to(device)
        with torch.no_grad():
            features = extract(network, x)
        is_even = torch.allclose(features, features[..., 18:19, 13:14], rtol=0, atol=1e-4)
        assert is_even == (padding_mode == "replicate")


def test_unknown_padding_is_rejected():
    for model_class in (SSNModel, CompositeSSNModel):
        with pytest.raises(ValueError, match=r"padding_mode .*'reflect'"):
            model_class(padding_mode="reflect")


def test_both_networks_of_a_composite_pad_as_its_base():
    base = SSNModel(4, padding_mode="replicate")
    composite = CompositeSSNModel.on_top_of(base, 3, n_extra_channels=2)
    for model in (base, composite, type(composite)(**composite.config())):
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        assert len(convolutions) in (7, 14)
        assert {conv.padding_mode for conv in convolutions} == {"replicate"}
    assert SSNModel(4).padding_mode == CompositeSSNModel(4).padding_mode == "zeros"


def test_input_is_appended_only_on_request():
    x = torch.randn(1, 4, 16, 12)
    assert FeatureExtractor(4, 10, 32, concat_input=False)(x).shape == (1, 10, 16, 12)


def test_base_model_output(device):
    model = SSNModel(7, n_iter=2).to(device)
    labyx = torch.randn(2, 5, 20, 31, device=device)
    output = model(labyx, 12)
    assert output.pixel_features.shape == (2, 12, 20, 31)
    assert output.pixel_features[:, -5:].equal(labyx)
    assert output.spixel_features.shape == (2, 12, 8)
    assert output.labels.shape == (2, 20, 31)
    assert output.labels.equal(output.assignment.labels())


def backward_through(model, channels):
    output = model(channels, 12)
    values = torch.randn(2, 3, 20, 31, device=channels.device)
    output.assignment.reconstruct(values).square().sum().backward()


def test_training_reaches_every_weight():
    model = SSNModel(4, n_iter=2)
    backward_through(model, torch.randn(2, 5, 20, 31))
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 0, name


def test_tensors_on_two_devices_are_refused():
    channels = torch.empty(1, 5, 20, 31, device="meta")
    with pytest.raises(ValueError, match=r"one device, got channels on meta, model on cpu; .*\.to\(device\)"):
        SSNModel(4)(channels, 12)
    with pytest.raises(ValueError, match="image_lab on cpu, model on meta"):
        model_input(SSNModel(4).to("meta"), torch.rand(1, 3, 20, 31), 12, InputScales())
    extra = torch.empty(1, 4, 20, 31, device="meta")
    with pytest.raises(ValueError, match="image_lab on cpu, extra on meta, model on cpu"):
        model_input(CompositeSSNModel(4), torch.rand(1, 3, 20, 31), 12, InputScales(), extra=extra)


@pytest.mark.parametrize("n_extra_channels", [1, 4])
def test_composite_training_keeps_base_unchanged(device, n_extra_channels):
    base = SSNModel(4, n_iter=2)
    model = CompositeSSNModel.on_top_of(base, 3, n_extra_channels=n_extra_channels).to(device)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(3):
        model.train()
        backward_through(model, torch.randn(2, 5 + n_extra_channels, 20, 31, device=device))
        optimizer.step()
    assert not model.feature_extract_color.training
    assert model.feature_extract_optflow.training
    for name, value in model.state_dict().items():
        assert value.equal(before[name]) == name.startswith("feature_extract_color."), name
    for name, value in base.state_dict().items():
        assert value.equal(before[name.replace("feature_extract", "feature_extract_color")].cpu())


def test_composite_output(device):
    base = SSNModel(7, n_iter=2).eval().to(device)
    model = CompositeSSNModel.on_top_of(base, 3, n_extra_channels=2).eval().to(device)
    channels = torch.randn(2, 7, 20, 31, device=device)
    with torch.no_grad():
        output = model(channels, 12)
        base_features = base.pixel_features(channels[:, :5])
        extra_features = model.feature_extract_optflow(channels[:, 5:])
    assert output.pixel_features.shape == (2, 15, 20, 31)
    assert output.pixel_features[:, :12].equal(base_features)
    assert output.pixel_features[:, 12:].equal(extra_features)
    assert output.spixel_features.shape == (2, 15, 8)


def test_config_rebuilds_model():
    base = SSNModel(7, n_iter=3, distance="squared")
    composite = CompositeSSNModel.on_top_of(base, 2, n_extra_channels=1)
    for model in (base, composite):
        rebuilt = type(model)(**model.config())
        assert shapes_of(rebuilt) == shapes_of(model)
        assert (rebuilt.n_iter, rebuilt.distance) == (3, "squared")


@pytest.mark.parametrize("model_class", [SSNModel, CompositeSSNModel])
def test_unknown_distance_is_rejected(model_class):
    with pytest.raises(ValueError, match=r"distance .*'cosine'"):
        model_class(distance="cosine")


def test_features_without_position_ignore_position():
    model = SSNModel(4).eval()
    labyx = torch.randn(1, 5, 20, 31)
    moved = labyx.clone()
    moved[:, 3:] += 5
    features = model.encode(without_position(labyx)).base
    assert features.shape == (1, 4 + 5, 20, 31)
    torch.testing.assert_close(features, model.encode(without_position(moved)).base)
    assert not torch.allclose(model.pixel_features(labyx), model.pixel_features(moved))


def test_position_independent_features_are_reused():
    base = SSNModel(4).eval()
    model = CompositeSSNModel.on_top_of(base, 3, n_extra_channels=2).eval()
    channels = torch.randn(1, 7, 20, 31)
    learned = model.encode(channels)
    moved = without_position(channels)
    invariant = model.encode(moved, learned)
    torch.testing.assert_close(invariant.base, base.encode(moved[:, :5]).base)
    assert invariant.extra is learned.extra
    assert model.assemble(learned, channels).equal(model.pixel_features(channels))
    blind = SSNModel(4, sees_position=False).eval()
    known = blind.encode(channels[:, :5])
    assert blind.encode(moved[:, :5], known) is known
    assert blind.assemble(known, channels[:, :5])[:, 4:].equal(channels[:, :5])


def test_distances_stay_float32_under_autocast():
    model = SSNModel(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(1, 5, 20, 31), 12)
    assert output.assignment.affinity.dtype == torch.float32
    assert output.pixel_features.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_only_a_network_in_training_may_round_to_tf32(training, monkeypatch):
    seen = {}

    def record(name, function):
        def recording(*args, **options):
            seen[name] = (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
            return function(*args, **options)

        return recording

    network = SSNModel(4).train(training)
    monkeypatch.setattr(network, "encode", record("network", network.encode))
    monkeypatch.setattr("model.slic", record("clustering", slic))
    torch.set_float32_matmul_precision("high")
    try:
        network(torch.randn(1, 5, 20, 31), 12)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == {
        "network": (True, "high") if training else (False, "highest"),
        "clustering": (False, "highest"),
    }


def test_model_without_network_clusters_its_input():
    labyx = torch.randn(1, 5, 20, 31)
    assert SSNPix()(labyx, 12).pixel_features.equal(labyx)


@pytest.mark.parametrize("sees_position", [False, True])
def test_sees_position_controls_dependence_on_position(sees_position):
    model = SSNModel(3, sees_position=sees_position).eval()
    composite = CompositeSSNModel.on_top_of(model, 2, n_extra_channels=1).eval()
    assert composite.sees_position == sees_position
    labyx = torch.randn(1, 5, 20, 31)
    moved = labyx.clone()
    moved[:, 3:] += 5
    extra = torch.randn(1, 1, 20, 31)
    for features, moved_features in (
        (model.pixel_features(labyx), model.pixel_features(moved)),
        (
            composite.pixel_features(torch.cat([labyx, extra], 1)),
            composite.pixel_features(torch.cat([moved, extra], 1)),
        ),
    ):
        assert features[:, :3].equal(moved_features[:, :3]) != sees_position
        assert features[:, 3:8].equal(labyx)  # the position is clustered in either case
    assert SSNModel(**model.config()).sees_position == sees_position


def test_compiled_network_keeps_state_dict_names(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    model, composite = SSNModel(3), CompositeSSNModel(3)
    names = [list(each.state_dict()) for each in (model, composite)]
    model.compile_network()
    composite.compile_network()
    assert compiled == [
        model.feature_extract,
        composite.feature_extract_color,
        composite.feature_extract_optflow,
    ]
    assert names == [list(each.state_dict()) for each in (model, composite)]


@pytest.mark.parametrize("size", [(97, 41), (100, 40), (130, 33), (61, 30), (1, 90), (90, 1)])
@pytest.mark.parametrize(("band_rows", "strip_rows"), [(12, 1000), (1000, 5), (28, 7)])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_bands_and_strips_equal_whole_image(size, band_rows, strip_rows, padding_mode, monkeypatch, device):
    # In float64, all algorithms that cuDNN may choose for a size agree.
    extractor = FeatureExtractor(5, 7, n_mid_channels=8, padding_mode=padding_mode)
    extractor = extractor.eval().to(device, torch.float64)
    for module in extractor.modules():  # statistics as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 5, *size, dtype=torch.float64, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    for name, n_rows in (("BAND", band_rows), ("STRIP", strip_rows)):
        monkeypatch.setattr(f"lib.network.bands._{name}_ROWS", n_rows)
        monkeypatch.setattr(f"lib.network.bands._{name}_PIXELS", 1)
    n_bands, n_strips = [], []
    extractor.scale1.register_forward_hook(lambda *_: n_strips.append(1))
    extractor.scale2.register_forward_hook(lambda *_: n_bands.append(1))
    with torch.inference_mode():
        parts = extractor(x)
    assert len(n_bands) == -(-size[0] // band_rows)
    if device.type == "cpu" and band_rows == 1000:
        assert len(n_strips) == -(-size[0] // strip_rows)
    whole = extractor(x)  # with gradients enabled
    assert len(n_bands) == 1 - (-size[0] // band_rows)
    # Bands compute the positions of resized rows in float32: 5e-7. Too little context is off by 1e-5 or more.
    torch.testing.assert_close(parts, whole.detach(), rtol=0, atol=2e-6)


def test_bands_of_default_size_equal_whole_image(device):
    extractor = FeatureExtractor(1, 2, n_mid_channels=2).eval().to(device)
    x = torch.randn(1, 1, 900, 1100, device=device)
    n_bands = []
    extractor.scale2.register_forward_hook(lambda *_: n_bands.append(1))
    with full_precision():
        with torch.inference_mode():
            parts = extractor(x)
        assert len(n_bands) == 4
        whole = extractor(x).detach()
    # cuDNN chooses algorithms by size, and some round more; TF32 alone would differ by 1e-4 to 5e-4.
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5 if device.type == "cpu" else 5e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_positions_keep_their_precision_under_autocast(training, padding_mode, device):
    """In bfloat16, 150 and 150.25 are the same number."""
    extractor = FeatureExtractor(1, 3, concat_input=False, padding_mode=padding_mode)
    extractor = extractor.train(training).to(device)
    position = torch.full((1, 1, 8, 8), 150.0, device=device)
    with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
        features, moved = extractor(position), extractor(position + 0.25)
    assert features.dtype == torch.float32
    assert not features.equal(moved)
