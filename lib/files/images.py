"""Reading images of any common kind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lib.runtime.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")  # of images in a folder

_ONE_CHANNEL_MODES = ("1", "L", "I", "I;16", "F")

_UNKNOWN = 0.5  # what the network sees where a pixel is NaN


def read_image(path: Path) -> np.ndarray:
    """Read an image as 8-bit RGB, the right way up.

    Greyscale, palette, CMYK and 16-bit images are converted, transparent ones are laid on white, and the
    EXIF orientation is applied.

    Parameters
    ----------
    path : Path
        Any format Pillow reads.

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
    """Height and width in pixels of an image the right way up, from its header.

    Raises
    ------
    InputError
        If the file is missing or its header cannot be read.
    """
    try:
        with Image.open(path) as image:
            # PNG files have a getexif of their own: it decodes the pixels to look for EXIF behind them.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
            if orientation not in (5, 6, 7, 8):
                return image.height, image.width
            if image.format != "TIFF":
                return image.width, image.height
            image.load()  # Pillow turns TIFF files itself, by its version on opening or only now
            return image.height, image.width
    except Exception as error:  # Pillow raises whatever the broken bytes led it to
        raise InputError(f"{path} is not a readable image ({error})") from error


def count_pixels(path: Path) -> int:
    """Pixels that the header of an image file announces; 0 if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Exception:  # Pillow raises whatever the broken bytes led it to
        return 0


def read_mask(path: Path) -> np.ndarray:
    """Read an image as a mask: (H, W) bool, True where it is not black.

    Raises
    ------
    InputError
        If the file is missing or not a readable image.
    """
    return _read_upright(path, "mask", _to_mask)


def to_rgb_array(
    image: np.ndarray | Image.Image, *, name: str = "the image"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn an image in memory into RGB.

    Parameters
    ----------
    image : ndarray or PIL image
        An array (H, W) or (H, W, 1) of grey, (H, W, 3) of RGB, or with a last channel of opacity (H, W, 2 or
        4), of uint8, uint16 or floats in [0, 1], NaN where unknown; or any PIL image. It becomes what
        `read_image` makes of its file.
    name : str
        Used in error messages.

    Returns
    -------
    image_rgb : ndarray, shape (H, W, 3)
        uint8, or float32 in [0, 1]: mid-grey where the image is NaN.
    is_known : ndarray, shape (H, W), bool, or None
        Where the image is not NaN; None if it is so nowhere.

    Raises
    ------
    InputError
        If it is none of these.
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
        return np.asarray(
            _to_rgb(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))
        ), None
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
    """Resize an image (H, W, 3) uint8 to a shape of (height, width), bilinearly, with antialiasing."""
    return np.asarray(Image.fromarray(image_rgb).resize(shape[::-1], Image.Resampling.BILINEAR))


def _read_upright(path: Path, kind: str, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Read a file of some kind, apply the EXIF orientation, and convert what comes out."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no {kind} file {path}")
    try:
        with Image.open(path) as image:
            image.load()
            return convert(ImageOps.exif_transpose(image))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # Pillow raises whatever the broken bytes led it to
        raise InputError(f"{path} is not a readable {kind} ({error})") from error


def _to_mask(image: Image.Image) -> np.ndarray:
    # Of palettes and transparent images, the colours count.
    values = np.asarray(image if image.mode in _ONE_CHANNEL_MODES else image.convert("RGB"))
    return values.astype(bool) if values.ndim == 2 else values.any(axis=2)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError("has 32-bit float pixels of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow reads 16-bit colour as 8-bit itself
        values = np.asarray(image).astype(np.int64)
        may_be_8_bit = image.mode == "I" and 0 < values.max() < 256
        if values.min() < 0 or values.max() > 65535 or may_be_8_bit:
            raise InputError("has integer pixels of unknown range; convert it to 8 or 16 bits without sign")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")
