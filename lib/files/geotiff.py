"""Read TIFF files that have a place on the ground, nodata or a mask, and write label maps for GIS software.

GDAL reads them, through rasterio. Other TIFF files are read by `lib.files.images`, without GDAL.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tifffile

from lib.files.band_choice import Bands, check_bands, check_has_bands, must_choose
from lib.files.gdal import HOW_TO_INSTALL, find_rasterio, import_rasterio
from lib.files.tiff import check_size, is_tiff
from lib.runtime.errors import InputError, RunError
from lib.runtime.notices import log_once

if TYPE_CHECKING:
    from rasterio.io import DatasetReader, DatasetWriter

logger = logging.getLogger(__name__)

# TIFF tags: scale, tie points and matrix of the transform, keys of the CRS, and nodata as GDAL writes it.
_GEO_TAGS = (33550, 33922, 34264, 34735, 42113)

# Bytes of a pixel in the bands that are read at a time; the network takes about 200. A compressed file is
# decoded once for each such group.
_BYTES_AT_ONCE = 64

Window = tuple[tuple[int, int], tuple[int, int]]  # first row and the one after the last, and so the columns

_MAX_SHIFT = 0.5  # pixels, of a corner between two images of the same place


class Georeference(NamedTuple):
    """Place of an image on the ground.

    The corner of pixels at column x and row y lies at (a * x + b * y + c, d * x + e * y + f), where
    `transform` is (a, b, c, d, e, f), as in rasterio.
    """

    crs: str | None = None  # coordinate reference system as WKT
    transform: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    @property
    def has_place(self) -> bool:
        """False if coordinates are pixels."""
        return self != PIXELS

    @property
    def pixel_area(self) -> float:
        """Area of a pixel, in the square of the units of the CRS."""
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d)

    @property
    def is_mirrored(self) -> bool:
        """True if rows run upwards where columns run to the right, as in most images: north is up."""
        a, b, _, d, e, _ = self.transform
        return a * e - b * d < 0

    def place(self, corners: np.ndarray) -> np.ndarray:
        """Return where corners of pixels (N, 2), column first, lie on the ground, (N, 2) float64."""
        a, b, c, d, e, f = self.transform
        x, y = np.asarray(corners, dtype=np.float64).T
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


PIXELS = Georeference()  # of images without a place: x to the right, y down


class GeoImage(NamedTuple):
    """Bands of an image, and its place."""

    pixels: np.ma.MaskedArray  # (H, W, C), as stored; masked where there is no data
    georeference: Georeference


def is_geotiff(path: Path) -> bool:
    """Return True if a file is a TIFF file with a place on the ground, nodata or a mask.

    Without rasterio, it is False; what is then lost is reported once. It is False for broken files.
    """
    if not Path(path).is_file() or not is_tiff(path):
        return False
    if find_rasterio() is None:
        if _has_geo_tags(path):
            log_once(
                logger,
                "no rasterio",
                "%s has a georeference or nodata, not used here and in other such files; to use them: %s",
                path,
                HOW_TO_INSTALL,
            )
        return False
    try:
        with _opened(path) as file:
            has_place = _georeference_of(file).has_place
            if file.gcps[0] and not has_place:
                text = "%s has a place by control points alone, not used in any such file; gdalwarp helps"
                log_once(logger, "control points", text, path)
            return has_place or _has_mask(file)
    except InputError:
        return False


def read_geotiff(path: Path, *, bands: Bands | None = None) -> GeoImage:
    """Read bands of a TIFF file, for example for `Segmenter`, which leaves masked pixels out.

    A band is masked where it has the nodata value of the file or is not finite, and where the opacity or the
    mask of the file is 0. Pixels are as stored: an EXIF orientation is ignored, as the georeference does not
    know it.

    Parameters
    ----------
    path : Path
        File to read.
    bands : tuple of one or three int, optional
        Bands to read, counted from 1: red, green and blue, or one of grey. A chosen band of opacity is data,
        and masks nothing. By default, the bands that the file names red, green and blue, the only band, or
        all of three.

    Returns
    -------
    GeoImage
        Pixels (H, W, 1 or 3), and the georeference.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a band, or has more than three bands that it does not name; or
        rasterio is missing.
    """
    check_bands(bands)
    with _opened(path) as file:
        chosen = _choose(file, bands, path)
        check_size(file.shape, len(chosen), _dtype_of(file))
        return GeoImage(_read_colors(file, chosen, bands), _georeference_of(file))


def read_geotiff_rows(path: Path, n_rows: int, *, bands: Bands | None = None) -> Iterator[np.ma.MaskedArray]:
    """Yield the pixels of `read_geotiff` from the top, in bands of `n_rows` rows, (n, W, 1 or 3)."""
    check_bands(bands)
    with _opened(path) as file:
        (height, width), chosen = file.shape, _choose(file, bands, path)
    for start in range(0, height, n_rows):
        with _opened(path) as file:  # not across a yield, as files of GDAL must be closed in order
            rows = ((start, min(start + n_rows, height)), (0, width))
            pixels = _read_colors(file, chosen, bands, rows)
        yield pixels


def is_8_bit_geotiff(path: Path) -> bool:
    """Return True for a file that `is_geotiff` whose values are uint8."""
    if not is_geotiff(path):
        return False
    with _opened(path) as file:
        return _dtype_of(file) == np.uint8


def read_each_band(path: Path) -> Iterator[tuple[int, np.ma.MaskedArray]]:
    """Yield the number from 1, and the values (H, W), of each band of a TIFF file but opacity.

    Values are masked as in `read_geotiff`. A few bands are in memory at a time. Raises `InputError` if the
    file cannot be read, or rasterio is missing.
    """
    with _opened(path) as file:
        bands, n_bytes = _data_bands(file), _dtype_of(file).itemsize
    n_at_once = max(1, _BYTES_AT_ONCE // n_bytes)
    for first in range(0, len(bands), n_at_once):
        group = bands[first : first + n_at_once]
        with _opened(path) as file:  # not across a yield, as files of GDAL must be closed in order
            values = _read(file, group)
        yield from zip(group, np.moveaxis(values, -1, 0), strict=True)


def count_bands(path: Path) -> int:
    """Return the number of bands that `read_each_band` yields."""
    with _opened(path) as file:
        return len(_data_bands(file))


def read_georeference(path: Path) -> Georeference:
    """Read where an image lies; `PIXELS` if it has no place or is no TIFF file, and without rasterio."""
    if not is_geotiff(path):
        return PIXELS
    with _opened(path) as file:
        return _georeference_of(file)


def read_geotiff_mask(path: Path) -> np.ndarray:
    """Read a TIFF file as a mask, (H, W) bool: True where a band has data and is not 0."""
    return (read_geotiff(path).pixels.filled(0) != 0).any(axis=2)


def check_same_place(image: Path, mask: Path) -> None:
    """Raise `InputError` if an image and its mask both have a place, and these differ."""
    first, second = read_georeference(image), read_georeference(mask)
    if not (first.has_place and second.has_place):
        return
    if first.crs and second.crs:
        from_wkt = import_rasterio().crs.CRS.from_wkt
        names = [from_wkt(each.crs) for each in (first, second)]
        if names[0] != names[1]:
            raise InputError(
                f"{mask} is in {names[1]}, but {image} in {names[0]}; warp the mask to the image"
            )
    with _opened(image) as file:
        height, width = file.shape
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]])
    shift = np.abs(first.place(corners) - second.place(corners)).max() / first.pixel_area**0.5
    if shift > _MAX_SHIFT:
        raise InputError(f"{mask} lies elsewhere than {image}, by {shift:.1f} pixels; warp it to the image")


def to_label_geotiff(labels: np.ndarray, georeference: Georeference = PIXELS) -> bytes:
    """Return a label map (H, W) as a GeoTIFF file, compressed by deflate.

    Labels have the smallest type of unsigned integers that holds them and nodata, its largest number, which
    replaces -1. Raises `InputError` if rasterio is missing.
    """
    with import_rasterio().MemoryFile() as memory:
        with memory.open(**_label_profile(labels.shape, int(labels.max()), georeference)) as file:
            _write_rows(file, labels, 0)
        return memory.read()


def write_label_geotiff(
    path: Path, bands: Iterable[np.ndarray], shape: tuple[int, int], highest: int, georeference: Georeference
) -> None:
    """Write the file of `to_label_geotiff` from bands of rows; `highest` is the largest label.

    A failed write, for example on a full disk, raises `RunError`.
    """
    rasterio = import_rasterio()
    try:
        with rasterio.open(path, "w", **_label_profile(shape, highest, georeference)) as file:
            row = 0
            for labels in bands:
                _write_rows(file, labels, row)
                row += len(labels)
    except rasterio.errors.RasterioError as error:
        raise RunError(f"{path}: cannot be written ({error})") from error


def _label_profile(shape: tuple[int, int], highest: int, georeference: Georeference) -> dict[str, Any]:
    """Return the settings of a file for labels up to `highest`."""
    dtype = np.min_scalar_type(highest + 1)
    return {
        "driver": "GTiff",
        "height": shape[0],
        "width": shape[1],
        "count": 1,
        "dtype": dtype.name,
        "crs": georeference.crs,
        "transform": import_rasterio().Affine(*georeference.transform),
        "nodata": np.iinfo(dtype).max,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }


def _write_rows(file: "DatasetWriter", labels: np.ndarray, start: int) -> None:
    rows = ((start, start + len(labels)), (0, labels.shape[1]))
    file.write(np.where(labels < 0, file.nodata, labels).astype(file.dtypes[0]), 1, window=rows)


@contextmanager
def _opened(path: Path) -> Iterator["DatasetReader"]:
    """Open a TIFF file with GDAL; errors in the block name it."""
    rasterio = import_rasterio()
    try:
        with rasterio.open(path, driver="GTiff") as file:
            yield file
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path} is not a readable image ({error})") from error


def _has_geo_tags(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as tiff:
            return any(tag in tiff.pages.first.tags for tag in _GEO_TAGS)
    except Exception:  # broken files make tifffile raise many kinds of errors
        return False


def _georeference_of(file: "DatasetReader") -> Georeference:
    return Georeference(file.crs.to_wkt() if file.crs else None, tuple(file.transform)[:6])


def _has_mask(file: "DatasetReader") -> bool:
    """Return True if a band has nodata or a mask; opacity alone is laid on white, as in other formats."""
    flags = [{flag.name for flag in of_band} for of_band in file.mask_flag_enums]
    return any(each.isdisjoint({"all_valid", "alpha"}) for each in flags)


def _roles(file: "DatasetReader") -> list[str]:
    """Return the colour of each band as GDAL names it: red, green, blue, gray, alpha, palette, undefined."""
    return [color.name for color in file.colorinterp]


def _dtype_of(file: "DatasetReader") -> np.dtype:
    if "complex" in file.dtypes[0]:  # rasterio names types of complex integers that NumPy lacks
        raise InputError("has complex pixels; convert it to their amplitude")
    return np.dtype(file.dtypes[0])


def _data_bands(file: "DatasetReader") -> list[int]:
    """Return the bands that are not opacity."""
    return [band for band, role in enumerate(_roles(file), start=1) if role != "alpha"]


def _find_colors(file: "DatasetReader", path: Path) -> Sequence[int]:
    """Return the bands of colour or grey; raise `InputError` if the file does not say which they are."""
    roles, data = _roles(file), _data_bands(file)
    colors = [roles.index(color) + 1 for color in ("red", "green", "blue") if color in roles]
    if len(data) in (1, 3) and len(colors) < 3:
        return data
    if len(colors) < 3:
        raise must_choose(file.count)
    if len(data) > 3:
        text = (
            "%s has %d bands: %d %d %d are red, green and blue by name, and are read; `bands` chooses others"
        )
        log_once(logger, "other bands", text, path, file.count, *colors)
    return colors


def _read(file: "DatasetReader", bands: Sequence[int], window: Window | None = None) -> np.ma.MaskedArray:
    """Read bands as (H, W, C), masked where they have no data; by default all rows and columns."""
    roles = _roles(file)
    values = file.read(bands, window=window)
    if any(roles[band - 1] == "alpha" for band in bands):
        is_masked = np.zeros(values.shape, dtype=bool)
    else:
        is_masked = file.read_masks(bands, window=window) == 0
        if "alpha" in roles:  # GDAL ignores opacity beside nodata
            is_masked |= file.read(roles.index("alpha") + 1, window=window) == 0
    if values.dtype.kind == "f":
        is_masked |= ~np.isfinite(values)
    return np.ma.MaskedArray(np.moveaxis(values, 0, -1), np.moveaxis(is_masked, 0, -1))


def _choose(file: "DatasetReader", bands: Bands | None, path: Path) -> Sequence[int]:
    """Return the given bands, or those of colour; raise `InputError` if the file lacks one."""
    if bands is not None:
        check_has_bands(file.count, bands)
    return bands or _find_colors(file, path)


def _read_colors(
    file: "DatasetReader", chosen: Sequence[int], bands: Bands | None, window: Window | None = None
) -> np.ma.MaskedArray:
    """Read the chosen bands, as `_read` does; a palette is applied if no `bands` are given."""
    pixels = _read(file, chosen, window)
    if bands is None and _roles(file) == ["palette"]:
        return _with_palette(pixels, file.colormap(1))
    return pixels


def _with_palette(pixels: np.ma.MaskedArray, palette: dict[int, tuple[int, ...]]) -> np.ma.MaskedArray:
    """Replace indices (H, W, 1) by their colours, (H, W, 3) uint8."""
    colors = np.zeros((np.iinfo(pixels.dtype).max + 1, 3), dtype=np.uint8)
    for index, color in palette.items():
        colors[index] = color[:3]
    return np.ma.MaskedArray(colors[pixels.data[..., 0]], np.repeat(pixels.mask, 3, axis=2))
