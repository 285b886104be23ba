"""From images and videos to superpixels."""

from lib.inference.segmenter import Segmenter

__all__ = ["Segmenter"]
