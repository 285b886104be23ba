"""Methods that can be evaluated: the models of this repo, scikit-image's SLIC, and a regular grid."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from skimage.segmentation import slic

from lib.datasets.base import SegmentedImage
from lib.inference.segmenter import Segmenter
from lib.slic.grid import compute_grid_shape
from lib.superpixels.connectivity import enforce_connectivity

# Best boundary recall on BSDS500 val at 200 and 600 superpixels, of 5, 10 (the default), 20, 30 and 50.
# Its ASA is within 0.001 of the best ASA, which 30 reaches. Higher values give more compact superpixels.
SLIC_COMPACTNESS = 20.0


class Setting(NamedTuple):
    """Values that vary within an evaluation."""

    n_spixels: int | None  # requested; None for labels from files
    pos_scale: float | None = None  # None for methods without a position scale


class Method(Protocol):
    """Superpixel method that can be evaluated."""

    name: str  # in tables, files and curves
    pos_scales: Sequence[float | None]  # position scales to evaluate; (None,) for a method without one
    description: Mapping[str, Any]  # settings in plain types, for the evaluation record

    def segment(self, image: SegmentedImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        """Return the labels of connected superpixels, (H, W) int32, for each setting."""


class NetworkMethod:
    """Model of this repo, applied by a `Segmenter` as in inference.

    Parameters
    ----------
    name, segmenter
        Name of the method, and the segmenter of its images.
    pos_scales : sequence of float
        Position scales to evaluate; default: the scale of the segmenter.
    description : mapping, optional
        Entries of the evaluation record, in addition to the segmenter's settings.
    """

    def __init__(
        self,
        name: str,
        segmenter: Segmenter,
        *,
        pos_scales: Sequence[float] = (),
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.segmenter = segmenter
        self.pos_scales = tuple(pos_scales) or (segmenter.scales.pos_scale,)
        self.description = {
            **(description or {}),
            "n_iter": segmenter.n_iter,
            "color_scale": segmenter.scales.color_scale,
            "extra_scale": segmenter.scales.extra_scale,
            "pos_scale_dist": segmenter.pos_scale_dist,
            "fine_factor": segmenter.fine_factor or _by_count(segmenter.merging.fine_factor),
            "merge_pos_scale": (
                _by_count(segmenter.merging.merge_pos_scale)
                if segmenter.merge_pos_scale is None
                else segmenter.merge_pos_scale
            ),
            "precision": "bf16" if segmenter.with_bfloat16 else "fp32",
        }

    def segment(self, image: SegmentedImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        prepared = self.segmenter.preprocess(image.image_rgb, image.extra, name=image.name)
        return [superpixels.labels for superpixels in self.segmenter.sweep(prepared, settings)]


class SLICMethod:
    """SLIC of scikit-image, with its own connectivity and colour conversion.

    Only the compactness differs from scikit-image's defaults.
    """

    name = "slic"
    pos_scales = (None,)
    description: Mapping[str, Any] = {"method": "skimage.segmentation.slic", "compactness": SLIC_COMPACTNESS}

    def segment(self, image: SegmentedImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        options = {"compactness": SLIC_COMPACTNESS, "start_label": 0}
        counts = [setting.n_spixels for setting in settings]
        return [enforce_connectivity(slic(image.image_rgb, count, **options), count) for count in counts]


class GridMethod:
    """Initial grid of the clustering, without any iteration; the lower baseline."""

    name = "grid"
    pos_scales = (None,)
    description: Mapping[str, Any] = {"method": "regular grid"}

    def segment(self, image: SegmentedImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        shape = image.image_rgb.shape[:2]
        counts = [setting.n_spixels for setting in settings]
        return [enforce_connectivity(_grid_labels(*shape, count), count) for count in counts]


def _by_count(values: Mapping[int, float]) -> dict[str, float]:
    """Return a setting of `MergeSettings` with keys as JSON has them."""
    return {str(count): value for count, value in values.items()}


def _grid_labels(height: int, width: int, n_spixels: int) -> np.ndarray:
    n_rows, n_cols = compute_grid_shape(height, width, n_spixels)
    row = np.arange(height, dtype=np.int32) * n_rows // height
    col = np.arange(width, dtype=np.int32) * n_cols // width
    return n_cols * row[:, None] + col
