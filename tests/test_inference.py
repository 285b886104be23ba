"""From an image to overlay, label and feature files."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import label

from conftest import make_quadrants
from lib.errors import InputError
from lib.features import InputScales
from lib.files import check_output_file
from lib.inference import compute_features, segment_image, segment_to_files
from lib.visualization import BOUNDARY_COLOR, draw_boundaries, draw_flow
from model import CompositeSSNModel, SSNModel, SSNPix

SCALES = InputScales(0.26, 2.5)
POSITION_ALONE = InputScales(0, 1000)  # makes every pixel a superpixel, where as many are asked for


def test_superpixels_follow_the_quadrants(tmp_path):
    image_rgb, quadrants = make_quadrants()
    superpixels = segment_to_files(
        SSNPix(),
        SCALES,
        image_rgb,
        24,
        overlay_file=tmp_path / "overlay.png",
        labels_file=tmp_path / "labels.npy",
    )
    labels = np.load(tmp_path / "labels.npy")
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, superpixels.labels)
    assert superpixels.n_measured == len(np.unique(labels)) == labels.max() + 1
    assert label(labels + 1, background=0, connectivity=1).max() == superpixels.n_measured
    for idx in range(superpixels.n_measured):
        counts = np.bincount(quadrants[labels == idx])
        assert counts.max() > 0.95 * counts.sum()
    overlay = np.asarray(Image.open(tmp_path / "overlay.png"))
    np.testing.assert_array_equal(overlay, draw_boundaries(image_rgb, labels))


def test_superpixels_on_any_device(device):
    model = SSNModel(4).eval()
    image_rgb = make_quadrants()[0]
    expected = segment_image(model, SCALES, image_rgb, 24).labels
    labels = segment_image(model.to(device), SCALES, image_rgb, 24, device=device).labels
    assert np.mean(labels == expected) > 0.99


def test_without_connectivity_labels_are_those_of_the_grid():
    superpixels = segment_image(SSNPix(), SCALES, make_quadrants()[0], 24, connected=False)
    assert superpixels.labels.max() < 3 * 6
    assert superpixels.n_measured == len(np.unique(superpixels.labels))


def blank_image(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


def test_png_labels_hold_16_bits(tmp_path):
    superpixels = segment_to_files(
        SSNPix(),
        POSITION_ALONE,
        blank_image(256, 256),
        256**2,
        overlay_file=tmp_path / "overlay.png",
        labels_file=tmp_path / "labels.png",
    )
    assert superpixels.n_measured == 65536
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), superpixels.labels)


def test_labels_above_16_bits_need_npy(tmp_path):
    arguments = SSNPix(), POSITION_ALONE, blank_image(256, 257), 256 * 257
    options = {"connected": False, "overlay_file": tmp_path / "overlay.png"}
    with pytest.raises(InputError, match=r"--save_labels .*does not fit a 16-bit PNG.*\.npy"):
        segment_to_files(*arguments, **options, labels_file=tmp_path / "labels.png")
    assert list(tmp_path.iterdir()) == []
    labels_file = tmp_path / "labels.NPY"
    segment_to_files(*arguments, **options, labels_file=labels_file)
    assert np.load(labels_file).max() > 65535
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labels.NPY", "overlay.png"]


def test_overlay_too_large_for_its_format_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"overlay\.webp: the format cannot hold this image"):
        segment_to_files(
            SSNPix(),
            SCALES,
            blank_image(1, 16400),
            24,
            overlay_file=tmp_path / "overlay.webp",
            labels_file=tmp_path / "labels.npy",
        )
    assert list(tmp_path.iterdir()) == []


def test_extra_channels_change_the_superpixels_of_a_composite():
    image_rgb, quadrants = make_quadrants()
    model = CompositeSSNModel(4, 2, n_extra_channels=1).eval()
    scales = SCALES._replace(extra_scale=50.0)
    plain, moved = (
        segment_image(model, scales, image_rgb, 24, extra=extra.astype(np.float32)[..., None]).labels
        for extra in (np.zeros(quadrants.shape), quadrants)
    )
    assert not np.array_equal(plain, moved)


@pytest.mark.parametrize(
    ("extra", "message"),
    [(None, "reads 4 extra channels, but the image has 0"), (3, "but the image has 3")],
)
def test_wrong_number_of_extra_channels(extra, message):
    image_rgb = make_quadrants()[0]
    if extra is not None:
        extra = np.zeros((*image_rgb.shape[:2], extra), dtype=np.float32)
    with pytest.raises(InputError, match=message):
        segment_image(CompositeSSNModel(4, 2), SCALES._replace(extra_scale=1.0), image_rgb, 24, extra=extra)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (np.zeros((60, 91, 4)), r"extra channels are \(60, 91, 4\), but the image is \(60, 92\)"),
        (np.zeros((60, 92)), r"extra channels are \(60, 92\), but"),
        (np.full((60, 92, 4), np.nan), "extra channels hold NaN or infinite values"),
    ],
)
def test_unusable_extra_channels(extra, message):
    with pytest.raises(InputError, match=message):
        segment_image(
            CompositeSSNModel(4, 2), SCALES._replace(extra_scale=1.0), make_quadrants()[0], 24, extra=extra
        )


def test_extra_channels_of_any_layout():
    model, image_rgb = CompositeSSNModel(4, 2).eval(), make_quadrants()[0]
    extra = np.random.default_rng(0).normal(size=(60, 92, 4))
    plain, other = (
        segment_image(model, SCALES._replace(extra_scale=1.0), image_rgb, 24, extra=values).labels
        for values in (extra.astype(np.float32), extra[:, ::-1].copy()[:, ::-1])
    )
    np.testing.assert_array_equal(plain, other)


def test_extra_channels_need_a_scale():
    extra = np.zeros((60, 92, 4), dtype=np.float32)
    with pytest.raises(InputError, match="extra channels need a scale"):
        segment_image(CompositeSSNModel(4, 2), SCALES, make_quadrants()[0], 24, extra=extra)


def test_features_of_a_composite_and_of_its_base(tmp_path, device):
    image_rgb, quadrants = make_quadrants()
    base = SSNModel(4)
    for module in base.modules():  # statistics that are not those of an untrained network
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    base.eval().to(device)
    model = CompositeSSNModel.on_top_of(base, 3, n_extra_channels=4).eval().to(device)
    extra = np.random.default_rng(0).normal(size=(*quadrants.shape, 4)).astype(np.float32)
    scales = SCALES._replace(extra_scale=2.0)
    features = compute_features(model, scales, image_rgb, quadrants, extra=extra, device=device)
    assert features.pixel_features.shape == (7, 60, 92)
    assert features.spixel_features.shape == (4, 7)
    assert features.n_base_features == 4
    of_base = compute_features(base, SCALES, image_rgb, quadrants, device=device)
    np.testing.assert_allclose(features.base.pixel_features, of_base.pixel_features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features.base.spixel_features, of_base.spixel_features, rtol=1e-5, atol=1e-5)
    for idx in range(4):
        expected = features.pixel_features[:, quadrants == idx].mean(axis=1)
        np.testing.assert_allclose(features.spixel_features[idx], expected, rtol=1e-4)


def test_saved_features(tmp_path):
    image_rgb = make_quadrants()[0]
    model = SSNModel(4).eval()
    superpixels = segment_to_files(
        model,
        SCALES,
        image_rgb,
        24,
        overlay_file=tmp_path / "overlay.png",
        features_file=tmp_path / "features.NPZ",
    )
    expected = compute_features(model, SCALES, image_rgb, superpixels.labels)
    with np.load(tmp_path / "features.NPZ") as saved:
        assert sorted(saved) == ["labels", "n_base_features", "pixel_features", "spixel_features"]
        np.testing.assert_array_equal(saved["labels"], superpixels.labels)
        np.testing.assert_array_equal(saved["pixel_features"], expected.pixel_features)
        np.testing.assert_array_equal(saved["spixel_features"], expected.spixel_features)
        assert saved["n_base_features"] == 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["features.NPZ", "overlay.png"]


def test_flow_colours():
    flow = np.zeros((50, 60, 4), dtype=np.float32)
    flow[..., 1] = 3  # to the right in the next frame, unmoved since the previous one
    picture = draw_flow(flow)
    assert picture.shape == (50, 120, 3)
    assert (picture[:, :60] == (255, 0, 0)).all()
    assert (picture[30, 60:] == 255).all()
    assert (picture[5, -1] == (255, 0, 0)).all()  # the wheel tells the same
    assert (draw_flow(np.zeros((50, 60, 4)))[:, :60] == 255).all()


def test_borders_are_drawn_and_the_rest_is_kept():
    image_rgb = np.full((10, 12, 3), 100, dtype=np.uint8)
    labels = np.zeros((10, 12), dtype=np.int32)
    labels[:, 6:] = 1
    overlay = draw_boundaries(image_rgb, labels)
    is_border = np.zeros((10, 12), dtype=bool)
    is_border[:, 5:7] = True
    np.testing.assert_array_equal(overlay[is_border], np.tile(BOUNDARY_COLOR, (20, 1)))
    assert (overlay[~is_border] == 100).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels.txt", r"must end in \.npy, \.png"),
        ("no/labels.npy", "cannot write to folder"),
        ("folder.npy", "is a folder"),
    ],
)
def test_output_that_cannot_be_written_is_found_early(tmp_path, name, message):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match=f"--save_labels .*{message}"):
        check_output_file("--save_labels", tmp_path / name, (".npy", ".png"))
