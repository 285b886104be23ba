"""From an image file to superpixels and files of them: what the inference scripts share."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.connectivity import enforce_connectivity
from lib.errors import InputError
from lib.features import rgb_to_lab
from lib.files import atomic_path
from lib.images import read_image
from lib.segmentation import check_n_spixels
from lib.visualization import draw_boundaries
from model import SSNOutput

OVERLAY_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
LABEL_SUFFIXES = (".npy", ".png")
MAX_PNG_LABEL = 2**16 - 1

# Overlays are written about four times faster than at Pillow's default level, 6.
_PNG_COMPRESS_LEVEL = 1


class Superpixels(NamedTuple):
    """Superpixels of one image."""

    labels: np.ndarray  # (H, W), int32
    n_measured: int  # labels that occur


@torch.inference_mode()
def segment_file(
    segment: Callable[[Tensor], SSNOutput],
    image_file: Path,
    n_spixels: int,
    *,
    connected: bool,
    overlay_file: Path,
    labels_file: Path | None = None,
) -> Superpixels:
    """Segment an image file; write the overlay and, if asked for, the label map.

    Parameters
    ----------
    segment : callable
        Maps a CIELAB image (1, 3, H, W), on the CPU, to the output of a model.
    image_file : Path
        Any format that `read_image` reads.
    n_spixels : int
        Requested number of superpixels.
    connected : bool
        Enforce connectivity; otherwise labels are the most likely superpixel of each pixel, in up to
        n_rows * n_cols numbers of which some may not occur.
    overlay_file : Path
        Picture of the image with the borders of its superpixels, in the format of its suffix.
    labels_file : Path, optional
        Label map, .npy (int32) or 16-bit .png. Either both files are written or none.

    Raises
    ------
    InputError
        If the image cannot be read or has fewer than `n_spixels` pixels, or a file's format cannot hold
        its content.
    """
    image_rgb = read_image(image_file)
    check_n_spixels(n_spixels, image_rgb.shape[:2], str(image_file))
    output = segment(rgb_to_lab(image_rgb)[None])
    labels = output.labels[0].cpu().numpy().astype(np.int32)
    if connected:
        labels = enforce_connectivity(labels, n_spixels)
    with ExitStack() as files:
        temporary = files.enter_context(atomic_path(overlay_file))
        _write_overlay(image_rgb, labels, temporary, overlay_file)
        if labels_file:
            temporary = files.enter_context(atomic_path(labels_file))
            _write_labels(labels, temporary, labels_file)
    return Superpixels(labels, int(np.count_nonzero(np.bincount(labels.ravel()))))


def _write_overlay(image_rgb: np.ndarray, labels: np.ndarray, temporary: Path, path: Path) -> None:
    overlay = Image.fromarray(draw_boundaries(image_rgb, labels))
    try:
        overlay.save(temporary, compress_level=_PNG_COMPRESS_LEVEL)
    except ValueError as error:  # say, WebP ends at 16,383 pixels a side
        raise InputError(f"--out {path}: the format cannot hold this image ({error})") from error


def _write_labels(labels: np.ndarray, temporary: Path, path: Path) -> None:
    if path.suffix.lower() == ".npy":
        with temporary.open("wb") as file:  # given a name, NumPy may add a suffix to it
            np.save(file, labels)
    elif labels.max() > MAX_PNG_LABEL:
        raise InputError(
            f"--save_labels {path}: label {labels.max()} does not fit a 16-bit PNG; "
            "use a name that ends in .npy"
        )
    else:
        Image.fromarray(labels.astype(np.uint16)).save(temporary)
