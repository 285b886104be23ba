"""Graph of the connected regions of a label map: mean features of the regions, and the pairs that touch."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import InputError
from lib.superpixels.components import (
    components_by_hooking,
    connected_components,
    pairs_by_sorting,
    touching_pairs,
)
from lib.superpixels.connectivity import OUTSIDE

_MAX_FLOAT32_PIXELS = 2**16  # a sum of more numbers than this in float32 would be off by over 1e-3

_TOO_LARGE = "the features are too large to be merged; lower `merge_pos_scale`"


class RegionGraph(NamedTuple):
    """Regions of an image that can be merged."""

    leaves: np.ndarray  # (H, W), int32: 4-connected, numbered from 0 by first pixel; -1 outside the mask
    sizes: np.ndarray  # (n_regions,), float64, pixels
    means: np.ndarray  # (n_regions, C), float64: mean features
    edges: np.ndarray  # (2, E), int64: pairs of regions that touch, the smaller number first


class GraphOnGPU(NamedTuple):
    """Regions of a batch of images as one graph, on their device."""

    components: Tensor  # (B, H, W), int64: numbered through the batch; -1 outside the mask
    stops: list[int]  # number of regions up to each image
    sizes: Tensor  # see `RegionGraph`
    means: Tensor
    edges: Tensor


def build_region_graph(labels: Tensor, features: Tensor) -> RegionGraph:
    """Return the graph of the 4-connected components of a label map.

    Parameters
    ----------
    labels : Tensor, shape (H, W), integer
        Label map; -1 outside the mask.
    features : Tensor, shape (C, H, W), float32
        Features of the pixels, on the same device.

    Raises
    ------
    InputError
        If a mean of the features is not finite.
    """
    if labels.device.type != "cpu":
        graph = graph_on_gpu(labels[None], features[None])
        values = (values.cpu().numpy() for values in (graph.sizes, graph.means, graph.edges))
        return RegionGraph(graph.components[0].to(torch.int32).cpu().numpy(), *values)
    components = connected_components(labels)
    graph = graph_of_bands([(components.numpy(), features)], int(components.max()) + 1)
    return graph._replace(leaves=components.numpy().astype(np.int32))


def graph_of_bands(bands: Iterable[tuple[np.ndarray, Tensor]], n_regions: int) -> RegionGraph:
    """Return the graph of an image that comes in bands of rows, from the top.

    A band has the map of its regions, (n_rows, W) integer, numbered as in `RegionGraph`, and its features,
    (C, n_rows, W), on the CPU. The bands may have any heights. In place of the `leaves` of the image, which
    may not fit the memory, the graph has a map with one pixel for each region, (1, n_regions).

    Raises as `build_region_graph`.
    """
    sizes, sums = np.zeros(n_regions), None

    def regions_and_sums() -> Iterator[np.ndarray]:
        nonlocal sums
        for regions, features in bands:
            sums = sums or _PixelSums(n_regions, len(features), features.shape[2], features)
            sums.add(torch.from_numpy(regions), features)
            np.add(sizes, np.bincount((regions - OUTSIDE).ravel(), minlength=n_regions + 1)[1:], out=sizes)
            yield regions

    edges = touching_pairs(regions_and_sums(), n_regions)
    means = sums.total() / torch.from_numpy(sizes)[:, None]
    if not means.isfinite().all():
        raise InputError(_TOO_LARGE)
    return RegionGraph(np.arange(n_regions, dtype=np.int32)[None], sizes, means.numpy(), edges)


def graph_on_gpu(labels: Tensor, features: Tensor) -> GraphOnGPU:
    """Return the graph of a batch, labels (B, H, W) and features (B, C, H, W), by whole-array operations.

    Sums of features are exact; a CPU rounds them to float32. Raises as `build_region_graph` does.
    """
    components = components_by_hooking(labels)
    stops, extents = _read_stops_and_extents(components, features)
    if not all(map(math.isfinite, extents)):
        raise InputError(_TOO_LARGE)
    n_regions = stops[-1]
    places = (components - OUTSIDE).flatten()
    sizes = torch.zeros(n_regions + 1, dtype=torch.float64, device=labels.device)
    sizes = sizes.scatter_add_(0, places, torch.ones_like(places, dtype=torch.float64))[1:]
    means = torch.zeros(n_regions, features.shape[1], dtype=torch.float64, device=labels.device)
    for of_image, pixels, extent in zip(components, features, extents, strict=True):
        means += _pixel_sums(of_image, n_regions, _round_to_coarse_grid(pixels, extent))
    means /= sizes[:, None]
    return GraphOnGPU(components, stops, sizes, means, pairs_by_sorting(components, n_regions))


def _read_stops_and_extents(components: Tensor, features: Tensor) -> tuple[list[int], list[float]]:
    """Return the number of components up to each image, and the largest feature in size of each image."""
    stops = components.flatten(1).amax(dim=1).cummax(dim=0).values + 1
    extents = []
    for of_image, pixels in zip(components, features, strict=True):
        lowest, highest = torch.where(of_image == OUTSIDE, 0, pixels).aminmax()
        extents.append(torch.maximum(-lowest, highest))
    stops, extents = torch.stack([stops.double(), torch.stack(extents).double()]).tolist()  # waits once
    return list(map(int, stops)), extents


def _round_to_coarse_grid(features: Tensor, extent: float) -> Tensor:
    """Round features (C, H, W) of at most `extent` in size so that sums over pixels are exact, to float64.

    A GPU adds in any order.
    """
    bits = math.ceil(math.log2(features[0].numel()))
    exponent = math.frexp(extent)[1] + bits - 52
    return features.double().mul_(2.0**-exponent).round_().mul_(2.0**exponent)


def _pixel_sums(components: Tensor, n_components: int, features: Tensor) -> Tensor:
    """Return the sum of the features (C, H, W) in every component, (n_components, C) float64."""
    sums = _PixelSums(n_components, len(features), features.shape[2], features)
    sums.add(components, features)
    return sums.total()


class _PixelSums:
    """Sums of features in components, of an image that comes in bands of rows.

    Additions have the same order whatever the heights of the bands: in the dtype of the features within
    strips of the image, then in float64.
    """

    def __init__(self, n_components: int, n_channels: int, width: int, like: Tensor) -> None:
        self._n_channels = n_channels
        n_places = 2 * (n_components + 1)
        self._sums = torch.zeros(n_channels, n_places, dtype=torch.float64, device=like.device)
        self._of_strip = torch.zeros_like(self._sums, dtype=like.dtype)
        # With many components, which are small then, larger strips: adding their sums up takes time too.
        self._n_strip_rows = max(1, max(_MAX_FLOAT32_PIXELS, 8 * n_places) // width)
        self._n_in_strip = 0

    def add(self, components: Tensor, features: Tensor) -> None:
        """Add a band, components (n_rows, W) and features (C, n_rows, W)."""
        # Even and odd columns have sums of their own: an addition need not wait for its left neighbour's.
        is_odd = torch.arange(components.shape[1], device=components.device) % 2
        places = 2 * (components.long() - OUTSIDE) + is_odd
        start = 0
        while start < len(places):
            stop = min(len(places), start + self._n_strip_rows - self._n_in_strip)
            idx = places[start:stop].reshape(1, -1).expand(self._n_channels, -1)
            self._of_strip.scatter_add_(1, idx, features[:, start:stop].flatten(1))
            self._n_in_strip += stop - start
            if self._n_in_strip == self._n_strip_rows:
                self._end_strip()
            start = stop

    def total(self) -> Tensor:
        """Return the sums, (n_components, C) float64."""
        self._end_strip()
        return self._sums.view(self._n_channels, -1, 2).sum(dim=2)[:, 1:].T.contiguous()

    def _end_strip(self) -> None:
        self._sums += self._of_strip
        self._of_strip.zero_()
        self._n_in_strip = 0
