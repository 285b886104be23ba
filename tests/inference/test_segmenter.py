"""From an image in memory to its superpixels."""

import copy
import doctest
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import label
from torch.backends import cudnn

import lib.inference.segmenter
from helpers import make_quadrants
from lib.cli.options import REPO_ROOT
from lib.files.images import read_image
from lib.inference.segmenter import Segmenter
from lib.metrics.boundary import Boundary
from lib.metrics.definitions import compactness
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError
from lib.slic import SoftAssignment, slic, slic_labels
from lib.slic.grid import compute_grid_shape
from lib.superpixels.merge_settings import MergeSettings, setting_at
from lib.superpixels.merge_tree import build_merge_trees
from lib.weights import read_checkpoint, save_checkpoint
from model import CompositeSSNModel, SSNModel, SSNPix
from properties import given, settings, st

SCALES = InputScales(0.26, 2.5)
WITH_EXTRA = SCALES._replace(extra_scale=1.0)


def test_docstring_examples(monkeypatch):
    monkeypatch.chdir(REPO_ROOT)
    results = doctest.testmod(lib.inference.segmenter)
    assert results.attempted > 5
    assert results.failed == 0


def test_superpixels_follow_the_quadrants():
    image_rgb, quadrants = make_quadrants()
    superpixels = Segmenter(SSNPix(), SCALES)(image_rgb, 24)
    labels = superpixels.labels
    assert labels.dtype == np.int32
    assert superpixels.n_measured == len(np.unique(labels)) == labels.max() + 1
    assert label(labels + 1, background=0, connectivity=1).max() == superpixels.n_measured
    for idx in range(superpixels.n_measured):
        counts = np.bincount(quadrants[labels == idx])
        assert counts.max() > 0.95 * counts.sum()
    np.testing.assert_array_equal(superpixels.image_rgb, image_rgb)


def test_bfloat16_changes_features_a_little():
    image_rgb, model = make_quadrants()[0], SSNModel(4)
    plain, narrow = (
        Segmenter(model, SCALES, with_bfloat16=with_bfloat16)(image_rgb, 24, with_features=True)
        for with_bfloat16 in (False, True)
    )
    assert narrow.pixel_features.dtype == np.float32
    assert not np.array_equal(plain.pixel_features, narrow.pixel_features)
    scale = np.abs(plain.pixel_features).max()
    np.testing.assert_allclose(narrow.pixel_features, plain.pixel_features, rtol=0, atol=0.05 * scale)


def test_without_connectivity_labels_are_those_of_the_grid():
    superpixels = Segmenter(SSNPix(), SCALES)(make_quadrants()[0], 24, connected=False)
    assert superpixels.labels.max() < 3 * 6
    assert superpixels.n_measured == len(np.unique(superpixels.labels))


def test_kinds_of_images_agree():
    image_rgb = make_quadrants()[0]
    segmenter = Segmenter(SSNModel(4), SCALES)
    expected = segmenter(image_rgb, 24).labels
    for same in (Image.fromarray(image_rgb), image_rgb / 255, (image_rgb / 255).astype(np.float32)):
        superpixels = segmenter(same, 24)
        np.testing.assert_array_equal(superpixels.labels, expected)
        np.testing.assert_array_equal(superpixels.image_rgb, image_rgb)


def test_bytes_stay_bytes_and_floats_are_not_rounded():
    image_rgb = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    segmenter = Segmenter(SSNPix(), SCALES)
    pixels = segmenter.preprocess(image_rgb).pixels
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.movedim(0, -1), image_rgb)
    between = np.minimum(image_rgb + 0.4, 255) / 255
    image = segmenter.preprocess(between)
    np.testing.assert_array_equal(image.image_rgb, image_rgb)
    np.testing.assert_array_equal(image.pixels.movedim(0, -1), between.astype(np.float32))


