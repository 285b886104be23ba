"""From an image to superpixels and their features, and to files of them: what the inference scripts share."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lib.connectivity import enforce_connectivity
from lib.errors import InputError
from lib.features import InputScales, mean_per_spixel, rgb_to_lab
from lib.files import atomic_path
from lib.segmentation import check_n_spixels, model_input, segment_lab
from lib.visualization import draw_boundaries

CPU = torch.device("cpu")

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
LABEL_SUFFIXES = (".npy", ".png")
FEATURE_SUFFIXES = (".npz",)
MAX_PNG_LABEL = 2**16 - 1

# Pictures are written about four times faster than at Pillow's default level, 6.
_PNG_COMPRESS_LEVEL = 1


class Superpixels(NamedTuple):
    """Superpixels of one image."""

    labels: np.ndarray  # (H, W), int32
    n_measured: int  # labels that occur


class Features(NamedTuple):
    """Learned features of an image that do not depend on where in the image a pixel lies."""

    pixel_features: np.ndarray  # (C, H, W), float32
    spixel_features: np.ndarray  # (max label + 1, C), float32; NaN for labels that do not occur
    n_base_features: int  # the first ones, which come from colour; the others come from extra channels

    @property
    def base(self) -> Self:
        """The features of the base model alone."""
        return self._replace(
            pixel_features=self.pixel_features[: self.n_base_features],
            spixel_features=self.spixel_features[:, : self.n_base_features],
        )


@torch.inference_mode()
def segment_image(
    model: nn.Module,
    scales: InputScales,
    image_rgb: np.ndarray,
    n_spixels: int,
    *,
    extra: np.ndarray | None = None,
    connected: bool = True,
    device: torch.device = CPU,
    image_name: str = "the image",
) -> Superpixels:
    """Cut an image into superpixels.

    Parameters
    ----------
    model : SSNModel, CompositeSSNModel or SSNPix
        In evaluation mode; see `lib.checkpoint`.
    scales : InputScales
        Weights of the input channels.
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    n_spixels : int
        Requested number of superpixels.
    extra : ndarray, shape (H, W, n_extra_channels), float32, optional
        Extra channels, for a composite model: the flow of the frame, say.
    connected : bool
        Enforce connectivity; otherwise labels are the most likely superpixel of each pixel, in up to
        n_rows * n_cols numbers of which some may not occur.
    device : torch.device
        Where the model is.
    image_name : str
        Used in error messages.

    Raises
    ------
    InputError
        If the image has fewer than `n_spixels` pixels, or the extra channels are not what the model reads,
        of another size or not finite.
    """
    check_n_spixels(n_spixels, image_rgb.shape[:2], image_name)
    image_lab, extra_channels = _to_tensors(image_rgb, extra, device)
    output = segment_lab(model, image_lab, n_spixels, scales, extra=extra_channels)
    labels = output.labels[0].cpu().numpy().astype(np.int32)
    if connected:
        labels = enforce_connectivity(labels, n_spixels)
    return Superpixels(labels, int(np.count_nonzero(np.bincount(labels.ravel()))))


@torch.inference_mode()
def compute_features(
    model: nn.Module,
    scales: InputScales,
    image_rgb: np.ndarray,
    labels: np.ndarray,
    *,
    extra: np.ndarray | None = None,
    device: torch.device = CPU,
) -> Features:
    """Position-invariant features of an image's pixels, and their means over its superpixels.

    Parameters
    ----------
    model, scales, image_rgb, extra, device
        As for `segment_image`; the model must have a network.
    labels : ndarray, shape (H, W), integer
        Superpixels, numbered from 0.
    """
    image_lab, extra_channels = _to_tensors(image_rgb, extra, device)
    # The number of superpixels only scales the position, which is set to zero.
    channels = model_input(model, image_lab, 1, scales, extra=extra_channels)
    pixel_features = model.position_invariant_features(channels)[0].cpu().numpy()
    pixel_features = np.ascontiguousarray(pixel_features)
    return Features(pixel_features, mean_per_spixel(pixel_features, labels), model.n_learned_features)


def segment_to_files(
    model: nn.Module,
    scales: InputScales,
    image_rgb: np.ndarray,
    n_spixels: int,
    *,
    extra: np.ndarray | None = None,
    connected: bool = True,
    device: torch.device = CPU,
    image_name: str = "the image",
    overlay_file: Path,
    labels_file: Path | None = None,
    features_file: Path | None = None,
    more_pictures: Mapping[Path, np.ndarray] | None = None,
) -> Superpixels:
    """Segment an image, and write what is asked for. Either all files are written or none.

    Parameters
    ----------
    model, scales, image_rgb, n_spixels, extra, connected, device, image_name
        As for `segment_image`.
    overlay_file : Path
        Picture of the image with the borders of its superpixels, in the format of its suffix.
    labels_file : Path, optional
        Label map, .npy (int32) or 16-bit .png.
    features_file : Path, optional
        Arrays `pixel_features`, `spixel_features`, `n_base_features` of `Features`, and `labels`, .npz.
    more_pictures : mapping of Path to ndarray, optional
        Further pictures (H, W, 3) uint8 to write.

    Raises
    ------
    InputError
        If the image cannot be segmented, or a file's format cannot hold its content.
    RunError
        If a file cannot be written.
    """
    superpixels = segment_image(
        model,
        scales,
        image_rgb,
        n_spixels,
        extra=extra,
        connected=connected,
        device=device,
        image_name=image_name,
    )
    pictures = {overlay_file: draw_boundaries(image_rgb, superpixels.labels), **(more_pictures or {})}
    with ExitStack() as files:
        for path, picture in pictures.items():
            _write_picture(picture, files.enter_context(atomic_path(path)), path)
        if labels_file:
            _write_labels(superpixels.labels, files.enter_context(atomic_path(labels_file)), labels_file)
        if features_file:
            features = compute_features(
                model, scales, image_rgb, superpixels.labels, extra=extra, device=device
            )
            temporary = files.enter_context(atomic_path(features_file))
            with temporary.open("wb") as file:  # given a name, NumPy may add a suffix to it
                np.savez(file, **features._asdict(), labels=superpixels.labels)
    return superpixels


def _to_tensors(
    image_rgb: np.ndarray, extra: np.ndarray | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The image in CIELAB and its extra channels, as batches of one."""
    image_lab = rgb_to_lab(image_rgb)[None].to(device)
    if extra is None:
        return image_lab, None
    if extra.ndim != 3 or extra.shape[:2] != image_rgb.shape[:2]:
        raise InputError(f"extra channels are {extra.shape}, but the image is {image_rgb.shape[:2]}")
    if not np.isfinite(extra).all():
        raise InputError("extra channels hold NaN or infinite values")
    channels = np.ascontiguousarray(extra.transpose(2, 0, 1), dtype=np.float32)
    return image_lab, torch.from_numpy(channels)[None].to(device)


def _write_picture(picture: np.ndarray, temporary: Path, path: Path) -> None:
    try:
        Image.fromarray(picture).save(temporary, compress_level=_PNG_COMPRESS_LEVEL)
    except ValueError as error:  # say, WebP ends at 16,383 pixels a side
        raise InputError(f"{path}: the format cannot hold this image ({error})") from error


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
