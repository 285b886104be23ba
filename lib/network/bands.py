"""A feature extractor in bands of rows: the same result as the whole image at once, with little memory.

Beside its own rows a band needs rows above and below as context: the receptive field of the network. Within
a band, layers at full size go through strips of rows, whose tensors stay in the caches of a CPU.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.convolution import convolve_concatenation

# Rows of a band, or so many pixels if these are more, and rows of its context: the network sees 25 rows far.
# Multiples of 4, the factor of the coarsest scale, keep the scales where they lie in the whole image.
_BAND_ROWS = 256
_BAND_PIXELS = 2**18
_CONTEXT_ROWS = 28

# Rows of a strip, or so many pixels if these are more.
_STRIP_ROWS = 64
_STRIP_PIXELS = 2**16


class Rows(NamedTuple):
    """Rows of an image, and the rows that are needed to compute them; stops are exclusive."""

    start: int
    stop: int
    context_start: int
    context_stop: int

    @property
    def own(self) -> slice:
        """The rows, counted from the start of their context."""
        return slice(self.start - self.context_start, self.stop - self.context_start)


def extract_in_bands(extractor: nn.Module, x: Tensor) -> Tensor:
    """Return `extractor(x)` for a `FeatureExtractor` without gradients, computed band by band.

    Parameters
    ----------
    extractor : FeatureExtractor
        Its scales and its output convolution are called on bands of `x`.
    x : Tensor, shape (B, n_in_channels, H, W)
        Input channels.

    Returns
    -------
    Tensor, shape (B, n_out_features [+ n_in_channels], H, W)
        Equal to the whole image at once, but for rounding.
    """
    batch, n_in_channels, height, width = x.shape
    conv = extractor.output_conv[0]
    n_learned = conv.out_channels
    n_features = n_learned + (n_in_channels if extractor.concat_input else 0)
    features = x.new_empty(batch, n_features, height, width)
    for band in _bands(height, width):
        scale1 = _in_strips(extractor.scale1, x[:, :, band.context_start : band.context_stop])
        scale2 = extractor.scale2(scale1)
        scale3 = extractor.scale3(scale2)
        for strip in _split_rows(band.start, band.stop, _strip_rows(x), 1, height):
            first, stop = (row - band.context_start for row in (strip.context_start, strip.context_stop))
            resized = [
                _resize_rows(scale, width, strip, top=band.context_start, height=height, factor=factor)
                for factor, scale in ((2, scale2), (4, scale3))
            ]
            own_input = x[:, :, strip.context_start : strip.context_stop]
            learned = convolve_concatenation([own_input, scale1[:, :, first:stop], *resized], conv)
            features[:, :n_learned, strip.start : strip.stop] = learned[:, :, strip.own]
    if extractor.concat_input:
        features[:, n_learned:] = x
    return features


def _in_strips(scale1: nn.Module, x: Tensor) -> Tensor:
    height = x.shape[2]
    if height <= _strip_rows(x):
        return scale1(x)
    result = None
    for strip in _split_rows(0, height, _strip_rows(x), 2, height):
        rows = scale1(x[:, :, strip.context_start : strip.context_stop])
        if result is None:
            size = (*rows.shape[:2], *x.shape[2:])
            result = torch.empty(size, dtype=rows.dtype, device=x.device, memory_format=torch.channels_last)
        result[:, :, strip.start : strip.stop] = rows[:, :, strip.own]
    return result


def _bands(height: int, width: int) -> Iterator[Rows]:
    return _split_rows(0, height, max(_BAND_ROWS, _BAND_PIXELS // width // 4 * 4), _CONTEXT_ROWS, height)


def _strip_rows(x: Tensor) -> int:
    """Return the rows of a strip of (B, C, H, W) channels: what fits the caches of a CPU, elsewhere all."""
    if x.device.type != "cpu":
        return x.shape[2]
    return max(_STRIP_ROWS, _STRIP_PIXELS // (len(x) * x.shape[3]))


def _split_rows(start: int, stop: int, n_rows: int, n_context: int, height: int) -> Iterator[Rows]:
    """Split rows `start` to `stop` - 1 of an image, beyond whose borders no context exists."""
    for first in range(start, stop, n_rows):
        end = min(first + n_rows, stop)
        yield Rows(first, end, max(0, first - n_context), min(end + n_context, height))


def _resize_rows(x: Tensor, width: int, rows: Rows, *, top: int, height: int, factor: int) -> Tensor:
    """Resize rows of a coarser scale bilinearly to the image's size, as `F.interpolate` resizes the whole.

    Parameters
    ----------
    x : Tensor, shape (B, C, h, w)
        The scale, rounded up from `1 / factor` of the image's size: its rows from `top / factor` on.
    width, height : int
        Size of the image in pixels.
    rows : Rows
        Rows of the image to return, their context included; `x` must cover them.
    top : int
        Row of the image where `x` starts, a multiple of `factor`.
    factor : int
        A power of 2.

    Returns
    -------
    Tensor, shape (B, C, rows.context_stop - rows.context_start, width)
    """
    n_rows = rows.context_stop - rows.context_start
    if n_rows == height:
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    n_scale_rows = height
    for _ in range(factor.bit_length() - 1):
        n_scale_rows = (n_scale_rows + 1) // 2
    row = torch.arange(rows.context_start, rows.context_stop, device=x.device)
    position = ((row + 0.5) * (n_scale_rows / height) - 0.5).clamp(min=0)
    upper = position.floor().long()
    lower = (upper + 1).clamp(max=n_scale_rows - 1)
    share = (position - upper).to(x.dtype)[:, None, None]
    offset = top // factor
    x = x.permute(0, 2, 3, 1)  # in memory, channels are the innermost
    x = torch.lerp(x.index_select(1, upper - offset), x.index_select(1, lower - offset), share)
    return F.interpolate(x.permute(0, 3, 1, 2), size=(n_rows, width), mode="bilinear", align_corners=False)