def test_grey_images():
    grey = make_quadrants()[0][..., 0]
    segmenter = Segmenter(SSNPix(), SCALES)
    expected = segmenter(np.stack([grey, grey, grey], axis=-1), 24).labels
    np.testing.assert_array_equal(segmenter(grey, 24).labels, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_arrays_are_taken_as_their_files(n_channels, dtype, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, n_channels), dtype=np.uint8)
    pixels[..., :2] = pixels[..., :1]  # so that grey and opacity differ from colour
    image = Image.fromarray(pixels.squeeze(2) if n_channels == 1 else pixels)
    image.save(tmp_path / "image.png")
    expected = read_image(tmp_path / "image.png")
    array = {np.uint8: pixels, np.uint16: pixels.astype(np.uint16) * 257, np.float64: pixels / 255}[dtype]
    superpixels = Segmenter(SSNPix(), SCALES)(array, 12)
    np.testing.assert_allclose(superpixels.image_rgb, expected, atol=1)
    if dtype != np.float64 or n_channels in (1, 3):
        np.testing.assert_array_equal(superpixels.image_rgb, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda segmenter: pickle.loads(pickle.dumps(segmenter))])
def test_copies_segment_alike(copied):
    segmenter = Segmenter(SSNModel(4), SCALES, pos_scale_dist=2.0, n_iter=3)
    image_rgb = make_quadrants()[0]
    np.testing.assert_array_equal(copied(segmenter)(image_rgb, 24).labels, segmenter(image_rgb, 24).labels)


