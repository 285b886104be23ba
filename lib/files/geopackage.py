"""Write polygons and their attributes as a GeoPackage, through pyogrio."""

import io
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lib.files.gdal import import_pyogrio
from lib.runtime.errors import InputError, RunError

MAX_FIELDS = 1998  # of SQLite's 2000 columns; the others are the number and the polygon

Polygon = Sequence[
    np.ndarray
]  # rings (N, 2) of corners (x, y): the outer one, then holes; the last corner too


def to_geopackage(
    polygons: Iterable[Polygon], fields: Mapping[str, np.ndarray], *, crs: str | None, layer: str
) -> bytes:
    """Return a GeoPackage with a layer of polygons.

    Parameters
    ----------
    polygons : iterable of polygons
        Each is a sequence of rings (N, 2) float of corners (x, y), the outer one first. The last corner of a
        ring is the first one.
    fields : mapping of str to ndarray
        Attributes by name, each with a number for every polygon; NaN becomes NULL.
    crs : str or None
        Coordinate reference system, as WKT.
    layer : str
        Name of the layer.

    Raises
    ------
    InputError
        If pyogrio is missing, or there are more fields than a GeoPackage holds.
    RunError
        If GDAL cannot write the layer.
    """
    pyogrio = import_pyogrio()
    if len(fields) > MAX_FIELDS:
        raise InputError(f"a GeoPackage holds at most {MAX_FIELDS} attributes, not {len(fields)}")
    warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
    geometry = np.array([_to_wkb(rings) for rings in polygons], dtype=object)
    buffer = io.BytesIO()
    try:
        pyogrio.raw.write(
            buffer,
            geometry,
            field_data=list(fields.values()),
            fields=list(fields),
            layer=layer,
            driver="GPKG",
            geometry_type="Polygon",
            crs=crs,
        )
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.CRSError) as error:
        raise RunError(f"GDAL cannot write the GeoPackage ({error})") from error
    return buffer.getvalue()


def _to_wkb(rings: Polygon) -> bytes:
    """Return a polygon in the well-known binary format, little-endian."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.asarray(ring, dtype="<f8").tobytes()]
    return b"".join(parts)
