"""Superpixels of one image, with statistics of each superpixel."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from lib.runtime.errors import InputError
from lib.slic.soft_assignment import SoftAssignment
from lib.superpixels.connectivity import OUTSIDE, border_sides, enforce_connectivity, enforce_count
from lib.superpixels.graph import NODE_FEATURES, SuperpixelGraph, build_graph, pascalvoc_sp_features
from lib.superpixels.merge_tree import MergeTree

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True, eq=False)
class Superpixels:
    """Superpixels of one image.

    Properties are computed on first access. S is the largest label plus 1. Without connectivity, some labels
    may not occur; their rows are NaN.

    Attributes
    ----------
    labels : ndarray, shape (H, W), int32
        Superpixel of each pixel, from 0; -1 outside the mask.
    image_rgb : ndarray, shape (H, W, 3), uint8
        The image.
    pixel_features : ndarray, shape (C, H, W), float32, optional
        Learned features that do not depend on the position of a pixel, if requested.
    n_base_features : int
        Number of leading `pixel_features` that come from colour; the others come from extra channels.
    n_spixels : int
        Number of superpixels that were clustered, on the grid of the whole image. With a mask or merges, it
        exceeds the number of `labels`.
    soft_assignment : SoftAssignment, optional
        Share of every pixel in the superpixels around it, if requested. It comes from the clustering, before
        any merge, and numbers superpixels by grid cell; `labels` are numbered anew.
    tree : MergeTree, optional
        Merges of the fine superpixels that `labels` come from; None if nothing was merged.
    """

    labels: np.ndarray
    image_rgb: np.ndarray
    n_spixels: int
    pixel_features: np.ndarray | None = None
    n_base_features: int = 0
    soft_assignment: SoftAssignment | None = None
    tree: MergeTree | None = None

    def at(self, n_spixels: int) -> Self:
        """Return a copy with exactly `n_spixels` superpixels, from the same tree; all such copies nest.

        Raises
        ------
        InputError
            If nothing was merged, or `n_spixels` is below the number of parts of the mask.
        ValueError
            If `n_spixels` is above the number of pixels.
        """
        if self.tree is None:
            raise InputError("levels need a merge tree: `fine_factor` above 1 and connected superpixels")
        if n_spixels < self.tree.n_pieces:
            raise InputError(
                f"the mask is in {self.tree.n_pieces} parts, which need at least {self.tree.n_pieces} "
                f"superpixels, but {n_spixels} are requested"
            )
        if n_spixels > self.tree.n_leaves:  # possible if cells have few pixels each
            return replace(self, labels=enforce_count(self.tree.leaves, n_spixels))
        return replace(self, labels=self.tree.cut(n_spixels))

    def connected(self) -> Self:
        """Return a copy with connectivity enforced; see `enforce_connectivity`."""
        mask = self.labels != OUTSIDE
        labels = enforce_connectivity(self.labels, self.n_spixels, mask=None if mask.all() else mask)
        return replace(self, labels=labels)

    def with_image(self, image_rgb: np.ndarray) -> Self:
        """Return a copy with another image."""
        return replace(self, image_rgb=image_rgb)

    def with_count(self, n_spixels: int) -> Self:
        """Return a copy with exactly `n_spixels` superpixels; requires connectivity. See `enforce_count`."""
        return replace(self, labels=enforce_count(self.labels, n_spixels))

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of pixels in each superpixel, (S,) int64."""
        return np.bincount(self._flat_labels)

    @property
    def n_measured(self) -> int:
        """Number of superpixels that occur."""
        return int(np.count_nonzero(self.sizes))

    @cached_property
    def colors(self) -> np.ndarray:
        """Mean RGB of each superpixel, 0 to 255, (S, 3) float32."""
        return self.mean_of(self.image_rgb)

    @cached_property
    def positions(self) -> np.ndarray:
        """Mean row and column of each superpixel, in pixels, (S, 2) float32."""
        places = np.nonzero(self.labels != OUTSIDE)
        with np.errstate(invalid="ignore"):  # labels that do not occur
            means = self._sums(np.stack(places, axis=1)) / self.sizes[:, None]
        return means.astype(np.float32)

    @cached_property
    def features(self) -> np.ndarray | None:
        """Mean of `pixel_features` in each superpixel, (S, C) float32; None without `pixel_features`."""
        if self.pixel_features is None:
            return None
        return self.mean_of(np.moveaxis(self.pixel_features, 0, -1))

    @property
    def edges(self) -> np.ndarray:
        """Pairs of superpixels that share a border, (E, 2) int32, sorted; the smaller label comes first.

        Superpixels share a border if a pixel of one is a 4-neighbour of a pixel of the other.
        """
        return self._borders[0]

    @property
    def border_lengths(self) -> np.ndarray:
        """Number of pixel sides that each pair of `edges` shares, (E,) int64."""
        return self._borders[1]

    def to_graph(self, node_features: str = "colors") -> SuperpixelGraph:
        """Return the superpixels as a graph of tensors on the CPU; node s is superpixel s.

        Parameters
        ----------
        node_features : str
            "colors": mean RGB, 0 to 255, (S, 3). "learned": `features`, (S, C). "pascalvoc_sp": the 14
            features of the Long Range Graph Benchmark, see `pascalvoc_sp_features`. The row of a label that
            does not occur is NaN, and no edge leads to it.

        Raises
        ------
        InputError
            If `node_features` is none of these, or "learned" without `pixel_features`.
        """
        match node_features:
            case "colors":
                values = self.colors
            case "learned":
                values = self.features
            case "pascalvoc_sp":
                values = pascalvoc_sp_features(self.labels, self.image_rgb)
            case _:
                raise InputError(
                    f"must be one of {', '.join(NODE_FEATURES)}, got {node_features!r}",
                    parameter="node_features",
                )
        if values is None:
            raise InputError("learned features need superpixels that were segmented with features")
        return build_graph(values, self.positions, self.edges, self.border_lengths)

    def to_pyg(self, node_features: str = "colors") -> "Data":
        """Return `to_graph` as a `torch_geometric.data.Data`; see `SuperpixelGraph.to_pyg`."""
        return self.to_graph(node_features).to_pyg()

    def mean_of(self, values: np.ndarray) -> np.ndarray:
        """Average per-pixel numbers or bools in each superpixel: (H, W[, K]) to (S[, K]), float32.

        NaN and masked values are left out; `valid_share_of` returns how much is left. A superpixel without
        any valid value is NaN. Raises a ValueError if the height or width of `values` differs.
        """
        means = self._means(*self._values_inside(values))
        return means.astype(np.float32).reshape(-1, *np.shape(values)[2:])

    def std_of(self, values: np.ndarray) -> np.ndarray:
        """Standard deviation of per-pixel numbers in each superpixel: (H, W[, K]) to (S[, K]), float32.

        It is the root of the mean squared deviation of the values that `mean_of` averages.
        """
        channels, is_valid = self._values_inside(values)
        deviations = channels - self._means(channels, is_valid)[self._flat_labels]
        variances = self._means(deviations**2, is_valid)
        return np.sqrt(variances).astype(np.float32).reshape(-1, *np.shape(values)[2:])

    def valid_share_of(self, values: np.ndarray) -> np.ndarray:
        """Share of each superpixel's pixels that `mean_of` uses, 0 to 1: (H, W[, K]) to (S[, K]), float32."""
        _, is_valid = self._values_inside(values)
        with np.errstate(invalid="ignore"):  # labels that do not occur
            shares = self._sums(is_valid) / self.sizes[:, None]
        return shares.astype(np.float32).reshape(-1, *np.shape(values)[2:])

    def _values_inside(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of the labelled pixels, (N, K), and where they are valid."""
        is_masked, values = np.ma.getmaskarray(values), np.ma.getdata(values)
        if values.shape[:2] != self.labels.shape or values.ndim > 3:
            raise ValueError(
                f"values must be (H, W) or (H, W, K) of an image {self.labels.shape}, got {values.shape}"
            )
        is_valid = ~(is_masked | np.isnan(values))
        inside, n_pixels = self.labels != OUTSIDE, len(self._flat_labels)
        return values[inside].reshape(n_pixels, -1), is_valid[inside].reshape(n_pixels, -1)

    def _means(self, channels: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
        """Average the valid ones of values (N, K) in each superpixel, (S, K) float64."""
        with np.errstate(invalid="ignore"):  # labels that do not occur, or without a valid value
            return self._sums(np.where(is_valid, channels, 0)) / self._sums(is_valid)

    def _sums(self, channels: np.ndarray) -> np.ndarray:
        """Sum values (N, K) in each superpixel, (S, K)."""
        return np.stack([np.bincount(self._flat_labels, channel) for channel in channels.T], axis=-1)

    @cached_property
    def _borders(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `edges` and `border_lengths`."""
        low, high = np.sort(border_sides(self.labels), axis=0).astype(np.int64)
        n_labels = len(self.sizes)
        pairs, lengths = np.unique(low * n_labels + high, return_counts=True)
        return np.stack(np.divmod(pairs, n_labels), axis=1).astype(np.int32), lengths

    @cached_property
    def _flat_labels(self) -> np.ndarray:
        return self.labels[self.labels != OUTSIDE]