def test_nothing_is_rounded_whatever_the_caller_allows(monkeypatch):
    seen = []

    def record(function):
        def recording(*args, **options):
            seen.append((cudnn.allow_tf32, cudnn.benchmark, torch.get_float32_matmul_precision()))
            return function(*args, **options)

        return recording

    model, image_rgb = SSNModel(4), make_quadrants()[0]
    monkeypatch.setattr(model, "encode", record(model.encode))
    monkeypatch.setattr("model.slic", record(slic))
    monkeypatch.setattr("model.slic_labels", record(slic_labels))
    monkeypatch.setattr(SoftAssignment, "spixel_means", record(SoftAssignment.spixel_means))
    segmenter = Segmenter(model, SCALES)
    torch.set_float32_matmul_precision("high")
    try:
        with cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
            segmenter(image_rgb, 24, with_features=True)
            segmenter.region_graph(segmenter.preprocess(image_rgb), 24)
            assert (cudnn.allow_tf32, cudnn.benchmark) == (True, True)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(seen) == 5
    assert set(seen) == {(False, False, "highest")}


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, np.int64])
def test_value_range_of_integers(dtype):
    values = np.linspace(0, 4095, 60 * 92).reshape(60, 92).astype(dtype)
    segmenter = Segmenter(SSNPix(), SCALES)
    by_bits, by_range = segmenter(values, 24), segmenter(values, 24, value_range=(1000, 2000))
    np.testing.assert_array_equal(by_bits.image_rgb[..., 0], np.rint(values / 4095 * 255))
    expected = np.rint((values.clip(1000, 2000) - 1000.0) / 1000 * 255)
    np.testing.assert_array_equal(by_range.image_rgb[..., 0], expected)
    if dtype != np.uint32:  # PyTorch cannot stack it in its oldest version
        batch = torch.from_numpy(np.stack([values, values // 8]))[:, None]
        _, dim = segmenter.segment_batch(batch, 24)
        assert dim.image_rgb.max() == 127  # 511 of 10 bits
        _, dim = segmenter.segment_batch(batch, 24, value_range=(0, 4095))
        assert dim.image_rgb.max() == 32


HOLE = np.zeros((60, 92), dtype=bool)
HOLE[:20, 5:] = True


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_masked_pixels_of_an_image_are_left_out(dtype, n_channels):
    is_integer = dtype != np.float32
    values = np.random.default_rng(0).integers(0, 256, (60, 92, n_channels)) / (1 if is_integer else 255)
    values[HOLE] = 255 if dtype == np.uint8 else 3000 if is_integer else -9999
    is_masked = np.zeros(values.shape, bool)
    is_masked[HOLE, 0] = True  # one channel is enough
    values = values.astype(dtype)
    image = np.ma.masked_array(values, is_masked)
    segmenter = Segmenter(SSNModel(4), SCALES)
    superpixels = segmenter(image, 24)
    np.testing.assert_array_equal(superpixels.labels == -1, HOLE)
    assert set(np.unique(superpixels.image_rgb[HOLE])) <= {127, 128}
    without_hole = segmenter(np.where(HOLE[..., None], values[-1, -1], values), 24)
    np.testing.assert_array_equal(superpixels.image_rgb[~HOLE], without_hole.image_rgb[~HOLE])
    whole = np.ma.masked_array(values[20:], np.zeros((40, 92, n_channels), bool))
    assert segmenter.preprocess(whole).mask is None


def test_masked_pixels_of_extra_channels_and_of_masks_are_left_out():
    extra = np.random.default_rng(0).normal(size=(60, 92, 4)).astype(np.float32)
    extra[HOLE, 2] = np.nan
    masked = np.ma.masked_array(extra, np.isnan(extra))
    segmenter, image_rgb = Segmenter(CompositeSSNModel(4, 2), WITH_EXTRA), make_quadrants()[0]
    preprocessed = segmenter.preprocess(image_rgb, masked)
    np.testing.assert_array_equal(preprocessed.mask, ~HOLE)
    np.testing.assert_allclose(preprocessed.extra[2][HOLE], extra[~HOLE, 2].mean(), atol=1e-6)
    np.testing.assert_array_equal(preprocessed.extra[0], extra[..., 0])
    np.testing.assert_array_equal(segmenter(image_rgb, 24, extra=masked).labels == -1, HOLE)
    everything = np.ma.masked_array(np.ones(HOLE.shape, bool), HOLE)
    labels = Segmenter(SSNPix(), SCALES)(image_rgb, 24, mask=everything).labels
    np.testing.assert_array_equal(labels == -1, HOLE)
    batch, extras = torch.from_numpy(image_rgb).movedim(-1, 0)[None], np.moveaxis(masked, -1, 0)[None]
    (superpixels,) = segmenter.segment_batch(batch, 24, extra=extras, mask=everything[None])
    np.testing.assert_array_equal(superpixels.labels == -1, HOLE)
    with pytest.raises(InputError, match="the image has no unmasked pixel"):
        segmenter(np.ma.masked_all((60, 92), np.uint8), 24)


def test_value_range_of_floats():
    values = np.linspace(-3, 5, 60 * 92).reshape(60, 92)
    values[:30] = np.nan
    superpixels = Segmenter(SSNPix(), SCALES)(values, 24, value_range=(0, 4))
    np.testing.assert_array_equal(superpixels.labels == -1, np.isnan(values))
    expected = np.rint(values[30:].clip(0, 4) / 4 * 255)
    np.testing.assert_allclose(superpixels.image_rgb[30:, :, 1], expected, atol=1)


def test_batch_equals_one_by_one():
    images = [make_quadrants(seed=seed)[0] for seed in range(3)]
    segmenter = Segmenter(SSNModel(4), SCALES)
    batch = torch.from_numpy(np.stack(images)).movedim(-1, 1)
    for values in (batch, batch / 255):
        together = segmenter.segment_batch(values, 24, with_features=True, with_soft_assignment=True)
        assert len(together) == 3
        for superpixels, image_rgb in zip(together, images, strict=True):
            alone = segmenter(image_rgb, 24, with_features=True, with_soft_assignment=True)
            np.testing.assert_array_equal(superpixels.labels, alone.labels)
            np.testing.assert_allclose(superpixels.features, alone.features, atol=1e-4)
            affinities = superpixels.soft_assignment.affinity, alone.soft_assignment.affinity
            torch.testing.assert_close(*affinities, rtol=1e-3, atol=1e-4)


def test_soft_assignment_is_that_of_the_labels_before_connectivity():
    segmenter = Segmenter(SSNModel(4), SCALES)
    superpixels = segmenter(make_quadrants()[0], 24, connected=False, with_soft_assignment=True)
    np.testing.assert_array_equal(superpixels.soft_assignment.labels()[0], superpixels.labels)
    assert segmenter(make_quadrants()[0], 24).soft_assignment is None


def test_what_is_learnt_on_top_of_a_soft_assignment_gets_gradients():
    segmenter = Segmenter(SSNPix(), SCALES)
    assignment = segmenter(make_quadrants()[0], 24, with_soft_assignment=True).soft_assignment
    values = torch.rand(1, 2, *make_quadrants()[0].shape[:2], requires_grad=True)
    assignment.spixel_means(values).square().sum().backward()
    assert values.grad.abs().sum() > 0


def test_extra_channels_change_the_superpixels_of_a_composite():
    image_rgb, quadrants = make_quadrants()
    segmenter = Segmenter(CompositeSSNModel(4, 2, n_extra_channels=1), SCALES._replace(extra_scale=50.0))
    plain, moved = (
        segmenter(image_rgb, 24, extra=extra.astype(np.float32)[..., None]).labels
        for extra in (np.zeros(quadrants.shape), quadrants)
    )
    assert not np.array_equal(plain, moved)
    batch = torch.from_numpy(image_rgb).movedim(-1, 0)[None].repeat(2, 1, 1, 1)
    extras = torch.from_numpy(np.stack([np.zeros(quadrants.shape), quadrants]))[:, None]
    for superpixels, expected in zip(
        segmenter.segment_batch(batch, 24, extra=extras), (plain, moved), strict=True
    ):
        np.testing.assert_array_equal(superpixels.labels, expected)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (None, "reads 4 extra channels, but the image has 0"),
        (np.zeros((60, 92, 3)), "reads 4 extra channels, but the image has 3"),
        (np.zeros((60, 91, 4)), r"extra channels are \(60, 91, 4\), but the image is \(60, 92\)"),
        (np.zeros((60, 92)), r"extra channels are \(60, 92\), but"),
        (np.full((60, 92, 4), np.nan), "extra channels of the image hold NaN or infinite values"),
        (np.full((60, 92, 4), 1e300), "extra channels of the image hold NaN or infinite values"),
        (np.full((60, 92, 4), 1e30), "the image: features of .* cannot be clustered"),
    ],
)
def test_unusable_extra_channels(extra, message):
    with pytest.raises(InputError, match=message):
        Segmenter(CompositeSSNModel(4, 2), WITH_EXTRA)(make_quadrants()[0], 24, extra=extra)


def test_extra_channels_of_any_layout():
    segmenter, image_rgb = Segmenter(CompositeSSNModel(4, 2), WITH_EXTRA), make_quadrants()[0]
    extra = np.random.default_rng(0).normal(size=(60, 92, 4))
    plain, other = (
        segmenter(image_rgb, 24, extra=values).labels
        for values in (extra.astype(np.float32), extra[:, ::-1].copy()[:, ::-1])
    )
    np.testing.assert_array_equal(plain, other)


def test_extra_channels_need_a_scale():
    extra = np.zeros((60, 92, 4), dtype=np.float32)
    with pytest.raises(InputError, match="extra channels need a scale"):
        Segmenter(CompositeSSNModel(4, 2), SCALES)(make_quadrants()[0], 24, extra=extra)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 9, 3), np.uint8), r"got \(0, 9, 3\)"),
        (np.zeros((8, 9, 5), np.uint8), r"got \(8, 9, 5\)"),
        (np.zeros(9, np.uint8), r"got \(9,\)"),
        (np.zeros((8, 9, 3), bool), "got bool"),
        (np.full((8, 9, 3), -1), "the image has integer pixels of unknown range, here -1 to -1"),
        (np.full((8, 9, 3), 200.0), r"must have floats in \[0, 1\], got 200.0 to 200.0"),
        (np.full((8, 9, 3), np.nan), "the mask of the image leaves no pixel to segment"),
        ("photo.jpg", "the image must be an array or a PIL image, got <class 'str'>"),
        (Image.new("F", (9, 8)), "the image has 32-bit float pixels of unknown range"),
        (torch.zeros(3, 8, 9), "got <class 'torch.Tensor'>"),
        (np.zeros((2, 2, 3), np.uint8), "`n_spixels` 24 is above the 4 pixels of the image"),
    ],
)
def test_images_that_cannot_be_used(image, message):
    with pytest.raises(InputError, match=message):
        Segmenter(SSNPix(), SCALES)(image, 24)


