"""Convolutions of the feature extractor: inference folds batch norm in, input channels stay in float32."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Values beyond the border: zeros as in the paper, or the nearest pixel's. Max pooling and resizing read none.
PADDING_MODES = ("zeros", "replicate")


class ConvBlock(nn.Sequential):
    """3x3 convolution without bias, batch norm, ReLU. Inference folds batch norm into the convolution."""

    def __init__(self, n_in_channels: int, n_out_channels: int, padding_mode: str = "zeros") -> None:
        super().__init__(
            nn.Conv2d(n_in_channels, n_out_channels, 3, padding=1, bias=False, padding_mode=padding_mode),
            nn.BatchNorm2d(n_out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, relu = self
        if self.training or torch.is_grad_enabled():
            return relu(norm(self._convolve(x, conv.weight)))
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - factor * norm.running_mean
        return relu(self._convolve(x, factor[:, None, None, None] * conv.weight, shift))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return convolve(x, weight, bias, padding_mode=self[0].padding_mode)


class InputConvBlock(ConvBlock):
    """First block of a network: convolves in the input's dtype, then casts to the autocast dtype if on."""

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = convolve_precisely(x, weight, bias, padding_mode=self[0].padding_mode)
        device = x.device.type
        return result.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else result


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding_mode: str) -> Tensor:
    """Apply a 3x3 convolution that keeps the size; `padding_mode` is one of `PADDING_MODES`."""
    if padding_mode == "zeros":
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=padding_mode), weight, bias)


def convolve_precisely(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding_mode: str) -> Tensor:
    """Apply `convolve` to input channels in their own dtype, even under autocast.

    Positions reach several hundred pixels. bfloat16 can only represent whole numbers there.
    """
    with torch.autocast(x.device.type, enabled=False):
        return convolve(x, weight, bias, padding_mode=padding_mode)


def convolve_concatenation(parts: Iterable[Tensor], conv: nn.Conv2d) -> Tensor:
    """Apply a 3x3 convolution with bias and padding to the concatenation of feature maps (B, C_i, H, W).

    A sum over the parts avoids building the concatenation, and takes each part when the one before is done.
    The first part must be the input of the network; it is convolved in its own dtype.
    """
    total, start = None, 0
    for part in parts:
        weight = conv.weight[:, start : start + part.shape[1]]
        start += part.shape[1]
        if total is None:
            total = convolve_precisely(part, weight, conv.bias, padding_mode=conv.padding_mode)
        else:
            total += convolve(part, weight, padding_mode=conv.padding_mode)
    return total
