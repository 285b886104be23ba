"""Superpixels in one call, with the arguments and the result of `skimage.segmentation.slic`."""

import math
from functools import cache
from typing import Any

import numpy as np

from lib.inference.segmenter import Segmenter
from lib.runtime.errors import InputError
from lib.superpixels.connectivity import OUTSIDE
from lib.superpixels.counts import check_n_spixels, check_parts
from lib.weights import BASE, LoadedModel, load_model, shipped_weights

# scikit-image's default; there, the position has the weight that the weight file holds. The compactness
# metric is then about SLIC's: 0.30 at 10, 0.37 at 20 and 0.46 at 40, where SLIC has 0.24, 0.34 and 0.47
# (8 images of BSDS500 val, 200 superpixels).
DEFAULT_COMPACTNESS = 10.0

# Arguments of `skimage.segmentation.slic` without a meaning here: values that change nothing, and what to do
# for the others.
_WITHOUT_MEANING = {
    "max_num_iter": ((), "the weights set the iterations; `Segmenter` takes `n_iter`"),
    "sigma": ((0,), "nothing is smoothed here; smooth the image first"),
    "spacing": ((None,), "pixels are square; resize the image first"),
    "convert2lab": ((None, True), "the network reads CIELAB, converted from RGB"),
    "min_size_factor": ((), "small superpixels are merged with the most similar neighbour, at no fixed size"),
    "max_size_factor": ((), "no superpixel is split for its size; request more of them"),
    "slic_zero": ((False,), "the weight of the position is one for all superpixels; use `compactness`"),
}


def superpixels(
    image: np.ndarray,
    n_segments: int = 100,
    compactness: float = DEFAULT_COMPACTNESS,
    *,
    enforce_connectivity: bool = True,
    start_label: int = 1,
    mask: np.ndarray | None = None,
    channel_axis: int | None = -1,
    **others: Any,
) -> np.ndarray:
    """Cut an image into superpixels, as a replacement for `skimage.segmentation.slic`.

    The shipped base model computes them, on the CPU; it is loaded at the first call. For a GPU, for other
    weights, or for more than labels, see `Segmenter`.

    Parameters
    ----------
    image : ndarray, shape (H, W, 3), (H, W, 1) or (H, W)
        RGB or grey image of bools, integers or floats, with its channels at `channel_axis`. Its smallest
        value becomes black and its largest white, as in scikit-image. Pixels outside the mask do not count
        for this, and may be NaN or infinite.
    n_segments : int
        Number of superpixels; with a mask, within it. The result has exactly that many if they are connected.
        A fraction is cut off.
    compactness : float
        Weight of the position against colour and learned features, above 0; higher values give more compact
        superpixels. Distances in space are multiplied by it, as in scikit-image. At 10, the default, they
        have the weight that the model was tuned for.
    enforce_connectivity : bool
        Make superpixels connected, by merging finer ones. Otherwise a superpixel may be in pieces, numbers
        may have gaps, and the count is about `n_segments`.
    start_label : {0, 1}
        Smallest label.
    mask : ndarray, shape (H, W), bool, optional
        Pixels to segment. The others get the label `start_label` - 1.
    channel_axis : int or None
        Axis of the channels; None for a grey image without such an axis.
    **others
        Other arguments of `skimage.segmentation.slic`. `spacing=None`, `sigma=0`, `slic_zero=False`, and
        `convert2lab` True or None state what is done anyway. All other values raise an error.

    Returns
    -------
    ndarray, shape (H, W), int64
        Labels, from `start_label` without gaps if superpixels are connected.

    Raises
    ------
    InputError
        A ValueError: if the image is a volume, has another number of channels, or unmasked values that are
        not finite. If an argument has no meaning here, or another value than above. If the image has fewer
        pixels than `n_segments`, or the mask has more parts and superpixels are connected.
    TypeError
        If scikit-image has no such argument either.

    Examples
    --------
    >>> from skimage.data import astronaut
    >>> from lib.inference import superpixels
    >>> segments = superpixels(astronaut(), n_segments=100, compactness=10)
    >>> segments.shape, len(np.unique(segments))
    ((512, 512), 100)

    Increasing the compactness gives more regular superpixels:

    >>> segments = superpixels(astronaut(), n_segments=100, compactness=20)
    """
    _check_others(others)
    if start_label not in (0, 1):
        raise InputError(f"must be 0 or 1, got {start_label}", parameter="start_label")
    if not 0 < compactness < math.inf:
        raise InputError(f"must be a number above 0, got {compactness}", parameter="compactness")
    pixels = _channels_last(image, channel_axis)
    if mask is not None:
        mask = _as_mask(mask, pixels.shape[:2])
    n_segments = int(n_segments)
    _check_count(n_segments, pixels, mask, enforce_connectivity)
    segmenter = _segmenter(compactness)
    segmented = segmenter(_rescale(pixels, mask), n_segments, mask=mask, connected=enforce_connectivity)
    labels = segmented.labels.astype(np.int64)
    return np.where(labels == OUTSIDE, start_label - 1, labels + start_label)