def test_batches_of_another_layout_are_refused():
    with pytest.raises(InputError, match=r"\(B, 3, H, W\), got \(3, 8, 9\)"):
        Segmenter(SSNPix(), SCALES).segment_batch(torch.zeros(3, 8, 9), 24)


@pytest.mark.parametrize("n_spixels", [0, -1])
def test_no_superpixels(n_spixels):
    with pytest.raises(InputError, match=f"`n_spixels` {n_spixels} is below 1"):
        Segmenter(SSNPix(), SCALES)(make_quadrants()[0], n_spixels)


@pytest.mark.parametrize("n_spixels", [1, 7, 24, 60, 500])
@pytest.mark.parametrize("fine_factor", [None, 1])
def test_exact_counts(n_spixels, fine_factor):
    segmenter = Segmenter(SSNModel(4), SCALES, fine_factor=fine_factor)
    image_rgb = make_quadrants()[0]
    mask = np.ones((60, 92), dtype=bool)
    mask[20:] = False
    for superpixels in (
        segmenter(image_rgb, n_spixels, exact=True),
        segmenter(image_rgb, n_spixels, exact=True, mask=mask),
    ):
        assert superpixels.n_measured == superpixels.labels.max() + 1 == n_spixels
        assert label(superpixels.labels + 1, background=0, connectivity=1).max() == n_spixels


