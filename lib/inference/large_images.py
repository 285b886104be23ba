"""Segment image files that do not fit the memory: read, segment and write in bands of rows."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lib.files.atomic import write_together
from lib.files.conversion import find_unmasked
from lib.files.geotiff import check_same_place, is_geotiff, read_georeference, write_label_geotiff
from lib.files.hdf5 import write_hdf5
from lib.files.images import ImageReader, read_mask
from lib.files.row_file import check_disk, mapped_in_file
from lib.files.row_pictures import PICTURE_SUFFIXES, TILE_SIDE, write_npy, write_picture
from lib.files.sizes import size_text
from lib.inference.out_of_core import LabelFile, needed_disk, segment_out_of_core
from lib.inference.outputs import OutputFiles, OverlayStyle, check_png_labels
from lib.inference.segmenter import PreprocessedImage, Segmenter
from lib.runtime.errors import InputError
from lib.superpixels.connectivity import OUTSIDE
from lib.superpixels.drawing import (
    draw_boundaries,
    draw_label_colors,
    draw_mean_colors,
    fitting_width,
    label_colors,
)

logger = logging.getLogger(__name__)

_WHOLE_OUTPUTS = ("features", "outlines", "annotations", "flow")  # that need the whole image in memory


def check_large_outputs(files: OutputFiles, *, levels: Sequence[int] = (), exact: bool = False) -> None:
    """Raise `InputError` if a file or setting needs the whole image in memory."""
    reason = "is not possible for an image that does not fit the memory"
    for name in _WHOLE_OUTPUTS:
        if getattr(files, name) is not None:
            raise InputError(f"{getattr(files, name)} {reason}", parameter=name)
    if levels:
        raise InputError(f"{' '.join(map(str, levels))} {reason}", parameter="levels")
    if exact:
        raise InputError(reason, parameter="exact")
    if files.overlay.suffix.lower() not in PICTURE_SUFFIXES:
        suffixes = ", ".join(PICTURE_SUFFIXES)
        raise InputError(f"{files.overlay}: this format {reason}; use {suffixes}", parameter="overlay")


def segment_large_file(
    segmenter: Segmenter,
    image: Path,
    files: OutputFiles,
    n_spixels: int,
    *,
    mask: Path | None = None,
    reader: ImageReader,
    connected: bool = True,
    style: OverlayStyle,
) -> int:
    """Segment an image file, write the overlay and the label map, and return the number of superpixels.

    The files have the pixels that `segment_files` gives them. Temporary files are in the folder of the
    overlay; the free space there is checked before.

    Raises
    ------
    InputError
        If the image cannot be used, the folder has too little space, or a format cannot hold the labels.
    RunError
        If a file cannot be written.
    """
    shape = reader.read_shape(image)
    folder = files.overlay.parent
    n_rgb_bytes = 3 * math.prod(shape)
    n_bytes = n_rgb_bytes + needed_disk(segmenter, shape)
    check_disk(n_bytes, folder, f"{image} of {size_text(shape)} pixels")
    text = "%s of %s pixels is segmented out of core: temporary files of %.1f GB in %s"
    logger.info(text, image, size_text(shape), n_bytes / 1e9, folder)
    inside = np.ones(shape, dtype=bool) if mask is None else read_mask(mask)
    if inside.shape != shape:
        raise InputError(f"the mask is {inside.shape}, but {image} is {shape}")
    if mask is not None:
        check_same_place(image, mask)
    with segmenter.stopwatch.stage("reading"):
        rows = _leave_masked_out(reader.read_rows(image), inside)
        mapped = mapped_in_file(rows, (*shape, 3), folder)
    with mapped as image_rgb:
        is_whole = inside.all()
        if files.labels is not None and files.labels.suffix.lower() == ".png":
            check_png_labels(files.labels, 0 if is_whole else OUTSIDE, n_spixels - 1)
        pixels = torch.from_numpy(image_rgb).movedim(-1, 0)
        prepared = PreprocessedImage(image_rgb, pixels, None, None if is_whole else inside, str(image))
        with segment_out_of_core(segmenter, prepared, n_spixels, folder, connected=connected) as labels:
            with segmenter.stopwatch.stage("writing"):
                writers = {files.overlay: lambda to: _write_overlay(labels, image_rgb, to, style)}
                if files.labels is not None:
                    writers[files.labels] = lambda to: _write_labels(labels, to, image)
                write_together(writers)
            return labels.n_measured


def _leave_masked_out(rows: Iterator[np.ndarray], inside: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows of an image without their masks, which are taken out of `inside`, (H, W) bool."""
    start = 0
    for band in rows:
        is_known = find_unmasked(band)
        if is_known is not None:
            inside[start : start + len(band)] &= is_known
        start += len(band)
        yield np.ma.getdata(band)


