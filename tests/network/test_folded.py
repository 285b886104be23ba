"""Networks rewritten for export compute what the models compute."""

import pytest
import torch
from torch import nn

from lib.network.folded import FoldedModel
from lib.runtime.device import full_precision
from model import CompositeSSNModel, SSNModel


def shuffle_norms(model):
    """Give batch norm the weights and statistics of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(value)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


MODELS = {
    "base": lambda: SSNModel(4, n_mid_channels=8),
    "replicated border": lambda: SSNModel(4, n_mid_channels=8, padding_mode="replicate"),
    "blind to position": lambda: SSNModel(4, n_mid_channels=8, sees_position=False),
    "composite": lambda: CompositeSSNModel(4, 3, n_extra_channels=2, n_mid_channels=8),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 20, 31), (1, 67, 9)])
def test_folded_model_computes_the_same_features(name, size, device):
    model = shuffle_norms(MODELS[name]()).to(device)
    batch, height, width = size
    channels = torch.randn(batch, 5 + model.n_extra_channels, height, width, device=device)
    before = channels.clone()
    with torch.no_grad(), full_precision():
        expected = model.pixel_features(channels)
        features = FoldedModel(model)(channels)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert channels.equal(before)


def test_the_model_itself_stays_as_it_is():
    model = SSNModel(4, n_mid_channels=8).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = FoldedModel(model)
    assert model.training
    assert not folded.model.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(value.requires_grad for value in model.parameters())
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name