def test_exact_counts_that_cannot_be():
    segmenter = Segmenter(SSNPix(), SCALES)
    mask = np.zeros((60, 92), dtype=bool)
    mask[::20, ::30] = True
    with pytest.raises(InputError, match="`n_spixels` 2 is too few: the mask of the image is in 12 parts"):
        segmenter(make_quadrants()[0], 2, mask=mask)
    with pytest.raises(InputError, match="2 superpixels cannot cover the 12 parts of the mask"):
        Segmenter(SSNPix(), SCALES, fine_factor=1)(make_quadrants()[0], 2, exact=True, mask=mask)
    with pytest.raises(InputError, match="an exact number of superpixels needs connected ones"):
        segmenter(make_quadrants()[0], 2, exact=True, connected=False)


@pytest.mark.parametrize("model", [SSNModel(4, sees_position=False), SSNPix()])
def test_position_in_the_distances_alone(model):
    image_rgb = make_quadrants()[0]
    doubled = Segmenter(model, SCALES, pos_scale_dist=2.0)(image_rgb, 24)
    expected = Segmenter(model, SCALES._replace(pos_scale=2 * SCALES.pos_scale))(image_rgb, 24)
    np.testing.assert_array_equal(doubled.labels, expected.labels)
    assert not np.array_equal(doubled.labels, Segmenter(model, SCALES)(image_rgb, 24).labels)


def test_number_of_iterations():
    image_rgb, model = make_quadrants()[0], SSNModel(4, n_iter=5)
    plain, same, more = (
        Segmenter(model, SCALES, n_iter=n_iter)(image_rgb, 24, connected=False).labels
        for n_iter in (None, 5, 20)
    )
    np.testing.assert_array_equal(plain, same)
    assert not np.array_equal(plain, more)


def test_position_in_the_distances_leaves_the_network_alone():
    image_rgb, flow = make_quadrants()[0], np.ones((60, 92, 4), dtype=np.float32)
    model = CompositeSSNModel(4, 2)
    plain, doubled = (
        Segmenter(model, WITH_EXTRA, pos_scale_dist=factor)(image_rgb, 24, extra=flow, with_features=True)
        for factor in (1.0, 2.0)
    )
    np.testing.assert_array_equal(plain.pixel_features, doubled.pixel_features)
    assert not np.array_equal(plain.labels, doubled.labels)


def test_masked_and_unmasked_agree_away_from_the_mask():
    image_rgb = make_quadrants(96, 144)[0]
    mask = np.zeros((96, 144), dtype=bool)
    mask[:, :72] = True  # whose border is one between cells too
    segmenter = Segmenter(SSNModel(4), SCALES, fine_factor=1)
    whole, masked = segmenter(image_rgb, 96), segmenter(image_rgb, 48, mask=mask)
    assert (masked.labels[:, 72:] == -1).all()
    assert masked.labels[:, :72].min() == 0
    assert masked.n_measured == masked.labels.max() + 1 == len(masked.colors)
    away = np.s_[:, :48]  # two cells from it
    pairs = np.unique(np.stack([whole.labels[away].ravel(), masked.labels[away].ravel()]), axis=1)
    n_regions = len(np.unique(whole.labels[away]))
    assert pairs.shape[1] <= 1.1 * n_regions  # nearly one to one


@pytest.mark.parametrize(("sees_position", "n_runs"), [(False, 1), (True, 2)])
def test_network_that_reads_no_position_runs_once_for_features_too(sees_position, n_runs):
    model = SSNModel(4, sees_position=sees_position)
    runs = []
    model.feature_extract.register_forward_hook(lambda *_: runs.append(1))
    image_rgb, segmenter = make_quadrants()[0], Segmenter(model, SCALES)
    superpixels = segmenter(image_rgb, 24, with_features=True)
    assert len(runs) == n_runs
    np.testing.assert_array_equal(superpixels.labels, segmenter(image_rgb, 24).labels)
    assert superpixels.pixel_features.shape == (4, 60, 92)


