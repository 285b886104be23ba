"""Evaluation loop, methods, seconds and summaries, with hand-made superpixels."""

import math
import os
import signal
import time

import numpy as np
import pytest
import torch

from lib.datasets.base import SegmentedImage
from lib.datasets.loaders import EvaluationImages
from lib.evaluation.loop import ImageScores, Run, evaluate, list_runs
from lib.evaluation.methods import GridMethod, NetworkMethod, Setting, SLICMethod
from lib.evaluation.summary import average_curves, summarize, summarize_groups
from lib.evaluation.timing import seconds_per_image
from lib.inference import Segmenter
from lib.metrics.registry import Scores
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError, RunError
from lib.slic.grid import CellGrid
from lib.superpixels.connectivity import enforce_connectivity
from lib.weights import load_model
from model import CompositeSSNModel, SSNModel, SSNPix

LEFT_RIGHT = np.repeat([[0, 1]], 20, axis=0).repeat(10, axis=1).astype(np.int32)
TOP_BOTTOM = np.ascontiguousarray(LEFT_RIGHT.T)
IMAGE_RGB = np.zeros((20, 20, 3), dtype=np.uint8)
CPU = torch.device("cpu")


class Images(list):
    """Two images: the first has three annotations, the second has one."""

    def __init__(self):
        super().__init__(
            [
                SegmentedImage("a", IMAGE_RGB, [LEFT_RIGHT, LEFT_RIGHT, TOP_BOTTOM]),
                SegmentedImage("b", IMAGE_RGB, [np.zeros_like(LEFT_RIGHT)]),
            ]
        )


class Drawn:
    """Method that always returns the same label map."""

    pos_scales = (None,)
    description = {"method": "drawn by hand"}  # noqa: RUF012

    def __init__(self, labels, name="drawn"):
        self.labels = labels
        self.name = name

    def segment(self, image, settings):
        return [self.labels for _ in settings]


def summarize_one(method, dataset, n_workers=0, n_spixels=2):
    run = Run(method.name, n_spixels, None)
    images = evaluate([method], dataset, n_spixels=[n_spixels], n_workers=n_workers)
    return summarize(run, [image[run] for image in images])


def scored(name, *asa, n_spixels=10):
    """Make the scores of an image from its ASA values."""
    return ImageScores(name, Scores({"n_spixels": n_spixels}, [{"asa": value} for value in asa]))


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_pair_has_the_same_weight(n_workers):
    summary = summarize_one(Drawn(LEFT_RIGHT), Images(), n_workers)
    # Against TOP_BOTTOM each half is half right; both take segment 0, whose IoU is 1/2.
    assert summary.mean["asa"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert summary.mean["mean_iou"] == pytest.approx((1 + 1 + 0.25 + 1) / 4)
    assert summary.mean["n_spixels"] == 2
    assert (summary.n_images, summary.n_pairs) == (2, 4)
    assert (
        summary.line(ignore_background=False) == "ASA 0.8750 mIoU 0.8125 superpixels 2.0 (2 images, 4 pairs)"
    )


def test_worst_annotation_of_each_image():
    summary = summarize_one(Drawn(LEFT_RIGHT), Images())
    assert summary.worst["asa"] == pytest.approx((0.5 + 1) / 2)
    assert summary.worst["ue_bergh"] == pytest.approx((0.5 + 0) / 2)  # the largest error is the worst
    assert "compactness" not in summary.worst


def test_annotations_of_only_background_have_no_foreground_iou():
    summary = summarize_one(Drawn(LEFT_RIGHT), Images())
    expected = (1 + 1 + 0) / 3
    assert summary.mean["mean_iou_foreground"] == pytest.approx(expected)
    assert summary.figures(ignore_background=True)["mean_iou"] == pytest.approx(expected)
    assert "mIoU 0.6667" in summary.line(ignore_background=True)
    assert summary.worst["mean_iou_foreground"] == 0


@pytest.mark.parametrize("method", [SLICMethod(), GridMethod()])
def test_other_methods_return_connected_superpixels(method):
    (labels,) = method.segment(first_image(), [Setting(24)])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, enforce_connectivity(labels, 24))


