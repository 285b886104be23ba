"""Convert pixels of any number of bits to RGB, or to a mask."""

import logging

import numpy as np
from PIL import Image

from lib.files.value_range import (
    ValueRange,
    check_value_range,
    scale_to_8_bits,
    scale_to_unit,
)
from lib.runtime.errors import InputError
from lib.runtime.notices import log_once

logger = logging.getLogger(__name__)

_LOSSY_FORMATS = ("JPEG", "MPO", "AVIF")
_MANY_GREY_PIXELS = 0.05  # share of a mask; blurred borders have less

_MANY_TRANSLUCENT_PIXELS = 0.5  # share of an image; shadows and borders of cut-outs have less

_UNKNOWN = 0.5  # mid-grey, replaces NaN pixels in the input of the network


def to_rgb(
    pixels: Image.Image | np.ndarray, is_white_zero: bool, value_range: ValueRange | None, *, name: str
) -> np.ndarray:
    """Convert an image of 8 bits, or an array (H, W, C), to RGB, on white if it has opacity."""
    if isinstance(pixels, np.ndarray):
        if pixels.dtype.kind == "f":
            rgb, is_known = float_file_to_rgb(pixels, value_range)
            if is_known is not None:
                raise InputError("has NaN pixels")
            return rgb
        if pixels.dtype != np.uint8:
            pixels = scale_to_8_bits(pixels, value_range, name=name)
            pixels = 255 - pixels if is_white_zero else pixels
        pixels = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if pixels.has_transparency_data:
        pixels = pixels.convert("RGBA")
        _report_odd_opacity(np.asarray(pixels.getchannel("A")), name=name)
        pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
    return np.asarray(pixels.convert("RGB"))


def masked_integers_to_rgb(
    pixels: np.ma.MaskedArray, value_range: ValueRange | None, *, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert integers (H, W, 1 to 4) to RGB, as `to_rgb_array` does."""
    is_known = find_unmasked(pixels)
    if is_known is None:
        return to_rgb(pixels.data, False, value_range, name=name), None
    if not is_known.any():
        raise InputError("has no unmasked pixel")
    values = pixels.data.copy()
    values[~is_known] = values[is_known][0]  # must not change the range
    rgb = to_rgb(values, False, value_range, name=name)
    return np.where(is_known[..., None], rgb, np.uint8(255 * _UNKNOWN)), is_known


def masked_bytes_to_rgb(pixels: np.ma.MaskedArray) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert uint8 (H, W, 1 or 3) as `masked_integers_to_rgb` does; all pixels may be masked."""
    is_known = find_unmasked(pixels)
    rgb = np.broadcast_to(pixels.data, (*pixels.shape[:2], 3))
    return rgb if is_known is None else np.where(is_known[..., None], rgb, np.uint8(255 * _UNKNOWN)), is_known


def floats_to_rgb(pixels: np.ndarray, value_range: ValueRange | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert floats (H, W, 1 to 4) to RGB in [0, 1], as `to_rgb_array` does."""
    check_value_range(value_range)
    n_colors = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    if value_range is not None:
        colors = scale_to_unit(pixels[..., :n_colors], value_range)
        pixels = np.concatenate([colors, pixels[..., n_colors:]], axis=2)
    is_known = ~np.isnan(pixels).any(axis=2)
    pixels = np.where(is_known[..., None], pixels, _UNKNOWN)
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(f"must have floats in [0, 1], got {pixels.min()} to {pixels.max()}")
    colors, opacity = pixels[..., :n_colors], pixels[..., n_colors:]
    if opacity.size:  # over white
        colors = np.where(is_known[..., None], colors * opacity + 1 - opacity, _UNKNOWN)
    rgb = np.broadcast_to(colors, (*colors.shape[:2], 3)).astype(np.float32)
    return rgb, None if is_known.all() else is_known


def float_file_to_rgb(
    pixels: np.ndarray, value_range: ValueRange | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert floats (H, W, 1 to 4) of a file, which need a range, to RGB of 8 bits, as `floats_to_rgb`."""
    if value_range is None:
        raise InputError(
            "has 32-bit float pixels of unknown range; give `value_range`, or convert it to 8 or 16 bits"
        )
    rgb, is_known = floats_to_rgb(pixels, value_range)
    return np.rint(255 * rgb).astype(np.uint8), is_known


def find_unmasked(values: np.ndarray) -> np.ndarray | None:
    """Return where no channel of an array (H, W, C) is masked, (H, W) bool; None if that is everywhere."""
    is_masked = np.ma.getmaskarray(values).any(axis=2) if np.ma.is_masked(values) else None
    return None if is_masked is None else ~is_masked


def to_mask(pixels: Image.Image | np.ndarray, is_white_zero: bool, *, name: str) -> np.ndarray:
    if is_white_zero:
        pixels = 255 - scale_to_8_bits(pixels, None, name=name)
    is_lossy = isinstance(pixels, Image.Image) and pixels.format in _LOSSY_FORMATS
    if isinstance(pixels, Image.Image):  # palettes are judged by their colours
        pixels = np.asarray(pixels.convert("RGBA" if pixels.has_transparency_data else "RGB"))
    n_colors = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    colors, opacity = pixels[..., :n_colors], pixels[..., n_colors:]
    is_inside = ((colors != 0) & ~np.isnan(colors)).any(axis=2)
    if is_lossy:
        brightness = colors.max(axis=2)
        share_between = ((brightness >= 64) & (brightness < 192)).mean()
        if share_between > _MANY_GREY_PIXELS:
            log_once(
                logger,
                "grey mask",
                "%s: %.0f %% of the pixels of this mask are neither dark nor bright; pixels of at least half "
                "the brightness are inside, as in other JPEG masks",
                name,
                100 * share_between,
            )
        is_inside = brightness >= 128
    if opacity.size:
        is_inside &= opacity[..., 0] > opacity.max() / 2
    return is_inside


def _report_odd_opacity(opacity: np.ndarray, *, name: str) -> None:
    """Log if opacity (H, W) uint8 looks like data, for example a near-infrared band with a wrong tag."""
    share_between = ((opacity > 0) & (opacity < 255)).mean()
    if share_between > _MANY_TRANSLUCENT_PIXELS:
        log_once(
            logger,
            "odd opacity",
            "%s: the last band is opacity by its tag, and %.0f %% of the pixels are translucent; it is laid "
            "on white, as are other such images. If the band holds other data, give `bands` 1 2 3",
            name,
            100 * share_between,
        )
