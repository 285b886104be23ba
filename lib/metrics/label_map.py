"""Check of the label maps that the metrics read."""

import numpy as np


def check_label_map(labels: np.ndarray) -> np.ndarray:
    """Check a label map, and renumber it if its labels are too large for `np.bincount`.

    Parameters
    ----------
    labels : ndarray, shape (H, W), integer
        Label map; non-negative, gaps are allowed.

    Returns
    -------
    ndarray, shape (H, W), int64
        The same map if all labels are below the number of pixels. Otherwise renumbered in order without gaps:
        0 stays 0, and other labels start from 1.

    Raises
    ------
    ValueError
        If `labels` is not a non-empty, non-negative integer map.
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