@pytest.mark.slow
def test_workers_keep_scores_and_order():
    rng = np.random.default_rng(0)
    images = [
        SegmentedImage(f"{idx}", rng.integers(0, 256, (20, 20, 3), dtype=np.uint8), [LEFT_RIGHT, TOP_BOTTOM])
        for idx in range(12)
    ]
    runs = {
        n_workers: list(evaluate([GridMethod(), SLICMethod()], images, n_spixels=[4, 9], n_workers=n_workers))
        for n_workers in (0, 2)
    }
    assert [image[Run("grid", 4, None)].image for image in runs[2]] == [image.name for image in images]
    for serial, parallel in zip(runs[0], runs[2], strict=True):
        assert list(serial) == list(parallel) == list_runs([GridMethod(), SLICMethod()], [4, 9])
        assert serial == parallel


def test_only_the_requested_metrics_are_computed():
    (first, _) = evaluate([Drawn(LEFT_RIGHT)], Images(), n_spixels=[2], metrics=["asa", "compactness"])
    (image,) = first.values()
    assert image.scores.spixels.keys() == {"n_spixels", "compactness"}
    assert [pair.keys() for pair in image.scores.pairs] == [{"asa"}] * 3


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        ([], {}, "no image"),
        (Images(), {"metrics": ["asa", "accuracy"]}, "'accuracy'.* n_spixels, .*asa"),
        (Images(), {"n_spixels": [2, 500]}, "`n_spixels` 500 .*400 .*a"),
        ([SegmentedImage("a", IMAGE_RGB, [])], {}, "a has no annotation"),
        ([SegmentedImage("a", IMAGE_RGB, [LEFT_RIGHT[1:]])], {}, r"a: .*annotation .*\(19, 20\)"),
        ([SegmentedImage("a", IMAGE_RGB, [LEFT_RIGHT - 2])], {}, "a: .*annotation .*integers"),
        ([SegmentedImage("a", IMAGE_RGB, [LEFT_RIGHT / 2])], {}, "a: .*annotation .*integers"),
        ([SegmentedImage("a", IMAGE_RGB * np.nan, [LEFT_RIGHT])], {}, "a: .*uint8"),
        ([SegmentedImage("a", IMAGE_RGB[..., 0], [LEFT_RIGHT])], {}, "a: .*uint8"),
        (
            [SegmentedImage("a", IMAGE_RGB, [LEFT_RIGHT], extra=np.full((20, 20, 1), np.nan, np.float32))],
            {},
            "a: .*NaN",
        ),
    ],
)
def test_bad_input(images, more, message):
    with pytest.raises(InputError, match=message):
        list(evaluate([Drawn(LEFT_RIGHT)], images, **{"n_spixels": [2], **more}))


def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0, 0.1])
def test_killed_metric_worker_ends_the_evaluation(monkeypatch, pause):
    class Slow(Drawn):
        def segment(self, image, settings):
            time.sleep(pause)
            return super().segment(image, settings)

    monkeypatch.setattr("lib.evaluation.loop.score_label_maps", die)
    with pytest.raises(RunError, match="worker process"):
        list(evaluate([Slow(LEFT_RIGHT)], Images() * 10, n_spixels=[2], n_workers=1))


class Deadly(Images):
    """Images that kill the process that reads them."""

    def __getitem__(self, idx):
        die()


@pytest.mark.slow
def test_killed_reading_worker_ends_the_evaluation():
    with pytest.raises(RunError, match="worker process"):
        list(evaluate([Drawn(LEFT_RIGHT)], Deadly(), n_spixels=[2], n_workers=1))


# Methods


