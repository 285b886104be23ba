"""The arguments and the result of `skimage.segmentation.slic`, side by side with it."""

import doctest

import numpy as np
import pytest
from skimage.data import astronaut
from skimage.measure import label
from skimage.segmentation import slic
from skimage.util import img_as_float

import lib.inference.like_scikit_image as like_scikit_image
from lib.inference import Segmenter, superpixels
from lib.metrics.boundary import Boundary
from lib.metrics.definitions import compactness as measure_compactness
from lib.runtime.errors import InputError
from lib.weights import shipped_weights

IMAGE = astronaut()[60:130:2, 150:270:2]  # 35x60, the face
GREY = IMAGE[..., 1]
MASK = np.zeros(GREY.shape, dtype=bool)
MASK[4:30, 7:50] = True
STRIPES = np.broadcast_to(np.arange(GREY.shape[1]) % 10 < 5, GREY.shape)  # six parts

both = pytest.mark.parametrize("segment", [slic, superpixels])


@pytest.mark.slow
def test_docstring_examples():
    results = doctest.testmod(like_scikit_image)
    assert results.attempted > 3
    assert results.failed == 0


def test_labels_are_those_of_the_segmenter():
    full_range = IMAGE.copy()
    full_range[0, :2] = [[0, 0, 0], [255, 255, 255]]
    expected = Segmenter.from_checkpoint(shipped_weights("base"))(full_range, 30).labels
    np.testing.assert_array_equal(superpixels(full_range, 30), expected + 1)


def test_by_default_there_are_100():
    assert len(np.unique(superpixels(IMAGE))) == 100


def test_replaces_one_line():
    theirs = slic(IMAGE, n_segments=24, compactness=10, start_label=1)
    ours = superpixels(IMAGE, n_segments=24, compactness=10, start_label=1)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    np.testing.assert_array_equal(np.unique(ours), np.arange(1, 25))
    assert label(ours, connectivity=1).max() == 24


@both
@pytest.mark.parametrize("start_label", [0, 1])
def test_labels_start_at_start_label(segment, start_label):
    labels = segment(IMAGE, 24, 20, start_label=start_label)
    np.testing.assert_array_equal(np.unique(labels), start_label + np.arange(len(np.unique(labels))))


@both
@pytest.mark.parametrize("start_label", [0, 1])
def test_pixels_outside_the_mask_get_the_label_before_the_first(segment, start_label):
    labels = segment(IMAGE, 12, mask=MASK, start_label=start_label)
    np.testing.assert_array_equal(labels == start_label - 1, ~MASK)
    assert labels.dtype == np.int64


def test_n_segments_lie_within_the_mask():
    labels = superpixels(IMAGE, 12, mask=MASK)
    np.testing.assert_array_equal(np.unique(labels[MASK]), np.arange(1, 13))


@both
def test_mask_may_be_of_other_numbers(segment):
    np.testing.assert_array_equal(
        segment(IMAGE, 12, mask=3 * MASK.astype(np.uint8)), segment(IMAGE, 12, mask=MASK)
    )


@both
def test_values_outside_the_mask_do_not_set_the_range(segment):
    bright = IMAGE.astype(float)
    bright[~MASK] = IMAGE[MASK].max()
    brighter = np.where(MASK[..., None], bright, 1e6)
    np.testing.assert_array_equal(segment(brighter, 12, mask=MASK), segment(bright, 12, mask=MASK))


@both
def test_grey_images_have_no_channel_axis(segment):
    labels = segment(GREY, 24, channel_axis=None)
    assert labels.shape == GREY.shape
    np.testing.assert_array_equal(labels, segment(GREY[..., None], 24))


def test_grey_is_rgb_of_equal_channels():
    np.testing.assert_array_equal(
        superpixels(GREY, 24, channel_axis=None), superpixels(np.stack([GREY] * 3, axis=-1), 24)
    )


