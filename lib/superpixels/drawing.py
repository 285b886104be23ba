"""Pictures of superpixels."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_dilation
from skimage.color import hsv2rgb, rgb2gray
from skimage.segmentation import find_boundaries

from lib.superpixels.connectivity import OUTSIDE

BOUNDARY_COLOR = (255, 255, 0)  # RGB, yellow: rare in photographs

_FINEST_OPACITY = 0.45  # of nested borders; lower values hide fine borders in texture
_RIM_BRIGHTNESS = 0.4  # of the pixels beside a border
_TINT = 0.5  # share of its colour in a tinted superpixel; the rest is the brightness of the image
_GOLDEN_RATIO = 0.618034  # of the colour circle: multiples spread evenly over it


def draw_boundaries(
    image_rgb: np.ndarray,
    labels: np.ndarray,
    *,
    color: Sequence[int] = BOUNDARY_COLOR,
    width: int | None = None,
) -> np.ndarray:
    """Return an image (H, W, 3), uint8, with the borders between its superpixels (H, W) drawn over it.

    A border is `width` pixels wide, half on either side; an odd width has one more pixel above or left. By
    default, it grows with the size of the superpixels. A darkened pixel on each side keeps it visible where
    the image has its colour.
    """
    if width is None:
        width = fitting_width(np.count_nonzero(labels != OUTSIDE), len(np.unique(labels)))
    overlay = image_rgb.copy()
    is_rim = _find_border(labels, width + 2)
    overlay[is_rim] = np.rint(_RIM_BRIGHTNESS * overlay[is_rim]).astype(np.uint8)
    overlay[_find_border(labels, width)] = color
    return overlay


def draw_nested_boundaries(
    image_rgb: np.ndarray,
    levels: Sequence[np.ndarray],
    *,
    color: Sequence[int] = BOUNDARY_COLOR,
    width: int = 2,
) -> np.ndarray:
    """Return an image (H, W, 3), uint8, with the borders of nested label maps (H, W) drawn over it.

    `levels` starts with the coarsest map. Borders of the finest are 1 pixel wide; each coarser level is wider
    by `width` pixels. The coarsest is opaque and drawn last; finer levels are translucent.
    """
    overlay = image_rgb.copy()
    opacities = np.linspace(1, _FINEST_OPACITY, len(levels))
    for n_finer, (labels, opacity) in enumerate(reversed(list(zip(levels, opacities, strict=True)))):
        is_border = _find_border(labels, 1 + n_finer * width)
        mixed = opacity * np.array(color) + (1 - opacity) * image_rgb[is_border]
        overlay[is_border] = np.rint(mixed).astype(np.uint8)
    return overlay


def fitting_width(n_pixels: int, n_labels: int) -> int:
    """Return the width of borders, in pixels: 1 for superpixels 10 pixels wide, 2 for 25 and 6 for 200.

    `n_pixels` are in superpixels; `n_labels` counts -1 too.
    """
    return max(1, round(0.4 * (n_pixels / max(1, n_labels)) ** 0.25))


def _find_border(labels: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of borders of a width, (H, W) bool; see `draw_boundaries`."""
    is_first = np.zeros(labels.shape, dtype=bool)  # pixels above or left of a border
    is_first[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    is_first[:-1] |= labels[:-1] != labels[1:]
    is_border = is_first if width % 2 else find_boundaries(labels, mode="thick")
    n_steps = min((width - 1) // 2, sum(labels.shape))  # more reach no further pixel
    return binary_dilation(is_border, iterations=n_steps) if n_steps > 0 else is_border


def draw_mean_colors(image_rgb: np.ndarray, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Paint every superpixel in its colour, RGB from 0 to 255, (S, 3); pixels labelled -1 keep their own."""
    rounded = np.nan_to_num(np.round(colors)).astype(np.uint8)  # NaN for labels that do not occur
    return np.where((labels == OUTSIDE)[..., None], image_rgb, rounded[labels])


def label_colors(labels: np.ndarray) -> np.ndarray:
    """Return a colour for each label (S,), RGB from 0 to 255, (S, 3); neighbouring numbers differ."""
    hue = labels * _GOLDEN_RATIO % 1
    saturation, value = 0.5 + 0.25 * (labels % 3), 1 - 0.2 * (labels // 3 % 2)
    return 255 * hsv2rgb(np.stack([hue, saturation, value], axis=-1))


def draw_label_colors(image_rgb: np.ndarray, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Tint every superpixel in its colour, RGB from 0 to 255, (S, 3); pixels labelled -1 keep their own."""
    gray = rgb2gray(image_rgb)[..., None]  # 0 to 1
    tinted = np.rint(_TINT * colors[labels] + (1 - _TINT) * 255 * gray).astype(np.uint8)
    tinted[_find_border(labels, 1)] //= 2
    return np.where((labels == OUTSIDE)[..., None], image_rgb, tinted)
