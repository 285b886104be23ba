"""Write the files of an image: overlay, label map, features, outlines, annotations, flow."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lib.files.atomic import write_together
from lib.files.geotiff import PIXELS, is_geotiff, read_georeference, to_label_geotiff
from lib.files.hdf5 import write_hdf5
from lib.inference.geo import bands_of, to_polygon_layer
from lib.optflow.drawing import draw_flow
from lib.runtime.errors import InputError
from lib.runtime.notices import log_once
from lib.superpixels.annotations import ANNOTATION_SUFFIXES, to_coco, to_cvat, to_labelme
from lib.superpixels.drawing import (
    BOUNDARY_COLOR,
    draw_boundaries,
    draw_label_colors,
    draw_mean_colors,
    draw_nested_boundaries,
    label_colors,
)
from lib.superpixels.outlines import to_geojson, to_svg
from lib.superpixels.regions import Superpixels

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
LABEL_SUFFIXES = (".npy", ".png", ".tif", ".tiff", ".h5")
NESTED_LABEL_SUFFIXES = (".h5",)
FEATURE_SUFFIXES = (".npz",)
OUTLINE_SUFFIXES = (".geojson", ".svg", ".gpkg")
OVERLAYS = ("boundaries", "mean_colors", "label_colors")

# Level 1 writes pictures about four times faster than Pillow's default, level 6; files are larger.
_PNG_COMPRESS_LEVEL = 1

_JPEG_QUALITY = 95

_MAX_JPEG_SIDE = 65_500  # pixels; limit of libjpeg
_MAX_PNG_LABEL = 2**16 - 1


class OverlayStyle(NamedTuple):
    """Style of an overlay: borders over the image, or superpixels in their mean or label colours."""

    kind: str = "boundaries"  # or another of `OVERLAYS`
    color: tuple[int, int, int] = BOUNDARY_COLOR  # RGB of the borders
    width: int | None = None  # of the borders, in pixels; None: by the size of the superpixels

    def draw(
        self,
        superpixels: Superpixels,
        levels: Sequence[Superpixels] = (),
        *,
        track_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the overlay of an image, (H, W, 3) uint8.

        Borders are of all `levels`, coarsest first. Label colours are those of the track ID of each
        superpixel, (S,); by default, of its label.
        """
        image_rgb, labels = superpixels.image_rgb, superpixels.labels
        if self.kind == "mean_colors":
            return draw_mean_colors(image_rgb, labels, superpixels.colors)
        if self.kind == "label_colors":
            ids = np.arange(len(superpixels.sizes)) if track_ids is None else track_ids
            return draw_label_colors(image_rgb, labels, label_colors(ids))
        if levels:
            maps = [level.labels for level in levels]
            return draw_nested_boundaries(image_rgb, maps, color=self.color, width=self.width or 2)
        return draw_boundaries(image_rgb, labels, color=self.color, width=self.width)


DEFAULT_STYLE = OverlayStyle()


class ExportStyle(NamedTuple):
    """Detail of outlines, and format of annotations."""

    tolerance: float = 0  # largest distance of simplified outlines from the pixels, in pixels; 0: none
    annotation_format: str | None = None  # a key of `ANNOTATION_SUFFIXES`; None: the first one of the suffix


DEFAULT_EXPORT = ExportStyle()


class OutputFiles(NamedTuple):
    """Output files of an image; the suffix chooses the format."""

    overlay: Path  # picture of the image with its superpixels
    labels: Path | None = None  # .npy (int32), .png (16 bits), .tif (int32), .h5 (compressed `labels`)
    features: Path | None = None  # .npz of `pixel_features`, `spixel_features`, `n_base_features`, `labels`
    outlines: Path | None = None  # of connected superpixels, .geojson, .svg or .gpkg
    annotations: Path | None = None  # masks for labelling tools; see `ExportStyle`
    flow: Path | None = None  # picture of the optical flow

    @property
    def paths(self) -> list[Path]:
        return [path for path in self if path is not None]


def write_outputs(
    superpixels: Superpixels,
    files: OutputFiles,
    *,
    levels: Sequence[Superpixels] = (),
    style: OverlayStyle = DEFAULT_STYLE,
    export: ExportStyle = DEFAULT_EXPORT,
    flow: np.ndarray | None = None,
    image: Path | None = None,
) -> None:
    """Write the requested files of an image: all of them, or none.

    `files.features` needs superpixels with features, `files.flow` needs `flow`, (H, W, 4) float32 pixels, and
    `files.annotations`, which name the file of the image, need `image`. If `image` is a GeoTIFF file, labels
    in .tif and outlines in .gpkg have its place; see `to_label_geotiff` and `to_polygon_layer`.

    `levels`, the coarsest first, are cuts of one merge tree. The overlay shows the borders of all, unless it
    has mean colours. `files.labels`, an HDF5 file, holds these compressed datasets:

    - `level_<N>`, (H, W) int32: the label map of N superpixels, for each level;
    - `leaves`, (H, W) int32: the regions before any merge;
    - `merges`, (M, 3) float64: child, child, cost, the cheapest merge first. Nodes 0 to n_leaves - 1 are
      leaves, node n_leaves + m is merge m. The first n_leaves - N merges leave N regions.

    Raises
    ------
    InputError
        If a file's format cannot hold its content.
    RunError
        If a file cannot be written.
    """
    writers = {files.overlay: lambda to: _write_picture(style.draw(superpixels, levels), to, files.overlay)}
    if files.flow:
        writers[files.flow] = lambda to: _write_picture(draw_flow(flow), to, files.flow)
    if files.labels and levels:
        writers[files.labels] = lambda to: _write_levels(levels, to)
    elif files.labels:
        writers[files.labels] = lambda to: _write_labels(superpixels.labels, to, files.labels, image)
    if files.features:
        writers[files.features] = lambda to: _write_features(superpixels, to)
    if files.outlines and files.outlines.suffix.lower() == ".gpkg":
        writers[files.outlines] = lambda to: to.write_bytes(
            _polygon_layer(superpixels, image, export.tolerance)
        )
    elif files.outlines:
        draw = to_svg if files.outlines.suffix.lower() == ".svg" else to_geojson
        writers[files.outlines] = lambda to: to.write_text(draw(superpixels, tolerance=export.tolerance))
    if files.annotations:
        writers[files.annotations] = lambda to: to.write_bytes(
            _annotations(superpixels, files.annotations, export.annotation_format, image)
        )
    write_together(writers)


