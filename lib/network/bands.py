"""Apply a feature extractor in bands of rows: same result as the whole image at once, with little memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.convolution import convolve_concatenation

# Size of a band: this many rows, or more rows in narrow images, up to this many pixels. A band also needs
# context, rows above and below it, because the receptive field reaches 25 rows. All row counts are multiples
# of 4, the factor of the coarsest scale, so that a band's scales are aligned with the whole image's scales.
_BAND_ROWS = 256
_BAND_PIXELS = 2**18
_CONTEXT_ROWS = 28

# Within a band, full-resolution layers work on strips, so that their tensors stay in the CPU caches. A strip
# has this many rows, or more rows in narrow images, up to this many pixels.
_STRIP_ROWS = 64
_STRIP_PIXELS = 2**16


class Rows(NamedTuple):
    """Rows of an image to compute, and the rows they depend on, their context; stops are exclusive."""

    start: int
    stop: int
    context_start: int
    context_stop: int
    image_height: int

    @property
    def own(self) -> slice:
        """Rows to compute, counted from the start of the context."""
        return slice(self.start - self.context_start, self.stop - self.context_start)

    @property
    def context(self) -> slice:
        """Rows of the context, counted from the top of the image."""
        return slice(self.context_start, self.context_stop)


def split_into_bands(height: int, width: int) -> Iterator[Rows]:
    """Return the bands of an image, from the top."""
    n_band_rows = max(_BAND_ROWS, _BAND_PIXELS // width // 4 * 4)
    return _split_rows(0, height, n_band_rows, _CONTEXT_ROWS, height)


def extract_in_bands(extractor: nn.Module, x: Tensor) -> Tensor:
    """Compute `extractor(x)` of a `FeatureExtractor` band by band, without gradients.

    The result equals the result for the whole image at once, except for rounding.
    """
    batch, n_in_channels, height, width = x.shape
    n_features = extractor.output_conv[0].out_channels + (n_in_channels if extractor.concat_input else 0)
    features = x.new_empty(batch, n_features, height, width)
    for band in split_into_bands(height, width):
        extract_band(extractor, x[:, :, band.context], band, out=features[:, :, band.start : band.stop])
    return features


def extract_band(extractor: nn.Module, x: Tensor, band: Rows, *, out: Tensor | None = None) -> Tensor:
    """Compute a band of `extract_in_bands`, (B, C, n_rows, W), from its context, (B, C_in, n_rows, W)."""
    batch, n_in_channels, _, width = x.shape
    conv = extractor.output_conv[0]
    n_learned = conv.out_channels
    if out is None:
        n_features = n_learned + (n_in_channels if extractor.concat_input else 0)
        out = x.new_empty(batch, n_features, band.stop - band.start, width)
    scale1 = _in_strips(extractor.scale1, x)
    scale2 = extractor.scale2(scale1)
    scale3 = extractor.scale3(scale2)
    for strip in _split_rows(band.start, band.stop, _strip_rows(x), 1, band.image_height):
        parts = _concatenated(x, scale1, scale2, scale3, strip, top=band.context_start)
        learned = convolve_concatenation(parts, conv)
        out[:, :n_learned, strip.start - band.start : strip.stop - band.start] = learned[:, :, strip.own]
    if extractor.concat_input:
        out[:, n_learned:] = x[:, :, band.own]
    return out


def _concatenated(
    x: Tensor, scale1: Tensor, scale2: Tensor, scale3: Tensor, strip: Rows, *, top: int
) -> Iterator[Tensor]:
    """Yield what is concatenated for a strip; `x` and its scales begin at row `top` of the image."""
    width = x.shape[3]
    yield x[:, :, strip.context_start - top : strip.context_stop - top]
    yield scale1[:, :, strip.context_start - top : strip.context_stop - top]
    for factor, scale in ((2, scale2), (4, scale3)):
        yield _resize_rows(scale, width, strip, top=top, factor=factor)


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


def _strip_rows(x: Tensor) -> int:
    """Return the rows per strip of channels (B, C, H, W): few enough for CPU caches; on other devices all."""
    if x.device.type != "cpu":
        return x.shape[2]
    return max(_STRIP_ROWS, _STRIP_PIXELS // (len(x) * x.shape[3]))


def _split_rows(start: int, stop: int, n_rows: int, n_context: int, height: int) -> Iterator[Rows]:
    """Split rows `start` to `stop` - 1 of an image; the context ends at the image border."""
    for first in range(start, stop, n_rows):
        end = min(first + n_rows, stop)
        yield Rows(first, end, max(0, first - n_context), min(end + n_context, height), height)


def _resize_rows(x: Tensor, width: int, rows: Rows, *, top: int, factor: int) -> Tensor:
    """Resize rows of a coarser scale bilinearly to the image's size, as `F.interpolate` does for all rows.

    The scale has the size of the image over `factor`, rounded up. `x` holds its rows from `top / factor` on.
    The result holds `rows` of the image and their context.
    """
    height = rows.image_height
    n_rows = rows.context_stop - rows.context_start
    if n_rows == height:
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    n_scale_rows = -(-height // factor)
    row = torch.arange(rows.context_start, rows.context_stop, device=x.device)
    position = ((row + 0.5) * (n_scale_rows / height) - 0.5).clamp(min=0)
    upper = position.floor().long()
    lower = (upper + 1).clamp(max=n_scale_rows - 1)
    share = (position - upper).to(x.dtype)[:, None, None]
    x = x.permute(0, 2, 3, 1)  # contiguous, as `x` is in channels-last format
    first = top // factor
    x = torch.lerp(x.index_select(1, upper - first), x.index_select(1, lower - first), share)
    return F.interpolate(x.permute(0, 3, 1, 2), size=(n_rows, width), mode="bilinear", align_corners=False)
