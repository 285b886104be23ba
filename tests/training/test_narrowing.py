"""Networks that start from the strongest channels of a wider one."""

import pytest
import torch
from torch import nn

from lib.network.convolution import PADDING_MODES
from lib.training.narrowing import _blocks, _mean_square_after_relu, copy_strongest_channels
from model import FeatureExtractor

N_WIDE = 12


@pytest.fixture(params=PADDING_MODES)
def make_extractor(request):
    """Return a function that makes a network of a given width, in eval mode and with random statistics."""

    def make(n_mid_channels):
        extractor = FeatureExtractor(5, 3, n_mid_channels, padding_mode=request.param).eval()
        for norm in norms(extractor):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.5)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
        return extractor

    return make


def norms(extractor):
    return [module for module in extractor.modules() if isinstance(module, nn.BatchNorm2d)]


def readers(extractor, idx):
    """Return the weights that read the channels of a block, (n_out_channels, N_WIDE, 3, 3) each."""
    blocks = _blocks(extractor)
    weights = [block[0].weight.data for block in blocks[idx + 1 : idx + 2]]
    if idx % 2 == 1:
        start = 5 + N_WIDE * (idx // 2)
        weights.append(extractor.output_conv[0].weight.data[:, start : start + N_WIDE])
    return weights


def outputs(extractor):
    x = torch.randn(2, 5, 21, 31, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return extractor(x)


def narrowed(make_extractor, wide, n_mid_channels):
    narrow = make_extractor(n_mid_channels)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    copy_strongest_channels(narrow, wide)
    assert all(value.equal(before[name]) for name, value in wide.state_dict().items())
    return narrow


def test_network_of_equal_width_is_a_copy(make_extractor):
    wide = make_extractor(N_WIDE)
    torch.testing.assert_close(outputs(narrowed(make_extractor, wide, N_WIDE)), outputs(wide), rtol=0, atol=0)


def leave_unread(wide):
    """Let nothing read half the channels of each block, and one layer alone read each of the others.

    Channels at the end of a scale can be read by the next scale, by the output, or by both.
    """
    for idx in range(6):
        order = torch.randperm(N_WIDE)
        weights = readers(wide, idx)
        for weight in weights:
            weight[:, order[6:]] = 0
        if len(weights) == 2:
            weights[0][:, order[:3]] = 0
            weights[1][:, order[3:6]] = 0


def silence(wide):
    """Make half the channels of each block always zero after ReLU; they are read by large weights."""
    for idx, norm in enumerate(norms(wide)):
        silent = torch.randperm(N_WIDE)[:6]
        norm.bias.data[silent] = -10.0
        norm.weight.data[silent] = torch.tensor([0.1, -0.1, 0.0, 0.01, -0.01, 0.1])
        for weight in readers(wide, idx):
            weight[:, silent] *= 100


@pytest.mark.parametrize("waste", [leave_unread, silence])
def test_channels_without_effect_are_left_out(make_extractor, waste):
    wide = make_extractor(N_WIDE)
    waste(wide)
    torch.testing.assert_close(outputs(narrowed(make_extractor, wide, 6)), outputs(wide), rtol=0, atol=1e-5)


def reorder_channels(wide):
    for idx, (conv, norm, _) in enumerate(_blocks(wide)):
        order = torch.randperm(N_WIDE)
        for values in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.data.copy_(values.data[order])
        for weight in readers(wide, idx):
            weight.copy_(weight[:, order])


def flip_signs(wide):
    """Flip the sign of half the channels before batch norm, which flips it back."""
    for conv, norm, _ in _blocks(wide):
        sign = torch.tensor([-1.0, 1.0])[torch.randperm(N_WIDE) % 2]
        conv.weight.data *= sign[:, None, None, None]
        norm.weight.data *= sign
        norm.running_mean *= sign


def scale_up(wide):
    """Make the channels before batch norm, which divides by their standard deviation, 100 times as large."""
    for conv, norm, _ in _blocks(wide):
        conv.weight.data *= 100
        norm.running_mean *= 100
        norm.running_var.copy_(100**2 * (norm.running_var + norm.eps) - norm.eps)


@pytest.mark.parametrize("change", [reorder_channels, flip_signs, scale_up])
def test_equivalent_networks_have_the_same_result(make_extractor, change):
    wide = make_extractor(N_WIDE)
    original = outputs(wide)
    expected = outputs(narrowed(make_extractor, wide, 5))
    assert (expected - original)[:, :3].abs().max() > 0.01  # channels that had an effect are missing
    change(wide)
    torch.testing.assert_close(outputs(wide), original, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs(narrowed(make_extractor, wide, 5)), expected, rtol=0, atol=1e-5)


def test_mean_square_after_relu():
    mean, std = torch.meshgrid(torch.linspace(-4, 4, 9), torch.tensor([0.05, 0.5, 1.0, 3.0]), indexing="ij")
    x = mean[..., None].double() + std[..., None] * torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.distributions.Normal(mean[..., None].double(), std[..., None]).log_prob(x).exp()
    expected = torch.trapezoid(x.clamp(min=0).square() * density, x, dim=-1)
    torch.testing.assert_close(_mean_square_after_relu(mean, std).double(), expected, rtol=1e-5, atol=1e-5)


def test_mean_square_of_constants_after_relu():
    mean = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(_mean_square_after_relu(mean, torch.zeros(3)), torch.tensor([0.0, 0.0, 9.0]))
