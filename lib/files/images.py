"""Read images and masks in any common format."""

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from lib.files.native_output import native_output_hidden
from lib.files.opencv import cv2
from lib.files.repair import has_late_metadata, use_image
from lib.files.tiff import TiffLayout, read_bands, read_layout
from lib.files.value_range import (
    ValueRange,
    check_value_range,
    divide_by_opacity,
    scale_to_8_bits,
    scale_to_unit,
)
from lib.runtime.errors import InputError
from lib.runtime.memory import check_memory
from lib.runtime.notices import log_once

logger = logging.getLogger(__name__)

Bands = tuple[int, ...]  # of a file, from 1: red, green and blue, or one of grey
UNSET = "default"  # a setting that is not given, in `ImageReader.described`

# Formats that Pillow recognises by their first bytes, and reads without other programs.
_FORMATS_BY_CONTENT = (
    *("AVIF", "BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD"),
    *("QOI", "SGI", "SUN", "TIFF", "WEBP", "XPM"),
)
_FORMATS_BY_SUFFIX = (*_FORMATS_BY_CONTENT, "DIB", "TGA", "XBM")
# Raw files of cameras. Pillow takes them for TIFF, and reads a thumbnail or values of the sensor.
_RAW_SUFFIXES = (".3fr", ".arw", ".cr2", ".dng", ".erf", ".iiq", ".kdc", ".nef", ".nrw", ".pef", ".srw")

# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION = 258, 262, 284

_LOSSY_FORMATS = ("JPEG", "MPO", "AVIF")
_MANY_GREY_PIXELS = 0.05  # share of a mask; blurred borders have less

_MANY_TRANSLUCENT_PIXELS = 0.5  # share of an image; shadows and borders of cut-outs have less

_DECODED_BYTES = 7  # per pixel: 4 in Pillow, and 3 in an array of RGB

_UNKNOWN = 0.5  # mid-grey, replaces NaN pixels in the input of the network

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


class ImageReader(NamedTuple):
    """Settings of `read_image` that the images of a run share."""

    value_range: ValueRange | None = None
    bands: Bands | None = None

    def check(self) -> None:
        """Raise `InputError` if a setting cannot be used for any image."""
        check_value_range(self.value_range)
        _check_bands(self.bands)

    def read(self, path: Path) -> np.ndarray:
        return read_image(path, value_range=self.value_range, bands=self.bands)

    def read_shape(self, path: Path) -> tuple[int, int]:
        """Read a shape as `read_image_shape`; raise `InputError` too if `read` would refuse the bands."""
        layout = read_layout(path)
        if layout is not None:
            try:
                _check_layout(layout, self.bands)
            except InputError as error:
                raise InputError(f"{path} {error}") from error
        return read_image_shape(path)

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
    _check_bands(bands)

    def convert(pixels: Image.Image | np.ndarray, is_white_zero: bool) -> np.ndarray:
        return _to_rgb(_choose_bands(pixels, bands), is_white_zero, value_range, name=str(path))

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
    less than half the brightness count as black there. Raises `InputError` if the file is missing or not a
    readable image.
    """
    return _read_upright(path, "mask", lambda *pixels: _to_mask(*pixels, name=str(path)))


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
            rgb = _to_rgb(_pixels_of(image), _is_white_zero(image), value_range, name=name)
            return _turn(rgb, _orientation(image)), None
        if not isinstance(image, np.ndarray):
            raise InputError(f"must be an array or a PIL image, got {type(image)}")
        if image.size == 0 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
            raise InputError(
                f"must be (H, W) or (H, W, 1 to 4), got {image.shape}; of more bands, index red, green and "
                "blue"
            )
        pixels = image[..., None] if image.ndim == 2 else image
        if pixels.dtype.kind in "iu" and isinstance(pixels, np.ma.MaskedArray):
            return _masked_integers_to_rgb(pixels, value_range, name=name)
        if pixels.dtype.kind in "iu":
            return _to_rgb(pixels, False, value_range, name=name), None
        if pixels.dtype.kind != "f":
            raise InputError(f"must be of integers, or floats in [0, 1], got {image.dtype}")
        return _floats_to_rgb(np.ma.filled(pixels, np.nan), value_range)
    except InputError as error:
        raise InputError(f"{name} {error}") from error


def resize_image(image_rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 to (height, width), bilinearly, with antialiasing."""
    if image_rgb.shape[:2] == shape:
        return image_rgb
    return np.asarray(Image.fromarray(image_rgb).resize(shape[::-1], Image.Resampling.BILINEAR))


def check_decoding(image: Image.Image) -> None:
    """Raise `InputError` if an open image has too many pixels for the memory; a small file may have many."""
    check_memory(
        _DECODED_BYTES * image.width * image.height, f"of {size_text((image.height, image.width))} pixels"
    )


def size_text(shape: tuple[int, ...]) -> str:
    """Return the size of an array (H, W, ...) as text, width first, as in image viewers."""
    return f"{shape[1]}x{shape[0]}"


