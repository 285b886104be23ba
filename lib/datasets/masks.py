"""Read the masks of DAVIS, and others in its layout: one object number per pixel."""

from pathlib import Path

import numpy as np
from PIL import Image

from lib.files.sizes import check_decoding
from lib.metrics.label_map import VOID
from lib.runtime.errors import InputError

VOID_NUMBER = 255

# Void exists beside objects that are numbered from 1; DAVIS and PASCAL VOC have 20 at most. Labels that start
# higher are grey levels, where 255 is an object too.
_LARGEST_FIRST_NUMBER = 30

_BIT_DEPTH_AT = 24  # byte in a PNG file


def read_mask(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read object numbers, (H, W) int32, resized to `shape` by nearest neighbour.

    Numbers are palette indices, grey values of up to 16 bits, or colours of the colour map that DAVIS shares
    with PASCAL VOC; an image in colours that are all grey has grey values. 255 is void and becomes `VOID` if
    another object is present. 0 and 255 alone become 0 and 1. Raises `InputError` if the file is no PNG, or
    its colours cannot be read as numbers.
    """
    try:
        with Image.open(file, formats=["PNG"]) as image:
            check_decoding(image)
            numbers = _read_numbers(image, bit_depth=file.read_bytes()[_BIT_DEPTH_AT])
    except InputError as error:
        raise InputError(f"{file} {error}") from error
    except Exception as error:  # Pillow raises various errors for broken bytes
        raise InputError(f"{file} is not a readable mask ({error})") from error
    numbers = _name_void(numbers)
    if numbers.shape != shape:
        numbers = np.asarray(Image.fromarray(numbers).resize(shape[::-1], Image.Resampling.NEAREST))
    return numbers


def voc_colors() -> np.ndarray:
    """Return the colour map of PASCAL VOC and DAVIS, (256, 3) uint8.

    Bits 0, 3 and 6 of a number are the three highest bits of red, from the highest down, bits 1, 4 and 7
    the same of green, and bits 2 and 5 the two highest of blue.
    """
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colors[:, bit % 3] |= (np.arange(256) >> bit & 1).astype(np.uint8) << 7 - bit // 3
    return colors


def _read_numbers(image: Image.Image, bit_depth: int) -> np.ndarray:
    """Return the numbers in an image, (H, W) int32."""
    if image.mode in ("1", "P") or image.mode.startswith("I"):
        return np.asarray(image).astype(np.int32)
    if bit_depth > 8:  # Pillow drops the low bytes, which may distinguish objects
        raise InputError("is a mask of 16 bits per channel, which is supported for grey only")
    pixels = np.asarray(image)
    if image.mode == "L":
        step = 255 // (2**bit_depth - 1)  # Pillow spreads fewer bits over 0 to 255
        return pixels.astype(np.int32) // step
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise InputError(f"is a mask of the mode {image.mode}; expected palette, grey or RGB")
    if image.mode != "RGB":
        if (pixels[..., -1] != 255).any():
            raise InputError("is a mask with transparent pixels; expected palette, grey or RGB")
        pixels = pixels[..., :-1]
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0].astype(np.int32)
    return _look_up(pixels)


def _look_up(pixels: np.ndarray) -> np.ndarray:
    """Return the numbers of colours (H, W, 3)."""
    colors = _pack(voc_colors())
    order = np.argsort(colors)
    packed = _pack(pixels)
    numbers = order[np.searchsorted(colors[order], packed).clip(max=255)]
    unknown = pixels[colors[numbers] != packed]
    if len(unknown):
        raise InputError(
            f"holds the colour {tuple(map(int, unknown[0]))}, which is not in the colour map of DAVIS and "
            "PASCAL VOC; save object numbers as palette or grey"
        )
    return numbers.astype(np.int32)


def _pack(colors: np.ndarray) -> np.ndarray:
    """Return 24-bit integers of colours (..., 3)."""
    return colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _name_void(numbers: np.ndarray) -> np.ndarray:
    if numbers.max() != VOID_NUMBER:
        return numbers
    others = np.flatnonzero(np.bincount(numbers.ravel())[1:VOID_NUMBER]) + 1
    if not len(others):
        return numbers // VOID_NUMBER
    if others[0] > _LARGEST_FIRST_NUMBER:
        return numbers
    return np.where(numbers == VOID_NUMBER, np.int32(VOID), numbers)
