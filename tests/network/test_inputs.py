"""Test the scaling of the input channels."""

import numpy as np
import pytest
import torch

from lib.network.inputs import InputScales, input_channels, labyx_features, pixel_positions, rgb_to_lab


def test_lab_of_known_colours():
    image_rgb = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], dtype=np.uint8)
    lab = rgb_to_lab(image_rgb)
    assert lab.dtype == torch.float32
    expected = torch.tensor([[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20]])
    torch.testing.assert_close(lab[:, 0].T, expected, atol=0.02, rtol=0)


def test_positions_are_row_then_column():
    yx = pixel_positions(torch.empty(2, 1, 3, 5))
    assert yx.shape == (2, 2, 3, 5)
    assert yx[1, :, 2, 4].tolist() == [2, 4]


def test_scales_by_hand():
    image_lab = torch.full((1, 3, 20, 40), 10.0)
    labyx = labyx_features(image_lab, 50, color_scale=0.26, pos_scale=2.5)
    # k = floor(sqrt(50)) = 7; the larger of 7/20 and 7/40 counts.
    expected = torch.tensor([2.6, 2.6, 2.6, 2.5 * 7 / 20 * 3, 2.5 * 7 / 20 * 8])
    torch.testing.assert_close(labyx[0, :, 3, 8], expected)


def test_wrong_shape_is_rejected():
    with pytest.raises(ValueError, match=r"image_lab .*\(3, 8, 8\)"):
        labyx_features(torch.zeros(3, 8, 8), 4, color_scale=1, pos_scale=1)


def test_extra_channels_come_last():
    image_lab, extra = torch.randn(2, 3, 8, 9), torch.randn(2, 2, 8, 9)
    scales = InputScales(0.26, 2.5, extra_scale=3.0)
    channels = input_channels(image_lab, extra, 12, scales)
    assert channels[:, :5].equal(labyx_features(image_lab, 12, color_scale=0.26, pos_scale=2.5))
    assert channels[:, 5:].equal(3 * extra)
    assert input_channels(image_lab, None, 12, scales).equal(channels[:, :5])
