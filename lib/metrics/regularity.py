"""Regularity of superpixels: how convex, balanced and alike their shapes are.

The global regularity is the product of the two measures below. A perimeter runs through the centres of the
border pixels, as `skimage.measure.perimeter` measures it.

References
----------
.. [1] Giraud et al., "Evaluation Framework of Superpixel Methods with a Global Regularity Measure", Journal
   of Electronic Imaging 26(6), 2017.
"""

import numpy as np
from skimage.measure import perimeter, regionprops


def shape_regularity(labels: np.ndarray) -> float:
    """Compute the shape regularity criterion of a label map (H, W), in [0, 1]; 1 for a grid of squares.

    SRC = 1/N sum_j |S_j| CR_j V_j. The convexity CR_j is perimeter over area of the convex hull of S_j,
    divided by perimeter over area of S_j. The balance V_j is the root of the smaller over the larger standard
    deviation of rows and columns. A superpixel of a single pixel has both at 1.
    """
    total = 0.0
    for region in regionprops(labels + 1):
        deviations = np.std(region.coords, axis=0)
        balance = 1.0 if region.area == 1 else np.sqrt(deviations.min() / deviations.max())
        of_region = _perimeter_over_area(region.image)
        convexity = _perimeter_over_area(region.image_convex) / of_region if of_region > 0 else 1.0
        total += region.area * convexity * balance
    return float(total / labels.size)


def smooth_matching(labels: np.ndarray) -> float:
    """Compute the smooth matching factor of a label map (H, W), in [0, 1]; 1 if all shapes are equal.

    SMF = 1 - 1/N sum_j |S_j| |D - D_j|_1 / 2. D_j is the shape of S_j, moved to its centre and divided by its
    size; D is the sum of all moved shapes, divided by its total.
    """
    flat = np.unique(labels, return_inverse=True)[1].ravel()
    sizes = np.bincount(flat)
    offsets = []
    for positions in np.indices(labels.shape).reshape(2, -1):
        center = np.rint(np.bincount(flat, positions) / sizes).astype(np.int64)
        offsets.append(positions - center[flat])
    _, place = np.unique(np.stack(offsets), axis=1, return_inverse=True)
    place = place.ravel()
    mean_shape = np.bincount(place) / flat.size  # D, one value an occupied offset
    on_shape = mean_shape[place]  # D at each pixel of each shape
    # The distance to D_j is |D - 1 / |S_j|| within the shape, and all of D outside it.
    within = np.bincount(flat, np.abs(on_shape - 1 / sizes[flat]))
    outside = 1 - np.bincount(flat, on_shape)
    return float(1 - (sizes * (within + outside)).sum() / (2 * flat.size))


def _perimeter_over_area(shape: np.ndarray) -> float:
    return perimeter(shape) / np.count_nonzero(shape)
