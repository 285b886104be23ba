"""Superpixels as polygons on the ground, with statistics of each band of the image."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lib.files.decoding import turn
from lib.files.geopackage import MAX_FIELDS, to_geopackage
from lib.files.geotiff import PIXELS, Georeference, count_bands, is_geotiff, read_each_band
from lib.files.tiff import read_layout
from lib.runtime.errors import InputError
from lib.superpixels.outlines import trace_outlines
from lib.superpixels.regions import Superpixels

_LAYER = "superpixels"
_N_FIELDS_OF_ALL = 3  # label, n_pixels and area


def to_polygon_layer(
    superpixels: Superpixels,
    bands: Iterable[tuple[int, np.ndarray]],
    georeference: Georeference = PIXELS,
    *,
    tolerance: float = 0,
) -> bytes:
    """Return a GeoPackage with a polygon and statistics for each of connected superpixels.

    Its layer `superpixels` has these attributes: `label`, `n_pixels`, `area` of the pixels in the square of
    the units of the CRS, and for each band of number i, `mean_i` and `std_i`, see `Superpixels.mean_of` and
    `std_of`; NULL in a superpixel without data. Neighbours share all corners of their border, also where a
    third one begins.

    Parameters
    ----------
    superpixels : Superpixels
        Connected superpixels.
    bands : iterable of (int, ndarray)
        Number of each band, and its values, (H, W), masked or NaN where there is no data, such as
        `read_each_band` yields.
    georeference : Georeference
        Place of the image; by default, polygons are in pixels: x to the right, y down.
    tolerance : float
        See `trace_outlines`; the attributes are of the pixels nevertheless.

    Raises
    ------
    InputError
        If pyogrio is missing, or the statistics of all bands are more than a GeoPackage holds.
    """
    sizes = superpixels.sizes
    fields = {
        "label": np.arange(len(sizes), dtype=np.int32),
        "n_pixels": sizes,
        "area": sizes * georeference.pixel_area,
    }
    for band, values in bands:
        fields[f"mean_{band}"] = superpixels.mean_of(values)
        fields[f"std_{band}"] = superpixels.std_of(values)
    outlines = trace_outlines(superpixels.labels, tolerance=tolerance, with_junctions=True)
    polygons = ([_placed(ring, georeference) for ring in rings] for rings in outlines)
    return to_geopackage(polygons, fields, crs=georeference.crs, layer=_LAYER)


def bands_of(image: Path, image_rgb: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number from 1, and the values (H, W), of each band of an image file, one by one.

    Bands of TIFF files are as stored, without opacity. Other images have the three of `image_rgb`, (H, W, 3).
    Raises `InputError` if the file has too many bands for `to_polygon_layer`.
    """
    layout = read_layout(image)
    is_geo = is_geotiff(image)
    if layout is None and not is_geo:
        yield from enumerate(np.moveaxis(image_rgb, 2, 0), start=1)
        return
    max_bands = (MAX_FIELDS - _N_FIELDS_OF_ALL) // 2
    n_bands = count_bands(image)
    if n_bands > max_bands:
        raise InputError(
            f"{image} has {n_bands} bands; a GeoPackage holds the statistics of at most {max_bands}"
        )
    for band, values in read_each_band(image):
        yield band, values if is_geo else turn(values, layout.orientation)


def _placed(ring: list[tuple[int, int]], georeference: Georeference) -> np.ndarray:
    """Return a closed ring on the ground; outer rings run counterclockwise there, holes clockwise."""
    closed = np.array([*ring, ring[0]])
    return georeference.place(closed[::-1] if georeference.is_mirrored else closed)
