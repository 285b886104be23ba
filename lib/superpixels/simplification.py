"""Simplify the borders between superpixels, each once for both sides: without gaps and overlaps."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from lib.superpixels.connectivity import OUTSIDE


def find_kept_corners(
    labels: np.ndarray, rings: Iterable[list[tuple[int, int]]], tolerance: float
) -> np.ndarray:
    """Choose the corners of pixels that simplified outlines keep.

    The corners where more than two sides of pixels meet split the rings into chains, which two superpixels
    share. Each chain is simplified by the algorithm of Douglas and Peucker [1]_. In addition, a straight line
    replaces a part of a chain only if the area between them is free of other borders, as in [2]_: chains
    never cross or touch, and no ring collapses. The corners of the image stay.

    Parameters
    ----------
    labels : ndarray, shape (H, W), integer
        Label map; -1 outside the mask.
    rings : iterable of lists of (x, y)
        All outlines of the label map, with every corner of a pixel on them.
    tolerance : float
        Largest distance of a corner from the simplified border, in pixels.

    Returns
    -------
    ndarray, shape (H + 1, W + 1), bool
        Corners that are kept, by row and column.

    References
    ----------
    .. [1] Douglas and Peucker, Cartographica 10(2), 1973.
    .. [2] Saalfeld, "Topologically consistent line simplification with the Douglas-Peucker algorithm",
       Cartography and Geographic Information Science 26(1), 1999.
    """
    n_sides = count_sides(labels)
    is_border = n_sides > 0
    is_kept = n_sides > 2
    is_kept[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    is_end, is_done = is_kept.copy(), is_kept.copy()
    lines: set[tuple[int, ...]] = set()
    for ring in rings:
        for chain in _split(np.array(ring)[:, ::-1], is_end):
            if len(chain) > 2 and not is_done[tuple(chain[1])]:
                is_done[tuple(chain.T)] = True
                kept = _simplify(chain, is_border, lines, tolerance)
                is_kept[tuple(chain[kept].T)] = True
    return is_kept


def count_sides(labels: np.ndarray) -> np.ndarray:
    """Count the sides between different labels that meet at each corner of a pixel, (H + 1, W + 1) int8."""
    padded = np.pad(labels, 1, constant_values=OUTSIDE)
    vertical = (padded[:, 1:] != padded[:, :-1]).astype(np.int8)
    horizontal = (padded[1:] != padded[:-1]).astype(np.int8)
    return vertical[1:] + vertical[:-1] + horizontal[:, 1:] + horizontal[:, :-1]


def _split(ring: np.ndarray, is_end: np.ndarray) -> Iterator[np.ndarray]:
    """Split a ring of corners (row, column) into chains from one end to the next, both included."""
    ends = np.flatnonzero(is_end[tuple(ring.T)])
    if not len(ends):  # the ring between a superpixel and the only one around it
        ends = np.lexsort(ring.T[::-1])[:1]  # a turn, and the same one for both superpixels
    closed = np.concatenate([ring[ends[0] :], ring[: ends[0] + 1]])
    bounds = [*(ends - ends[0]), len(ring)]
    for first, last in pairwise(bounds):
        yield closed[first : last + 1]


def _simplify(
    chain: np.ndarray, is_border: np.ndarray, lines: set[tuple[int, ...]], tolerance: float
) -> list[int]:
    """Return the indices of the corners of a chain to keep; `lines`, which replace parts, grows."""
    kept = [0]
    parts = [(0, len(chain) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first == 1:
            continue
        part = chain[first : last + 1]
        distances = _distances(part)
        farthest = int(distances.argmax())
        if distances[farthest] == 0:
            continue
        line = (*part[0].tolist(), *part[-1].tolist())
        if distances[farthest] <= tolerance and line not in lines and _is_free(part, is_border):
            lines.update([line, line[2:] + line[:2]])
            continue
        kept.append(first + farthest)
        parts += [(first, first + farthest), (first + farthest, last)]
    return kept


def _distances(part: np.ndarray) -> np.ndarray:
    """Return the distance of each corner of a part of a chain from the line between its ends, in pixels."""
    from_start = part - part[0]
    line = from_start[-1]
    share = np.clip(from_start @ line / max(line @ line, 1), 0, 1)
    return np.hypot(*(from_start - share[:, None] * line).T)


def _is_free(part: np.ndarray, is_border: np.ndarray) -> bool:
    """Return True if no other border lies between a part of a chain and the line between its ends.

    Borders run along sides of pixels, so one that enters the area has a corner in it.
    """
    start, line = part[0], part[-1] - part[0]
    if line @ line <= 1:  # the line of a ring would be a point; one side of a pixel may be a border itself
        return False
    low, high = part.min(axis=0), part.max(axis=0) + 1
    window = is_border[low[0] : high[0], low[1] : high[1]].copy()
    window[tuple((part - low).T)] = False
    others = np.argwhere(window) + low
    if not len(others):
        return True
    across = (others - start) @ [-line[1], line[0]]
    along = (others - start) @ line
    is_on_line = (across == 0) & (along >= 0) & (along <= line @ line)
    return not is_on_line.any() and not _winding_numbers(others, part).any()


def _winding_numbers(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Count how often a closed ring (K, 2) runs around each of the points (N, 2), which lie beside it."""
    row, col = points[:, 0, None], points[:, 1, None]
    start, end = ring, np.roll(ring, -1, axis=0)
    step = end - start
    side = step[:, 1] * (row - start[:, 0]) - step[:, 0] * (col - start[:, 1])
    is_above, ends_above = start[:, 0] <= row, end[:, 0] <= row
    n_down = (is_above & ~ends_above & (side > 0)).sum(axis=1)
    n_up = (~is_above & ends_above & (side < 0)).sum(axis=1)
    return n_down - n_up
