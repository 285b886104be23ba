"""Import rasterio and pyogrio, which hold GDAL, only where they are needed; plain images work without."""

import logging
import warnings
from types import ModuleType

from lib.runtime.errors import InputError

HOW_TO_INSTALL = "pip install rasterio pyogrio"

for _name in ("rasterio", "pyogrio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # we report broken files ourselves


def find_rasterio() -> ModuleType | None:
    """Return rasterio; None if it is missing."""
    try:
        import rasterio
    except ImportError:
        return None
    # At each call, as filters may be reset. We handle files without a georeference, and opacity and nodata.
    for category in (rasterio.errors.NotGeoreferencedWarning, rasterio.errors.NodataShadowWarning):
        warnings.filterwarnings("ignore", category=category)
    return rasterio


def import_rasterio() -> ModuleType:
    """Return rasterio; raise an `InputError` with the way out if it is missing."""
    rasterio = find_rasterio()
    if rasterio is None:
        raise InputError(f"GeoTIFF files and GeoPackages need rasterio: {HOW_TO_INSTALL}")
    return rasterio


def import_pyogrio() -> ModuleType:
    """Return pyogrio; raise an `InputError` with the way out if it is missing."""
    try:
        import pyogrio
    except ImportError as error:
        raise InputError(f"GeoPackages need pyogrio: {HOW_TO_INSTALL}") from error
    return pyogrio


def check_geo_extra() -> None:
    """Raise an `InputError` with the way out if rasterio or pyogrio is missing; a GeoPackage needs both."""
    import_pyogrio()
    import_rasterio()
