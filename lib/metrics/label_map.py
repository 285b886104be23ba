"""Check of the label maps that the metrics read."""

import numpy as np

VOID = -1  # label of the pixels of an annotation that are neither scored nor trained on


def check_label_map(labels: np.ndarray, *, with_void: bool = False) -> np.ndarray:
    """Return a label map (H, W) as int64, renumbered if a label is not below the number of pixels.

    Gaps are allowed. Large labels are renumbered in order without gaps, so that `np.bincount` can count them:
    0 stays 0, and other labels start from 1. `with_void` allows `VOID`, which stays. Raises a ValueError if
    `labels` is empty, otherwise negative or not integer.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"a label map must be non-empty integers of shape (H, W), got {labels.dtype} of {labels.shape}"
        )
    if labels.min() < (VOID if with_void else 0):
        raise ValueError(f"a label map must not be negative, got {labels.min()}")
    if labels.max() >= labels.size:
        numbers, labels_flat = np.unique(labels, return_inverse=True)
        labels = np.where(numbers == VOID, VOID, np.cumsum(numbers > 0))[labels_flat.reshape(labels.shape)]
    return labels.astype(np.int64, copy=False)
