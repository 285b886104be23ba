"""One call from a colour image to superpixels, shared by training, evaluation and inference."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lib.checkpoint import InputScales
from lib.datasets.samples import EvaluationImage
from lib.errors import InputError
from lib.features import labyx_features
from model import SSNOutput


def segment_lab(
    model: nn.Module,
    image_lab: Tensor,
    n_spixels: int,
    scales: InputScales,
    *,
    with_bfloat16: bool = False,
) -> SSNOutput:
    """Segment colour images with a base model.

    Parameters
    ----------
    model : SSNModel or SSNPix
        On the images' device.
    image_lab : Tensor, shape (B, 3, H, W), float32
        CIELAB images.
    n_spixels : int
        Requested number of superpixels.
    scales : InputScales
        Weights of colour and position.
    with_bfloat16 : bool
        Run the convolutions in bfloat16; distances and all that follows stay float32.
    """
    labyx = labyx_features(image_lab, n_spixels, **scales._asdict())
    # The convolutions run up to twice as fast with the channels innermost.
    labyx = labyx.contiguous(memory_format=torch.channels_last)
    with torch.autocast(labyx.device.type, dtype=torch.bfloat16, enabled=with_bfloat16):
        return model(labyx, n_spixels)


def base_segmenter(
    model: nn.Module, n_spixels: int, scales: InputScales, device: torch.device
) -> Callable[[EvaluationImage], np.ndarray]:
    """What `lib.evaluation.evaluate` needs of a base model on a device: a label map for each image."""

    def segment(image: EvaluationImage) -> np.ndarray:
        check_n_spixels(n_spixels, image.image_lab.shape[2:], image.name)
        output = segment_lab(model, image.image_lab.to(device), n_spixels, scales)
        return output.labels[0].cpu().numpy()

    return segment


def check_n_spixels(n_spixels: int, image_shape: Sequence[int], image_name: str) -> None:
    """Check that an image has as many pixels as superpixels are asked for.

    Raises
    ------
    InputError
        If not.
    """
    height, width = image_shape
    if n_spixels > height * width:
        raise InputError(
            f"--nspix {n_spixels} is above the {height * width} pixels of {image_name} ({width}x{height})"
        )
