"""Segmenting out of core: the superpixels of images in memory, whatever the heights of the bands."""

import numpy as np
import pytest
import torch
from conftest import DEVICES

from helpers import full_disk, make_quadrants
from lib.inference.out_of_core import needed_disk, segment_out_of_core
from lib.inference.segmenter import Segmenter
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError, RunError
from lib.runtime.signals import Stop, stop_flag
from lib.superpixels.merge_settings import MergeSettings
from model import CompositeSSNModel, SSNModel, SSNPix

SCALES = InputScales(0.26, 4.0, 2.0)
SHAPES = [((20, 31), 12), ((61, 45), 30), ((26, 70), 24), ((1, 23), 5), ((5, 1), 2)]
MODELS = {
    "base": lambda: SSNModel(4, n_iter=3, n_mid_channels=8),
    "squared": lambda: SSNModel(4, n_iter=2, n_mid_channels=8, distance="squared", padding_mode="replicate"),
    "blind": lambda: SSNModel(4, n_iter=3, n_mid_channels=8, sees_position=False),
    "composite": lambda: CompositeSSNModel(4, 3, n_extra_channels=2, n_iter=2, n_mid_channels=8),
    "pixels": lambda: SSNPix(n_iter=4),
}


KINDS = ("merged", "one level", "unconnected")


def set_bands(monkeypatch, n_rows):
    """Let every step take few rows at a time, none of the same height."""
    for name, value in {
        "network.bands._BAND_ROWS": 4 * n_rows,
        "network.bands._BAND_PIXELS": 1,
        "network.inputs._STRIP_PIXELS": 150,
        "slic.fast.WINDOW_BYTES": 3000 * n_rows,
        "slic.fast.CPU_CHUNK_BYTES": 40_000,
        "slic.fast.GPU_CHUNK_BYTES": 40_000,
        "superpixels.region_graph._MAX_FLOAT32_PIXELS": 200,
        "inference.out_of_core._SUMMED_BYTES": 2000 * n_rows,
    }.items():
        monkeypatch.setattr(f"lib.{name}", value)


def prepare(segmenter, shape, *, is_masked=False):
    """Return an image of noisy quadrants with what the model reads, and a mask with holes."""
    rng = np.random.default_rng(1)
    mask = None
    if is_masked:
        mask = np.ones(shape, bool)
        if min(shape) > 1:
            mask[shape[0] // 3, 2:] = mask[shape[0] // 2 :, shape[1] // 2] = False
            mask[2:, 1:] &= rng.random((shape[0] - 2, shape[1] - 1)) < 0.97
    n_extra = segmenter.model.n_extra_channels
    extra = rng.standard_normal((*shape, n_extra)) if n_extra else None
    return segmenter.preprocess(make_quadrants(*shape)[0], extra, mask)


def label_whole(segmenter, image, n_spixels, *, connected=True):
    (superpixels,) = segmenter.segment([image], n_spixels, merged=connected)
    return segmenter.postprocess(superpixels, n_spixels) if connected else superpixels


CASES = [("base", is_masked, kind) for is_masked in (False, True) for kind in KINDS]
CASES += [(model, True, "merged") for model in MODELS if model != "base"]


@pytest.mark.parametrize(("model", "is_masked", "kind"), CASES)
def test_labels_are_those_in_memory(model, is_masked, kind, tmp_path, monkeypatch):
    merging = MergeSettings(fine_factor={100: 3.0 if kind == "merged" else 1.0})
    segmenter = Segmenter(MODELS[model](), SCALES, merging=merging, pos_scale_dist=1.5)
    connected = kind != "unconnected"
    for idx, (shape, n_spixels) in enumerate(SHAPES):
        set_bands(monkeypatch, 1 + 4 * (idx % 2))
        image = prepare(segmenter, shape, is_masked=is_masked)
        expected = label_whole(segmenter, image, n_spixels, connected=connected)
        with segment_out_of_core(segmenter, image, n_spixels, tmp_path, connected=connected) as labels:
            np.testing.assert_array_equal(labels.rows(0, shape[0]), expected.labels)
            np.testing.assert_array_equal(np.concatenate(list(labels.bands(7))), expected.labels)
            assert labels.shape == shape
            assert labels.n_measured == expected.n_measured
        assert list(tmp_path.iterdir()) == []


def test_mask_in_many_parts(tmp_path):
    segmenter = Segmenter(SSNPix(), SCALES)
    mask = np.zeros((20, 31), bool)
    mask[::4, ::3] = True
    image = segmenter.preprocess(make_quadrants(20, 31)[0], mask=mask)
    with (
        pytest.raises(InputError, match="`n_spixels` 12 is too few: the mask of the image is in 55 parts"),
        segment_out_of_core(segmenter, image, 12, tmp_path),
    ):
        pass


@pytest.mark.parametrize("device", DEVICES)
def test_on_devices(device, tmp_path, monkeypatch):
    set_bands(monkeypatch, 3)
    torch.manual_seed(1)
    model = MODELS["base"]()
    segmenter = Segmenter(model, SCALES)
    image = prepare(segmenter, (61, 45), is_masked=True)
    expected = label_whole(segmenter, image, 30, connected=False).labels
    segmenter = Segmenter(model, SCALES, device=device)
    with segment_out_of_core(segmenter, image, 30, tmp_path, connected=False) as labels:
        assert np.mean(labels.rows(0, 61) == expected) >= 0.99


def test_more_superpixels_than_were_clustered(tmp_path):
    segmenter = Segmenter(SSNPix(), SCALES, fine_factor=1.01)
    image = segmenter.preprocess(np.zeros((9, 4, 3), np.uint8))  # a grid of 5 x 2
    with (
        pytest.raises(InputError, match="15 superpixels need splits of the 10 that were clustered"),
        segment_out_of_core(segmenter, image, 15, tmp_path),
    ):
        pass


def test_space_is_checked_before(tmp_path, monkeypatch):
    segmenter = Segmenter(MODELS["base"](), SCALES)
    image = prepare(segmenter, (20, 31))
    needed = 20 * 31 * 4 * (9 + 1)
    assert needed_disk(segmenter, (20, 31)) == needed
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr("lib.files.row_file.shutil.disk_usage", lambda folder: usage)
    monkeypatch.setattr(segmenter, "features_in_bands", None)
    with (
        pytest.raises(
            InputError, match=rf"the image of 31x20 pixels needs 0\.1 GB .* in {tmp_path}, 0\.0 GB"
        ),
        segment_out_of_core(segmenter, image, 12, tmp_path),
    ):
        pass


def test_full_disk(tmp_path):
    segmenter = Segmenter(MODELS["base"](), SCALES)
    image = prepare(segmenter, (120, 90))
    with (
        full_disk(100_000),
        pytest.raises(RunError, match=rf"cannot write a temporary file in {tmp_path} \(File too large\)"),
        segment_out_of_core(segmenter, image, 12, tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_polls", [0, 1, 12, 30])
def test_stop(n_polls, tmp_path, monkeypatch):
    set_bands(monkeypatch, 1)
    segmenter = Segmenter(MODELS["base"](), SCALES)
    image = prepare(segmenter, (61, 45))
    polls = []

    def poll():
        polls.append(list(tmp_path.iterdir()))
        if len(polls) > n_polls:
            raise Stop(15)

    monkeypatch.setattr(stop_flag, "raise_if_set", poll)
    with pytest.raises(Stop), segment_out_of_core(segmenter, image, 12, tmp_path):
        pass
    assert polls == [[]] * (n_polls + 1)  # temporary files have no names that could be left behind
