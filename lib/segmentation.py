"""One call from an image to superpixels, shared by training, evaluation and inference."""

import torch
from torch import Tensor, nn

from lib.errors import InputError
from lib.features import InputScales, input_channels
from model import SSNOutput


def segment_lab(
    model: nn.Module,
    image_lab: Tensor,
    n_spixels: int,
    scales: InputScales,
    *,
    extra: Tensor | None = None,
    with_bfloat16: bool = False,
) -> SSNOutput:
    """Segment images with any model of this repo.

    Parameters
    ----------
    model : SSNModel, CompositeSSNModel or SSNPix
        On the images' device.
    image_lab : Tensor, shape (B, 3, H, W), float32
        CIELAB images.
    n_spixels : int
        Requested number of superpixels.
    scales : InputScales
        Weights of colour, position and extra channels.
    extra : Tensor, shape (B, n_extra_channels, H, W), float32, optional
        Extra channels; left aside by models that read none.
    with_bfloat16 : bool
        Run the convolutions in bfloat16; distances and all that follows stay float32.

    Raises
    ------
    InputError
        If the model reads extra channels, but the images have another number of them or they have no scale.
    """
    channels = model_input(model, image_lab, n_spixels, scales, extra=extra)
    with torch.autocast(channels.device.type, dtype=torch.bfloat16, enabled=with_bfloat16):
        return model(channels, n_spixels)


def model_input(
    model: nn.Module, image_lab: Tensor, n_spixels: int, scales: InputScales, *, extra: Tensor | None = None
) -> Tensor:
    """The scaled channels that a model reads, (B, 5 + its extra channels, H, W); see `segment_lab`."""
    n_extra_channels = 0 if extra is None else extra.shape[1]
    if model.n_extra_channels == 0:
        extra = None
    elif model.n_extra_channels != n_extra_channels:
        raise InputError(
            f"the model reads {model.n_extra_channels} extra channels, but the image has {n_extra_channels}"
        )
    elif scales.extra_scale is None:
        raise InputError("extra channels need a scale; see InputScales")
    channels = input_channels(image_lab, extra, n_spixels, scales)
    # The convolutions run up to twice as fast with the channels innermost.
    return channels.contiguous(memory_format=torch.channels_last)


def check_n_spixels(n_spixels: int, n_pixels: int, image_name: str, *, option: str = "--nspix") -> None:
    """Check that an image has as many pixels as superpixels are asked for, by an option.

    Raises
    ------
    InputError
        If not.
    """
    if n_spixels > n_pixels:
        raise InputError(f"{option} {n_spixels} is above the {n_pixels} pixels of {image_name}")