def _write_features(superpixels: Superpixels, temporary: Path) -> None:
    with temporary.open("wb") as file:  # NumPy may add a suffix to a file name
        np.savez(
            file,
            pixel_features=superpixels.pixel_features,
            spixel_features=superpixels.features,
            n_base_features=superpixels.n_base_features,
            labels=superpixels.labels,
        )


def _annotations(superpixels: Superpixels, path: Path, annotation_format: str | None, image: Path) -> bytes:
    """Return the content of a file of annotations; without a format, the first one of the suffix."""
    suffix = path.suffix.lower()
    match annotation_format or next(kind for kind, end in ANNOTATION_SUFFIXES.items() if end == suffix):
        case "cvat":
            return to_cvat(superpixels, image.stem)
        case "labelme":
            return to_labelme(superpixels, _path_from(path.parent, image)).encode()
        case _:
            return to_coco(superpixels, image.name).encode()


def _polygon_layer(superpixels: Superpixels, image: Path | None, tolerance: float) -> bytes:
    """Return the content of a GeoPackage; without an image file, the statistics are of RGB."""
    georeference = PIXELS if image is None else read_georeference(image)
    if not georeference.has_place:
        text = "%s has no georeference: its polygons are in pixels, y down, as for other such images"
        log_once(logger, "no place", text, image or "the image")
    elif georeference.crs is None:
        text = "%s names no CRS, and so its polygons have none, as for other such images"
        log_once(logger, "no CRS", text, image)
    image_rgb = superpixels.image_rgb
    bands = enumerate(np.moveaxis(image_rgb, 2, 0), start=1) if image is None else bands_of(image, image_rgb)
    return to_polygon_layer(superpixels, bands, georeference, tolerance=tolerance)


def _path_from(folder: Path, file: Path) -> str:
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return file.absolute().as_posix()


def _write_picture(picture: np.ndarray, temporary: Path, path: Path) -> None:
    if path.suffix.lower() in (".jpg", ".jpeg") and max(picture.shape) > _MAX_JPEG_SIDE:
        raise InputError(f"{path}: JPEG cannot hold an image with more than {_MAX_JPEG_SIDE} pixels per side")
    options = {"compress_level": _PNG_COMPRESS_LEVEL}
    if path.suffix.lower() in (".jpg", ".jpeg"):
        options = {"quality": _JPEG_QUALITY, "subsampling": 0}  # coloured lines would bleed otherwise
    try:
        Image.fromarray(picture).save(temporary, **options)
    except ValueError as error:  # for example, WebP is limited to 16,383 pixels per side
        raise InputError(f"{path}: the format cannot hold this image ({error})") from error


def _write_levels(levels: Sequence[Superpixels], temporary: Path) -> None:
    tree = levels[-1].tree
    datasets = {f"level_{level.n_measured}": level.labels for level in levels}
    datasets |= {"leaves": tree.leaves, "merges": tree.table}
    with write_hdf5(temporary) as writing:
        for name, values in datasets.items():
            writing.file.create_dataset(name, data=values, compression="gzip", shuffle=True)
        writing.file["merges"].attrs["columns"] = "child, child, cost"
        writing.file["merges"].attrs["nodes"] = (
            "0 to n_leaves - 1 are the regions of `leaves`; n_leaves + m is the result of merge m; "
            "the first n_leaves - N merges leave N regions"
        )


def _write_labels(labels: np.ndarray, temporary: Path, path: Path, image: Path | None) -> None:
    match path.suffix.lower():
        case ".npy":
            with temporary.open("wb") as file:  # NumPy may add a suffix to a file name
                np.save(file, labels)
        case ".h5":
            with write_hdf5(temporary) as writing:
                writing.file.create_dataset("labels", data=labels, compression="gzip", shuffle=True)
        case ".tif" | ".tiff" if image is not None and is_geotiff(image):
            temporary.write_bytes(to_label_geotiff(labels, read_georeference(image)))
        case ".tif" | ".tiff":
            Image.fromarray(labels).save(temporary, compression="tiff_adobe_deflate")
        case _:
            check_png_labels(path, int(labels.min()), int(labels.max()))
            Image.fromarray(labels.astype(np.uint16)).save(temporary)


def check_png_labels(path: Path, lowest: int, highest: int) -> None:
    """Raise `InputError` if a PNG file cannot hold labels."""
    problem = None
    if lowest < 0:
        problem = "PNG cannot hold label -1 of pixels outside the mask"
    elif highest > _MAX_PNG_LABEL:
        problem = f"label {highest} does not fit a 16-bit PNG"
    if problem:
        message = f"{path}: {problem}; use a name that ends in .npy, .tif or .h5"
        raise InputError(message, parameter="save_labels")
