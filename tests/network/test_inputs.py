"""Test the scaling of the input channels."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from lib.network.bands import Rows
from lib.network.inputs import (
    InputScales,
    input_channels,
    labyx_features,
    pixel_positions,
    rgb_to_lab,
    rows_to_lab,
)


def test_lab_of_known_colours():
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0]], dtype=torch.uint8)
    lab = rgb_to_lab(colours.T[:, None])
    assert lab.dtype == torch.float32
    expected = torch.tensor([[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20]])
    torch.testing.assert_close(lab[:, 0].T, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_lab_is_that_of_scikit_image(device, dtype):
    # Every 251st of all colours in order, all greys, and the corners, edges and dark colours of the cube.
    every = np.arange(0, 2**24, 251)
    sampled = np.stack([every >> 16, every >> 8 & 255, every & 255], axis=1)
    greys = np.arange(256)[:, None].repeat(3, axis=1)
    levels = [*range(12), 127, 128, 254, 255]
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    colours = np.concatenate([sampled, greys, grid]).astype(np.uint8)[None]  # (1, N, 3)
    image_rgb = torch.from_numpy(colours).movedim(-1, 0).to(device)
    if dtype != torch.uint8:
        image_rgb = image_rgb.to(dtype) / 255
    lab = rgb_to_lab(image_rgb)
    assert (lab.device, lab.dtype) == (image_rgb.device, torch.float32)
    np.testing.assert_allclose(lab.movedim(0, -1).cpu(), rgb2lab(colours), atol=1e-4, rtol=0)


def test_lab_of_batches_and_strips(monkeypatch):
    images_rgb = torch.randint(256, (2, 3, 20, 31), dtype=torch.uint8)
    lab = rgb_to_lab(images_rgb)
    assert lab.shape == images_rgb.shape
    assert lab.is_contiguous()
    for n_pixels in (1, 2 * 31 * 7, 2 * 31 * 20):
        monkeypatch.setattr("lib.network.inputs._STRIP_PIXELS", n_pixels)
        torch.testing.assert_close(rgb_to_lab(images_rgb), lab, atol=5e-5, rtol=0)
        torch.testing.assert_close(rgb_to_lab(images_rgb[1]), lab[1], atol=5e-5, rtol=0)


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


@pytest.mark.parametrize("strip_pixels", [2**19, 70])
def test_rows_of_lab_have_the_bits_of_the_image(strip_pixels, device, monkeypatch):
    monkeypatch.setattr("lib.network.inputs._STRIP_PIXELS", strip_pixels)
    for image_rgb in (torch.randint(0, 256, (3, 41, 23), dtype=torch.uint8), torch.rand(3, 41, 23)):
        image_lab = rgb_to_lab(image_rgb.to(device))
        for rows in (slice(0, 41), slice(7, 20), slice(40, 41)):
            assert rows_to_lab(image_rgb, rows, device).equal(image_lab[:, rows])


def test_channels_of_a_band_are_rows_of_the_image():
    image_lab, extra = torch.randn(1, 3, 40, 23), torch.randn(1, 2, 40, 23)
    scales = InputScales(0.26, 2.5, 3.0)
    channels = input_channels(image_lab, extra, 12, scales)
    band = Rows(10, 20, 4, 26, image_height=40)
    rows = band.context
    assert rows == slice(4, 26)
    of_band = input_channels(image_lab[:, :, rows], extra[:, :, rows], 12, scales, band=band)
    assert of_band.equal(channels[:, :, rows])
    assert of_band[:, :, band.own].equal(channels[:, :, 10:20])
