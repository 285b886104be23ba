"""What the metrics take as a label map."""

import numpy as np


def check_label_map(labels: np.ndarray) -> np.ndarray:
    """Check a label map, and bring its numbers into a range in which they can be counted.

    Parameters
    ----------
    labels : ndarray, shape (H, W), integer
        Region of each pixel. Numbers may have gaps, but must not be negative.

    Returns
    -------
    ndarray, shape (H, W), int64
        The same map; if a number is not below the number of pixels, renumbered in order and without gaps,
        from 1 on, with 0 staying 0.

    Raises
    ------
    ValueError
        If `labels` is no such map.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"a label map must be non-empty integers of shape (H, W), got {labels.dtype} of {labels.shape}"
        )
    if labels.min() < 0:
        raise ValueError(f"a label map must not be negative, got {labels.min()}")
    if labels.max() >= labels.size:
        numbers, labels_flat = np.unique(labels, return_inverse=True)
        labels = labels_flat.reshape(labels.shape) + (numbers[0] != 0)
    return labels.astype(np.int64, copy=False)