@both
def test_two_dimensions_with_channels_are_refused(segment):
    with pytest.raises(ValueError, match="channel_axis"):
        segment(GREY, 24)


@both
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_channels_lie_at_any_axis(segment, axis):
    moved = np.moveaxis(IMAGE, -1, axis)
    np.testing.assert_array_equal(segment(moved, 24, channel_axis=axis), segment(IMAGE, 24))


@both
def test_channel_axis_that_does_not_exist(segment):
    with pytest.raises(np.exceptions.AxisError):
        segment(IMAGE, 24, channel_axis=3)


@both
@pytest.mark.parametrize(
    "convert",
    [
        img_as_float,
        lambda image: img_as_float(image).astype(np.float32),
        lambda image: image.astype(np.uint16) * 257,
        lambda image: image.astype(np.int64) * 1000 - 77_000,
        lambda image: image.astype(np.int16) - 128,
        lambda image: image * 40.0 - 3,
    ],
    ids=["float64", "float32", "uint16", "int64", "int16", "any range"],
)
def test_only_the_order_and_spacing_of_values_count(segment, convert):
    changed = segment(convert(IMAGE), 24) != segment(IMAGE, 24)
    assert changed.mean() < 0.01  # up to rounding


@both
def test_bools_are_black_and_white(segment):
    image = GREY > 100
    np.testing.assert_array_equal(
        segment(image, 24, channel_axis=None), segment(image.astype(float), 24, channel_axis=None)
    )


@both
def test_one_colour_is_cut_as_well(segment):
    labels = segment(np.full((20, 30, 3), 7.5), 6)
    np.testing.assert_array_equal(np.unique(labels), np.arange(1, 7))


@both
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_must_be_masked(segment, value):
    image = img_as_float(IMAGE)
    image[0, 0, 1] = value
    with pytest.raises(ValueError, match=r"infinite|NaN"):
        segment(image, 12)


@both
def test_masked_values_may_be_nan(segment):
    image = np.where(MASK[..., None], img_as_float(IMAGE), np.nan)
    labels = segment(image, 12, 20, mask=MASK)
    np.testing.assert_array_equal(labels == 0, ~MASK)
    assert len(np.unique(labels)) > 6


def test_masked_values_may_be_infinite():
    grey = np.where(MASK[..., None], img_as_float(IMAGE), [0, np.inf, -np.inf])
    clipped = np.where(MASK[..., None], img_as_float(IMAGE), [IMAGE[MASK].min() / 255, 1, 0])
    np.testing.assert_array_equal(superpixels(grey, 12, mask=MASK), superpixels(clipped, 12, mask=MASK))


@both
def test_the_image_is_not_changed(segment):
    image = img_as_float(IMAGE)
    image[~MASK] = np.nan
    before = image.copy()
    segment(image, 12, mask=MASK)
    np.testing.assert_array_equal(image, before)


@both
def test_higher_compactness_is_more_compact(segment):
    measured = [measure_compactness(Boundary(segment(IMAGE, 24, value))) for value in (5, 20, 80)]
    assert measured == sorted(measured)
    assert measured[2] > measured[0] + 0.1


def test_compactness_10_is_the_scale_of_the_weights():
    segmenter = Segmenter.from_checkpoint(shipped_weights("base"), pos_scale_dist=2.5)
    rescaled = (IMAGE - IMAGE.min()) / np.ptp(IMAGE)
    np.testing.assert_array_equal(superpixels(IMAGE, 24, 25), segmenter(rescaled, 24).labels + 1)
    np.testing.assert_array_equal(superpixels(IMAGE, 24, 10), superpixels(IMAGE, 24))


def test_without_connectivity_superpixels_may_be_in_pieces():
    segmenter = Segmenter.from_checkpoint(shipped_weights("base"))
    rescaled = (IMAGE - IMAGE.min()) / np.ptp(IMAGE)
    labels = superpixels(IMAGE, 60, enforce_connectivity=False, start_label=0)
    np.testing.assert_array_equal(labels, segmenter(rescaled, 60, connected=False).labels)
    assert label(labels + 1, connectivity=1).max() > len(np.unique(labels))