def first_image(height=40, width=62, n_extra_channels=0):
    rng = np.random.default_rng(0)
    extra = (
        rng.normal(size=(height, width, n_extra_channels)).astype(np.float32) if n_extra_channels else None
    )
    image_rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), dtype=np.int32)
    return EvaluationImages([SegmentedImage("noise", image_rgb, [labels], extra)])[0]


@pytest.mark.parametrize(
    "model",
    [
        SSNModel(3, n_iter=2),
        SSNModel(3, n_iter=2, sees_position=False),
        SSNPix(),
        CompositeSSNModel(3, 2, n_iter=2),
        CompositeSSNModel(3, 2, n_iter=2, sees_position=False),
    ],
)
def test_shared_features_change_nothing(model):
    image = first_image(n_extra_channels=model.n_extra_channels)
    scales = InputScales(0.26, 4.0, 2.0 if model.n_extra_channels else None)
    method = NetworkMethod("model", Segmenter(model, scales), pos_scales=[4.0, 8.0])
    settings = [Setting(count, pos_scale) for pos_scale in (4.0, 8.0) for count in (9, 16, 17, 36, 64)]
    together = method.segment(image, settings)
    for setting, labels in zip(settings, together, strict=True):
        (alone,) = method.segment(image, [setting])
        np.testing.assert_array_equal(labels, alone)
    assert len({labels.tobytes() for labels in together}) > 5


@pytest.mark.parametrize("sees_position", [False, True])
def test_features_are_shared_if_the_network_input_is_equal(sees_position):
    model = CompositeSSNModel(3, 2, sees_position=sees_position).eval()
    calls = []
    model.feature_extract_color.register_forward_hook(lambda *_: calls.append("base"))
    model.feature_extract_optflow.register_forward_hook(lambda *_: calls.append("extra"))
    method = NetworkMethod("model", Segmenter(model, InputScales(0.26, 4.0, 2.0)))
    # floor(sqrt(16)) * 8 = floor(sqrt(17)) * 8 = floor(sqrt(64)) * 4, which gives the network the same input.
    method.segment(first_image(n_extra_channels=4), [Setting(16, 8.0), Setting(17, 8.0), Setting(64, 4.0)])
    assert sorted(calls) == ["base", "extra"]
    calls.clear()
    method.segment(first_image(n_extra_channels=4), [Setting(16, 8.0), Setting(16, 4.0)])
    assert calls.count("extra") == 1
    assert calls.count("base") == (2 if sees_position else 1)


@pytest.mark.parametrize("pos_scale_dist", [1.0, 3.0])
def test_evaluation_segments_as_inference(pos_scale_dist):
    segmenter = Segmenter(SSNModel(3), InputScales(0.26, 4.0), pos_scale_dist=pos_scale_dist, n_iter=3)
    image = first_image()
    for n_spixels in (9, 24):
        setting = Setting(n_spixels, 4.0)
        (labels,) = NetworkMethod("model", segmenter).segment(image, [setting])
        np.testing.assert_array_equal(labels, segmenter(image.image_rgb, n_spixels).labels)


def test_grid_is_where_the_clustering_starts():
    image = first_image()
    (labels,) = GridMethod().segment(image, [Setting(24)])
    grid = CellGrid.for_image(40, 62, 24, CPU)
    cells = torch.arange(grid.n_cells)[None, :, None, None].expand(-1, -1, 1, grid.pixel_idx.shape[1])
    np.testing.assert_array_equal(labels, grid.to_pixels(cells)[0, 0].numpy())


def test_composite_needs_its_channels(composite_weights):
    loaded = load_model(composite_weights)
    method = NetworkMethod("composite", Segmenter(loaded.model, loaded.scales))
    with pytest.raises(InputError, match="reads 4 extra channels, but the image has 0"):
        method.segment(first_image(), [Setting(9, 5.0)])


# Seconds


