"""The evaluation protocol, with superpixels made by hand."""

import numpy as np
import pytest

from lib.datasets.segmented_image import SegmentedImage
from lib.evaluation import evaluate

LEFT_RIGHT = np.repeat([[0, 1]], 20, axis=0).repeat(10, axis=1).astype(np.int32)
TOP_BOTTOM = np.ascontiguousarray(LEFT_RIGHT.T)


class Images(list):
    """Two images, the first with three annotations and the second with one."""

    def __init__(self):
        image_rgb = np.zeros((20, 20, 3), dtype=np.uint8)
        super().__init__(
            [
                SegmentedImage("a", image_rgb, [LEFT_RIGHT, LEFT_RIGHT, TOP_BOTTOM]),
                SegmentedImage("b", image_rgb, [np.zeros_like(LEFT_RIGHT)]),
            ]
        )


def test_every_pair_weighs_the_same():
    result = evaluate(lambda image: LEFT_RIGHT, Images(), n_spixels=2, n_workers=0)
    # Against TOP_BOTTOM each half is half right; both take segment 0, whose IoU is 1/2.
    assert result.asa == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert result.mean_iou == pytest.approx((1 + 1 + 0.25 + 1) / 4)
    assert result.n_spixels == 2
    assert (result.n_images, result.n_pairs) == (2, 4)
    assert str(result) == "ASA 0.8750 mIoU 0.8125 superpixels 2.0 (2 images, 4 pairs)"


def test_pairs_with_background_alone_have_no_iou_without_background():
    result = evaluate(lambda image: LEFT_RIGHT, Images(), n_spixels=2, n_workers=0, ignore_background=True)
    assert result.mean_iou == pytest.approx((1 + 1 + 0) / 3)


def test_connectivity_is_enforced_first():
    fragmented = LEFT_RIGHT.copy()
    fragmented[3, 3] = fragmented[8, 15] = 7  # one label in two crumbs
    result = evaluate(lambda image: fragmented, Images(), n_spixels=2, n_workers=0)
    assert result.n_spixels == 2
    assert result.asa == pytest.approx((1 + 1 + 0.5 + 1) / 4)
