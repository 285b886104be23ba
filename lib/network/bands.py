"""Images some rows at a time, for networks that would need much memory for the whole.

Without gradients, a large image goes through a network in bands. Beside its own rows a band needs some
above and below as context: as far as the network looks, counted through all its layers. Within a band, the
layers at full size take strips, whose tensors stay in the caches of a CPU.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of a band, or so many pixels if these are more, and of its context; the network looks 25 rows far. They
# are multiples of 4, the factor of the coarsest scale, so that scales lie as in the whole image.
_BAND_ROWS = 256
_BAND_PIXELS = 2**18
_CONTEXT_ROWS = 28

# Rows of a strip, or so many pixels if these are more.
_STRIP_ROWS = 64
_STRIP_PIXELS = 2**16


class Rows(NamedTuple):
    """Some rows of an image, and those that are needed to compute them."""

    first: int
    last: int  # and all before it
    top: int
    bottom: int  # and all before it

    @property
    def own(self) -> slice:
        """Where the rows are among those from top to bottom."""
        return slice(self.first - self.top, self.last - self.top)


def bands(height: int, width: int) -> Iterator[Rows]:
    """Split an image into bands."""
    return split_rows(0, height, max(_BAND_ROWS, _BAND_PIXELS // width // 4 * 4), _CONTEXT_ROWS, height)


def strip_rows(x: Tensor) -> int:
    """Rows of a strip of (B, C, H, W) channels: on CPU as many as fit its caches, elsewhere all."""
    if x.device.type != "cpu":
        return x.shape[2]
    return max(_STRIP_ROWS, _STRIP_PIXELS // (len(x) * x.shape[3]))


def split_rows(first: int, last: int, n_rows: int, n_context: int, height: int) -> Iterator[Rows]:
    """Split rows `first` to `last` - 1 of an image of some height, beyond which there is no context."""
    for start in range(first, last, n_rows):
        end = min(start + n_rows, last)
        yield Rows(start, end, max(0, start - n_context), min(end + n_context, height))


def resize_rows(x: Tensor, width: int, rows: Rows, *, top: int, height: int, factor: int) -> Tensor:
    """Bilinearly resize some rows of a coarser scale to an image's size, as `F.interpolate` does the whole.

    Parameters
    ----------
    x : Tensor, shape (B, C, h, w)
        The scale, rounded up from `1 / factor` of the image's size: its rows from `top / factor` on.
    width, height : int
        Size of the image in pixels.
    rows : Rows
        Which rows of the image are wanted, their context included; `x` must cover them.
    top : int
        Row of the image where `x` starts, a multiple of `factor`.
    factor : int
        A power of 2.

    Returns
    -------
    Tensor, shape (B, C, rows.bottom - rows.top, width)
    """
    n_rows = rows.bottom - rows.top
    if n_rows == height:
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    n_scale_rows = height
    for _ in range(factor.bit_length() - 1):
        n_scale_rows = (n_scale_rows + 1) // 2
    position = (torch.arange(rows.top, rows.bottom, device=x.device) + 0.5) * (n_scale_rows / height) - 0.5
    position = position.clamp(min=0)
    upper = position.floor().long()
    lower = (upper + 1).clamp(max=n_scale_rows - 1)
    share = (position - upper).to(x.dtype)[:, None, None]
    offset = top // factor
    x = x.permute(0, 2, 3, 1)  # in memory, channels are the innermost
    x = torch.lerp(x.index_select(1, upper - offset), x.index_select(1, lower - offset), share)
    return F.interpolate(x.permute(0, 3, 1, 2), size=(n_rows, width), mode="bilinear", align_corners=False)
