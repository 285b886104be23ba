"""Outlines of superpixels as polygons, for labelling tools: GeoJSON and SVG."""

import json
from collections.abc import Iterator
from itertools import chain, pairwise
from xml.sax.saxutils import quoteattr

import numpy as np

from lib.superpixels.connectivity import OUTSIDE
from lib.superpixels.regions import Superpixels
from lib.superpixels.simplification import count_sides, find_kept_corners

# Sides of a pixel in clockwise order, so that the pixel lies to the right: start corner, end corner and the
# pixel beyond the side. All are (row, column), relative to the top left corner and to the pixel.
_SIDES = (
    ((0, 0), (0, 1), (-1, 0)),
    ((0, 1), (1, 1), (0, 1)),
    ((1, 1), (1, 0), (1, 0)),
    ((1, 0), (0, 0), (0, -1)),
)

Ring = list[tuple[int, int]]


def trace_outlines(
    labels: np.ndarray, *, tolerance: float = 0, with_junctions: bool = False
) -> list[list[Ring]]:
    """Trace the outlines of 4-connected superpixels (H, W) along the sides of their pixels.

    With a `tolerance` above 0, in pixels, they are simplified: no corner of a pixel on them is farther from
    the result. Neighbours keep the same corners of their border; see `find_kept_corners`.

    With `with_junctions`, a corner where borders meet is in the ring of each superpixel around it, also where
    that ring is straight. After rotation or projection, rounding then opens no gap. Simplified outlines have
    these corners anyway.

    Returns the rings of corners (x, y) of each superpixel, in pixels from the top left corner of the image.
    The outer ring comes first and runs clockwise on screen; rings of holes follow and run counterclockwise.
    No ring meets itself, but two rings may meet at a corner. The first corner is not repeated at the end.
    """
    outlines = _trace_sides(labels)
    if tolerance > 0:
        is_kept = find_kept_corners(labels, chain.from_iterable(outlines), tolerance)
        outlines = [[_only_kept(ring, is_kept) for ring in rings] for rings in outlines]
    else:
        n_sides = count_sides(labels)
        is_kept = n_sides > 2 if with_junctions else np.zeros(n_sides.shape, dtype=bool)
        outlines = [[_without_straight_corners(ring, is_kept) for ring in rings] for rings in outlines]
    # Holes have negative areas.
    return [sorted(rings, key=_signed_area, reverse=True) for rings in outlines]


def to_geojson(superpixels: Superpixels, *, tolerance: float = 0) -> str:
    """Return a GeoJSON FeatureCollection with a Polygon for each superpixel, in pixels (x, y).

    The properties of a superpixel are `label`, `size` in pixels and `color`, the mean RGB. See
    `trace_outlines` for `tolerance`.
    """
    features = [
        {
            "type": "Feature",
            "properties": {"label": label, "size": size, "color": color},
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]},
        }
        for label, size, color, rings in _regions(superpixels, tolerance)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def to_svg(superpixels: Superpixels, *, tolerance: float = 0) -> str:
    """Return an SVG picture with a path for each superpixel, filled with its mean colour.

    The attributes of a path are `data-label` and `data-size`; coordinates are in pixels. See `trace_outlines`
    for `tolerance`.
    """
    height, width = superpixels.labels.shape
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" fill-rule="evenodd" stroke="yellow" stroke-width="0.5">'
    ]
    for label, size, color, rings in _regions(superpixels, tolerance):
        path = " ".join("M" + " ".join(f"{x},{y}" for x, y in ring) + "Z" for ring in rings)
        fill = f"rgb({','.join(map(str, color))})"
        lines.append(
            f'<path data-label="{label}" data-size="{size}" fill={quoteattr(fill)} d={quoteattr(path)}/>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _regions(superpixels: Superpixels, tolerance: float) -> Iterator[tuple[int, int, list[int], list[Ring]]]:
    """Yield label, size, mean colour and rings of each superpixel."""
    colors = np.round(superpixels.colors).astype(int).tolist()
    sizes = superpixels.sizes.tolist()
    for label, rings in enumerate(trace_outlines(superpixels.labels, tolerance=tolerance)):
        yield label, sizes[label], colors[label], rings


def _trace_sides(labels: np.ndarray) -> list[list[Ring]]:
    """Trace the rings of each superpixel with every corner of a pixel on them."""
    height, width = labels.shape
    padded = np.pad(labels, 1, constant_values=OUTSIDE)
    starts, ends, owners = [], [], []
    for start, end, beyond in _SIDES:
        neighbor = padded[1 + beyond[0] : 1 + beyond[0] + height, 1 + beyond[1] : 1 + beyond[1] + width]
        row, col = np.nonzero((labels != neighbor) & (labels != OUTSIDE))
        starts.append((row + start[0]) * (width + 1) + col + start[1])
        ends.append((row + end[0]) * (width + 1) + col + end[1])
        owners.append(labels[row, col])
    start, end, owner = (np.concatenate(parts) for parts in (starts, ends, owners))
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(labels.max() + 2))
    outlines = []
    for first, last in pairwise(bounds):
        sides = order[first:last]
        outlines.append(_chain(start[sides].tolist(), end[sides].tolist(), width + 1))
    return outlines


def _chain(starts: list[int], ends: list[int], n_columns: int) -> list[Ring]:
    """Join sides, given by their start and end corners, into closed rings of corners.

    Where two pixels of a superpixel touch only at a corner, four sides meet. The path turns right there and
    so follows the same pixel. A ring is complete where the path meets itself.
    """
    right_of_step = {1: n_columns, n_columns: -1, -1: -n_columns, -n_columns: 1}
    following: dict[int, list[int]] = {}
    for start, end in zip(starts, ends, strict=True):
        following.setdefault(start, []).append(end)
    rings = []
    for first in following:
        path, index_on_path, last_step = [], {}, 1
        corner = first
        while following[corner]:
            choices = following[corner]
            right = corner + right_of_step[last_step]
            after = choices.pop(choices.index(right) if right in choices else 0)
            index_on_path[corner] = len(path)
            path.append(corner)
            corner, last_step = after, after - corner
            if corner in index_on_path:
                ring = path[index_on_path[corner] :]
                del path[index_on_path[corner] :]
                for passed in ring:
                    del index_on_path[passed]
                rings.append([(passed % n_columns, passed // n_columns) for passed in ring])
    return rings


def _only_kept(ring: Ring, is_kept: np.ndarray) -> Ring:
    return [(x, y) for x, y in ring if is_kept[y, x]]


def _without_straight_corners(ring: Ring, is_kept: np.ndarray) -> Ring:
    """Return the corners of a ring where it turns, and those where `is_kept` (H + 1, W + 1) is True."""
    points = np.array(ring)
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    is_turn = (before != after).any(axis=1)
    x, y = points.T
    return [tuple(point) for point in points[is_turn | is_kept[y, x]].tolist()]


def _signed_area(ring: Ring) -> float:
    """Compute the area that a ring encloses, positive if it runs clockwise on screen."""
    x, y = np.array(ring).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
