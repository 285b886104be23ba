"""Make every superpixel one connected piece, and merge the crumbs."""

import heapq
from collections import Counter

import numpy as np
from scipy.ndimage import find_objects
from skimage.graph import MCP
from skimage.measure import label

MIN_SIZE_SHARE = 0.06  # of the mean requested superpixel size: smaller pieces are merged
OUTSIDE = -1  # label of pixels that belong to no superpixel


def enforce_connectivity(labels: np.ndarray, n_spixels: int, *, mask: np.ndarray | None = None) -> np.ndarray:
    """Turn a label map into 4-connected superpixels without crumbs.

    Every 4-connected piece of a label becomes a superpixel of its own. Pieces smaller than
    0.06 * H * W / `n_spixels` then join, smallest first, the neighbour they share the longest border with
    (the larger one of equals, then the one that starts first). Nothing is split. Only a part of the mask that
    is that small itself stays so.

    Parameters
    ----------
    labels : ndarray, shape (H, W), integer
        Label map; any values.
    n_spixels : int
        Number of superpixels requested of H * W pixels, which sets the least size of a piece.
    mask : ndarray, shape (H, W), bool, optional
        Pixels that belong to superpixels, by default all.

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
    # `label` treats one value as background: shift the labels so that none has it.
    shifted = labels.astype(np.int64) - int(labels.min()) + 1
    if mask is not None:
        shifted[~mask] = 0
    pieces = label(shifted, background=0, connectivity=1) - 1
    sizes = np.bincount(pieces[pieces != OUTSIDE])
    min_size = MIN_SIZE_SHARE * labels.size / n_spixels
    target = _merge_small_pieces(sizes, _borders_of(pieces, sizes < min_size), min_size)
    return _merged(pieces, target)


def enforce_count(labels: np.ndarray, n_spixels: int) -> np.ndarray:
    """Merge or split superpixels until there are exactly as many as wanted.

    Of too many, the smallest joins the neighbour it shares the longest border with, again and again. Of too
    few, the largest is halved: into the pixels that are nearer to one end of it, along ways within it, and
    the others.

    Parameters
    ----------
    labels : ndarray, shape (H, W), int32
        From `enforce_connectivity`.
    n_spixels : int
        Wanted number, at most that of the pixels inside.

    Returns
    -------
    ndarray, shape (H, W), int32
        4-connected superpixels numbered by first pixel in reading order; -1 where `labels` are.

    Raises
    ------
    ValueError
        If there are fewer pixels, or more parts of the mask that lie apart, or a superpixel is in pieces.
    """
    sizes = np.bincount(labels[labels != OUTSIDE])
    if not 1 <= n_spixels <= sizes.sum():
        raise ValueError(f"{n_spixels} superpixels of {sizes.sum()} pixels cannot be made")
    borders = _borders_of(labels, np.full(len(sizes), len(sizes) > n_spixels))
    target = _merge_small_pieces(sizes, borders, np.inf, n_least=n_spixels)
    result = _merged(labels, target)
    n_parts = result.max() + 1
    if n_parts > n_spixels:
        raise ValueError(f"{n_spixels} superpixels cannot cover the {n_parts} parts of the mask")
    sizes = np.zeros(n_spixels, dtype=np.int64)
    sizes[:n_parts] = np.bincount(result[result != OUTSIDE])
    windows = find_objects(result + 1)
    for new in range(n_parts, n_spixels):
        old = int(sizes.argmax())
        window = result[windows[old]]
        sizes[new] = _halve(window, old, new)
        sizes[old] -= sizes[new]
        windows.append(windows[old])
    result, n_pieces = label(result + 1, background=0, connectivity=1, return_num=True)  # by first pixel
    if n_pieces != n_spixels:
        raise ValueError("a superpixel of the labels is in pieces; enforce_connectivity comes first")
    return (result - 1).astype(np.int32)


def _halve(labels: np.ndarray, old: int, new: int) -> int:
    """Give one of two connected parts of a superpixel another label, in place; return its size."""
    inside = labels == old
    ways = MCP(np.where(inside, 1.0, np.inf), fully_connected=False)
    start = np.argwhere(inside)[0]
    for _ in range(2):  # the pixel that is farthest from any other lies at an end
        distance = np.where(inside, ways.find_costs([start])[0], -1)
        start = np.unravel_index(distance.argmax(), distance.shape)
    order = np.sort(distance[inside])
    far = inside & (distance > order[(len(order) - 1) // 2])
    # The near half is connected, as every way to a pixel leads over nearer ones. Of the far half one piece
    # becomes the new superpixel; the others touch the near half.
    pieces = label(far, connectivity=1)
    if pieces.max() == 0:  # all pixels beyond the first are equally far from it
        pieces = label(inside & (distance > order[0]), connectivity=1)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    labels[pieces == largest] = new
    return np.count_nonzero(pieces == largest)


def _merged(pieces: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Regions that pieces, numbered by first pixel, are merged into, numbered likewise; -1 stays."""
    # A merged region keeps the number of its first piece.
    first_of_region = np.full(len(target), len(target))
    np.minimum.at(first_of_region, target, np.arange(len(target)))
    number = np.unique(first_of_region[target], return_inverse=True)[1].astype(np.int32)
    return np.append(number, np.int32(OUTSIDE))[pieces]  # of which -1 is the last


