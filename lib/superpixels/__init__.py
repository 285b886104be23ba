"""Label maps of superpixels: connectivity, statistics, outlines and pictures."""

from lib.superpixels.regions import Superpixels

__all__ = ["Superpixels"]
