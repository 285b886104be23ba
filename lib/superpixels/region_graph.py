"""Graph of the connected regions of a label map: mean features of the regions, and the pairs that touch."""

import math
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
    n_regions = int(components.max()) + 1
    sizes = torch.bincount((components - OUTSIDE).flatten(), minlength=n_regions + 1)[1:].double()
    means = _pixel_sums(components, n_regions, features) / sizes[:, None]
    if not means.isfinite().all():
        raise InputError(_TOO_LARGE)
    leaves = components.numpy()
    edges = touching_pairs(leaves, n_regions)
    return RegionGraph(leaves.astype(np.int32), sizes.numpy(), means.numpy(), edges)


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
    n_channels, _, width = features.shape
    # Even and odd columns have sums of their own: an addition need not wait for its left neighbour's.
    is_odd = torch.arange(width, device=features.device) % 2
    places = 2 * (components - OUTSIDE) + is_odd
    n_places = 2 * (n_components + 1)
    sums = torch.zeros(n_channels, n_places, dtype=torch.float64, device=features.device)
    # With many components, which are small then, larger strips: adding their sums up takes time too.
    n_rows = max(1, max(_MAX_FLOAT32_PIXELS, 8 * n_places) // width)
    for pixels, rows in zip(features.split(n_rows, dim=1), places.split(n_rows), strict=True):
        part = torch.zeros_like(sums, dtype=pixels.dtype)
        sums += part.scatter_add_(1, rows.reshape(1, -1).expand(n_channels, -1), pixels.flatten(1))
    return sums.view(n_channels, -1, 2).sum(dim=2)[:, 1:].T.contiguous()
