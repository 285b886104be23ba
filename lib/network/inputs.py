"""Build the scaled input channels of Jampani et al., ECCV 2018, from images; no other file scales them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.network.bands import Rows
from lib.runtime.errors import InputError
from lib.slic.grid import check_devices

# Scales of the published weights; weight files that store none imply them.
DEFAULT_COLOR_SCALE = 0.26
DEFAULT_POS_SCALE = 10.0
DEFAULT_OPTFLOW_SCALE = 15.0

# From linear sRGB to XYZ, each row divided by its component of the white point D65 (2 degrees): IEC 61966-2-1
# and CIE 15, rounded as in scikit-image.
_XYZ_FROM_RGB = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)

# Pixels that are converted at a time, which limits the temporary memory to some 25 MB.
_STRIP_PIXELS = 2**19

# A distance sums the squared differences of up to some hundred features. Below this bound the sum stays below
# the largest float32, 3.4e38.
_MAX_FEATURE = 1e17


class InputScales(NamedTuple):
    """Weights of the input channels (dimensionless)."""

    color_scale: float = DEFAULT_COLOR_SCALE
    pos_scale: float = DEFAULT_POS_SCALE
    extra_scale: float | None = None  # None for models without extra channels


def rgb_to_lab(image_rgb: Tensor) -> Tensor:
    """Convert sRGB images to CIELAB (D65), on their device.

    For uint8, the result is within 1e-4 of the definition as scikit-image computes it in float64.

    Parameters
    ----------
    image_rgb : Tensor, shape (..., 3, H, W)
        Images, uint8 or floats in [0, 1].

    Returns
    -------
    Tensor, shape (..., 3, H, W), float32
        L in [0, 100], a and b roughly in [-128, 127].
    """
    image_lab = torch.empty(image_rgb.shape, dtype=torch.float32, device=image_rgb.device)
    n_rows = _strip_rows(image_rgb)
    for rgb, lab in zip(image_rgb.split(n_rows, dim=-2), image_lab.split(n_rows, dim=-2), strict=True):
        red, green, blue = _linear(rgb).unbind(-3)
        fx, fy, fz = (_lab_root(r * red + g * green + b * blue) for r, g, b in _XYZ_FROM_RGB)
        torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=-3, out=lab)
    return image_lab


def _strip_rows(image_rgb: Tensor) -> int:
    """Return the rows of images (..., 3, H, W) that are converted at a time."""
    return max(1, _STRIP_PIXELS // image_rgb[..., :1, 0, :].numel())


def _linear(image_rgb: Tensor) -> Tensor:
    """Undo the gamma of sRGB; the result is float32."""
    if image_rgb.dtype == torch.uint8:  # 256 powers instead of one for each value
        of_byte = _linear(torch.arange(256, dtype=torch.float64, device=image_rgb.device) / 255)
        return of_byte.index_select(0, image_rgb.flatten().int()).view(image_rgb.shape)
    return torch.where(image_rgb > 0.04045, ((image_rgb + 0.055) / 1.055) ** 2.4, image_rgb / 12.92).float()


def _lab_root(xyz: Tensor) -> Tensor:
    """Return the cube root, or its linear continuation near 0, as CIELAB defines it."""
    root = (xyz.log() / 3).exp()
    # Newton's step. `a` is 500 times a difference of roots, so a root must be exact to its last bit or two,
    # which neither `exp` nor `pow` is on every device.
    root = root - (root - xyz / root**2) / 3
    return torch.where(xyz > 0.008856, root, 7.787 * xyz + 16 / 116)


def rows_to_lab(image_rgb: Tensor, rows: slice, device: torch.device) -> Tensor:
    """Return rows of `rgb_to_lab(image_rgb.to(device))`, (3, n_rows, W), for an image (3, H, W) on the CPU.

    They have the same bits: a row is converted in the same strip as there. A processor may round the last
    bit of a logarithm by its place in memory.
    """
    n_strip_rows = _strip_rows(image_rgb)
    top = rows.start // n_strip_rows * n_strip_rows
    stop = -(-rows.stop // n_strip_rows) * n_strip_rows
    image_lab = rgb_to_lab(image_rgb[:, top:stop].to(device))
    return image_lab[:, rows.start - top : rows.stop - top]


def pixel_positions(like: Tensor, *, top: int = 0) -> Tensor:
    """Return the row and column of every pixel of a (B, C, H, W) tensor: (B, 2, H, W), same dtype, device.

    The first row has the number `top`.
    """
    batch, _, height, width = like.shape
    y = torch.arange(top, top + height, dtype=like.dtype, device=like.device)
    x = torch.arange(width, dtype=like.dtype, device=like.device)
    yx = torch.stack(torch.meshgrid(y, x, indexing="ij"))
    return yx.expand(batch, -1, -1, -1)


def labyx_features(
    image_lab: Tensor, n_spixels: int, *, color_scale: float, pos_scale: float, band: Rows | None = None
) -> Tensor:
    """Stack scaled colour and pixel position into the base network's input.

    Parameters
    ----------
    image_lab : Tensor, shape (B, 3, H, W)
        CIELAB image: L in [0, 100], a and b roughly in [-128, 127].
    n_spixels : int
        Requested number of superpixels, which sets the position scale. At any image size, a grid cell spans
        about `pos_scale` * sqrt(longer side / shorter side) in the position channels.
    color_scale, pos_scale : float
        Weights of the Lab channels and the position channels (dimensionless).
    band : Rows, optional
        Band of an image; `image_lab` then holds the rows of its context.

    Returns
    -------
    Tensor, shape (B, 5, H, W)
        Channels [L, a, b, y, x]; same dtype and device as `image_lab`.

    Raises
    ------
    ValueError
        If `image_lab` is not a batch of 3-channel images.
    """
    if image_lab.ndim != 4 or image_lab.shape[1] != 3:
        raise ValueError(f"image_lab must have shape (B, 3, H, W), got {tuple(image_lab.shape)}")
    top, height = (0, image_lab.shape[2]) if band is None else (band.context_start, band.image_height)
    scale = pixel_pos_scale((height, image_lab.shape[3]), n_spixels, pos_scale)
    return torch.cat([color_scale * image_lab, scale * pixel_positions(image_lab, top=top)], dim=1)


def pixel_pos_scale(image_shape: Sequence[int], n_spixels: int, pos_scale: float) -> float:
    """Return the factor from pixels to the position channels, for an image (H, W); see `labyx_features`."""
    height, width = image_shape
    spixels_per_axis = math.isqrt(n_spixels)
    return pos_scale * max(spixels_per_axis / height, spixels_per_axis / width)


def largest_with_same_input(n_spixels: int) -> int:
    """Return the largest number of superpixels for which a network reads the same as for `n_spixels`."""
    return (math.isqrt(n_spixels) + 1) ** 2 - 1


def input_channels(
    image_lab: Tensor,
    extra: Tensor | None,
    n_spixels: int,
    scales: InputScales,
    *,
    band: Rows | None = None,
) -> Tensor:
    """Stack the scaled channels [L, a, b, y, x, extra] that a model reads; see `labyx_features`.

    `extra` are extra channels, such as optical flow or depth, (B, n_extra_channels, H, W).
    """
    color_scale, pos_scale = scales.color_scale, scales.pos_scale
    labyx = labyx_features(image_lab, n_spixels, color_scale=color_scale, pos_scale=pos_scale, band=band)
    return labyx if extra is None else torch.cat([labyx, scales.extra_scale * extra], dim=1)


def model_input(
    model: nn.Module,
    image_lab: Tensor,
    n_spixels: int,
    scales: InputScales,
    *,
    extra: Tensor | None = None,
    band: Rows | None = None,
) -> Tensor:
    """Return the scaled channels that a model reads, (B, 5 + its extra channels, H, W), channels-last.

    Parameters
    ----------
    model : SSNModel, CompositeSSNModel or SSNPix
        Model on the same device as the images.
    image_lab, n_spixels, scales, band
        See `labyx_features`.
    extra : Tensor, shape (B, n_extra_channels, H, W), float32, optional
        Extra channels; ignored if the model reads none.

    Raises
    ------
    InputError
        If the model reads extra channels, but their number differs or their scale is missing.
    ValueError
        If the model, the images and the extra channels are not on one device.
    """
    check_devices(image_lab=image_lab, extra=extra, model=next(model.parameters(), None))
    n_extra_channels = 0 if extra is None else extra.shape[1]
    if model.n_extra_channels == 0:
        extra = None
    elif model.n_extra_channels != n_extra_channels:
        raise InputError(
            f"the model reads {model.n_extra_channels} extra channels, but the image has {n_extra_channels}"
        )
    elif scales.extra_scale is None:
        raise InputError("extra channels need a scale; see InputScales")
    channels = input_channels(image_lab, extra, n_spixels, scales, band=band)
    # Convolutions are up to twice as fast in channels-last format.
    return channels.contiguous(memory_format=torch.channels_last)


def check_features(pixel_features: Tensor, image_name: str) -> None:
    """Raise an InputError if a feature (B, C, H, W) is NaN, infinite or too large for a squared distance."""
    low, high = torch.aminmax(pixel_features)
    if not (low > -_MAX_FEATURE and high < _MAX_FEATURE):
        raise InputError(
            f"{image_name}: features of {low:.3g} to {high:.3g} cannot be clustered; check the weights, "
            "the scales and the extra channels"
        )
