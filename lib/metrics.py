"""How well superpixels respect a segmentation, counted exactly."""

import numpy as np


def contingency_table(labels: np.ndarray, gt_labels: np.ndarray) -> np.ndarray:
    """Count the pixels that each segment shares with each superpixel.

    Parameters
    ----------
    labels, gt_labels : ndarray, shape (H, W), integer
        Superpixels and ground-truth segments, numbered from 0; gaps are allowed.

    Returns
    -------
    ndarray, shape (max segment + 1, max superpixel + 1), int64
        Rows are segments, columns are superpixels.

    Raises
    ------
    ValueError
        If the shapes differ or a label is negative.
    """
    if labels.shape != gt_labels.shape:
        raise ValueError(f"labels are {labels.shape}, but gt_labels are {gt_labels.shape}")
    if labels.min() < 0 or gt_labels.min() < 0:
        raise ValueError("labels and gt_labels must not be negative")
    n_spixels, n_segments = int(labels.max()) + 1, int(gt_labels.max()) + 1
    pair = gt_labels.astype(np.int64).ravel() * n_spixels + labels.ravel()
    return np.bincount(pair, minlength=n_segments * n_spixels).reshape(n_segments, n_spixels)


def achievable_segmentation_accuracy(table: np.ndarray) -> float:
    """Share of pixels labelled right when every superpixel takes its most frequent segment.

    Parameters
    ----------
    table : ndarray, shape (n_segments, n_spixels)
        From `contingency_table`.

    Returns
    -------
    float
        In (0, 1]; 1 is best.

    References
    ----------
    .. [1] Liu et al., "Entropy Rate Superpixel Segmentation", CVPR 2011; Stutz et al., CVIU 2018.
    """
    return float(table.max(axis=0).sum() / table.sum())


def mean_iou(table: np.ndarray, *, ignore_background: bool = False) -> float:
    """Mean IoU of the segments, when every superpixel takes its most frequent segment.

    Of equally frequent segments the lower number wins.

    Parameters
    ----------
    table : ndarray, shape (n_segments, n_spixels)
        From `contingency_table`.
    ignore_background : bool
        Leave segment 0 out of the mean.

    Returns
    -------
    float
        In [0, 1]; 1 is best. NaN if there is no segment to average over.
    """
    majority = table.argmax(axis=0)  # (n_spixels,)
    n_segments = len(table)
    gt_size = table.sum(axis=1)
    predicted_size = np.bincount(majority, weights=table.sum(axis=0), minlength=n_segments)
    intersection = np.bincount(majority, weights=table.max(axis=0), minlength=n_segments)
    occurs = gt_size > 0
    if ignore_background:
        occurs[0] = False
    if not occurs.any():
        return float("nan")
    iou = intersection[occurs] / (gt_size + predicted_size - intersection)[occurs]
    return float(iou.mean())
