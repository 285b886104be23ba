"""Segment images and videos into superpixels."""

from lib.inference.like_scikit_image import superpixels
from lib.inference.segmenter import Segmenter

__all__ = ["Segmenter", "superpixels"]