def test_seconds_are_the_median_of_five_images_after_a_warm_up():
    seen = []

    class Sleepy(Drawn):
        def segment(self, image, settings):
            seen.append((image.name, *settings))
            time.sleep(0.2 if len(seen) == 1 else 0.02 if image.name in "abc" else 0.3)
            return super().segment(image, settings)

    images = [SegmentedImage(name, IMAGE_RGB, [LEFT_RIGHT]) for name in "abcdefg"]
    seconds = seconds_per_image([Sleepy(LEFT_RIGHT)], images, [2, 3])
    assert [name for name, _ in seen] == list("aabcde" * 2)
    assert seconds.keys() == {Run("drawn", 2, None), Run("drawn", 3, None)}
    assert 0.02 <= seconds[Run("drawn", 2, None)] < 0.12  # the mean is above


def test_seconds_of_an_image_that_is_too_small():
    with pytest.raises(InputError, match=r"`n_spixels` 500 .*400 .*a"):
        seconds_per_image([GridMethod()], Images(), [2, 500])


# Summaries


def test_means_by_video():
    images = [scored("car/0", 0.5), scored("dog/0", 1.0), scored("car/1", 0.7, 0.9)]
    run = Run("drawn", 10, None)
    groups = summarize_groups(run, images)
    assert list(groups) == ["car", "dog"]
    assert groups["car"].mean["asa"] == pytest.approx(0.7)
    assert (groups["car"].n_images, groups["car"].n_pairs) == (2, 3)
    assert summarize_groups(run, [scored("100007", 1.0)]) == {}


def summary_at(method, count, asa):
    return summarize(Run(method, round(count), None), [scored("a", asa, n_spixels=count)])


def test_area_under_the_curve_by_hand():
    # The mean of a straight line is its value in the middle of the range.
    curves = [
        summary_at("one", 50, 0.80),
        summary_at("one", 1050, 0.90),
        summary_at("other", 600, 0.6),
        summary_at("other", 200, 0.2),
        summary_at("point", 400, 0.5),
        summary_at("low", 20, 0.5),
        summary_at("low", 90, 0.6),
    ]
    own, common = average_curves(curves)
    assert [curve[:4] for curve in own] == [("one", None, 100, 1000), ("other", None, 200, 600)]
    assert [curve[:4] for curve in common] == [("one", None, 200, 600), ("other", None, 200, 600)]
    assert [curve.means["asa"] for curve in own] == pytest.approx([0.85, 0.4])
    assert [curve.means["asa"] for curve in common] == pytest.approx([0.835, 0.4])
    assert average_curves(curves[:2]).own == own[:1]  # independent of the other curves


def test_area_under_a_bent_curve_ends_at_100_and_1000():
    curve = [summary_at("one", 0, 0.0), summary_at("one", 500, 1.0), summary_at("one", 2000, 1.0)]
    (mean,) = average_curves(curve).own
    assert (mean.low, mean.high) == (100, 1000)
    assert mean.means["asa"] == pytest.approx((400 * (0.2 + 1) / 2 + 500) / 900)


def test_points_with_one_count_are_averaged():
    points = [(100, 0.1), (200, 0.2), (200, 0.8), (300, 0.9)]
    for order in (points, points[::-1]):
        (mean,) = average_curves([summary_at("one", *point) for point in order]).own
        assert mean.means["asa"] == pytest.approx(0.5)


def test_disjoint_curves_have_no_common_range():
    ends = [("a", 200), ("a", 299), ("b", 500), ("b", 599), ("same", 400), ("same", 400)]
    own, common = average_curves([summary_at(method, count, 0.5) for method, count in ends])
    assert [curve.method for curve in own] == ["a", "b"]
    assert common == []


def test_mean_of_only_nan_is_nan():
    summary = summarize(Run("one", 10, None), [scored("a", math.nan)])
    assert math.isnan(summary.mean["asa"])
    assert math.isnan(summary.worst["asa"])
