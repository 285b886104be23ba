"""The same superpixels on every device: masked, in a batch, in bands, tracked and merged.

In place of another device, a CPU alone takes other algorithms: without oneDNN its convolutions add up in
another order, as those of a GPU do.
"""

import numpy as np
import pytest
import torch
from torch.backends import mkldnn

from helpers import agreement, make_quadrants, make_texture
from lib.inference.segmenter import Segmenter
from lib.inference.tracking import Tracker
from lib.network.inputs import InputScales
from model import CompositeSSNModel, SSNModel

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")

SCALES = InputScales(0.26, 2.5)
WITH_EXTRA = SCALES._replace(extra_scale=1.0)
N_SPIXELS = 40

# Least share of equal pixels. Rounding changes the label of a pixel between two superpixels. Where merges
# cost almost the same, it changes a whole region, one of about 120.
ONE_LEVEL, MERGED = 0.999, 0.99


def model_with_statistics():
    """Return a model whose features weigh as much as colour and position."""
    torch.manual_seed(0)
    model = SSNModel(4)
    model.feature_extract.output_conv[0].weight.data *= 10
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def make_images(n_images):
    """Return smooth coloured images that differ, (60, 92, 3) uint8."""
    texture = make_texture(120, 180)
    shifts = [(5 * idx, 7 * idx) for idx in range(3 * n_images)]
    grey = [texture[y : y + 60, x : x + 92] for y, x in shifts]
    return [np.stack(grey[idx::n_images], axis=-1).round().astype(np.uint8) for idx in range(n_images)]


def on_cpu_and(device, segment):
    """Return results of `segment` of a segmenter: on the CPU, and on the device."""
    expected = segment(Segmenter(model_with_statistics(), SCALES))
    with mkldnn.flags(enabled=False):
        return expected, segment(Segmenter(model_with_statistics(), SCALES, device=device))


def test_one_level(device):
    (image_rgb,) = make_images(1)

    def segment(segmenter):
        return segmenter(image_rgb, N_SPIXELS, connected=False, with_features=True)

    expected, actual = on_cpu_and(device, segment)
    assert not np.array_equal(actual.pixel_features, expected.pixel_features)
    # float32 differs by 1e-5 on a CPU; convolutions in TF32 would differ by 1e-2.
    np.testing.assert_allclose(actual.pixel_features, expected.pixel_features, rtol=0, atol=5e-4)
    assert np.mean(actual.labels == expected.labels) >= ONE_LEVEL


def test_merged(device):
    (image_rgb,) = make_images(1)
    expected, actual = on_cpu_and(device, lambda segmenter: segmenter(image_rgb, N_SPIXELS))
    assert actual.n_measured == expected.n_measured == N_SPIXELS
    assert agreement(actual.labels, expected.labels) >= MERGED


def test_masked(device):
    (image_rgb,) = make_images(1)
    row, col = np.mgrid[:60, :92]
    mask = (row - 30) ** 2 + (col - 40) ** 2 < 27**2
    expected, actual = on_cpu_and(
        device, lambda segmenter: segmenter(image_rgb, N_SPIXELS, mask=mask, connected=False)
    )
    np.testing.assert_array_equal(actual.labels >= 0, mask)
    assert np.mean(actual.labels == expected.labels) >= ONE_LEVEL
    expected, actual = on_cpu_and(device, lambda segmenter: segmenter(image_rgb, N_SPIXELS, mask=mask))
    assert actual.n_measured == N_SPIXELS
    assert agreement(actual.labels, expected.labels) >= MERGED


def test_batch(device):
    images = torch.from_numpy(np.stack(make_images(3))).movedim(-1, 1)
    expected, actual = on_cpu_and(
        device, lambda segmenter: segmenter.segment_batch(images, N_SPIXELS, connected=False)
    )
    assert len(actual) == 3
    for one, other in zip(actual, expected, strict=True):
        assert np.mean(one.labels == other.labels) >= ONE_LEVEL
    with mkldnn.flags(enabled=False):
        alone = Segmenter(model_with_statistics(), SCALES, device=device)(
            images[2].movedim(0, -1).numpy(), N_SPIXELS, connected=False
        )
    assert np.mean(actual[2].labels == alone.labels) >= ONE_LEVEL


def test_with_little_memory(device, monkeypatch):
    (image_rgb,) = make_images(1)
    expected = Segmenter(model_with_statistics(), SCALES)(image_rgb, N_SPIXELS, connected=False)
    for name, value in (("_BAND_ROWS", 16), ("_BAND_PIXELS", 1)):
        monkeypatch.setattr(f"lib.network.bands.{name}", value)
    for name, value in (("LARGE_BYTES", 0), ("CPU_CHUNK_BYTES", 5000), ("GPU_CHUNK_BYTES", 5000)):
        monkeypatch.setattr(f"lib.slic.fast.{name}", value)
    n_bands = []
    model = model_with_statistics()
    model.feature_extract.scale2.register_forward_hook(lambda *_: n_bands.append(1))
    with mkldnn.flags(enabled=False):
        actual = Segmenter(model, SCALES, device=device)(image_rgb, N_SPIXELS, connected=False)
    assert len(n_bands) == 4
    assert np.mean(actual.labels == expected.labels) >= ONE_LEVEL


def test_tracked(device):
    frames = make_images(4)
    forward = np.zeros((60, 92, 2), dtype=np.float32)
    forward[..., 1] = -7  # the frames are not of one scene, so that superpixels end and begin
    flow = forward, -forward

    def segment(segmenter):
        tracker = Tracker(segmenter, [N_SPIXELS])
        tracked = [
            tracker.segment(segmenter.preprocess(frame), flow if idx else None)
            for idx, frame in enumerate(frames)
        ]
        return [frame.levels[0] for frame in tracked]

    expected, actual = on_cpu_and(device, segment)
    for one, other in zip(actual, expected, strict=True):
        assert agreement(one.superpixels.labels, other.superpixels.labels) >= ONE_LEVEL
        assert agreement(one.labels, other.labels) >= ONE_LEVEL


def test_features_of_a_composite_and_of_its_base(device):
    image_rgb, quadrants = make_quadrants()
    base = SSNModel(4)
    for module in base.modules():  # statistics that are not those of an untrained network
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    model = CompositeSSNModel.on_top_of(base, 3, n_extra_channels=4)
    extra = np.random.default_rng(0).normal(size=(*quadrants.shape, 4)).astype(np.float32)
    segmenter = Segmenter(model, WITH_EXTRA, device=device)
    superpixels = segmenter(image_rgb, 24, extra=extra, with_features=True)
    assert superpixels.pixel_features.shape == (7, 60, 92)
    assert superpixels.features.shape == (superpixels.n_measured, 7)
    assert superpixels.n_base_features == 4
    of_base = Segmenter(base, SCALES, device=device)(image_rgb, 24, with_features=True)
    # On CUDA, cuDNN may choose other algorithms for an image with more channels.
    scale = np.abs(of_base.pixel_features).max()
    np.testing.assert_allclose(
        superpixels.pixel_features[:4], of_base.pixel_features, rtol=0, atol=1e-5 * max(1, scale)
    )
    for idx in range(superpixels.n_measured):
        expected = superpixels.pixel_features[:, superpixels.labels == idx].mean(axis=1)
        np.testing.assert_allclose(superpixels.features[idx], expected, rtol=1e-4, atol=1e-5)
