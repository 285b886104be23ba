"""Segment images and videos into superpixels."""

from lib.inference.segmenter import Segmenter

__all__ = ["Segmenter"]