def _read_upright(
    path: Path,
    kind: str,
    convert: Callable[[Image.Image | np.ndarray, bool], np.ndarray],
    *,
    bands: Bands | None = None,
) -> np.ndarray:
    """Read an image file, convert its pixels, see `_pixels_of`, and apply its EXIF orientation.

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
    return _turn(convert(pixels, False), layout.orientation)


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
    has_wide_colors = _has_wide_colors(image)
    # Only around the decoder, as `convert` may log to standard error.
    with native_output_hidden() if image.format == "TIFF" else nullcontext():
        pixels = _read_wide_colors(path, image) if has_wide_colors else _pixels_of(image)
        image.load()
    return _turn(convert(pixels, _is_white_zero(image)), _orientation(image))


def _log_pages(path: Path) -> None:
    text = "%s holds several pages or frames: the first is read, as in other such files"
    log_once(logger, "pages", text, path)


def _check_layout(layout: TiffLayout, bands: Bands | None) -> None:
    """Raise `InputError` if a file lacks a chosen band, or if the bands of an image must be chosen."""
    if bands is not None:
        _check_has_bands(layout.n_bands, bands)
    elif layout.n_colors not in (1, 3):
        raise InputError(
            f"has {layout.n_bands} bands; `bands` chooses three, as red, green and blue, or one of grey"
        )


def _check_has_bands(n_bands: int, bands: Bands) -> None:
    if max(bands) > n_bands:
        raise InputError(f"has {n_bands} bands, and so no band {max(bands)} of `bands`")


def _check_bands(bands: Bands | None) -> None:
    if bands is not None and (len(bands) not in (1, 3) or min(bands) < 1):
        raise InputError(
            f"{' '.join(map(str, bands))}: expected three bands, as red, green and blue, or one of grey, "
            "counted from 1",
            parameter="bands",
        )


def _choose_bands(pixels: Image.Image | np.ndarray, bands: Bands | None) -> Image.Image | np.ndarray:
    """Return the chosen bands, (H, W, 1 or 3), or the pixels as they are if None are chosen."""
    if bands is None:
        return pixels
    if isinstance(pixels, Image.Image):
        has_bands = pixels.mode in ("L", "LA", "RGB", "RGBA")
        pixels = np.asarray(pixels if has_bands else pixels.convert("RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    _check_has_bands(pixels.shape[2], bands)
    return pixels[..., [band - 1 for band in bands]]


def _is_white_zero(image: Image.Image) -> bool:
    """Return True if the largest value of a greyscale image is black; Pillow inverts only 8-bit images."""
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC_INTERPRETATION) == 0


def _pixels_of(image: Image.Image) -> Image.Image | np.ndarray:
    """Return the image, or an array (H, W, 1 or 2) if it has more than 8 bits, as stored."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    range_of_header = _range_of_header(image)
    values = np.asarray(image)[..., None]
    if range_of_header is not None:
        values = scale_to_8_bits(values, range_of_header, name="")
    return _with_transparency(values, image)


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


def _has_wide_colors(image: Image.Image) -> bool:
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


def _read_wide_colors(path: Path, image: Image.Image) -> np.ndarray:
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


def _orientation(image: Image.Image) -> int | None:
    return image.getexif().get(ExifTags.Base.Orientation)


def _turn(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    """Apply an EXIF orientation to an array (H, W, ...)."""
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _to_mask(pixels: Image.Image | np.ndarray, is_white_zero: bool, *, name: str) -> np.ndarray:
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


def _to_rgb(
    pixels: Image.Image | np.ndarray, is_white_zero: bool, value_range: ValueRange | None, *, name: str
) -> np.ndarray:
    """Convert an image of 8 bits, or an array (H, W, C), to RGB, on white if it has opacity."""
    if isinstance(pixels, np.ndarray):
        if pixels.dtype.kind == "f":
            return _float_file_to_rgb(pixels, value_range)
        if pixels.dtype != np.uint8:
            pixels = scale_to_8_bits(pixels, value_range, name=name)
            pixels = 255 - pixels if is_white_zero else pixels
        pixels = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if pixels.has_transparency_data:
        pixels = pixels.convert("RGBA")
        _report_odd_opacity(np.asarray(pixels.getchannel("A")), name=name)
        pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
    return np.asarray(pixels.convert("RGB"))


def _float_file_to_rgb(pixels: np.ndarray, value_range: ValueRange | None) -> np.ndarray:
    if value_range is None:
        raise InputError(
            "has 32-bit float pixels of unknown range; give `value_range`, or convert it to 8 or 16 bits"
        )
    rgb, is_known = _floats_to_rgb(pixels, value_range)
    if is_known is not None:
        raise InputError("has NaN pixels")
    return np.rint(255 * rgb).astype(np.uint8)


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


def _masked_integers_to_rgb(
    pixels: np.ma.MaskedArray, value_range: ValueRange | None, *, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert integers (H, W, 1 to 4) to RGB, as `to_rgb_array` does."""
    is_known = find_unmasked(pixels)
    if is_known is None:
        return _to_rgb(pixels.data, False, value_range, name=name), None
    if not is_known.any():
        raise InputError("has no unmasked pixel")
    values = pixels.data.copy()
    values[~is_known] = values[is_known][0]  # must not change the range
    rgb = _to_rgb(values, False, value_range, name=name)
    return np.where(is_known[..., None], rgb, np.uint8(255 * _UNKNOWN)), is_known


def find_unmasked(values: np.ndarray) -> np.ndarray | None:
    """Return where no channel of an array (H, W, C) is masked, (H, W) bool; None if that is everywhere."""
    is_masked = np.ma.getmaskarray(values).any(axis=2) if np.ma.is_masked(values) else None
    return None if is_masked is None else ~is_masked


def _floats_to_rgb(
    pixels: np.ndarray, value_range: ValueRange | None
) -> tuple[np.ndarray, np.ndarray | None]:
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
