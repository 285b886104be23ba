"""Read images and masks in any common format."""

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from lib.files.band_choice import Bands, check_bands, check_has_bands, must_choose
from lib.files.conversion import (
    float_file_to_rgb,
    floats_to_rgb,
    masked_bytes_to_rgb,
    masked_integers_to_rgb,
    to_mask,
    to_rgb,
)
from lib.files.decoding import (
    has_white_zero,
    has_wide_colors,
    orientation_of,
    pixels_of,
    read_wide_colors,
    turn,
)
from lib.files.geotiff import (
    is_8_bit_geotiff,
    is_geotiff,
    read_geotiff,
    read_geotiff_mask,
    read_geotiff_rows,
)
from lib.files.native_output import native_output_hidden
from lib.files.repair import has_late_metadata, use_image
from lib.files.sizes import check_decoding
from lib.files.tiff import TiffLayout, read_bands, read_layout, read_plain_rows
from lib.files.value_range import (
    ValueRange,
    check_value_range,
    divide_by_opacity,
)
from lib.runtime.errors import InputError
from lib.runtime.notices import log_once

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1024  # of a GeoTIFF file; its tiles, which are decoded whole, are mostly lower

UNSET = "default"  # a setting that is not given, in `ImageReader.described`

# Formats that Pillow recognises by their first bytes, and reads without other programs.
_FORMATS_BY_CONTENT = (
    *("AVIF", "BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD"),
    *("QOI", "SGI", "SUN", "TIFF", "WEBP", "XPM"),
)
_FORMATS_BY_SUFFIX = (*_FORMATS_BY_CONTENT, "DIB", "TGA", "XBM")
# Raw files of cameras. Pillow takes them for TIFF, and reads a thumbnail or values of the sensor.
_RAW_SUFFIXES = (".3fr", ".arw", ".cr2", ".dng", ".erf", ".iiq", ".kdc", ".nef", ".nrw", ".pef", ".srw")


class ImageReader(NamedTuple):
    """Settings of `read_image` that the images of a run share."""

    value_range: ValueRange | None = None
    bands: Bands | None = None

    def check(self) -> None:
        """Raise `InputError` if a setting cannot be used for any image."""
        check_value_range(self.value_range)
        check_bands(self.bands)

    def read(self, path: Path) -> np.ndarray:
        return read_image(path, value_range=self.value_range, bands=self.bands)

    def read_rows(self, path: Path) -> Iterator[np.ndarray]:
        """Yield `read_masked(path)` from the top, in bands of rows (n_rows, W, 3) of any heights.

        Only some TIFF files take little memory: upright RGB or grey of 8 bits. Others are decoded whole.
        """
        if self.value_range is None and is_8_bit_geotiff(path):
            for pixels in read_geotiff_rows(path, _ROWS_AT_ONCE, bands=self.bands):
                yield _with_mask(*masked_bytes_to_rgb(pixels))
            return
        layout = read_layout(path)
        if layout is None or not layout.is_plain or self.bands is not None:
            yield self.read_masked(path)
            return
        if layout.has_more_pages:
            _log_pages(path)
        try:
            for rows in read_plain_rows(path):
                yield np.broadcast_to(rows, (*rows.shape[:2], 3))
        except GeneratorExit:
            raise
        except Exception as error:  # broken files make tifffile raise many kinds of errors
            raise InputError(f"{path} is not a readable image ({error})") from error

    def read_shape(self, path: Path) -> tuple[int, int]:
        """Read a shape as `read_image_shape`; raise `InputError` too if `read` would refuse the bands."""
        layout = read_layout(path)
        if layout is not None:
            try:
                _check_layout(layout, self.bands)
            except InputError as error:
                raise InputError(f"{path} {error}") from error
        return read_image_shape(path)

    def read_masked(self, path: Path) -> np.ndarray:
        """Read an image as `read`, but mask pixels of a GeoTIFF file without data; see `read_geotiff`."""
        if not is_geotiff(path):
            return self.read(path)
        pixels = read_geotiff(path, bands=self.bands).pixels
        try:
            if pixels.dtype.kind == "f":
                image_rgb, is_known = float_file_to_rgb(pixels.filled(np.nan), self.value_range)
            else:
                image_rgb, is_known = masked_integers_to_rgb(pixels, self.value_range, name=str(path))
        except InputError as error:
            raise InputError(f"{path} {error}") from error
        return _with_mask(image_rgb, is_known)

    def described(self) -> dict[str, str]:
        """Return the settings as text by name, to compare runs."""
        return {
            name: UNSET if values is None else " ".join(map(str, values))
            for name, values in self._asdict().items()
        }


DEFAULT_READER = ImageReader()


