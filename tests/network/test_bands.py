"""Bands of rows: those of a network's features, and of a model's."""

import pytest
import torch

from lib.network.bands import split_into_bands
from model import CompositeSSNModel, SSNModel, SSNPix

MODELS = [
    SSNModel(4, n_mid_channels=8),
    SSNModel(4, n_mid_channels=8, sees_position=False, padding_mode="replicate"),
    CompositeSSNModel(4, 3, n_extra_channels=2, n_mid_channels=8),
    SSNPix(),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("shape", [(61, 45), (130, 23), (20, 31), (3, 1)])
@torch.no_grad()
def test_band_has_the_bits_of_the_image(shape, model, device, monkeypatch):
    monkeypatch.setattr("lib.network.bands._BAND_ROWS", 16)
    monkeypatch.setattr("lib.network.bands._BAND_PIXELS", 1)
    model = model.eval().to(device)
    channels = torch.randn(1, 5 + model.n_extra_channels, *shape, device=device)
    channels = channels.contiguous(memory_format=torch.channels_last)
    features = model.pixel_features(channels)
    bands = list(split_into_bands(*shape))
    assert [row for band in bands for row in range(band.start, band.stop)] == list(range(shape[0]))
    for band in bands:
        context = channels[:, :, band.context].clone(memory_format=torch.channels_last)
        learned = model.encode(context, band=band)
        of_band = model.assemble(learned, context[:, :, band.own])
        assert of_band.equal(features[:, :, band.start : band.stop])
