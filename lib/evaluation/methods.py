"""What can be evaluated: the models of this repo, scikit-image's SLIC, and a regular grid."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from skimage.segmentation import slic

from lib.datasets.loaders import EvaluationImage
from lib.inference.segmenter import PreprocessedImage, Segmenter
from lib.slic.grid import compute_grid_shape

# Of 5, 10 (scikit-image's default), 20, 30 and 50, the one with the best boundary recall on BSDS500 val at
# 200 and 600 requested, and with an ASA within 0.001 of the best, 30's.
SLIC_COMPACTNESS = 20.0


class Setting(NamedTuple):
    """What may vary within an evaluation."""

    n_spixels: int  # requested
    pos_scale: float | None = None  # None for methods that have none


class Method(Protocol):
    """A way to make superpixels.

    Attributes
    ----------
    name : str
        In tables, files and curves.
    pos_scales : sequence of (float or None)
        Weights of the position to evaluate it with; None alone where there is no such weight.
    description : mapping
        What it is, in plain types, for the record of an evaluation.
    """

    name: str
    pos_scales: Sequence[float | None]
    description: Mapping[str, Any]

    def segment(self, image: EvaluationImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        """Make the superpixels of an image, (H, W) int32, for each setting; they need not be connected."""


class NetworkMethod:
    """A model of this repo, run by a `Segmenter` as in inference.

    Parameters
    ----------
    name : str
        Name of the method.
    segmenter : Segmenter
        Segments the images.
    pos_scales : sequence of float, optional
        Weights of the position in place of the segmenter's.
    description : mapping, optional
        Entries of the record beside the settings of the segmenter.
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
        scales = segmenter.scales._asdict()
        self.description = {
            **(description or {}),
            "n_iter": segmenter.n_iter,
            **{key: value for key, value in scales.items() if key != "pos_scale"},
            "pos_scale_dist": segmenter.pos_scale_dist,
            "precision": "bf16" if segmenter.with_bfloat16 else "fp32",
        }

    def segment(self, image: EvaluationImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        extra = None if image.extra is None else image.extra[0]
        prepared = PreprocessedImage(image.image_rgb, image.image_lab[0], extra, None, image.name)
        return [superpixels.labels for superpixels in self.segmenter.sweep(prepared, settings)]


class SLICMethod:
    """SLIC of scikit-image, its own connectivity and colour conversion included.

    All settings but the compactness are its defaults.
    """

    name = "slic"
    pos_scales = (None,)
    description: Mapping[str, Any] = {"method": "skimage.segmentation.slic", "compactness": SLIC_COMPACTNESS}

    def segment(self, image: EvaluationImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        return [
            slic(image.image_rgb, setting.n_spixels, compactness=SLIC_COMPACTNESS, start_label=0).astype(
                np.int32
            )
            for setting in settings
        ]


class GridMethod:
    """The grid that the clustering of this repo starts from: what any method has to beat."""

    name = "grid"
    pos_scales = (None,)
    description: Mapping[str, Any] = {"method": "regular grid"}

    def segment(self, image: EvaluationImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        return [_grid_labels(*image.image_rgb.shape[:2], setting.n_spixels) for setting in settings]


def _grid_labels(height: int, width: int, n_spixels: int) -> np.ndarray:
    n_rows, n_cols = compute_grid_shape(height, width, n_spixels)
    row = np.arange(height, dtype=np.int32) * n_rows // height
    col = np.arange(width, dtype=np.int32) * n_cols // width
    return n_cols * row[:, None] + col