def read_image(
    path: Path, *, value_range: ValueRange | None = None, bands: Bands | None = None
) -> np.ndarray:
    """Read an image as RGB, (H, W, 3) uint8, and apply its EXIF orientation.

    Any format of Pillow is read, and TIFF of any number of bands. Greyscale, palette and CMYK images are
    converted. Transparent images are placed on white.

    Parameters
    ----------
    path : Path
        File to read.
    value_range : pair of float, optional
        Range of pixels of more than 8 bits, as in `scale_to_8_bits`; floats need it.
    bands : tuple of one or three int, optional
        Bands to read, counted from 1: red, green and blue, or one of grey. Opacity is ignored then. Files of
        more than three bands need it, unless the fourth is opacity by its tag.

    Raises
    ------
    InputError
        If the file is missing, is not a readable image or lacks a band, or a setting cannot be used.
    """
    check_bands(bands)

    def convert(pixels: Image.Image | np.ndarray, is_white_zero: bool) -> np.ndarray:
        return to_rgb(_choose_bands(pixels, bands), is_white_zero, value_range, name=str(path))

    return _read_upright(path, "image", convert, bands=bands)


def read_image_shape(path: Path) -> tuple[int, int]:
    """Read the height and width in pixels from an image's header, after its EXIF orientation.

    Raises `InputError` if the file is missing or its header cannot be read.
    """
    layout = read_layout(path)
    if layout is not None and layout.is_beyond_pillow:
        return layout.upright_shape
    try:
        return use_image(path, lambda image: _upright_shape(image, path))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # broken files make Pillow raise many kinds of errors
        raise InputError(f"{path} is not a readable image ({error})") from error


def _upright_shape(image: Image.Image, path: Path) -> tuple[int, int]:
    if image.format == "PNG" and has_late_metadata(path):
        check_decoding(image)
        image.load()
    # The getexif of PNG files decodes the pixels to search for EXIF after them, which is slow.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    if orientation not in (5, 6, 7, 8):
        return image.height, image.width
    if image.format != "TIFF":
        return image.width, image.height
    check_decoding(image)
    with native_output_hidden():
        image.load()  # Pillow itself rotates TIFF files, in some versions only here
    return image.height, image.width


def is_image(path: Path) -> bool:
    """Return True if a file is an image by its suffix, or by its content if the suffix is unknown.

    Raw files of cameras are not.
    """
    suffix = path.suffix.lower()
    if suffix in _RAW_SUFFIXES:
        return False
    Image.init()
    if suffix in Image.EXTENSION:
        return Image.EXTENSION[suffix] in _FORMATS_BY_SUFFIX
    try:
        with Image.open(path, formats=[name for name in _FORMATS_BY_CONTENT if name in Image.OPEN]):
            return True
    except Exception:  # other files make Pillow raise many kinds of errors
        return False


def count_pixels(path: Path) -> int:
    """Read the number of pixels from an image's header; 0 if the header cannot be read."""
    layout = read_layout(path)
    if layout is not None:
        return layout.shape[0] * layout.shape[1]
    try:
        return use_image(path, lambda image: image.width * image.height)
    except Exception:  # broken files make Pillow raise many kinds of errors
        return 0


def read_mask(path: Path) -> np.ndarray:
    """Read an image as a mask, (H, W) bool: True where a pixel is neither black, transparent nor NaN.

    Pixels of less than half the largest opacity count as transparent. As JPEG does not keep black, pixels of
    less than half the brightness count as black there. In a GeoTIFF file, pixels of nodata are outside.
    Raises `InputError` if the file is missing or not a readable image.
    """
    if is_geotiff(path):
        return read_geotiff_mask(path)
    return _read_upright(path, "mask", lambda *pixels: to_mask(*pixels, name=str(path)))


