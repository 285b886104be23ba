"""Make every superpixel one connected component, and merge small ones."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.ndimage import find_objects
from skimage.graph import MCP
from skimage.measure import label

MIN_SIZE_SHARE = 0.06  # smaller components are merged, as a share of the mean requested superpixel size
OUTSIDE = -1  # label of pixels that belong to no superpixel


def enforce_connectivity(labels: np.ndarray, n_spixels: int, *, mask: np.ndarray | None = None) -> np.ndarray:
    """Turn a label map into 4-connected superpixels, and merge small ones.

    Every 4-connected component of a label becomes one superpixel. Components smaller than
    0.06 * H * W / `n_spixels` are then merged, smallest first. A component joins the neighbour it shares the
    longest border with; in a tie the larger one, then the one with the first pixel. No component is split.
    A connected part of the mask that is smaller stays.

    Parameters
    ----------
    labels : ndarray, shape (H, W), integer
        Label map; any values.
    n_spixels : int
        Number of superpixels requested for H * W pixels. It sets the minimum size of a superpixel.
    mask : ndarray, shape (H, W), bool, optional
        Pixels that belong to superpixels; all by default.

    Returns
    -------
    ndarray, shape (H, W), int32
        Labels 0 to n - 1 without gaps, numbered by first pixel in reading order; -1 outside the mask.

    Raises
    ------
    ValueError
        If `labels` is not a non-empty integer map, `mask` has another shape or `n_spixels` is not positive.
    """
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "labels must be a non-empty integer map of shape (H, W), got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    if n_spixels < 1:
        raise ValueError(f"n_spixels must be at least 1, got {n_spixels}")
    if mask is not None and mask.shape != labels.shape:
        raise ValueError(f"mask has shape {mask.shape}, but labels have {labels.shape}")
    # `label` treats 0 as background. After the shift, 0 is free for pixels outside the mask.
    shifted = labels.astype(np.int64) - int(labels.min()) + 1
    if mask is not None:
        shifted[~mask] = 0
    components = label(shifted, background=0, connectivity=1) - 1
    sizes = np.bincount(components[components != OUTSIDE])
    regions = join_small_components([components], sizes, labels.size, n_spixels)
    return np.append(regions, np.int32(OUTSIDE))[components]  # index -1 maps to itself


def join_small_components(
    bands: Iterable[np.ndarray], sizes: np.ndarray, n_pixels: int, n_spixels: int
) -> np.ndarray:
    """Return the superpixel of each connected component in `enforce_connectivity`, (n_components,) int32.

    Parameters
    ----------
    bands : iterable of ndarray, shape (n_rows, W), integer
        Map of the components, in bands of rows from the top. They are numbered from 0 by first pixel in
        reading order; -1 belongs to none.
    sizes : ndarray, shape (n_components,)
        Number of pixels of each component.
    n_pixels, n_spixels : int
        Pixels of the image, H * W, and the superpixels requested for them.
    """
    min_size = MIN_SIZE_SHARE * n_pixels / n_spixels
    borders = _measure_borders(bands, sizes < min_size)
    return _number_regions(_merge_small_components(sizes, borders, min_size))


def enforce_count(labels: np.ndarray, n_spixels: int) -> np.ndarray:
    """Merge or split the superpixels of `enforce_connectivity` to reach an exact number.

    While the number is too high, the smallest superpixel joins the neighbour it shares the longest border
    with. While it is too low, the largest superpixel is split into a near and a far half, by path length
    from one of its ends. The result is numbered by first pixel in reading order; -1 stays.

    Raises
    ------
    ValueError
        If the mask has fewer pixels or more connected parts than `n_spixels`, or a superpixel of `labels` is
        not connected.
    """
    sizes = np.bincount(labels[labels != OUTSIDE])
    if not 1 <= n_spixels <= sizes.sum():
        raise ValueError(
            f"n_spixels must lie between 1 and the {sizes.sum()} labelled pixels, got {n_spixels}"
        )
    borders = _measure_borders([labels], np.full(len(sizes), len(sizes) > n_spixels))
    regions = _number_regions(_merge_small_components(sizes, borders, np.inf, n_least=n_spixels))
    result = np.append(regions, np.int32(OUTSIDE))[labels]
    n_parts = result.max() + 1
    if n_parts > n_spixels:
        raise ValueError(f"{n_spixels} superpixels cannot cover the {n_parts} parts of the mask")
    sizes = np.zeros(n_spixels, dtype=np.int64)
    sizes[:n_parts] = np.bincount(result[result != OUTSIDE])
    windows = find_objects(result + 1)
    for new in range(n_parts, n_spixels):
        old = int(sizes.argmax())
        window = result[windows[old]]
        sizes[new] = _split_superpixel(window, old, new)
        sizes[old] -= sizes[new]
        windows.append(windows[old])
    # This renumbers the superpixels by first pixel.
    result, n_components = label(result + 1, background=0, connectivity=1, return_num=True)
    if n_components != n_spixels:
        raise ValueError("labels must be connected superpixels; call enforce_connectivity first")
    return (result - 1).astype(np.int32)


def border_sides(labels: np.ndarray) -> np.ndarray:
    """Return the two labels at every pixel side between superpixels, (2, n_sides)."""
    width = labels.shape[1]
    pixels = labels.ravel()
    left = np.flatnonzero(pixels[1:] != pixels[:-1])
    left = left[left % width != width - 1]  # the next pixel is in the next row
    upper = np.flatnonzero(pixels[width:] != pixels[:-width])
    sides = pixels[np.stack([np.concatenate([left, upper]), np.concatenate([left + 1, upper + width])])]
    is_inside = (sides != OUTSIDE).all(axis=0)
    return sides if is_inside.all() else sides[:, is_inside]


def border_sides_in_bands(bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield `border_sides` of a label map that comes in bands of rows from the top, each side once."""
    above = None
    for band in bands:
        sides = border_sides(band)
        if above is not None:
            across = np.stack([above, band[0]])
            across = across[:, (above != band[0]) & (across != OUTSIDE).all(axis=0)]
            sides = np.concatenate([sides, across], axis=1)
        above = band[-1]
        yield sides


