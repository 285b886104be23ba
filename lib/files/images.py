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
    """Read an image in any format of Pillow as RGB, (H, W, 3) uint8, and apply its EXIF orientation.

    Greyscale, palette, CMYK and 16-bit images are converted. Transparent images are placed on white. Raises
    `InputError` if the file is missing or not a readable image.
    """
    return _read_upright(path, "image", lambda image: np.asarray(_to_rgb(image)))


def read_image_shape(path: Path) -> tuple[int, int]:
    """Read the height and width in pixels from an image's header, after its EXIF orientation.

    Raises `InputError` if the file is missing or its header cannot be read.
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

    Raises `InputError` if the file is missing or not a readable image.
    """
    return _read_upright(path, "mask", _to_mask)


def to_rgb_array(
    image: np.ndarray | Image.Image, *, name: str = "the image"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert an image in memory to RGB.

    Parameters
    ----------
    image : ndarray or PIL image
        An array (H, W) or (H, W, 1) of grey, (H, W, 3) of RGB, or with a last channel of opacity (H, W, 2 or
        4), of uint8, uint16 or floats in [0, 1], NaN where unknown; or any PIL image. It becomes what
        `read_image` makes of its file.
    name : str
        Name in error messages.

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
        raise InputError(f"{name} must be an array or a PIL image, got {type(image)}")
    if image.size == 0 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
        raise InputError(f"{name} must be (H, W) or (H, W, 1 to 4), got {image.shape}")
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.dtype == np.uint16:  # grey is scaled, colour loses its low byte, as Pillow reads files
        pixels = (pixels // 257 if pixels.shape[2] < 3 else pixels >> 8).astype(np.uint8)
    if pixels.dtype == np.uint8:
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return np.asarray(_to_rgb(picture)), None
    if pixels.dtype.kind != "f":
        raise InputError(f"{name} must be of uint8, uint16, or floats in [0, 1], got {image.dtype}")
    is_known = ~np.isnan(pixels).any(axis=2)
    pixels = np.where(is_known[..., None], pixels, _UNKNOWN)
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(f"{name} must have floats in [0, 1], got {pixels.min()} to {pixels.max()}")
    if pixels.shape[2] in (2, 4):  # the last channel is opacity, over white
        pixels = pixels[..., :-1] * pixels[..., -1:] + 1 - pixels[..., -1:]
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.float32)
    return pixels, None if is_known.all() else is_known


def resize_image(image_rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 to (height, width), bilinearly, with antialiasing."""
    if image_rgb.shape[:2] == shape:
        return image_rgb
    return np.asarray(Image.fromarray(image_rgb).resize(shape[::-1], Image.Resampling.BILINEAR))


def size_text(shape: tuple[int, ...]) -> str:
    """Return the size of an array (H, W, ...) as text, width first, as in image viewers."""
    return f"{shape[1]}x{shape[0]}"


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
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
