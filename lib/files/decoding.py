"""Pixels of an open Pillow image as they are stored, with all their bits, and its orientation."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from lib.files.native_output import native_output_hidden
from lib.files.opencv import cv2
from lib.files.value_range import ValueRange, scale_to_8_bits
from lib.runtime.errors import InputError

# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION = 258, 262, 284

# By the value of the EXIF orientation: an array (H, W, ...) as it is to be seen.
_TURNS: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(np.swapaxes(pixels, 0, 1), 2),
    8: np.rot90,
}


def pixels_of(image: Image.Image) -> Image.Image | np.ndarray:
    """Return the image, or an array (H, W, 1 or 2) if it has more than 8 bits, as stored."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    range_of_header = _range_of_header(image)
    values = np.asarray(image)[..., None]
    if range_of_header is not None:
        values = scale_to_8_bits(values, range_of_header, name="")
    return _with_transparency(values, image)


def has_white_zero(image: Image.Image) -> bool:
    """Return True if the largest value of a greyscale image is black; Pillow inverts only 8-bit images."""
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC_INTERPRETATION) == 0


def orientation_of(image: Image.Image) -> int | None:
    return image.getexif().get(ExifTags.Base.Orientation)


def turn(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    """Apply an EXIF orientation to an array (H, W, ...)."""
    as_seen = _TURNS.get(orientation)
    return pixels if as_seen is None else np.ascontiguousarray(as_seen(pixels))


def has_wide_colors(image: Image.Image) -> bool:
    """Return True for 16-bit colours, before the pixels are read; Pillow keeps 8 bits of them."""
    if not image.tile:
        return False
    codec, _, _, arguments = image.tile[0]
    is_wide_tiff = image.format == "TIFF" and max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    if is_wide_tiff and codec == "raw" and image.tag_v2.get(_PLANAR_CONFIGURATION) == 2:
        raise InputError("has colours of more than 8 bits in separate planes; convert it to PNG")
    first, *others = arguments if isinstance(arguments, tuple) else (arguments,)
    is_wide_ppm = image.format == "PPM" and image.mode == "RGB" and others == [2**16 - 1]
    return is_wide_ppm or re.fullmatch(r"(RGB\w*|LA);16[BLN]", str(first)) is not None


def read_wide_colors(path: Path, image: Image.Image) -> np.ndarray:
    """Read 16-bit colours, (H, W, 3 or 4) uint16."""
    # OpenCV versions differ in the orientation of TIFF, and mix up separate planes.
    tags = image.tag_v2 if image.format == "TIFF" else {}
    is_plain = tags.get(ExifTags.Base.Orientation, 1) == 1 and tags.get(_PLANAR_CONFIGURATION, 1) == 1
    high_bytes = np.asarray(image)
    pixels = _read_with_opencv(path) if is_plain else None
    if pixels is not None:  # OpenCV may add opacity
        pixels = pixels[..., : high_bytes.shape[2]]
    if pixels is not None and pixels.shape == high_bytes.shape:
        difference = (pixels >> 8).astype(np.int16) - high_bytes
        if np.abs(difference).max() <= 1:  # Pillow rounds some formats
            return _with_transparency(pixels, image)
    if high_bytes.max() < 64:  # the values may fit in 14 bits
        raise InputError("has 16-bit colours in a layout that is read with 8 bits only; convert it to PNG")
    return high_bytes.astype(np.uint16) * 257


def _with_transparency(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Add opacity to 16-bit pixels (H, W, 1 or 3) if a value is declared transparent."""
    transparent = image.info.get("transparency")
    if transparent is None or isinstance(transparent, bytes) or values.dtype != np.uint16:
        return values
    is_transparent = (values == np.array(transparent)).all(axis=2, keepdims=True)
    opacity = np.where(is_transparent, 0, 2**16 - 1).astype(np.uint16)
    # The transparent value is outside the range of the others as a rule, and must not change it.
    return np.concatenate([np.where(is_transparent, 0, values), opacity], axis=2, dtype=np.uint16)


def _range_of_header(image: Image.Image) -> ValueRange | None:
    """Return the range of a greyscale image that declares fewer than 16 bits; None for others."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else None
    if isinstance(arguments, tuple) and arguments[0] == "I;12":
        return 0, 2**12 - 1
    is_scaled = image.format == "PPM" and image.mode == "I" and isinstance(arguments, tuple)
    return (0, 2**16 - 1) if is_scaled and arguments[1] < 2**16 - 1 else None


def _read_with_opencv(path: Path) -> np.ndarray | None:
    """Read pixels as stored, (H, W, 3 or 4) in RGB or RGBA; None if OpenCV cannot."""
    try:
        with native_output_hidden():
            pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[2:] not in ((3,), (4,)):
        return None
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
