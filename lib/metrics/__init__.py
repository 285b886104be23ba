"""Quality metrics of superpixels, with and without annotations."""

from lib.metrics.registry import METRICS, score_label_maps

__all__ = ["METRICS", "score_label_maps"]
