"""Superpixel Sampling Networks: the public names, in the checkout and installed.

A wheel holds this file as the package's `__init__`, beside `lib`, `model.py` and the weights; all other names
are then under `ssn_superpixels.lib` and `ssn_superpixels.model`.

Examples
--------
>>> from skimage.data import astronaut
>>> from ssn_superpixels import Segmenter, shipped_weights, superpixels
>>> labels = superpixels(astronaut(), n_segments=100)
>>> labels.shape, labels.dtype
((512, 512), dtype('int64'))
>>> Segmenter.from_checkpoint(shipped_weights("small"))(astronaut(), 200).n_measured
200
"""

from lib.inference import Segmenter, superpixels
from lib.slic import slic
from lib.superpixels import Superpixels
from lib.weights import load_model, shipped_weights

__version__ = "1.0.0"

__all__ = ["Segmenter", "Superpixels", "load_model", "shipped_weights", "slic", "superpixels"]
