"""Label maps and what is made of them."""

from lib.superpixels.regions import Superpixels

__all__ = ["Superpixels"]