def _segmenter(compactness: float) -> Segmenter:
    model, scales, _, merging = _load_shipped_base()
    return Segmenter(model, scales, merging=merging, pos_scale_dist=compactness / DEFAULT_COMPACTNESS)


@cache
def _load_shipped_base() -> LoadedModel:
    return load_model(shipped_weights(BASE))


def _check_others(others: dict[str, Any]) -> None:
    for name, value in others.items():
        if name not in _WITHOUT_MEANING:
            raise TypeError(f"superpixels() got an unexpected keyword argument {name!r}")
        harmless, advice = _WITHOUT_MEANING[name]
        if np.ndim(value) > 0 or value not in harmless:
            raise InputError(f"has no meaning here, unlike in scikit-image: {advice}", parameter=name)


def _channels_last(image: np.ndarray, channel_axis: int | None) -> np.ndarray:
    """Return the image as (H, W, 1 or 3)."""
    if np.ma.is_masked(image):
        raise InputError("the image has masked values; leave these pixels out with a `mask`")
    image = np.asarray(image)
    if image.dtype.kind not in "biuf":
        raise InputError(f"the image must hold bools, integers or floats, got {image.dtype}")
    if image.ndim == 2 and channel_axis is not None:
        raise InputError(
            f"is {channel_axis}, but the image has two dimensions; use None for a grey image",
            parameter="channel_axis",
        )
    if image.ndim != 2 + (channel_axis is not None):
        raise InputError(
            f"the image has {image.ndim} dimensions, with `channel_axis` {channel_axis}; only single images "
            "can be segmented, not volumes"
        )
    pixels = image[..., None] if channel_axis is None else np.moveaxis(image, channel_axis, -1)
    if pixels.size == 0 or pixels.shape[2] not in (1, 3):
        raise InputError(
            f"the image must be RGB or grey, got {image.shape} with `channel_axis` {channel_axis}; of other "
            "channels, choose three to be red, green and blue"
        )
    return pixels


def _as_mask(mask: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != image_shape:
        raise InputError(f"is {mask.shape}, but the image is {image_shape}", parameter="mask")
    if not mask.any():
        raise InputError("leaves no pixel to segment", parameter="mask")
    return mask


def _check_count(n_segments: int, pixels: np.ndarray, mask: np.ndarray | None, connected: bool) -> None:
    n_pixels = math.prod(pixels.shape[:2]) if mask is None else np.count_nonzero(mask)
    check_n_spixels(n_segments, n_pixels, "the image", parameter="n_segments")
    if connected and mask is not None:
        check_parts(mask, n_segments, "the image", parameter="n_segments")


def _rescale(pixels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Map the smallest value in the mask to 0 and the largest to 1; values outside are clipped to that."""
    pixels = pixels.astype(np.float64)
    inside = pixels if mask is None else pixels[mask]
    low = inside.min()
    with np.errstate(over="ignore", invalid="ignore"):
        span = inside.max() - low
        if not np.isfinite(span):
            raise InputError(
                "the image has NaN, infinite or too large values; leave these pixels out with a `mask`"
            )
        return ((pixels - low) / (span or 1)).clip(0, 1)
