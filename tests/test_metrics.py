"""Metrics by hand."""

import math

import numpy as np
import pytest

from lib.metrics import achievable_segmentation_accuracy, contingency_table, mean_iou

GT = np.array([[0, 0, 0, 1, 1], [0, 0, 2, 1, 1]], dtype=np.int32)
LABELS = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]], dtype=np.int64)


def test_contingency_table_by_hand():
    assert contingency_table(LABELS, GT).tolist() == [[4, 1], [0, 4], [0, 1]]


def test_asa_by_hand():
    assert achievable_segmentation_accuracy(contingency_table(LABELS, GT)) == pytest.approx(0.8)


def test_mean_iou_by_hand():
    # Superpixel 0 takes segment 0, superpixel 1 takes segment 1; segment 2 gets nothing.
    table = contingency_table(LABELS, GT)
    assert mean_iou(table) == pytest.approx((4 / 5 + 4 / 6 + 0) / 3)
    assert mean_iou(table, ignore_background=True) == pytest.approx((4 / 6 + 0) / 2)


def test_segments_that_do_not_occur_are_not_averaged():
    shifted = np.where(GT == 2, 7, GT)
    assert mean_iou(contingency_table(LABELS, shifted)) == pytest.approx((4 / 5 + 4 / 6) / 3)


def test_mean_iou_of_background_alone_is_nan():
    nothing = contingency_table(LABELS, np.zeros_like(GT))
    assert math.isnan(mean_iou(nothing, ignore_background=True))


def test_perfect_segmentation_with_many_labels():
    labels = np.arange(300).reshape(15, 20)
    table = contingency_table(labels, labels.astype(np.int32))
    assert achievable_segmentation_accuracy(table) == 1
    assert mean_iou(table) == 1


def test_more_than_ten_segments_are_told_apart():
    # One superpixel over 20 segments of 5 pixels each.
    gt_labels = np.arange(20).repeat(5).reshape(10, 10)
    table = contingency_table(np.zeros((10, 10), dtype=np.int64), gt_labels)
    assert achievable_segmentation_accuracy(table) == pytest.approx(0.05)


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"labels are \(2, 5\), but gt_labels are \(5, 2\)"):
        contingency_table(LABELS, GT.T)


def test_negative_labels_are_refused():
    with pytest.raises(ValueError, match="negative"):
        contingency_table(LABELS, GT - 1)
