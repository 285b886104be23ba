"""Start a narrow network from the channels of a wide trained one that matter most to the rest of it.

References
----------
.. [1] Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, which ranks channels by their weights
   alone; here they are ranked by what the layers that read them receive.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from lib.network.convolution import ConvBlock
from model import FeatureExtractor


@torch.no_grad()
def copy_strongest_channels(narrow: FeatureExtractor, wide: FeatureExtractor) -> None:
    """Replace the weights of a network by those of the strongest channels of a wider one.

    Both read the same channels and return as many features. If both are equally wide, the result is a copy.
    """
    n_kept = narrow.scale1[0][0].out_channels
    output, narrow_output = wide.output_conv[0], narrow.output_conv[0]
    n_wide = wide.scale1[0][0].out_channels
    n_inputs = output.in_channels - 3 * n_wide
    inputs, *scales = output.weight.split([n_inputs, n_wide, n_wide, n_wide], dim=1)
    blocks = _blocks(wide)
    read = torch.arange(n_inputs)  # channels of the wide network that the next block reads
    for idx, (block, copy) in enumerate(zip(blocks, _blocks(narrow), strict=True)):
        readers = [following[0].weight for following in blocks[idx + 1 : idx + 2]]
        is_end_of_scale = idx % 2 == 1
        if is_end_of_scale:
            readers.append(scales[idx // 2])
        kept = _strongest_channels(block[1], readers, n_kept)
        copy[0].weight.copy_(block[0].weight[kept][:, read])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(copy[1], name).copy_(getattr(block[1], name)[kept])
        if is_end_of_scale:
            scales[idx // 2] = scales[idx // 2][:, kept]
        read = kept
    narrow_output.weight.copy_(torch.cat([inputs, *scales], dim=1))
    narrow_output.bias.copy_(output.bias)


def _blocks(extractor: FeatureExtractor) -> list[ConvBlock]:
    """Return the two blocks of each scale, finest first."""
    return [module for module in extractor.modules() if isinstance(module, ConvBlock)]


def _strongest_channels(norm: nn.BatchNorm2d, readers: Sequence[Tensor], n_kept: int) -> Tensor:
    """Return the channels after `norm` and ReLU that contribute most to the convolutions `readers`, sorted.

    The contribution to a convolution is the mean square of the channel times the sum of the squared weights
    that read it, as a share of the sum over all channels.
    """
    power = _mean_square_after_relu(norm.bias, norm.weight.abs())
    contributions = [power * weight.square().sum(dim=(0, 2, 3)) for weight in readers]
    share = torch.stack([F.normalize(each, p=1, dim=0) for each in contributions]).sum(dim=0)
    return share.topk(n_kept).indices.sort().values


def _mean_square_after_relu(mean: Tensor, std: Tensor) -> Tensor:
    """Return the mean of max(x, 0)^2 for normally distributed x."""
    standard = Normal(0.0, 1.0)
    ratio = mean / std.clamp(min=1e-6)
    density = standard.log_prob(ratio).exp()
    return (mean.square() + std.square()) * standard.cdf(ratio) + mean * std * density
