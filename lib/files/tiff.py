"""Read TIFF files of any number of bands, as satellites and drones deliver them."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from lib.files.sizes import size_text
from lib.runtime.errors import InputError
from lib.runtime.memory import check_memory

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # we report broken files ourselves

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are of BigTIFF
_GREY, _RGB = tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB
_PREMULTIPLIED, _OPACITY = tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA
_MAX_PILLOW_BANDS = 4  # it reads some 8-bit files of more, without saying so


class TiffLayout(NamedTuple):
    """Layout of the first page of a TIFF file, whose bands are stored as they are to be read."""

    shape: tuple[int, int]  # (height, width) as stored
    n_bands: int
    dtype: np.dtype
    is_rgb: bool  # the first three bands are red, green and blue by a tag
    has_opacity: bool  # the last band of two or four is opacity by a tag
    is_premultiplied: bool  # the colours are multiplied by the opacity
    is_planar: bool
    orientation: int  # as in EXIF
    has_more_pages: bool  # other than smaller versions of the first page

    @property
    def n_colors(self) -> int:
        """Bands that are grey or colours, as far as tags say."""
        return 3 if self.has_unknown_fourth else self.n_bands - self.has_opacity

    @property
    def has_unknown_fourth(self) -> bool:
        """True for red, green, blue, and a band whose tag says nothing."""
        return self.is_rgb and self.n_bands == 4 and not self.has_opacity

    @property
    def upright_shape(self) -> tuple[int, int]:
        return self.shape[::-1] if self.orientation in (5, 6, 7, 8) else self.shape

    @property
    def is_beyond_pillow(self) -> bool:
        """True if Pillow refuses the file, or loses bands or bits of it."""
        if self.n_bands == 1:
            return False
        if self.n_bands > _MAX_PILLOW_BANDS or not (self.is_rgb or self.has_opacity):
            return True
        if self.dtype == np.uint8:
            return self.is_planar and self.has_unknown_fourth
        is_plain_rgb = self.is_rgb and self.dtype == np.uint16 and not self.is_premultiplied
        return not is_plain_rgb or self.is_planar or self.orientation != 1

    @property
    def is_plain(self) -> bool:
        """True for upright grey, or red, green and blue, of 8 bits, which need no conversion."""
        is_known = self.n_bands == 1 or (self.n_bands == 3 and self.is_rgb and not self.is_planar)
        return is_known and self.dtype == np.uint8 and self.orientation == 1


def read_layout(path: Path) -> TiffLayout | None:
    """Read the layout of a TIFF file from its header.

    Returns None for other and broken files, and for files that are left to Pillow: palettes, CMYK, YCbCr,
    white as zero, and values of other than 8, 16, 32 or 64 bits.
    """
    if not is_tiff(path):
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            has_more_pages = len(tiff.pages) > 1 and not tiff.pages[1].is_reduced
            return _layout_of(page, has_more_pages=has_more_pages)
    except Exception:  # broken files make tifffile raise many kinds of errors
        return None


def is_tiff(path: Path) -> bool:
    """Return True if a file is a TIFF file by its first bytes; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in _STARTS
    except OSError:
        return False


def _layout_of(page: tifffile.TiffPage, *, has_more_pages: bool) -> TiffLayout | None:
    if page.photometric not in (_GREY, _RGB) or page.axes not in ("YX", "YXS", "SYX"):
        return None
    if page.dtype is None or page.dtype.kind not in "iuf" or page.bitspersample != 8 * page.dtype.itemsize:
        return None
    last_extra = page.extrasamples[-1] if page.extrasamples else None
    n_bands = page.samplesperpixel
    has_opacity = n_bands in (2, 4) and last_extra in (_PREMULTIPLIED, _OPACITY)
    orientation = page.tags.get("Orientation")
    return TiffLayout(
        shape=(page.imagelength, page.imagewidth),
        n_bands=n_bands,
        dtype=page.dtype,
        is_rgb=page.photometric == _RGB,
        has_opacity=has_opacity,
        is_premultiplied=has_opacity and last_extra == _PREMULTIPLIED,
        is_planar=page.axes == "SYX",
        orientation=1 if orientation is None else int(orientation.value),
        has_more_pages=has_more_pages,
    )


def read_plain_rows(path: Path) -> Iterator[np.ndarray]:
    """Yield a file whose layout `is_plain` from the top, in rows (n_rows, W, 1 or 3) of tiles or strips.

    Only one row of tiles is in memory. Errors of tifffile are raised.
    """
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        rows, top = None, 0
        for segment, (_, _, y, x, _), shape in page.segments(maxworkers=1, sort=True):
            if rows is not None and y != top:
                yield rows
                rows = None
            if rows is None:
                n_rows = min(shape[1], page.imagelength - y)
                rows, top = np.zeros((n_rows, page.imagewidth, page.samplesperpixel), np.uint8), y
            if segment is not None:  # tiles of zeros may be left out
                n_cols = min(shape[2], page.imagewidth - x)
                rows[:, x : x + n_cols] = segment[0, : len(rows), :n_cols]
        yield rows


def read_bands(path: Path, layout: TiffLayout) -> np.ndarray:
    """Read all bands as stored, (H, W, n_bands), without the orientation.

    Errors of tifffile are raised, and `InputError` if the image is larger than Pillow would read.
    """
    check_size(layout.shape, layout.n_bands, layout.dtype)
    with tifffile.TiffFile(path) as tiff:
        pixels = tiff.pages.first.asarray()
    if layout.is_planar:
        pixels = np.moveaxis(pixels, 0, 2)
    return pixels.reshape(*layout.shape, layout.n_bands)


def check_size(shape: tuple[int, int], n_bands: int, dtype: np.dtype) -> None:
    """Raise `InputError` if an image is larger than Pillow would read, or `n_bands` of it than the memory."""
    n_pixels = shape[0] * shape[1]
    if Image.MAX_IMAGE_PIXELS is not None and n_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        largest = f"{2 * Image.MAX_IMAGE_PIXELS:.0f}"
        raise InputError(f"has {n_pixels} pixels, more than the {largest} that are read")
    check_memory(n_pixels * n_bands * dtype.itemsize, f"of {size_text(shape)} pixels and {n_bands} bands")