@pytest.mark.parametrize("n_spixels", [10, 30, 100])
def test_thin_mask_gets_about_the_superpixels_asked_for(n_spixels):
    y, x = np.mgrid[:200, :300]
    mask = np.abs(y - x * 0.6) < 5  # a line, which touches many more cells than its area fills
    segmenter = Segmenter(SSNPix(), SCALES, fine_factor=1)
    superpixels = segmenter(make_quadrants(200, 300)[0], n_spixels, mask=mask)
    assert 0.7 * n_spixels <= superpixels.n_measured <= 1.5 * n_spixels


def test_nan_pixels_are_masked():
    image = make_quadrants()[0] / 255
    mask = np.ones((60, 92), dtype=bool)
    mask[10:20, 30:50] = False
    holes = np.where(mask[..., None], image, np.nan)
    segmenter = Segmenter(SSNPix(), SCALES)
    labels = segmenter(holes, 24).labels
    np.testing.assert_array_equal(labels == -1, ~mask)
    np.testing.assert_array_equal(labels, segmenter(image, 24, mask=mask).labels)
    holes[:2] = np.nan
    assert (segmenter(holes, 24, mask=mask).labels[:2] == -1).all()


def test_masks_of_a_batch():
    images = np.stack([make_quadrants(seed=seed)[0] for seed in range(2)])
    masks = np.random.default_rng(0).random((2, 60, 92)) < 0.8
    masks[1, :40] = False
    segmenter = Segmenter(SSNModel(4), SCALES)
    together = segmenter.segment_batch(
        torch.from_numpy(images).movedim(-1, 1), 24, mask=torch.from_numpy(masks)
    )
    for superpixels, image, mask in zip(together, images, masks, strict=True):
        expected = segmenter(image, 24, mask=mask).labels
        np.testing.assert_array_equal(superpixels.labels, expected)
        np.testing.assert_array_equal(segmenter(image, 24, mask=torch.from_numpy(mask)).labels, expected)


@pytest.mark.parametrize("with_hole", [0, 1])
def test_nan_pixels_of_a_batch(with_hole):
    images = np.stack([make_quadrants(seed=seed)[0] / 255 for seed in range(2)])
    images[with_hole, 10:20, 30:50] = np.nan
    segmenter = Segmenter(SSNPix(), SCALES)
    together = segmenter.segment_batch(torch.from_numpy(images).movedim(-1, 1), 24)
    for superpixels, image in zip(together, images, strict=True):
        np.testing.assert_array_equal(superpixels.labels, segmenter(image, 24).labels)
        np.testing.assert_array_equal(superpixels.labels == -1, np.isnan(image[..., 0]))


def test_result_keeps_its_image():
    image_rgb = make_quadrants()[0]
    superpixels = Segmenter(SSNPix(), SCALES)(image_rgb, 24)
    image_rgb[:] = 0
    assert superpixels.colors.min() > 10


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((60, 91), dtype=bool), r"the mask is \(60, 91\), but the image is \(60, 92\)"),
        (np.zeros((60, 92), dtype=bool), "the mask of the image leaves no pixel to segment"),
    ],
)
def test_unusable_masks(mask, message):
    with pytest.raises(InputError, match=message):
        Segmenter(SSNPix(), SCALES)(make_quadrants()[0], 24, mask=mask)


