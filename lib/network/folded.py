"""Rewrite a network for export: whole images, batch norm folded into the convolutions, no branches."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.convolution import ConvBlock, convolve_concatenation


class FoldedModel(nn.Module):
    """Map scaled channels (B, C_in, H, W) of any size to the pixel features of a model, (B, C, H, W).

    It holds a copy of the model in evaluation mode, with each `FeatureExtractor` replaced by a
    `FoldedExtractor`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for name, extractor in list(self.model.named_children()):
            setattr(self.model, name, FoldedExtractor(extractor))
        self.eval().requires_grad_(False)

    def forward(self, channels: Tensor) -> Tensor:
        return self.model.pixel_features(channels)


class FoldedExtractor(nn.Module):
    """Compute what a `FeatureExtractor` in evaluation mode computes, always on the whole image.

    Exporters record the operations on one example, so no operation may depend on the size of an image or on
    the state of PyTorch.
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.concat_input = extractor.concat_input
        self.scale1, self.scale2, self.scale3 = (
            nn.Sequential(*map(_fold, scale))
            for scale in (extractor.scale1, extractor.scale2, extractor.scale3)
        )
        self.output_conv = extractor.output_conv

    def forward(self, x: Tensor) -> Tensor:
        scale1 = self.scale1(x)
        scale2 = self.scale2(scale1)
        scale3 = self.scale3(scale2)
        resized = [F.interpolate(scale, size=x.shape[2:], mode="bilinear") for scale in (scale2, scale3)]
        # One convolution of the concatenation rounds five times as much on CPUs.
        learned = convolve_concatenation([x, scale1, *resized], self.output_conv[0])
        return torch.cat([learned, x], dim=1) if self.concat_input else learned


@torch.no_grad()
def _fold(layer: nn.Module) -> nn.Module:
    """Return a convolution with bias and a ReLU in place of a `ConvBlock`, and other layers as they are."""
    if not isinstance(layer, ConvBlock):
        return layer
    conv, norm, _ = layer
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, padding_mode=conv.padding_mode)
    folded.weight.copy_(factor[:, None, None, None] * conv.weight)
    folded.bias.copy_(norm.bias - factor * norm.running_mean)
    return nn.Sequential(folded, nn.ReLU())