def _borders_of(pieces: np.ndarray, is_small: np.ndarray) -> dict[int, Counter[int]]:
    """Border length, in pixel sides, of every piece that counts as small with each of its neighbours."""
    n_pieces = len(is_small)
    sides = []
    for one, other in ((pieces[:, :-1], pieces[:, 1:]), (pieces[:-1], pieces[1:])):
        at_border = (one != other) & (one != OUTSIDE) & (other != OUTSIDE)
        sides.append(np.stack([one[at_border], other[at_border]]))
    one, other = np.concatenate(sides, axis=1)
    owner, neighbor = np.concatenate([one, other]), np.concatenate([other, one])
    of_small = is_small[owner]
    pair, length = np.unique(
        owner[of_small].astype(np.int64) * n_pieces + neighbor[of_small], return_counts=True
    )
    borders: dict[int, Counter[int]] = {piece: Counter() for piece in np.flatnonzero(is_small)}
    for piece, adjacent, sides_shared in zip(
        (pair // n_pieces).tolist(), (pair % n_pieces).tolist(), length.tolist(), strict=True
    ):
        borders[piece][adjacent] = sides_shared
    return borders


def _merge_small_pieces(
    sizes: np.ndarray, borders: dict[int, Counter[int]], min_size: float, *, n_least: int = 1
) -> np.ndarray:
    """Piece that each piece ends up in, after merging all below `min_size` unless only `n_least` remain."""
    size = sizes.tolist()
    target = list(range(len(size)))

    def find(piece: int) -> int:
        while target[piece] != piece:
            target[piece] = target[target[piece]]
            piece = target[piece]
        return piece

    queue = [(size[piece], piece) for piece in borders]
    heapq.heapify(queue)
    n_left = len(size)
    while queue and n_left > n_least:
        queued_size, piece = heapq.heappop(queue)
        if target[piece] != piece or queued_size != size[piece]:
            continue  # merged since it was queued
        shared: Counter[int] = Counter()
        for adjacent, sides_shared in borders.pop(piece).items():
            shared[find(adjacent)] += sides_shared
        del shared[piece]
        if not shared:
            continue  # nothing beside it: one piece is the whole image, or an island of the mask
        into = max(shared, key=lambda other: (shared[other], size[other], -other))
        target[piece] = into
        n_left -= 1
        size[into] += size[piece]
        if into in borders:
            borders[into].update(shared)
            if size[into] < min_size:
                heapq.heappush(queue, (size[into], into))
    return np.array([find(piece) for piece in range(len(size))])