def _split_superpixel(labels: np.ndarray, old: int, new: int) -> int:
    """Split a superpixel into two connected parts, label one of them `new` in place, and return its size."""
    inside = labels == old
    paths = MCP(np.where(inside, 1.0, np.inf), fully_connected=False)
    start = np.argwhere(inside)[0]
    for _ in range(2):  # the farthest pixel from any pixel lies at an end; then measure from that end
        distance = np.where(inside, paths.find_costs([start])[0], -1)
        start = np.unravel_index(distance.argmax(), distance.shape)
    order = np.sort(distance[inside])
    far = inside & (distance > order[(len(order) - 1) // 2])
    # The near half is connected, because a path to a pixel passes nearer pixels. The far half may not be: its
    # largest component becomes the new superpixel, the others stay connected through the near half.
    components = label(far, connectivity=1)
    if components.max() == 0:  # all pixels but the first have the same distance
        components = label(inside & (distance > order[0]), connectivity=1)
    largest = np.bincount(components.ravel())[1:].argmax() + 1
    labels[components == largest] = new
    return np.count_nonzero(components == largest)


def _number_regions(target: np.ndarray) -> np.ndarray:
    """Return the region of each component, numbered by first pixel, from the component it is merged into."""
    # Components are numbered by first pixel, so the first component of a region gives its order.
    first_of_region = np.full(len(target), len(target))
    np.minimum.at(first_of_region, target, np.arange(len(target)))
    return np.unique(first_of_region[target], return_inverse=True)[1].astype(np.int32)


def _measure_borders(bands: Iterable[np.ndarray], is_small: np.ndarray) -> dict[int, Counter[int]]:
    """Measure the border, in pixel sides, between every small component and each of its neighbours."""
    n_components = len(is_small)
    pairs, lengths = [], []
    for one, other in border_sides_in_bands(bands):
        owner, neighbor = np.concatenate([one, other]), np.concatenate([other, one])
        owner, neighbor = owner[is_small[owner]].astype(np.int64), neighbor[is_small[owner]]
        pair, length = np.unique(owner * n_components + neighbor, return_counts=True)
        pairs.append(pair)
        lengths.append(length)
    pair, place = np.unique(np.concatenate(pairs), return_inverse=True)
    length = np.bincount(place, np.concatenate(lengths)).astype(np.int64)
    borders: dict[int, Counter[int]] = {component: Counter() for component in np.flatnonzero(is_small)}
    for component, adjacent, sides_shared in zip(
        (pair // n_components).tolist(), (pair % n_components).tolist(), length.tolist(), strict=True
    ):
        borders[component][adjacent] = sides_shared
    return borders


def _merge_small_components(
    sizes: np.ndarray, borders: dict[int, Counter[int]], min_size: float, *, n_least: int = 1
) -> np.ndarray:
    """Merge components below `min_size` while more than `n_least` remain; return the target of each one."""
    size = sizes.tolist()
    target = list(range(len(size)))

    def find(component: int) -> int:
        while target[component] != component:
            target[component] = target[target[component]]
            component = target[component]
        return component

    queue = [(size[component], component) for component in borders]
    heapq.heapify(queue)
    n_left = len(size)
    while queue and n_left > n_least:
        queued_size, component = heapq.heappop(queue)
        if target[component] != component or queued_size != size[component]:
            continue  # outdated entry: the component has been merged or has grown
        shared: Counter[int] = Counter()
        for adjacent, sides_shared in borders.pop(component).items():
            shared[find(adjacent)] += sides_shared
        del shared[component]
        if not shared:
            continue  # no neighbour: the component is the whole image or a connected part of the mask
        into = max(shared, key=lambda other: (shared[other], size[other], -other))
        target[component] = into
        n_left -= 1
        size[into] += size[component]
        if into in borders:
            borders[into].update(shared)
            if size[into] < min_size:
                heapq.heappush(queue, (size[into], into))
    return np.array([find(component) for component in range(len(size))])