@pytest.mark.parametrize(
    "others",
    [{"sigma": 0}, {"spacing": None}, {"convert2lab": True}, {"convert2lab": None}, {"slic_zero": False}],
    ids=str,
)
def test_arguments_that_change_nothing(others):
    np.testing.assert_array_equal(superpixels(IMAGE, 24, **others), superpixels(IMAGE, 24))


@pytest.mark.parametrize(
    ("others", "advice"),
    [
        ({"max_num_iter": 10}, "`n_iter`"),
        ({"sigma": 1}, "smooth the image first"),
        ({"sigma": np.array([0, 1])}, "smooth the image first"),
        ({"spacing": np.array([1, 2])}, "resize the image first"),
        ({"convert2lab": False}, "reads CIELAB"),
        ({"min_size_factor": 0.5}, "merged with the most similar"),
        ({"max_size_factor": 3}, "request more"),
        ({"slic_zero": True}, "`compactness`"),
    ],
    ids=str,
)
def test_arguments_without_a_meaning_say_what_to_do(others, advice):
    slic(IMAGE, 24, **others)
    (name,) = others
    with pytest.raises(InputError, match=f"`{name}` has no meaning here.*{advice}"):
        superpixels(IMAGE, 24, **others)


def test_unknown_arguments():
    with pytest.raises(TypeError, match="'n_spixels'"):
        superpixels(IMAGE, n_spixels=24)


def test_a_fourth_position_is_no_argument():
    # In scikit-image it is the number of iterations.
    with pytest.raises(TypeError, match="positional"):
        superpixels(IMAGE, 24, 10, MASK)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (IMAGE, {"n_segments": 0}, "`n_segments` 0 is below 1"),
        (IMAGE[:3, :4], {}, "`n_segments` 100 is above the 12 pixels of the image"),
        (
            IMAGE,
            {"mask": MASK, "n_segments": 1119},
            "`n_segments` 1119 is above the 1118 pixels of the image",
        ),
        (IMAGE, {"mask": MASK[::2], "n_segments": 9}, r"`mask` is \(18, 60\), but the image is \(35, 60\)"),
        (IMAGE, {"mask": MASK & ~MASK}, "`mask` leaves no pixel"),
        (
            IMAGE,
            {"mask": STRIPES, "n_segments": 3},
            "`n_segments` 3 is too few",
        ),
        (IMAGE, {"start_label": 2}, "`start_label` must be 0 or 1, got 2"),
        (IMAGE, {"compactness": 0}, "`compactness` must be a number above 0, got 0"),
        (IMAGE, {"compactness": np.inf}, "`compactness` must be a number above 0, got inf"),
        (IMAGE, {"channel_axis": None}, "3 dimensions, with `channel_axis` None.*not volumes"),
        (np.stack([IMAGE, IMAGE]), {}, "4 dimensions, with `channel_axis` -1.*not volumes"),
        (IMAGE[..., :2], {}, "must be RGB or grey.*choose three"),
        (IMAGE[:0], {}, "must be RGB or grey"),
        (IMAGE.astype(complex), {}, "bools, integers or floats, got complex128"),
        (np.where(IMAGE > 99, 1e308, -1e308), {}, "too large values"),
        (np.ma.masked_greater(IMAGE, 250), {}, "masked values.*`mask`"),
    ],
)
def test_bad_input(image, arguments, message):
    with pytest.raises(InputError, match=message):
        superpixels(image, **arguments)


def test_fractions_of_n_segments_are_cut_off():
    np.testing.assert_array_equal(superpixels(IMAGE, 24.9), superpixels(IMAGE, 24))


def test_weights_are_read_once(monkeypatch):
    superpixels(IMAGE, 5)
    monkeypatch.setattr(like_scikit_image, "load_model", None)
    superpixels(IMAGE, 5, compactness=20)
