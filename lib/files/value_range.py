"""Scale pixels of more than 8 bits to 8 bits, by a given range or by the one that they fill."""

import logging
import math

import numpy as np

from lib.runtime.errors import InputError
from lib.runtime.notices import log_once

logger = logging.getLogger(__name__)

ValueRange = tuple[float, float]  # values that become 0 and 255

_N_BITS = (8, 10, 12, 14, 16)  # of the sensors and encoders whose values are stored in 16 bits


def check_value_range(value_range: ValueRange | None) -> None:
    """Raise `InputError` unless the range is None, or finite and rising."""
    if value_range is None:
        return
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"{low:g} {high:g}: expected two finite numbers, the lower one first", parameter="value_range"
        )


def scale_to_8_bits(pixels: np.ndarray, value_range: ValueRange | None, *, name: str) -> np.ndarray:
    """Scale integer pixels to 8 bits.

    Parameters
    ----------
    pixels : ndarray, shape (H, W, C)
        Integers: grey or colours, and opacity as the last of 2 or 4 channels.
    value_range : pair of float or None
        Values of grey and colours that become 0 and 255; values beyond are clipped. By default, 0 to the
        largest number of the fewest bits, of 8, 10, 12, 14 and 16, that hold all values of the image. The
        opacity has its own default.
    name : str
        Name of the image, for the log.

    Returns
    -------
    ndarray, shape (H, W, C), uint8

    Raises
    ------
    InputError
        If no range is given, and values are negative or need more than 16 bits.
    """
    check_value_range(value_range)
    n_colors = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    colors, opacity = pixels[..., :n_colors], pixels[..., n_colors:]
    if value_range is None:
        n_bits = _count_bits(colors)
        value_range = _range_of_bits(n_bits)
        log_once(
            logger,
            ("range", n_bits),
            "%s has values up to %d: read as %d bits, 0 to %d; so are other images that need as many bits; "
            "`value_range` sets another range",
            name,
            colors.max(),
            n_bits,
            value_range[1],
        )
    scaled = _scale(colors, value_range)
    if opacity.size == 0:
        return scaled
    return np.concatenate([scaled, _scale(opacity, _range_of_bits(_count_bits(opacity)))], axis=2)


def scale_to_unit(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Map the range to 0 to 1, in float64; values beyond are clipped, NaN stays."""
    low, high = value_range
    return ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)


def divide_by_opacity(colors: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Undo the multiplication of colours (H, W, C) by an opacity (H, W, 1); they are 0 where it is.

    Full opacity is 1 in floats, and the largest number of the fewest bits in integers, as in
    `scale_to_8_bits`.
    """
    is_float = opacity.dtype.kind == "f"
    full = 1.0 if is_float else _range_of_bits(_count_bits(opacity))[1]
    whole = np.zeros(colors.shape)
    np.divide(colors * float(full), opacity, out=whole, where=opacity > 0)
    return (whole if is_float else np.rint(whole).clip(0, full)).astype(colors.dtype)


def _count_bits(values: np.ndarray) -> int:
    low, high = values.min(), values.max()
    if low < 0 or high >= 2 ** _N_BITS[-1]:
        raise InputError(
            f"has integer pixels of unknown range, here {low} to {high}; give `value_range`, or convert it "
            "to unsigned 8 or 16 bits"
        )
    return next(n_bits for n_bits in _N_BITS if high < 2**n_bits)


def _range_of_bits(n_bits: int) -> ValueRange:
    return 0, 2**n_bits - 1


def _scale(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    if values.dtype == np.uint16:  # a table takes less time and memory
        return _scale(np.arange(2**16), value_range)[values]
    return np.rint(255 * scale_to_unit(values, value_range)).astype(np.uint8)
