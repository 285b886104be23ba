"""What can be evaluated: the models of this repo, scikit-image's SLIC, and a regular grid."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor, nn

from lib.datasets.loaders import EvaluationImage
from lib.network.inputs import InputScales, check_features, model_input, pixel_pos_scale
from lib.slic.grid import compute_grid_shape
from model import LearnedFeatures, cluster_labels

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
    """A model of this repo.

    Its features are computed once for all settings that give its network the same input: for all of them
    if the network does not see the position, otherwise for those that scale it alike (see
    `lib.network.inputs.pixel_pos_scale`). Those of extra channels are always computed once.

    Parameters
    ----------
    name : str
        Name of the method.
    model : SSNModel, CompositeSSNModel or SSNPix
        On `device`, in evaluation mode while it is used.
    scales : InputScales
        Weights of the input channels.
    device : torch.device
        Where to compute.
    pos_scales : sequence of float, optional
        Weights of the position instead of the one in `scales`.
    description : mapping, optional
        What the record says beside the scales.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        scales: InputScales,
        device: torch.device,
        *,
        pos_scales: Sequence[float] = (),
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.scales = scales
        self.device = device
        self.pos_scales = tuple(pos_scales) or (scales.pos_scale,)
        input_scales = {key: value for key, value in scales._asdict().items() if key != "pos_scale"}
        self.description = {**(description or {}), "n_iter": model.n_iter, **input_scales}

    @torch.inference_mode()
    def segment(self, image: EvaluationImage, settings: Sequence[Setting]) -> list[np.ndarray]:
        image_lab = image.image_lab.to(self.device)
        extra = None if image.extra is None else image.extra.to(self.device)
        sharing: dict[float, list[Setting]] = {}
        for setting in settings:
            scale = pixel_pos_scale(image_lab.shape[2:], setting.n_spixels, setting.pos_scale)
            sharing.setdefault(scale, []).append(setting)

        labels = {}
        learned: LearnedFeatures | None = None
        for group in sharing.values():
            channels = self._channels(image_lab, extra, group[0])
            learned = self.model.encode(channels, learned)
            features = self.model.assemble(learned, channels)
            check_features(features, image.name)
            for setting in group:
                of_setting = cluster_labels(
                    features, setting.n_spixels, n_iter=self.model.n_iter, distance=self.model.distance
                )
                labels[setting] = of_setting[0].to(torch.int32).cpu().numpy()
        return [labels[setting] for setting in settings]

    def _channels(self, image_lab: Tensor, extra: Tensor | None, setting: Setting) -> Tensor:
        scales = self.scales._replace(pos_scale=setting.pos_scale)
        return model_input(self.model, image_lab, setting.n_spixels, scales, extra=extra)


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
