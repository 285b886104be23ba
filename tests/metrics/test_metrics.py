"""Compare the metrics with hand-computed values and with slow, literal implementations."""

import math

import numpy as np
import pytest

from lib.metrics.boundary import Boundary
from lib.metrics.definitions import (
    ColorVariation,
    ContingencyTable,
    achievable_segmentation_accuracy,
    boundary_precision,
    boundary_recall,
    boundary_tolerance,
    compactness,
    contour_density,
    count_spixels,
    explained_variation,
    intra_cluster_variation,
    mean_distance_to_edge,
    mean_iou,
    size_spread,
    undersegmentation_error_bergh,
    undersegmentation_error_np,
)
from lib.metrics.label_map import VOID
from lib.metrics.registry import DEFAULT_METRICS, METRICS, PAIR_METRICS, score_label_maps
from properties import array_shapes, arrays, given, settings, st

GT = np.array([[0, 0, 0, 1, 1], [0, 0, 2, 1, 1]], dtype=np.int32)
LABELS = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]], dtype=np.int64)
GREY = np.full((2, 5, 3), 90, dtype=np.uint8)


def score(labels, gt_labels, image_rgb=None, metrics=tuple(METRICS)):
    """Compute metrics of a label map against one annotation, by name."""
    if image_rgb is None:
        image_rgb = np.random.default_rng(0).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    (scores,) = score_label_maps([labels], image_rgb, [gt_labels], metrics)
    return {**scores.spixels, **scores.pairs[0]}


# Slow versions


def regions(labels):
    """Return the set of pixels of each label."""
    return {
        int(number): {(int(y), int(x)) for y, x in np.argwhere(labels == number)}
        for number in np.unique(labels)
    }


def neighbors(y, x, shape):
    for other_y, other_x in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
        if 0 <= other_y < shape[0] and 0 <= other_x < shape[1]:
            yield other_y, other_x


def slow_boundary(labels, *, one_sided=False):
    return {
        (y, x)
        for y, x in np.ndindex(labels.shape)
        if any(
            labels[y, x] != labels[other]
            for other in neighbors(y, x, labels.shape)
            if not one_sided or other in ((y + 1, x), (y, x + 1))
        )
    }


def slow_recall(pixels, gt_pixels, radius):
    if not gt_pixels:
        return 1.0
    is_found = [any(abs(y - v) <= radius and abs(x - u) <= radius for v, u in pixels) for y, x in gt_pixels]
    return sum(is_found) / len(is_found)


def slow_metrics(labels, gt_labels, image_rgb):
    n_pixels = labels.size
    spixels, segments = regions(labels), regions(gt_labels)
    majority = {
        name: max(sorted(segments), key=lambda segment: len(pixels & segments[segment]))
        for name, pixels in spixels.items()
    }
    right = sum(len(pixels & segments[majority[name]]) for name, pixels in spixels.items())
    ious = {}
    for segment, pixels in segments.items():
        predicted = set().union(*(spixels[name] for name in spixels if majority[name] == segment))
        ious[segment] = len(pixels & predicted) / len(pixels | predicted)
    foreground = [iou for segment, iou in ious.items() if segment != 0]
    leaks = [
        min(len(pixels & segment), len(pixels - segment))
        for segment in segments.values()
        for pixels in spixels.values()
        if pixels & segment
    ]
    values = {
        "asa": right / n_pixels,
        "ue_np": sum(leaks) / n_pixels,
        "ue_bergh": sum(len(pixels - segments[majority[name]]) for name, pixels in spixels.items())
        / n_pixels,
        "mean_iou": sum(ious.values()) / len(ious),
        "mean_iou_foreground": sum(foreground) / len(foreground) if foreground else math.nan,
    }

    boundary, gt_boundary = slow_boundary(labels), slow_boundary(gt_labels)
    radius = round(0.0025 * math.sqrt(labels.shape[0] ** 2 + labels.shape[1] ** 2))
    values["boundary_recall"] = slow_recall(boundary, gt_boundary, radius)
    values["boundary_precision"] = slow_recall(gt_boundary, boundary, radius)
    lines, gt_lines = slow_boundary(labels, one_sided=True), slow_boundary(gt_labels, one_sided=True)
    for radius in (1, 2):
        values[f"boundary_recall_one_sided_{radius}"] = slow_recall(lines, gt_lines, radius)
        values[f"boundary_precision_one_sided_{radius}"] = slow_recall(gt_lines, lines, radius)
    diagonal = math.hypot(*labels.shape)
    distances = [
        min((math.dist(pixel, other) for other in boundary), default=diagonal) for pixel in gt_boundary
    ]
    values["mean_distance_to_edge"] = sum(distances) / len(distances) if distances else 0.0

    colors = {pixel: np.array(image_rgb[pixel], dtype=float) for pixel in np.ndindex(labels.shape)}
    mean_color = sum(colors.values()) / n_pixels
    between, icv, co = 0.0, 0.0, 0.0
    for pixels in spixels.values():
        mean = sum(colors[pixel] for pixel in pixels) / len(pixels)
        between += len(pixels) * ((mean - mean_color) ** 2).sum()
        icv += math.sqrt(sum(((colors[pixel] - mean) ** 2).sum() for pixel in pixels)) / len(pixels)
        perimeter = sum(4 - len(set(neighbors(*pixel, labels.shape)) & pixels) for pixel in pixels)
        co += len(pixels) * 4 * math.pi * len(pixels) / perimeter**2
    total = sum(((color - mean_color) ** 2).sum() for color in colors.values())
    sizes = [len(pixels) for pixels in spixels.values()]
    mean_size = n_pixels / len(sizes)
    return values | {
        "explained_variation": between / total if total > 0 else 1.0,
        "intra_cluster_variation": icv / len(spixels),
        "compactness": co / n_pixels,
        "contour_density": len(boundary) / n_pixels,
        "n_spixels": len(spixels),
        "size_spread": math.sqrt(sum((size - mean_size) ** 2 for size in sizes) / len(sizes)) / mean_size,
    }


