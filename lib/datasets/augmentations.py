"""Random changes of finished crops: jitter of the colours, and of the places of patches."""

import numpy as np
import torch
from torch import Tensor

# Largest offsets of L, a and b at a scale of 1: half the range of L, and the chroma of a weak colour.
_MAX_OFFSETS = np.array([50.0, 25.0, 25.0])

_MID_LIGHTNESS = 50.0  # value of L that the gain leaves as it is

# Limits of the side of a square and of the width of a band, as shares of the side of the crop.
_MIN_PATCH, _MAX_PATCH = 1 / 8, 1 / 4


def draw_color_jitter(scale: float, rng: np.random.Generator) -> dict[str, Tensor]:
    """Draw a change of all colours of a crop, for `augment`.

    Parameters
    ----------
    scale : float
        Scale in [0, 1]. The contrast of L around mid grey, and a and b together, get factors between
        exp(-scale) and exp(scale). Added to them are up to +-50 * `scale` (L) and +-25 * `scale` (a, b).
    rng : Generator
        Source of the random numbers.

    Returns
    -------
    dict of str to Tensor
        "lab_gain" and "lab_offset", (3,) float32.
    """
    lightness_gain, chroma_gain = np.exp(scale * rng.uniform(-1, 1, 2))
    gain = np.array([lightness_gain, chroma_gain, chroma_gain])
    offset = scale * _MAX_OFFSETS * rng.uniform(-1, 1, 3)
    offset[0] += _MID_LIGHTNESS * (1 - lightness_gain)
    return {"lab_gain": torch.from_numpy(gain).float(), "lab_offset": torch.from_numpy(offset).float()}


def draw_patch_jitter(probability: float, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
    """Draw new places for the pixels of a crop of `size` x `size`, for `augment`.

    After AINet [1]_: two squares swap places, then a band of whole rows or columns moves along itself. What
    leaves the crop at one end enters it at the other, so every pixel stays in the crop. The sizes are ours.

    Parameters
    ----------
    probability : float
        Probability that pixels move at all.
    rng : Generator
        Source of the random numbers.
    size : int
        Rows and columns of the crop. Squares and bands are an eighth to a quarter of it wide.

    Returns
    -------
    dict of str to Tensor
        "source", (size, size) int32: pixel that each pixel is taken from, counted row by row.

    References
    ----------
    .. [1] Wang et al., "AINet: Association Implantation for Superpixel Segmentation", ICCV 2021.
    """
    source = np.arange(size * size, dtype=np.int32).reshape(size, size)
    if rng.random() < probability:
        _swap_squares(_either_way(source, rng), rng)
        _move_band(_either_way(source, rng), rng)
    return {"source": torch.from_numpy(source)}


def augment(crops: dict[str, Tensor], drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply drawn changes to a crop, or to each crop of a batch, on its device.

    Extra channels move with their pixels, and keep their values: a swapped patch of flow still has its flow.

    Parameters
    ----------
    crops : dict of str to Tensor
        "image_lab", (..., 3, H, W), "gt_labels", (..., n_annotations, H, W), and maybe "extra",
        (..., n_extra_channels, H, W). Other entries stay as they are.
    drawn : dict of str to Tensor
        Entries of `draw_color_jitter`, `draw_patch_jitter`, both or none, (..., 3) and (..., H, W).
    """
    crops = dict(crops)
    if "lab_gain" in drawn:
        gain, offset = (drawn[name][..., None, None] for name in ("lab_gain", "lab_offset"))
        lightness, chroma = (gain * crops["image_lab"] + offset).split([1, 2], dim=-3)
        crops["image_lab"] = torch.cat([lightness.clamp(0, 100), chroma.clamp(-128, 127)], dim=-3)
    if "source" in drawn:
        source = drawn["source"].long().flatten(-2).unsqueeze(-2)
        for name in ("image_lab", "gt_labels", "extra"):
            if name in crops:
                pixels = crops[name].flatten(-2)
                crops[name] = pixels.gather(-1, source.expand_as(pixels)).view_as(crops[name])
    return crops


def _either_way(source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a view of a square array, transposed half of the time."""
    return source.T if rng.random() < 0.5 else source


def _draw_side(size: int, rng: np.random.Generator) -> int:
    """Draw the side of a patch in pixels; in the smallest crops it may be 0."""
    return int(rng.integers(int(_MIN_PATCH * size), int(_MAX_PATCH * size), endpoint=True))


def _swap_squares(source: np.ndarray, rng: np.random.Generator) -> None:
    """Swap two squares, in place; no row has pixels of both."""
    size = len(source)
    side = _draw_side(size, rng)
    tops = np.sort(rng.integers(0, size - 2 * side, 2, endpoint=True))
    tops[1] += side
    lefts = rng.integers(0, size - side, 2, endpoint=True)
    first, second = (
        source[top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True)
    )
    first[:], second[:] = second.copy(), first.copy()


def _move_band(source: np.ndarray, rng: np.random.Generator) -> None:
    """Move a band of rows along itself, in place."""
    size = len(source)
    width = _draw_side(size, rng)
    top = rng.integers(0, size - width, endpoint=True)
    band = source[top : top + width]
    band[:] = np.roll(band, rng.integers(size), axis=1)