def _write_labels(labels: LabelFile, path: Path, image: Path) -> None:
    bands = labels.bands(TILE_SIDE)
    match path.suffix.lower():
        case ".tif" | ".tiff" if is_geotiff(image):
            highest = int(labels.superpixel.max())
            write_label_geotiff(path, bands, labels.shape, highest, read_georeference(image))
        case ".npy":
            write_npy(path, bands, labels.shape, np.int32)
        case ".h5":
            with write_hdf5(path) as writing:
                options = {"chunks": (TILE_SIDE, TILE_SIDE), "compression": "gzip", "shuffle": True}
                labels_in_file = writing.file.create_dataset("labels", labels.shape, np.int32, **options)
                row = 0
                for band in bands:
                    labels_in_file[row : row + len(band)] = band
                    row += len(band)
                    writing.raise_failed_write()
        case ".png":
            write_picture(path, (band.astype(np.uint16) for band in bands), labels.shape, np.uint16)
        case _:
            write_picture(path, bands, labels.shape, np.int32)


def _write_overlay(labels: LabelFile, image_rgb: np.ndarray, path: Path, style: OverlayStyle) -> None:
    match style.kind:
        case "mean_colors":
            draw, n_beyond = partial(draw_mean_colors, colors=_mean_colors(labels, image_rgb)), 0
        case "label_colors":
            colors = label_colors(np.arange(len(_count_pixels(labels))))
            draw, n_beyond = partial(draw_label_colors, colors=colors), 1
        case _:
            width = style.width or _width_of_borders(labels)
            draw, n_beyond = partial(draw_boundaries, color=style.color, width=width), width // 2 + 2
    write_picture(path, _draw_bands(labels, image_rgb, draw, n_beyond), image_rgb.shape, np.uint8)


def _draw_bands(
    labels: LabelFile,
    image_rgb: np.ndarray,
    draw: Callable[[np.ndarray, np.ndarray], np.ndarray],
    n_beyond: int,
) -> Iterator[np.ndarray]:
    """Yield the overlay from the top; `draw` sees `n_beyond` more rows on either side, which it may need."""
    height = labels.shape[0]
    for start in range(0, height, TILE_SIDE):
        stop = min(start + TILE_SIDE, height)
        first, last = max(0, start - n_beyond), min(height, stop + n_beyond)
        yield draw(image_rgb[first:last], labels.rows(first, last))[start - first : stop - first]


def _width_of_borders(labels: LabelFile) -> int:
    n_pixels = int(_count_pixels(labels).sum())
    has_outside = n_pixels < math.prod(labels.shape)
    return fitting_width(n_pixels, labels.n_measured + has_outside)


def _count_pixels(labels: LabelFile) -> np.ndarray:
    """Return the number of pixels of each label, (S,)."""
    return _sums(labels, None)


def _mean_colors(labels: LabelFile, image_rgb: np.ndarray) -> np.ndarray:
    """Return the mean RGB of each label, (S, 3) float32; NaN for labels that do not occur."""
    sums = np.stack([_sums(labels, image_rgb[..., channel]) for channel in range(3)], axis=1)
    with np.errstate(invalid="ignore"):
        return (sums / _count_pixels(labels)[:, None]).astype(np.float32)


def _sums(labels: LabelFile, values: np.ndarray | None) -> np.ndarray:
    """Return the sum of values (H, W) uint8 in each label, or of ones; sums of integers are exact."""
    n_labels = int(labels.superpixel.max()) + 1
    sums, row = np.zeros(n_labels), 0
    for band in labels.bands(TILE_SIDE):
        weights = None if values is None else values[row : row + len(band)].ravel()
        sums += np.bincount((band - OUTSIDE).ravel(), weights, minlength=n_labels + 1)[1:]
        row += len(band)
    return sums