@st.composite
def scenes(draw):
    """Draw superpixels and segments with gaps in their numbers and an image, of any shape up to 9 x 12."""
    shape = draw(
        array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).filter(lambda shape: shape[0] < 10)
    )
    label_maps = [draw(arrays(np.int32, shape, elements=st.sampled_from([0, 1, 2, 7]))) for _ in range(2)]
    return *label_maps, draw(arrays(np.uint8, (*shape, 3)))


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_default_metrics_agree_with_slow_versions(scene):
    fast, slow = score(*scene, metrics=DEFAULT_METRICS), slow_metrics(*scene)
    assert fast.keys() == slow.keys() == set(DEFAULT_METRICS)
    for name, value in slow.items():
        assert fast[name] == pytest.approx(value, abs=1e-12, rel=1e-12, nan_ok=True), name


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(0, 4), st.booleans())
def test_recall_and_precision_agree_with_slow_versions(scene, radius, one_sided):
    pixels, gt_pixels = (slow_boundary(labels, one_sided=one_sided) for labels in scene[:2])
    boundary, gt_boundary = (Boundary(labels) for labels in scene[:2])
    recall = boundary_recall(boundary, gt_boundary, radius, one_sided=one_sided)
    assert recall == pytest.approx(slow_recall(pixels, gt_pixels, radius), abs=1e-12)
    precision = boundary_precision(boundary, gt_boundary, radius, one_sided=one_sided)
    assert precision == pytest.approx(slow_recall(gt_pixels, pixels, radius), abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "radius"), [((321, 481), 1), ((481, 321), 1), ((480, 854), 2), ((10, 10), 0)]
)
def test_tolerance(shape, radius):
    assert boundary_tolerance(shape) == radius
    labels, gt_labels = np.zeros((2, *shape), dtype=int)
    labels[:, 5:], gt_labels[:, 5 + radius + 2 :] = 1, 1  # the nearest pixels are `radius` + 1 apart
    values = score(labels, gt_labels, metrics=["boundary_recall", "boundary_precision"])
    assert values["boundary_recall"] == values["boundary_precision"] == 0
    gt_labels[:, 5 + radius + 1 :] = 1
    values = score(labels, gt_labels, metrics=["boundary_recall", "boundary_precision"])
    assert values["boundary_recall"] == values["boundary_precision"] == 0.5


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_bergh_error_is_one_minus_asa(scene):
    values = score(*scene)
    assert values["ue_bergh"] == pytest.approx(1 - values["asa"], abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(scenes(), st.permutations([0, 1, 2, 7]))
def test_renumbering_superpixels_keeps_scores(scene, numbers):
    labels, gt_labels, image_rgb = scene
    renumbered = np.array(numbers)[np.searchsorted([0, 1, 2, 7], labels)] + 3
    values = score(labels, gt_labels, image_rgb)
    for name, value in score(renumbered, gt_labels, image_rgb).items():
        assert value == pytest.approx(values[name], abs=1e-12, nan_ok=True), name


@settings(max_examples=30, deadline=None)
@given(scenes(), st.permutations([0, 1, 2, 7]))
def test_renumbering_segments_keeps_scores(scene, numbers):
    labels, gt_labels, image_rgb = scene
    renumbered = np.array(numbers)[np.searchsorted([0, 1, 2, 7], gt_labels)]
    values = score(labels, gt_labels, image_rgb)
    # The IoU is left out: in a tie the segment with the lower number wins.
    for name, value in score(labels, renumbered, image_rgb).items():
        if name not in ("mean_iou", "mean_iou_foreground"):
            assert value == pytest.approx(values[name], abs=1e-12), name


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_transposing_keeps_scores(scene):
    labels, gt_labels, image_rgb = scene
    values = score(labels, gt_labels, image_rgb)
    for name, value in score(labels.T, gt_labels.T, image_rgb.transpose(1, 0, 2)).items():
        assert value == pytest.approx(values[name], abs=1e-12, nan_ok=True), name


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_scores_stay_in_range(scene):
    values = score(*scene)
    unit = {metric.name for metric in PAIR_METRICS} - {"mean_distance_to_edge"}
    for name in unit | {"contour_density", "explained_variation"}:
        assert math.isnan(values[name]) or -1e-12 <= values[name] <= 1 + 1e-12, name
    assert 0 < values["compactness"] <= math.pi / 4 + 1e-12
    assert 0 <= values["mean_distance_to_edge"] <= math.hypot(*scene[0].shape) + 1e-12


# By hand


def test_overlaps_by_hand():
    table = ContingencyTable(LABELS, GT)
    assert table.spixel_idx.tolist() == [0, 1, 1, 1]
    assert table.segments.tolist() == [0, 0, 1, 2]
    assert table.n_shared.tolist() == [4, 1, 4, 1]
    assert table.spixel_sizes.tolist() == [4, 6]
    assert table.majority().tolist() == [0, 1]


def test_table_metrics_by_hand():
    table = ContingencyTable(LABELS, GT)
    assert achievable_segmentation_accuracy(table) == pytest.approx(0.8)
    assert undersegmentation_error_bergh(table) == pytest.approx(0.2)
    # Superpixel 1 has 1, 4 and 1 pixels in the segments and therefore 5, 2 and 5 outside them.
    assert undersegmentation_error_np(table) == pytest.approx((0 + 1 + 2 + 1) / 10)


def test_mean_iou_by_hand():
    # Superpixel 0 takes segment 0, superpixel 1 takes segment 1; segment 2 gets nothing.
    table = ContingencyTable(LABELS, GT)
    assert mean_iou(table) == pytest.approx((4 / 5 + 4 / 6 + 0) / 3)
    assert mean_iou(table, ignore_background=True) == pytest.approx((4 / 6 + 0) / 2)


def test_mean_iou_ignores_absent_segments():
    shifted = np.where(GT == 2, 7, GT)
    assert mean_iou(ContingencyTable(LABELS, shifted)) == pytest.approx((4 / 5 + 4 / 6) / 3)


def test_mean_iou_of_background_alone_is_nan():
    nothing = ContingencyTable(LABELS, np.zeros_like(GT))
    assert math.isnan(mean_iou(nothing, ignore_background=True))


def test_boundary_metrics_by_hand():
    # Superpixels change between columns 2 and 3, segments between columns 0 and 1.
    labels, gt_labels = np.array([[0, 0, 0, 1, 1]] * 2), np.array([[4, 5, 5, 5, 5]] * 2)
    boundary, gt_boundary = Boundary(labels), Boundary(gt_labels)
    assert boundary.two_sided.tolist() == [[False, False, True, True, False]] * 2
    assert boundary.one_sided.tolist() == [[False, False, True, False, False]] * 2
    assert [boundary_recall(boundary, gt_boundary, radius) for radius in (0, 1, 2)] == [0, 0.5, 1]
    assert [boundary_recall(boundary, gt_boundary, radius, one_sided=True) for radius in (1, 2)] == [0, 1]
    assert boundary_precision(boundary, gt_boundary, 1) == 0.5
    assert mean_distance_to_edge(boundary, gt_boundary) == 1.5
    assert contour_density(boundary) == 0.4


def test_window_is_square():
    labels = np.zeros((6, 7), dtype=int)
    labels[0, 0] = 1  # boundary pixels: (0, 0), (0, 1) and (1, 0)
    near = np.zeros((6, 7), dtype=bool)
    near[:3, :4] = near[:4, :3] = True
    np.testing.assert_array_equal(Boundary(labels).near(2), near)


def test_compactness_by_hand():
    # 2x3 pixels: perimeter 10 with the image border. 2x2 pixels: perimeter 8, pi / 4 as for any square.
    expected = (4 * (math.pi / 4) + 6 * (4 * math.pi * 6 / 100)) / 10
    assert compactness(Boundary(LABELS)) == pytest.approx(expected)
    assert compactness(Boundary(np.zeros((7, 7), dtype=int))) == pytest.approx(math.pi / 4)


def test_color_metrics_by_hand():
    image_rgb = GREY.copy()
    image_rgb[:, 0, 0] += 2  # red values of the four pixels in superpixel 0: 92, 90, 92, 90
    variation = ColorVariation.measure(LABELS, image_rgb)
    assert variation.within.tolist() == [4, 0]
    assert intra_cluster_variation(variation) == pytest.approx((math.sqrt(4) / 4 + 0) / 2)
    total = 2 * 1.6**2 + 8 * 0.4**2
    assert explained_variation(variation) == pytest.approx(1 - 4 / total)


def test_sizes_by_hand():
    assert count_spixels(LABELS) == 2
    assert size_spread(LABELS) == pytest.approx(1 / 5)
    assert size_spread(np.arange(6).reshape(2, 3)) == 0


# Extremes


def test_perfect_superpixels():
    rows, cols = np.indices((30, 40))
    labels = rows // 10 * 4 + cols // 10
    image_rgb = np.stack([20 * labels, labels, 255 - labels], axis=-1).astype(np.uint8)
    values = score(labels, labels.astype(np.int32), image_rgb)
    best = {metric.name for metric in PAIR_METRICS if metric.higher_is_better} | {"explained_variation"}
    assert {values[name] for name in best} == {1}
    least = {metric.name for metric in PAIR_METRICS if not metric.higher_is_better}
    assert {values[name] for name in least | {"intra_cluster_variation", "size_spread"}} == {0}
    assert values["compactness"] == pytest.approx(math.pi / 4)


def test_single_superpixel():
    rows, cols = np.indices((20, 20))
    gt_labels = (rows >= 15) + 2 * (cols >= 10)
    values = score(np.zeros((20, 20), dtype=int), gt_labels)
    assert values["asa"] == pytest.approx(150 / 400)
    assert values["boundary_recall"] == 0
    assert values["boundary_precision"] == 1  # no boundary can be wrong
    assert values["mean_distance_to_edge"] == pytest.approx(math.hypot(20, 20))
    assert values["explained_variation"] == pytest.approx(0, abs=1e-12)
    assert values["contour_density"] == 0
    assert (values["n_spixels"], values["size_spread"]) == (1, 0)


def test_single_segment():
    values = score(LABELS, np.ones_like(GT), GREY)
    assert (values["asa"], values["ue_np"], values["boundary_recall"]) == (1, 0, 1)
    assert (values["boundary_precision"], values["mean_distance_to_edge"]) == (0, 0)
    assert values["explained_variation"] == 1  # the image has a single colour


@pytest.mark.parametrize("n_labels", [60, 70_000])
def test_many_labels(n_labels):
    labels = np.arange(n_labels).reshape(10, -1)
    values = score(labels, labels)
    assert (values["asa"], values["mean_iou"], values["n_spixels"]) == (1, 1, n_labels)
    # Every segment is half a superpixel: its two columns lie in different segments.
    wide = np.repeat(labels, 2, axis=1)
    values = score(wide, np.arange(wide.size).reshape(wide.shape))
    assert values["asa"] == pytest.approx(0.5)
    assert values["ue_np"] == pytest.approx(1)
    assert values["n_spixels"] == n_labels


def test_more_than_ten_segments():
    # One superpixel over 20 segments of 5 pixels each.
    gt_labels = np.arange(20).repeat(5).reshape(10, 10)
    table = ContingencyTable(np.zeros((10, 10), dtype=np.int64), gt_labels)
    assert achievable_segmentation_accuracy(table) == pytest.approx(0.05)


@pytest.mark.parametrize("far", [10**12, 2**62])
def test_large_label_numbers_keep_scores(far):
    labels, gt_labels = LABELS * far + 5, GT.astype(np.int64) * (far // 2) + 5
    assert score(labels, gt_labels, GREY) == score(LABELS, GT + 1, GREY)


def test_background_stays_zero_with_large_numbers():
    gt_labels = GT.astype(np.int64) * 10**12
    assert score(LABELS, gt_labels, GREY) == score(LABELS, GT, GREY)


# Bad input


@pytest.mark.parametrize("metric", METRICS)
def test_annotation_of_wrong_size_is_rejected(metric):
    with pytest.raises(ValueError, match=r"label map .*\(5, 2\).*\(2, 5, 3\)"):
        score(LABELS, GT.T, GREY, [metric])


@pytest.mark.parametrize(
    "compute",
    [
        lambda: ContingencyTable(LABELS, GT.T),
        lambda: boundary_recall(Boundary(LABELS), Boundary(GT.T), 1),
        lambda: mean_distance_to_edge(Boundary(LABELS), Boundary(GT.T)),
    ],
)
def test_different_sizes_are_rejected(compute):
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(5, 2\)"):
        compute()


def test_unknown_metric_is_rejected():
    with pytest.raises(ValueError, match=r"unknown metric 'accuracy'.*n_spixels, .*asa"):
        score(LABELS, GT, GREY, ["asa", "accuracy"])


def test_image_of_wrong_size_is_rejected():
    with pytest.raises(ValueError, match=r"image .*\(5, 2, 3\).*\(2, 5\)"):
        ColorVariation.measure(LABELS, GREY.transpose(1, 0, 2))
    with pytest.raises(ValueError, match=r"label map .*\(2, 5\).*\(5, 2, 3\)"):
        score(LABELS, GT, GREY.transpose(1, 0, 2), ["asa"])


def test_image_with_nan_is_rejected():
    image = GREY.astype(np.float32)
    image[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ColorVariation.measure(LABELS, image)
    with pytest.raises(ValueError, match=r"image .*float32"):
        score(LABELS, GT, image, ["asa"])


@pytest.mark.parametrize(
    "compute",
    [
        Boundary,
        count_spixels,
        size_spread,
        lambda labels: ContingencyTable(labels, labels),
        lambda labels: ColorVariation.measure(labels, GREY),
        lambda labels: score(labels, GT, GREY[: len(labels)]) if labels.ndim == 2 else Boundary(labels),
    ],
)
@pytest.mark.parametrize(
    "labels",
    [LABELS - 2, LABELS.astype(float), LABELS[0], LABELS[:0]],
    ids=["negative", "float", "1d", "empty"],
)
def test_invalid_label_map_is_rejected(compute, labels):
    with pytest.raises(ValueError, match="a label map"):
        compute(labels)


def test_negative_annotation_is_rejected():
    with pytest.raises(ValueError, match=r"negative.* -2"):
        score(LABELS, GT - 2, GREY)


def test_superpixels_cannot_be_void():
    with pytest.raises(ValueError, match=r"negative.* -1"):
        score(np.where(LABELS == 0, VOID, LABELS), GT, GREY, ["asa"])


# Void


def test_scores_beside_void_by_hand():
    gt_labels = np.array([[0, 0, 0, VOID, 1], [0, 0, VOID, VOID, 1]])
    values = score(LABELS, gt_labels, GREY)
    # Superpixel 0 has four pixels of segment 0, superpixel 1 one of segment 0 and two of segment 1.
    assert values["asa"] == pytest.approx(6 / 7)
    assert values["ue_np"] == pytest.approx(2 / 7)
    assert values["mean_iou"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert values["n_spixels"] == 2
    # The annotation has no boundary that is not beside void; the superpixels have one, in the first row.
    assert values["boundary_recall"] == 1
    assert values["boundary_precision"] == 0
    assert values["mean_distance_to_edge"] == 0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("factor", [1, 10**6])
def test_void_half_changes_no_score_of_the_other_half(axis, factor):
    rng = np.random.default_rng(0)

    def draw_label_map():
        return rng.integers(0, 6, (8, 8)).repeat(4, axis=0).repeat(4, axis=1)

    labels, gt_labels = draw_label_map(), factor * draw_label_map()  # large labels are renumbered
    void = np.full_like(gt_labels, VOID)
    compared = [metric.name for metric in PAIR_METRICS]
    expected = score(labels, gt_labels, metrics=compared)
    both = np.concatenate([labels, draw_label_map()], axis)
    values = score(both, np.concatenate([gt_labels, void], axis), metrics=compared)
    assert 0 < expected["boundary_recall"] < 1
    assert values == pytest.approx(expected, abs=1e-12)


def test_annotation_of_void_alone_has_no_scores():
    values = score(LABELS, np.full_like(GT, VOID), GREY)
    assert {metric.name for metric in PAIR_METRICS} == {
        name for name, value in values.items() if math.isnan(value)
    }
    with pytest.raises(ValueError, match="void"):
        ContingencyTable(LABELS, np.full_like(GT, VOID))
