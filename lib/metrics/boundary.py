"""Boundaries of a label map, computed in one pass that all boundary metrics share."""

from functools import cached_property
from typing import Self

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter

from lib.metrics.label_map import VOID, check_label_map


class Boundary:
    """Boundary between the regions of a label map, in the 4-neighbourhood.

    Void pixels have no boundary. Arrays are computed on first access and cached. For labels and errors see
    `check_label_map`.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = check_label_map(labels, with_void=True)  # (H, W), int64
        self.differs_right = self.labels[:, :-1] != self.labels[:, 1:]  # from the right neighbour
        self.differs_below = self.labels[:-1] != self.labels[1:]  # from the lower neighbour
        if self.has_void:
            is_scored = self.labels != VOID
            self.differs_right &= is_scored[:, :-1] & is_scored[:, 1:]
            self.differs_below &= is_scored[:-1] & is_scored[1:]
        self._near: dict[tuple[int, bool], np.ndarray] = {}

    @cached_property
    def has_void(self) -> bool:
        return bool(self.labels.min() == VOID)

    def without_void_of(self, other: Self) -> Self:
        """Return the boundary between pixels that are not void in `other`."""
        if not other.has_void:
            return self
        return type(self)(np.where(other.labels == VOID, VOID, self.labels))

    @cached_property
    def one_sided(self) -> np.ndarray:
        """Pixels that differ from their right or lower neighbour, (H, W) bool: a line one pixel wide."""
        pixels = np.zeros(self.labels.shape, dtype=bool)
        pixels[:, :-1] |= self.differs_right
        pixels[:-1] |= self.differs_below
        return pixels

    @cached_property
    def two_sided(self) -> np.ndarray:
        """Pixels that differ from any of their four neighbours, (H, W) bool."""
        pixels = self.one_sided.copy()
        pixels[:, 1:] |= self.differs_right
        pixels[1:] |= self.differs_below
        return pixels

    def pixels(self, *, one_sided: bool) -> np.ndarray:
        """Return `one_sided` or `two_sided`, (H, W) bool."""
        return self.one_sided if one_sided else self.two_sided

    def near(self, radius: int, *, one_sided: bool = False) -> np.ndarray:
        """Find pixels with a boundary pixel in the square window of side 2 `radius` + 1, (H, W) bool."""
        key = radius, one_sided
        if key not in self._near:
            pixels = self.pixels(one_sided=one_sided)
            self._near[key] = maximum_filter(pixels, 2 * radius + 1, mode="constant")
        return self._near[key]

    @cached_property
    def distance(self) -> np.ndarray:
        """Euclidean distance of every pixel to the nearest two-sided boundary pixel, (H, W), in pixels.

        If the image has no boundary, the distance is the length of its diagonal.
        """
        if not self.two_sided.any():
            return np.full(self.labels.shape, np.hypot(*self.labels.shape))
        return distance_transform_edt(~self.two_sided)

    @cached_property
    def perimeters(self) -> np.ndarray:
        """Perimeter of each region in pixel sides, image border included, (max label + 1,) int64.

        Raises a ValueError if pixels are void.
        """
        labels = self.labels
        outside = [labels[0], labels[-1], labels[:, 0], labels[:, -1]]
        between = [
            labels[:, :-1][self.differs_right],
            labels[:, 1:][self.differs_right],
            labels[:-1][self.differs_below],
            labels[1:][self.differs_below],
        ]
        return np.bincount(np.concatenate(outside + between), minlength=int(labels.max()) + 1)
