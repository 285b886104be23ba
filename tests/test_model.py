"""Architecture, state-dict names and the outputs of the models."""

import torch
import torch.nn.functional as F

from model import FeatureExtractor, SSNModel, SSNPix

# Names and shapes of the published base weights.
PUBLISHED_SHAPES = {
    "feature_extract.output_conv.0.weight": (15, 197, 3, 3),
    "feature_extract.output_conv.0.bias": (15,),
}
for _block, _n_in in (
    ("scale1.0", 5),
    ("scale1.1", 64),
    ("scale2.1", 64),
    ("scale2.2", 64),
    ("scale3.1", 64),
    ("scale3.2", 64),
):
    PUBLISHED_SHAPES[f"feature_extract.{_block}.0.weight"] = (64, _n_in, 3, 3)
    for _name in ("weight", "bias", "running_mean", "running_var"):
        PUBLISHED_SHAPES[f"feature_extract.{_block}.1.{_name}"] = (64,)
    PUBLISHED_SHAPES[f"feature_extract.{_block}.1.num_batches_tracked"] = ()


def test_state_dict_has_the_published_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in SSNModel().state_dict().items()}
    assert shapes == PUBLISHED_SHAPES


def test_features_are_those_of_the_literal_architecture():
    network = FeatureExtractor(5, 4, 8).eval()
    x = torch.randn(2, 5, 21, 30)
    scale1 = network.scale1(x)
    scale2 = network.scale2(scale1)
    scale3 = network.scale3(scale2)
    assert scale2.shape[2:] == (11, 15)
    assert scale3.shape[2:] == (6, 8)
    resized = [F.interpolate(s, size=(21, 30), mode="bilinear") for s in (scale2, scale3)]
    learned = network.output_conv(torch.cat([x, scale1, *resized], dim=1))
    torch.testing.assert_close(network(x), torch.cat([learned, x], dim=1))


def test_input_is_appended_only_on_request():
    x = torch.randn(1, 4, 16, 12)
    assert FeatureExtractor(4, 10, 32, concat_input=False)(x).shape == (1, 10, 16, 12)


def test_output_of_the_base_model(device):
    model = SSNModel(7, n_iter=2).to(device)
    labyx = torch.randn(2, 5, 20, 31, device=device)
    output = model(labyx, 12)
    assert output.pixel_features.shape == (2, 12, 20, 31)
    assert output.pixel_features[:, -5:].equal(labyx)
    assert output.spixel_features.shape == (2, 12, 8)
    assert output.labels.shape == (2, 20, 31)
    assert output.labels.equal(output.assignment.labels())


def test_training_reaches_every_weight():
    model = SSNModel(4, n_iter=2)
    output = model(torch.randn(2, 5, 20, 31), 12)
    output.assignment.reconstruct(torch.randn(2, 3, 20, 31)).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 0, name


def test_position_invariant_features_do_not_depend_on_position():
    model = SSNModel(4).eval()
    labyx = torch.randn(1, 5, 20, 31)
    moved = labyx.clone()
    moved[:, 3:] += 5
    features = model.position_invariant_features(labyx)
    assert features.shape == (1, 4, 20, 31)
    torch.testing.assert_close(features, model.position_invariant_features(moved))
    assert not torch.allclose(model.pixel_features(labyx), model.pixel_features(moved))


def test_distances_stay_float32_under_autocast():
    model = SSNModel(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(1, 5, 20, 31), 12)
    assert output.assignment.affinity.dtype == torch.float32
    assert output.pixel_features.dtype == torch.float32


def test_model_without_network_clusters_its_input():
    labyx = torch.randn(1, 5, 20, 31)
    assert SSNPix()(labyx, 12).pixel_features.equal(labyx)
