"""Entry points of `torch.hub`."""

from typing import Any

from lib.inference import Segmenter
from lib.weights import shipped_weights

dependencies = ["torch", "numpy", "scipy", "skimage", "PIL", "tifffile", "cv2"]


def ssn(weights: str = "base", **options: Any) -> Segmenter:
    """Return a `Segmenter` with shipped weights: "base", "small" or "composite".

    `options` are those of `Segmenter`, such as `device`. Its network is the attribute `model`.
    """
    return Segmenter.from_checkpoint(shipped_weights(weights), **options)
