"""Regularity of superpixels: how convex, balanced and alike their shapes are.

The global regularity GR is the product of the two measures below. Implementations differ in how they measure
hull and perimeter of pixels. Here the hull has all pixels with centres in the convex hull of the shape's
pixel centres. Perimeters follow from Crofton's formula: shapes cut lines in four directions into runs of
pixels. A perimeter is proportional to the number of runs, weighted by the distance of the lines. Therefore a
4-connected shape has at least the perimeter of its hull, however thin it is.

References
----------
.. [1] Giraud et al., "Evaluation Framework of Superpixel Methods with a Global Regularity Measure", Journal
   of Electronic Imaging 26(6), 2017.
"""

import math

import numpy as np

from lib.metrics.label_map import check_label_map

# Steps (dy, dx) along rows, columns and both diagonals, with the distance of neighbouring lines in pixels.
_DIRECTIONS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, math.sqrt(0.5)), (1, -1, math.sqrt(0.5)))


def shape_regularity(labels: np.ndarray) -> float:
    """Compute the shape regularity criterion of a label map (H, W); 1 if all superpixels are squares.

    SRC = 1/N sum_j |S_j| CR_j V_j. The convexity CR_j is perimeter over area of the convex hull of S_j,
    divided by perimeter over area of S_j. The balance V_j is the root of the smaller over the larger standard
    deviation of rows and columns; it is 1 for a single pixel. SRC is in [0, 1] if superpixels are
    4-connected. Raises a ValueError if `labels` is not a label map.
    """
    labels, sizes = _number_without_gaps(labels)
    order = np.argsort(labels, axis=None, kind="stable")  # by superpixel, then by row and column
    spixel_of_pixel = labels.ravel()[order]
    y, x = np.divmod(order, labels.shape[1])
    of_hulls = _count_lines(spixel_of_pixel, y, x) / _hull_sizes(spixel_of_pixel, y, x)
    of_shapes = _count_runs(labels) / sizes
    convexity = of_hulls / of_shapes
    return float((sizes * convexity * _balance(labels, sizes)).sum() / labels.size)


def smooth_matching(labels: np.ndarray) -> float:
    """Compute the smooth matching factor of a label map (H, W), in [0, 1]; 1 if all shapes are equal.

    SMF = 1 - 1/N sum_j |S_j| |D - D_j|_1 / 2. D_j is the shape of S_j, moved by its rounded barycenter and
    divided by its size; D is the sum of all moved shapes, divided by its total. Raises a ValueError if
    `labels` is not a label map.
    """
    labels, sizes = _number_without_gaps(labels)
    flat = labels.ravel()
    # Halves are rounded up, because equal shapes must move alike wherever they are.
    dy, dx = (
        positions - np.floor(np.bincount(flat, positions) / sizes + 0.5).astype(np.int64)[flat]
        for positions in np.indices(labels.shape).reshape(2, -1)
    )
    height, width = labels.shape
    place = (dy + height) * 2 * width + dx + width  # a number for each offset from the barycenter
    mean_shape = np.bincount(place) / flat.size  # D
    on_shape = mean_shape[place]  # D at each pixel of each moved shape
    # The distance to D_j is |D - 1 / |S_j|| within the shape, and all of D outside it.
    within = np.bincount(flat, np.abs(on_shape - 1 / sizes[flat]))
    outside = 1 - np.bincount(flat, on_shape)
    return float(1 - (sizes * (within + outside)).sum() / (2 * flat.size))


def _number_without_gaps(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label map (H, W) with labels from 0 without gaps, and the sizes of its superpixels."""
    labels = check_label_map(labels)
    _, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return numbers.reshape(labels.shape), sizes


def _balance(labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the root of the smaller over the larger standard deviation of each superpixel."""
    flat = labels.ravel()
    variances = []
    for positions in np.indices(labels.shape).reshape(2, -1):
        means = np.bincount(flat, positions) / sizes
        variances.append(np.bincount(flat, (positions - means[flat]) ** 2) / sizes)
    smaller, larger = np.sort(variances, axis=0)
    ratio = np.divide(smaller, larger, out=np.ones(len(sizes)), where=larger > 0)
    return ratio**0.25


def _count_runs(labels: np.ndarray) -> np.ndarray:
    """Count the runs of each superpixel along lines in `_DIRECTIONS`, weighted by the lines' distance."""
    height, width = labels.shape
    padded = np.pad(labels, 1, constant_values=-1)
    n_spixels = int(labels.max()) + 1
    n_runs = np.zeros(n_spixels)
    for dy, dx, distance in _DIRECTIONS:
        following = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        n_runs += distance * np.bincount(labels[labels != following], minlength=n_spixels)
    return n_runs


def _count_lines(spixel_of_pixel: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Count the lines through each convex hull, weighted as runs are; a line has a single run in a hull."""
    first = np.flatnonzero(np.diff(spixel_of_pixel, prepend=-1))
    n_lines = np.zeros(len(first))
    for dy, dx, distance in _DIRECTIONS:
        line = dx * y - dy * x  # number of the line through the pixel
        n_lines += distance * (np.maximum.reduceat(line, first) - np.minimum.reduceat(line, first) + 1)
    return n_lines


def _hull_sizes(spixel_of_pixel: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Count the pixels in the convex hull of each superpixel; pixels come by superpixel, row and column.

    By Pick's theorem the count is area + n_border / 2 + 1, where the border runs through pixel centres.
    """
    doubled = np.full(int(spixel_of_pixel[-1]) + 1, 2.0)  # the count, doubled
    for turn in (1, -1):  # the left and the right side of the hull, from its first to its last pixel
        spixels, ys, xs = _convex_chain(spixel_of_pixel, y, x, turn)
        is_edge = spixels[:-1] == spixels[1:]
        area = turn * (ys[:-1] * xs[1:] - xs[:-1] * ys[1:])  # doubled, by the shoelace formula
        n_border = np.gcd(np.diff(ys), np.diff(xs))
        doubled += np.bincount(spixels[:-1], is_edge * (area + n_border), minlength=len(doubled))
    return doubled / 2


def _convex_chain(
    spixels: np.ndarray, y: np.ndarray, x: np.ndarray, turn: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the corners of one side of each convex hull: the chain turns there, in the direction of `turn`.

    A pixel without this turn between its neighbours in the chain is no corner. Pixels are dropped until all
    turns are to this side. The first and the last pixel of each superpixel stay.
    """
    while True:
        cross = (y[1:-1] - y[:-2]) * (x[2:] - x[:-2]) - (x[1:-1] - x[:-2]) * (y[2:] - y[:-2])
        is_kept = np.ones(len(y), dtype=bool)
        is_kept[1:-1] = (turn * cross > 0) | (spixels[:-2] != spixels[2:])
        if is_kept.all():
            return spixels, y, x
        spixels, y, x = spixels[is_kept], y[is_kept], x[is_kept]
