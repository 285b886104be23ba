"""Label maps of superpixels: connectivity, statistics, graphs, outlines, annotations and pictures."""

from lib.superpixels.regions import Superpixels

__all__ = ["Superpixels"]