@pytest.mark.parametrize(
    ("shape", "n_spixels"),
    [((1, 1), 1), ((1, 300), 20), ((2000, 2), 50), ((30_000, 10), 200), ((10, 30_000), 200)],
)
def test_images_of_odd_sizes(shape, n_spixels):
    model, image = SSNModel(4, sees_position=False), np.full((*shape, 3), 0.5)
    merged = Segmenter(model, SCALES)(image, n_spixels)
    assert merged.labels.shape == shape
    assert merged.n_measured == n_spixels
    n_rows, n_cols = compute_grid_shape(*shape, n_spixels)
    one_level = Segmenter(model, SCALES, fine_factor=1)(image, n_spixels)
    assert 0.9 * n_rows * n_cols <= one_level.n_measured <= n_rows * n_cols


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    share=st.floats(0, 1),
    exact=st.booleans(),
    is_masked=st.booleans(),
)
def test_one_level_of_any_size_and_count(shape, share, exact, is_masked):
    n_pixels = shape[0] * shape[1]
    rng = np.random.default_rng(n_pixels)
    mask = np.ones(shape, dtype=bool)
    if is_masked:
        mask[:, shape[1] // 2 + 1 :] = False
    n_spixels = max(1, round(share * mask.sum()))
    superpixels = Segmenter(SSNPix(), SCALES, fine_factor=1)(
        rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        n_spixels,
        exact=exact,
        mask=mask if is_masked else None,
    )
    np.testing.assert_array_equal(superpixels.labels == -1, ~mask)
    assert superpixels.n_measured == superpixels.labels.max() + 1
    assert label(superpixels.labels + 1, background=0, connectivity=1).max() == superpixels.n_measured
    assert not exact or superpixels.n_measured == n_spixels


def test_without_a_network_there_are_no_features():
    with pytest.raises(InputError, match="without a network has no learned features"):
        Segmenter(SSNPix(), SCALES)(make_quadrants()[0], 24, with_features=True)


# Merging


def test_merged_superpixels_are_exact_connected_and_nest():
    image_rgb = make_quadrants()[0]
    superpixels = Segmenter(SSNModel(4), SCALES)(image_rgb, 24)
    assert superpixels.n_measured == 24
    finer = superpixels
    for n_spixels in (24, 12, 5, 1):
        coarser = superpixels.at(n_spixels)
        assert label(coarser.labels, background=-1, connectivity=1).max() == coarser.n_measured == n_spixels
        pairs = np.unique(np.stack([finer.labels.ravel(), coarser.labels.ravel()]), axis=1)
        assert pairs.shape[1] == finer.n_measured
        finer = coarser
    with pytest.raises(ValueError, match="at least 1 superpixels, but 0"):
        superpixels.at(0)


def test_one_level_has_no_tree():
    one_level = Segmenter(SSNModel(4), SCALES, fine_factor=1)(make_quadrants()[0], 24)
    assert one_level.tree is None
    with pytest.raises(InputError, match="need a merge tree: `fine_factor`"):
        one_level.at(12)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    share=st.floats(0, 1),
    kept=st.sampled_from([1.0, 0.7, 0.2]),
    seed=st.integers(0, 9),
)
def test_count_is_exact_for_any_image_and_mask(shape, share, kept, seed):
    rng = np.random.default_rng(seed)
    image_rgb = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = rng.random(shape) < kept
    mask[0, 0] = True
    n_parts = label(mask, connectivity=1).max()
    n_spixels = round(n_parts + share * (mask.sum() - n_parts))
    superpixels = Segmenter(SSNPix(), SCALES)(image_rgb, n_spixels, mask=mask)
    assert superpixels.n_measured == superpixels.labels.max() + 1 == n_spixels
    np.testing.assert_array_equal(superpixels.labels >= 0, mask)
    assert label(superpixels.labels, background=-1, connectivity=1).max() == n_spixels


def test_fine_factor_is_limited_by_the_pixels():
    image_rgb = make_quadrants()[0]  # 5520 pixels
    with pytest.raises(InputError, match=r"`fine_factor` 7 times 800 .* 5520 pixels .* factor is 6\.9"):
        Segmenter(SSNPix(), SCALES, fine_factor=7)(image_rgb, 800)
    assert Segmenter(SSNPix(), SCALES, fine_factor=6.9)(image_rgb, 800).n_measured == 800
    assert Segmenter(SSNPix(), SCALES)(image_rgb, 5520).n_measured == 5520


@pytest.mark.parametrize("fine_factor", [0.5, 0, np.nan, np.inf])
def test_fine_factor_below_one_is_refused(fine_factor):
    with pytest.raises(InputError, match="at least 1"):
        Segmenter(SSNPix(), SCALES, fine_factor=fine_factor)


@pytest.mark.parametrize("merge_pos_scale", [-1, np.nan, np.inf])
def test_merge_pos_scale_must_be_finite(merge_pos_scale):
    with pytest.raises(InputError, match="at least 0"):
        Segmenter(SSNPix(), SCALES, merge_pos_scale=merge_pos_scale)


def test_merge_pos_scale_beyond_float32_is_refused():
    with pytest.raises(InputError, match="lower `merge_pos_scale`"):
        Segmenter(SSNPix(), SCALES, merge_pos_scale=1e39)(make_quadrants()[0], 24)


