"""Differentiable SLIC, the clustering of the paper: plain form in `iteration`, fast form in `fast`."""

from lib.slic.fast import FeatureRows, slic, slic_label_rows, slic_labels
from lib.slic.grid import CellGrid, compute_grid_shape
from lib.slic.iteration import DISTANCES
from lib.slic.soft_assignment import SoftAssignment

__all__ = [
    "DISTANCES",
    "CellGrid",
    "FeatureRows",
    "SoftAssignment",
    "compute_grid_shape",
    "slic",
    "slic_label_rows",
    "slic_labels",
]
