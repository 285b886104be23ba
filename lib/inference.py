"""From an image file to superpixels and files of them: what the inference scripts share."""

import tempfile
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
from lib.images import atomic_path
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


def check_output_file(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Find out, before any work, whether a file can be written.

    Raises
    ------
    InputError
        If its folder is missing or not writable, or its suffix is not one of `suffixes`.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{option} {path}: the name must end in {', '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {path}: cannot write to folder {path.parent} ({error.strerror})"
        ) from error


def check_n_spixels(n_spixels: int, image_rgb: np.ndarray, image_file: Path) -> None:
    """Check that an image has as many pixels as superpixels are asked for.

    Raises
    ------
    InputError
        If not.
    """
    height, width = image_rgb.shape[:2]
    if n_spixels > height * width:
        raise InputError(
            f"--nspix {n_spixels} is above the {height * width} pixels of {image_file} ({width}x{height})"
        )


@torch.inference_mode()
def segment_image(
    segment: Callable[[Tensor], SSNOutput],
    image_rgb: np.ndarray,
    n_spixels: int,
    *,
    connected: bool,
) -> Superpixels:
    """Segment one image.

    Parameters
    ----------
    segment : callable
        Maps a CIELAB image (1, 3, H, W), on the CPU, to the output of a model.
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    n_spixels : int
        Requested number of superpixels.
    connected : bool
        Enforce connectivity; otherwise labels are the most likely superpixel of each pixel, in up to
        n_rows * n_cols numbers of which some may not occur.
    """
    output = segment(rgb_to_lab(image_rgb)[None])
    labels = output.labels[0].cpu().numpy().astype(np.int32)
    if connected:
        labels = enforce_connectivity(labels, n_spixels)
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