def test_position_makes_merges_compact():
    image_rgb = np.random.default_rng(0).integers(0, 256, (60, 92, 3), dtype=np.uint8)
    loose, compact = (
        Segmenter(SSNPix(), SCALES, merge_pos_scale=scale)(image_rgb, 24).labels for scale in (0.1, 3)
    )
    assert compactness(Boundary(compact)) > 1.2 * compactness(Boundary(loose))


def test_counts_with_the_same_input_share_a_tree(monkeypatch):
    built = []

    def counting(labels, features):
        built.append(labels.max())
        return build_merge_trees(labels, features)

    monkeypatch.setattr("lib.inference.segmenter.build_merge_trees", counting)
    image_rgb, segmenter = make_quadrants()[0], Segmenter(SSNModel(4), SCALES)
    swept = segmenter.sweep(segmenter.preprocess(image_rgb), [(16, 4.0), (24, 4.0), (25, 4.0)])
    assert len(built) == 2  # the root of 16 and of 24 is 4, that of 25 is 5
    for n_spixels, superpixels in zip((16, 24, 25), swept, strict=True):
        alone = Segmenter(segmenter.model, SCALES._replace(pos_scale=4.0))(image_rgb, n_spixels)
        np.testing.assert_array_equal(superpixels.labels, alone.labels)


@pytest.mark.parametrize("n_spixels", [20, 24])
@pytest.mark.parametrize("kind", ["base", "composite", "none"])
def test_swept_merges_equal_single_calls(kind, n_spixels, device):
    models = {
        "base": SSNModel(4),
        "composite": CompositeSSNModel(4, 3, n_extra_channels=2),
        "none": SSNPix(),
    }
    image_rgb, extra = make_quadrants()[0], None
    if kind == "composite":
        extra = np.random.default_rng(0).normal(size=(60, 92, 2)).astype(np.float32)
    scales = WITH_EXTRA if kind == "composite" else SCALES
    # Settings of its own, which the sweep leaves out.
    segmenter = Segmenter(
        models[kind], scales, device=device, pos_scale_dist=1.5, fine_factor=4, merge_pos_scale=0.1
    )
    factors, pos_scales = (2.0, 3.5), (0.2, 1.0, 3.0)
    swept = segmenter.sweep_merging(segmenter.preprocess(image_rgb, extra), n_spixels, factors, pos_scales)
    assert list(swept) == [(factor, scale) for factor in factors for scale in pos_scales]
    for (factor, scale), superpixels in swept.items():
        alone = Segmenter(
            models[kind],
            scales,
            device=device,
            pos_scale_dist=1.5,
            fine_factor=factor,
            merge_pos_scale=scale,
        )
        np.testing.assert_array_equal(superpixels.labels, alone(image_rgb, n_spixels, extra=extra).labels)
    assert len({superpixels.labels.tobytes() for superpixels in swept.values()}) > 3
    assert (segmenter.fine_factor, segmenter.merge_pos_scale) == (4, 0.1)


def test_swept_merges_compute_features_once(monkeypatch):
    calls = []
    encode = SSNModel.encode
    monkeypatch.setattr(
        SSNModel, "encode", lambda *args, **options: calls.append("encode") or encode(*args, **options)
    )
    cluster_labels = lib.inference.segmenter.cluster_labels
    monkeypatch.setattr(
        lib.inference.segmenter,
        "cluster_labels",
        lambda *args, **options: calls.append("cluster") or cluster_labels(*args, **options),
    )
    segmenter = Segmenter(SSNModel(4), SCALES)
    segmenter.sweep_merging(segmenter.preprocess(make_quadrants()[0]), 24, (2.0, 3.0), (0.2, 0.5, 1.0))
    assert calls == ["encode", "cluster", "cluster"]


def test_settings_of_the_merges_come_from_the_weight_file(base_weights):
    checkpoint = read_checkpoint(base_weights)
    merge_args = {"fine_factor": {10: 2.0, 1000: 4.0}, "merge_pos_scale": {100: 0.7}}
    save_checkpoint({**checkpoint, "merge_args": merge_args}, base_weights)
    segmenter = Segmenter.from_checkpoint(base_weights)
    assert segmenter.merging == MergeSettings(**merge_args)
    values = [setting_at(segmenter.merging.fine_factor, count) for count in (1, 10, 100, 1000, 5000)]
    np.testing.assert_allclose(values, [2, 2, 3, 4, 4])
    given = Segmenter.from_checkpoint(base_weights, fine_factor=1)
    assert given(make_quadrants()[0], 24).tree is None
