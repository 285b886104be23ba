"""Read images and masks in any common format."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lib.runtime.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")  # accepted in folders

_ONE_CHANNEL_MODES = ("1", "L", "I", "I;16", "F")

_UNKNOWN = 0.5  # mid-grey, replaces NaN pixels in the input of the network


def read_image(path: Path) -> np.ndarray:
    """Read an image as 8-bit RGB and apply its EXIF orientation.

    Greyscale, palette, CMYK and 16-bit images are converted. Transparent images are placed on white.

    Parameters
    ----------
    path : Path
        File in any format that Pillow reads.

    Returns
    -------
    ndarray, shape (H, W, 3), uint8

    Raises
    ------
    InputError
        If the file is missing or not a readable image.
    """
    return _read_upright(path, "image", lambda image: np.asarray(_to_rgb(image)))


def read_image_shape(path: Path) -> tuple[int, int]:
    """Read the height and width in pixels from an image's header, after its EXIF orientation.

    Raises
    ------
    InputError
        If the file is missing or its header cannot be read.
    """
    try:
        with Image.open(path) as image:
            # The getexif of PNG files decodes the pixels to search for EXIF after them, which is slow.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
            if orientation not in (5, 6, 7, 8):
                return image.height, image.width
            if image.format != "TIFF":
                return image.width, image.height
            image.load()  # Pillow itself rotates TIFF files, in some versions only here
            return image.height, image.width
    except Exception as error:  # broken files make Pillow raise many kinds of errors
        raise InputError(f"{path} is not a readable image ({error})") from error


def count_pixels(path: Path) -> int:
    """Read the number of pixels from an image's header; 0 if the header cannot be read."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Exception:  # broken files make Pillow raise many kinds of errors
        return 0


def read_mask(path: Path) -> np.ndarray:
    """Read an image as a mask, (H, W) bool: True where a pixel is not black.

    Raises
    ------
    InputError
        If the file is missing or not a readable image.
    """
    return _read_upright(path, "mask", _to_mask)


def to_rgb_array(
    image: np.ndarray | Image.Image, *, name: str = "the image"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert an image in memory to RGB.

    Parameters
    ----------
    image : ndarray or PIL image
        Array (H, W, 3) or greyscale (H, W), uint8 or floats in [0, 1], with NaN for unknown pixels. Or a PIL
        image, converted as in `read_image`.
    name : str
        Name of the image in error messages.

    Returns
    -------
    image_rgb : ndarray, shape (H, W, 3)
        uint8, or float32 in [0, 1]; mid-grey replaces NaN.
    is_known : ndarray, shape (H, W), bool, or None
        False where the image is NaN; None if no pixel is NaN.

    Raises
    ------
    InputError
        If the image has another type, shape, dtype or range.
    """
    if isinstance(image, Image.Image):
        try:
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image))), None
        except InputError as error:
            raise InputError(f"{name} {error}") from error
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name} must be an array, a PIL image or a batch of tensors, got {type(image)}")
    if image.size == 0 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise InputError(f"{name} must have shape (H, W, 3) or, if grey, (H, W), got {image.shape}")
    pixels = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    if pixels.dtype == np.uint8:
        return pixels, None
    if pixels.dtype.kind != "f":
        raise InputError(f"{name} must be uint8 or floats in [0, 1], got {image.dtype}")
    is_known = ~np.isnan(pixels).any(axis=2)
    if not is_known.all():
        pixels = np.where(is_known[..., None], pixels, _UNKNOWN)
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(f"{name} must have floats in [0, 1], got {pixels.min()} to {pixels.max()}")
    return pixels.astype(np.float32), None if is_known.all() else is_known


def resize_image(image_rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 to (height, width), bilinearly, with antialiasing."""
    return np.asarray(Image.fromarray(image_rgb).resize(shape[::-1], Image.Resampling.BILINEAR))


def _read_upright(path: Path, kind: str, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Read an image file, apply its EXIF orientation and convert it; `kind` names it in error messages."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no {kind} file {path}")
    try:
        with Image.open(path) as image:
            image.load()
            return convert(ImageOps.exif_transpose(image))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # broken files make Pillow raise many kinds of errors
        raise InputError(f"{path} is not a readable {kind} ({error})") from error


def _to_mask(image: Image.Image) -> np.ndarray:
    # Palette and transparent images are judged by their colours, not by palette index or alpha.
    values = np.asarray(image if image.mode in _ONE_CHANNEL_MODES else image.convert("RGB"))
    return values.astype(bool) if values.ndim == 2 else values.any(axis=2)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError("has 32-bit float pixels of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow itself converts 16-bit colour to 8 bits
        values = np.asarray(image).astype(np.int64)
        may_be_8_bit = image.mode == "I" and 0 < values.max() < 256
        if values.min() < 0 or values.max() > 65535 or may_be_8_bit:
            raise InputError("has integer pixels of unknown range; convert it to unsigned 8 or 16 bits")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")