def to_rgb_array(
    image: np.ndarray | Image.Image, *, value_range: ValueRange | None = None, name: str = "the image"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert an image in memory to RGB.

    Parameters
    ----------
    image : ndarray or PIL image
        An array (H, W) or (H, W, 1) of grey, (H, W, 3) of RGB, or with a last channel of opacity (H, W, 2 or
        4), of integers or floats in [0, 1]; unknown values are masked or NaN. Or any PIL image. It becomes
        what `read_image` makes of its file.
    value_range : pair of float, optional
        Values that become black and white, for integers of more than 8 bits, see `scale_to_8_bits`, and for
        floats.
    name : str
        Name in error messages.

    Returns
    -------
    image_rgb : ndarray, shape (H, W, 3)
        uint8, or float32 in [0, 1]; mid-grey replaces NaN and masked pixels.
    is_known : ndarray, shape (H, W), bool, or None
        False where a channel of the image is NaN or masked; None if there is no such pixel.

    Raises
    ------
    InputError
        If the image has another type, shape, dtype or range.
    """
    try:
        if isinstance(image, Image.Image):
            rgb = to_rgb(pixels_of(image), has_white_zero(image), value_range, name=name)
            return turn(rgb, orientation_of(image)), None
        if not isinstance(image, np.ndarray):
            raise InputError(f"must be an array or a PIL image, got {type(image)}")
        if image.size == 0 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
            raise InputError(
                f"must be (H, W) or (H, W, 1 to 4), got {image.shape}; of more bands, index red, green and "
                "blue"
            )
        pixels = image[..., None] if image.ndim == 2 else image
        if pixels.dtype.kind in "iu" and isinstance(pixels, np.ma.MaskedArray):
            return masked_integers_to_rgb(pixels, value_range, name=name)
        if pixels.dtype.kind in "iu":
            return to_rgb(pixels, False, value_range, name=name), None
        if pixels.dtype.kind != "f":
            raise InputError(f"must be of integers, or floats in [0, 1], got {image.dtype}")
        return floats_to_rgb(np.ma.filled(pixels, np.nan), value_range)
    except InputError as error:
        raise InputError(f"{name} {error}") from error


def resize_image(image_rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 to (height, width), bilinearly, with antialiasing."""
    if image_rgb.shape[:2] == shape:
        return image_rgb
    return np.asarray(Image.fromarray(image_rgb).resize(shape[::-1], Image.Resampling.BILINEAR))


def _read_upright(
    path: Path,
    kind: str,
    convert: Callable[[Image.Image | np.ndarray, bool], np.ndarray],
    *,
    bands: Bands | None = None,
) -> np.ndarray:
    """Read an image file, convert its pixels, see `pixels_of`, and apply its EXIF orientation.

    The second argument of `convert` is True if white is zero. `kind` names the file in error messages. With
    `bands`, `convert` gets all bands of a TIFF file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no {kind} file {path}")
    try:
        layout = read_layout(path)
        if layout is not None and bands is None and layout.has_unknown_fourth:
            text = "%s has a fourth band, which is left out, as in other such files; `bands` chooses others"
            log_once(logger, "fourth band", text, path)
        if layout is not None and (layout.is_beyond_pillow or (bands is not None and layout.n_bands > 1)):
            return _convert_tiff(path, layout, convert, kind=kind, bands=bands)
        return use_image(path, lambda image: _convert_upright(image, path, convert))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # broken files make Pillow raise many kinds of errors
        raise InputError(f"{path} is not a readable {kind} ({error})") from error


def _convert_tiff(
    path: Path,
    layout: TiffLayout,
    convert: Callable[[np.ndarray, bool], np.ndarray],
    *,
    kind: str,
    bands: Bands | None,
) -> np.ndarray:
    """Read a TIFF file without Pillow, as `_read_upright` does."""
    if layout.has_more_pages:
        _log_pages(path)
    if kind == "image":
        _check_layout(layout, bands)
    elif layout.n_colors not in (1, 3):
        raise InputError(f"has {layout.n_bands} bands; expected one")
    pixels = read_bands(path, layout)
    if bands is None:
        pixels = _as_tagged(pixels, layout)
    return turn(convert(pixels, False), layout.orientation)


def _as_tagged(pixels: np.ndarray, layout: TiffLayout) -> np.ndarray:
    """Return grey or colours, with opacity if the file has it, (H, W, 1 to 4)."""
    colors, opacity = pixels[..., : layout.n_colors], pixels[..., layout.n_colors :]
    if not layout.has_opacity:
        return colors
    if not layout.is_premultiplied:
        return pixels
    return np.concatenate([divide_by_opacity(colors, opacity), opacity], axis=2)


def _convert_upright(
    image: Image.Image, path: Path, convert: Callable[[Image.Image | np.ndarray, bool], np.ndarray]
) -> np.ndarray:
    check_decoding(image)
    # MPO holds previews, and PSD layers, beside the image.
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "PSD"):
        _log_pages(path)
    is_wide = has_wide_colors(image)
    # Only around the decoder, as `convert` may log to standard error.
    with native_output_hidden() if image.format == "TIFF" else nullcontext():
        pixels = read_wide_colors(path, image) if is_wide else pixels_of(image)
        image.load()
    return turn(convert(pixels, has_white_zero(image)), orientation_of(image))


def _log_pages(path: Path) -> None:
    text = "%s holds several pages or frames: the first is read, as in other such files"
    log_once(logger, "pages", text, path)


def _with_mask(image_rgb: np.ndarray, is_known: np.ndarray | None) -> np.ndarray:
    if is_known is None:
        return image_rgb
    return np.ma.MaskedArray(image_rgb, np.repeat(~is_known[..., None], 3, axis=2))


def _check_layout(layout: TiffLayout, bands: Bands | None) -> None:
    """Raise `InputError` if a file lacks a chosen band, or if the bands of an image must be chosen."""
    if bands is not None:
        check_has_bands(layout.n_bands, bands)
    elif layout.n_colors not in (1, 3):
        raise must_choose(layout.n_bands)


def _choose_bands(pixels: Image.Image | np.ndarray, bands: Bands | None) -> Image.Image | np.ndarray:
    """Return the chosen bands, (H, W, 1 or 3), or the pixels as they are if None are chosen."""
    if bands is None:
        return pixels
    if isinstance(pixels, Image.Image):
        has_bands = pixels.mode in ("L", "LA", "RGB", "RGBA")
        pixels = np.asarray(pixels if has_bands else pixels.convert("RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    check_has_bands(pixels.shape[2], bands)
    return pixels[..., [band - 1 for band in bands]]
