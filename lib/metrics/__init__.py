"""Metrics of superpixels against annotations."""

from lib.metrics.registry import METRICS, score_label_maps

__all__ = ["METRICS", "score_label_maps"]
