"""Reading images of any common kind."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lib.errors import InputError


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
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no image file {path}")
    try:
        with Image.open(path) as image:
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # Pillow raises whatever the broken bytes led it to
        raise InputError(f"{path} is not a readable image ({error})") from error


def resize_image(image_rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 to a shape of (height, width), bilinearly, with antialiasing."""
    return np.asarray(Image.fromarray(image_rgb).resize(shape[::-1], Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError("has 32-bit float pixels of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow reads 16-bit colour as 8-bit itself
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError("has 32-bit integer pixels; convert it to 8 or 16 bits")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")
