"""From an image file to superpixels and files of them: what the inference scripts share."""

from collections.abc import Callable
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

# Overlays are written about four times faster than at Pillow's default level, and a third larger.
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
    overlay_file, labels_file : Path
        Outputs; see `save_overlay` and `save_labels`.

    Raises
    ------
    InputError
        If the image cannot be read or has fewer than `n_spixels` pixels, or a label does not fit its file.
    """
    image_rgb = read_image(image_file)
    check_n_spixels(n_spixels, image_rgb.shape[:2], str(image_file))
    output = segment(rgb_to_lab(image_rgb)[None])
    labels = output.labels[0].cpu().numpy().astype(np.int32)
    if connected:
        labels = enforce_connectivity(labels, n_spixels)
    if labels_file:
        save_labels(labels, labels_file)
    save_overlay(image_rgb, labels, overlay_file)
    return Superpixels(labels, int(np.count_nonzero(np.bincount(labels.ravel()))))


def save_labels(labels: np.ndarray, path: Path) -> None:
    """Write a label map as .npy (int32) or 16-bit .png.

    Raises
    ------
    InputError
        If a label does not fit into 16 bits.
    """
    if path.suffix.lower() == ".png" and labels.max() > MAX_PNG_LABEL:
        raise InputError(
            f"--save_labels {path}: label {labels.max()} does not fit a 16-bit PNG; "
            "use a name that ends in .npy"
        )
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".npy":
            np.save(temporary, labels.astype(np.int32))
        else:
            Image.fromarray(labels.astype(np.uint16)).save(temporary)


def save_overlay(image_rgb: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Write the image with the borders of its superpixels drawn over it."""
    overlay = Image.fromarray(draw_boundaries(image_rgb, labels))
    with atomic_path(path) as temporary:
        overlay.save(temporary, compress_level=_PNG_COMPRESS_LEVEL)
