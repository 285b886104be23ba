"""Graphs of superpixels for graph neural networks, and node features of a public benchmark."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import InputError
from lib.superpixels.connectivity import OUTSIDE

if TYPE_CHECKING:
    from torch_geometric.data import Data

NODE_FEATURES = ("colors", "learned", "pascalvoc_sp")


class SuperpixelGraph(NamedTuple):
    """Superpixels of an image as nodes, joined where they share a border; see `Superpixels.to_graph`.

    Attributes
    ----------
    node_features : Tensor, shape (S, F), float32
        Features of each superpixel.
    positions : Tensor, shape (S, 2), float32
        Mean row and column of each superpixel, in pixels.
    edges : Tensor, shape (2, 2E), int64
        Source and target of each edge, sorted by source, then target. Every border gives both directions.
    border_lengths : Tensor, shape (2E,), float32
        Number of pixel sides that the superpixels of an edge share.
    """

    node_features: Tensor
    positions: Tensor
    edges: Tensor
    border_lengths: Tensor

    def to_pyg(self) -> "Data":
        """Return a `torch_geometric.data.Data` with `x`, `pos`, `edge_index` and `edge_attr`, (2E, 1).

        Raises
        ------
        InputError
            If PyTorch Geometric is not installed.
        """
        try:
            from torch_geometric.data import Data
        except ImportError:
            raise InputError(
                "graphs of PyTorch Geometric need another package: pip install torch_geometric"
            ) from None
        return Data(
            x=self.node_features,
            pos=self.positions,
            edge_index=self.edges,
            edge_attr=self.border_lengths[:, None],
        )


def build_graph(
    node_features: np.ndarray, positions: np.ndarray, borders: np.ndarray, lengths: np.ndarray
) -> SuperpixelGraph:
    """Build the graph of superpixels from features (S, F), positions (S, 2), and borders (E, 2) with lengths.

    Each pair of superpixels occurs once in `borders`.
    """
    edges = np.concatenate([borders, borders[:, ::-1]]).astype(np.int64)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    lengths = np.concatenate([lengths, lengths])[order].astype(np.float32)
    return SuperpixelGraph(
        torch.tensor(node_features, dtype=torch.float32),
        torch.tensor(positions, dtype=torch.float32),
        torch.from_numpy(np.ascontiguousarray(edges[order].T)),
        torch.from_numpy(lengths),
    )


def pascalvoc_sp_features(labels: np.ndarray, image_rgb: np.ndarray) -> np.ndarray:
    """Compute the 14 node features of PascalVOC-SP and COCO-SP of the Long Range Graph Benchmark [1]_.

    Parameters
    ----------
    labels : ndarray, shape (H, W), integer
        Superpixel of each pixel; -1 outside the mask.
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.

    Returns
    -------
    ndarray, shape (S, 14), float32
        Mean, standard deviation, maximum and minimum of red, green and blue in [0, 1], then the mean row and
        column in pixels. The order and the scales are those of the benchmark's scripts; its files hold
        float16. The row of a label that does not occur is NaN.

    References
    ----------
    .. [1] Dwivedi et al., "Long Range Graph Benchmark", NeurIPS 2022 Datasets and Benchmarks.
    """
    inside = labels != OUTSIDE
    flat = labels[inside]
    colors = image_rgb[inside] / 255
    yx = np.argwhere(inside)
    sizes = np.bincount(flat)[:, None]

    def mean(values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # labels that do not occur
            return np.stack([np.bincount(flat, channel) for channel in values.T], axis=1) / sizes

    means = mean(colors)
    deviations = np.sqrt(mean((colors - means[flat]) ** 2))
    maxima = np.full(means.shape, np.nan)
    minima = np.full(means.shape, np.nan)
    np.fmax.at(maxima, flat, colors)  # NaN gives way to the first value
    np.fmin.at(minima, flat, colors)
    return np.concatenate([means, deviations, maxima, minima, mean(yx)], axis=1).astype(np.float32)
