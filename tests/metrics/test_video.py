"""Compare the metrics of videos with values worked out by hand, and with slow, literal implementations."""

import math
import tracemalloc

import numpy as np
import pytest

from lib.metrics.label_map import VOID
from lib.metrics.registry import score_label_maps
from lib.metrics.video import VIDEO_METRICS, VideoMetrics

WITH_MASK = ("sa3d", "ue3d", "br3d", "asa", "boundary_recall")


def score(labels, gt_labels, images=None):
    """Score a volume (T, H, W) frame by frame."""
    labels, gt_labels = np.asarray(labels), np.asarray(gt_labels)
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    metrics = VideoMetrics()
    for frame in zip(labels, gt_labels, images, strict=True):
        metrics.add(*frame)
    return metrics.result()


def random_volume(shape=(4, 5, 7), *, n_labels=6, n_segments=3, with_void=True, seed=0):
    """Return labels, masks and images of noise; some pixels and a whole frame are void."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_labels, shape)
    gt_labels = rng.integers(VOID if with_void else 0, n_segments, shape)
    if with_void:
        gt_labels[1] = VOID
    return labels, gt_labels, rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


# Slow versions


def pixels_of(volume):
    return {
        int(number): {tuple(map(int, place)) for place in np.argwhere(volume == number)}
        for number in np.unique(volume)
    }


def slow_boundary(volume, gt_labels):
    """Return the pixels with another label among the six around them, where both are not void."""
    found = set()
    for place in np.ndindex(volume.shape):
        for axis, step in ((axis, step) for axis in range(3) for step in (-1, 1)):
            other = list(place)
            other[axis] += step
            if not 0 <= other[axis] < volume.shape[axis]:
                continue
            is_scored = VOID not in (gt_labels[place], gt_labels[tuple(other)])
            if is_scored and volume[place] != volume[tuple(other)]:
                found.add(place)
    return found


def slow_metrics(labels, gt_labels, images):
    void = pixels_of(gt_labels).get(VOID, set())
    spixels = {number: pixels - void for number, pixels in pixels_of(labels).items()}
    segments = {number: pixels for number, pixels in pixels_of(gt_labels).items() if number != VOID}
    accuracies, errors = [], []
    for segment in segments.values():
        touching = [spixel for spixel in spixels.values() if spixel & segment]
        inside = [spixel & segment for spixel in touching if len(spixel & segment) >= len(spixel - segment)]
        accuracies.append(sum(map(len, inside)) / len(segment))
        errors.append((sum(map(len, touching)) - len(segment)) / len(segment))
    gt_boundary = slow_boundary(gt_labels, gt_labels)
    within = sum(
        images[labels == number].var(axis=0).sum() * (labels == number).sum() for number in np.unique(labels)
    )
    sizes = {number: (labels == number).sum(axis=(1, 2)) for number in np.unique(labels)}
    lasting = [of_label[of_label > 0] for of_label in sizes.values() if (of_label > 0).sum() > 1]
    frames = [
        score_label_maps([frame], image, [mask], ["asa", "boundary_recall"])[0].pairs[0]
        for frame, mask, image in zip(labels, gt_labels, images, strict=True)
        if (mask != VOID).any()
    ]
    return {
        "n_spixels": np.mean([len(np.unique(frame)) for frame in labels]),
        "n_labels": len(sizes),
        "sa3d": np.mean(accuracies),
        "ue3d": np.mean(errors),
        "br3d": len(slow_boundary(labels, gt_labels) & gt_boundary) / len(gt_boundary),
        "ev3d": 1 - within / (images.reshape(-1, 3).var(axis=0).sum() * labels.size),
        "tex": np.mean([(of_label > 0).mean() for of_label in sizes.values()]),
        "size_variation": np.mean([of_label.std() / of_label.mean() for of_label in lasting]),
        "asa": np.mean([frame["asa"] for frame in frames]),
        "boundary_recall": np.mean([frame["boundary_recall"] for frame in frames]),
    }


# By hand


def test_two_frames_by_hand():
    labels = [[[0, 0, 1, 1]], [[0, 2, 1, 1]]]
    gt_labels = [[[0, 0, 0, 1]], [[0, 0, 1, 1]]]
    grey = [[[0, 0, 6, 6]], [[3, 6, 6, 6]]]
    scores = score(labels, gt_labels, np.repeat(np.uint8(grey)[..., None], 3, axis=-1))
    assert scores == pytest.approx(
        {
            "n_spixels": 2.5,
            "n_labels": 3,
            # Of the 5 pixels of the background, 3 are in supervoxel 0 and 1 in 2, which leak nowhere; 1 is in
            # supervoxel 1, which lies in the object by 3 of 4 pixels, and covers it.
            "sa3d": (4 / 5 + 3 / 3) / 2,
            "ue3d": ((3 + 4 + 1 - 5) / 5 + (4 - 3) / 3) / 2,
            # Boundary columns of the masks: 2, 3 and 1, 2. Of the supervoxels: 1, 2 and 0, 1, 2.
            "br3d": 3 / 4,
            # Only supervoxel 0 varies: 0, 0, 3 with mean 1. All eight values have sum 33 and squares 189.
            "ev3d": 1 - (1 + 1 + 4) / (189 - 33**2 / 8),
            "tex": (1 + 1 + 1 / 2) / 3,
            # Sizes 2, 1 and 2, 2; supervoxel 2 lives in one frame.
            "size_variation": (0.5 / 1.5 + 0) / 2,
            "asa": (3 / 4 + 1) / 2,
            "boundary_recall": (1 / 2 + 1) / 2,
        },
        abs=1e-12,
    )
    assert list(scores) == list(VIDEO_METRICS)
    assert {type(value) for value in scores.values()} == {float}


def test_half_of_a_supervoxel_is_enough():
    assert score([[[0, 0, 1, 1]]], [[[0, 1, 1, 1]]])["sa3d"] == (1 + 3 / 3) / 2
    assert score([[[0, 0, 0, 1]]], [[[0, 1, 1, 1]]])["sa3d"] == (0 + 3 / 3) / 2


def test_objects_that_move_have_a_boundary_in_time():
    gt_labels = np.zeros((2, 3, 6), int)
    gt_labels[0, :, :2] = gt_labels[1, :, 4:] = 1
    scores = score(np.zeros_like(gt_labels), gt_labels)
    assert scores["br3d"] == 0
    labels = np.zeros_like(gt_labels)
    labels[1] = 1  # differs in time at all pixels, and within no frame
    scores = score(labels, gt_labels)
    assert (scores["br3d"], scores["boundary_recall"]) == (1, 0)


def test_perfect_segmentation():
    _, gt_labels, images = random_volume(with_void=False)
    scores = score(gt_labels + 7, gt_labels, images)
    assert [scores[name] for name in WITH_MASK] == [1, 0, 1, 1, 1]


def test_single_supervoxel():
    _, gt_labels, images = random_volume(with_void=False)
    scores = score(np.zeros_like(gt_labels), gt_labels, images)
    sizes = np.bincount(gt_labels.ravel())
    assert scores["ue3d"] == pytest.approx(np.mean((sizes.sum() - sizes) / sizes))
    assert [scores[name] for name in ("br3d", "tex", "n_labels")] == [0, 1, 1]
    assert scores["ev3d"] == pytest.approx(0, abs=1e-12)


def test_label_that_reappears():
    labels = np.array([[[0, 0]], [[1, 1]], [[0, 1]]])
    scores = score(labels, np.zeros_like(labels))
    assert scores["tex"] == pytest.approx(2 / 3)  # each label in two of three frames
    assert scores["n_labels"] == 2
    assert scores["size_variation"] == pytest.approx(0.5 / 1.5)  # sizes 2, 1 of both


def test_object_that_leaves():
    labels, gt_labels = [[[0, 1]], [[0, 1]]], [[[0, 1]], [[0, 2]]]
    scores = score(labels, gt_labels)
    # Supervoxel 1 lies in both objects by half.
    assert (scores["sa3d"], scores["ue3d"]) == (1, pytest.approx((0 + 1 + 1) / 3))


def test_one_frame():
    labels, gt_labels, images = random_volume((1, 6, 9), with_void=False)
    scores = score(labels, gt_labels, images)
    ((pairs,),) = (
        each.pairs for each in score_label_maps(labels, images[0], gt_labels, ["asa", "boundary_recall"])
    )
    # The tolerance of frames this small is 0, as in BR3D.
    assert scores["br3d"] == scores["boundary_recall"] == pairs["boundary_recall"]
    assert scores["asa"] == pairs["asa"]
    assert scores["tex"] == 1
    assert math.isnan(scores["size_variation"])


def test_labels_that_end_with_their_frame_have_no_size_variation():
    labels, gt_labels, images = random_volume()
    new_in_each_frame = labels + 10 * np.arange(len(labels))[:, None, None]
    scores = score(new_in_each_frame, gt_labels, images)
    assert math.isnan(scores["size_variation"])
    assert scores["tex"] == 1 / len(labels)


def test_single_colour_is_explained():
    labels, gt_labels, images = random_volume()
    assert score(labels, gt_labels, np.full_like(images, 201))["ev3d"] == 1


def test_masks_without_a_boundary_are_recalled():
    labels = random_volume()[0]
    assert score(labels, np.zeros_like(labels))["br3d"] == 1


# Against the slow versions


@pytest.mark.parametrize("seed", range(12))
def test_random_volumes_equal_the_slow_version(seed):
    # With many segments, some are missing in a frame.
    volume = random_volume(n_labels=2 + seed, n_segments=2 + 3 * seed, with_void=seed % 3 > 0, seed=seed)
    assert score(*volume) == pytest.approx(slow_metrics(*volume), abs=1e-12)


def test_large_and_other_numbers_change_nothing():
    labels, gt_labels, images = random_volume()
    gt_labels[2] = np.minimum(gt_labels[2], 1)  # a segment is missing
    labels[3] = np.maximum(labels[3], 2)
    numbers = np.array([2**40, 3, 2**62, 0, 70_000, 9])
    segments = np.array([5, 2**31 - 1, 0, VOID])  # void is -1, the last
    assert score(numbers[labels], segments[gt_labels], images) == pytest.approx(
        score(labels, gt_labels, images), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64])
def test_types_of_labels(dtype):
    labels, gt_labels, images = random_volume()
    assert score(labels.astype(dtype), gt_labels, images) == score(labels, gt_labels, images)


# Void


def test_labels_of_void_pixels_do_not_count():
    labels, gt_labels, images = random_volume()
    expected = score(labels, gt_labels, images)
    rng = np.random.default_rng(1)
    changed = np.where(gt_labels == VOID, rng.integers(0, 6, labels.shape), labels)
    assert (changed != labels).any()
    scores = score(changed, gt_labels, images)
    assert {name: scores[name] for name in WITH_MASK} == {name: expected[name] for name in WITH_MASK}


def test_void_alone_has_no_scores_but_labels_have():
    labels, _, images = random_volume()
    scores = score(labels, np.full_like(labels, VOID), images)
    assert all(math.isnan(scores[name]) for name in WITH_MASK)
    expected = score(labels, np.zeros_like(labels), images)
    for name in ("tex", "ev3d", "size_variation", "n_spixels", "n_labels"):
        assert scores[name] == expected[name]


# Streaming


def test_result_of_the_frames_so_far():
    labels, gt_labels, images = random_volume()
    metrics = VideoMetrics()
    assert all(map(math.isnan, metrics.result().values()))
    for n_frames, frame in enumerate(zip(labels, gt_labels, images, strict=True), 1):
        metrics.add(*frame)
        expected = score(labels[:n_frames], gt_labels[:n_frames], images[:n_frames])
        for _ in range(2):  # reading changes nothing
            assert metrics.result() == pytest.approx(expected, nan_ok=True)


def test_arrays_of_the_caller_may_be_reused():
    labels, gt_labels, images = random_volume()
    metrics = VideoMetrics()
    buffers = [np.empty_like(volume[0]) for volume in (labels, gt_labels, images)]
    for frame in zip(labels, gt_labels, images, strict=True):
        for buffer, values in zip(buffers, frame, strict=True):
            buffer[:] = values
        metrics.add(*buffers)
    assert metrics.result() == score(labels, gt_labels, images)


def test_memory_does_not_grow_with_the_frames():
    labels = np.repeat(np.arange(4), 200 * 50).reshape(200, 200)
    image_rgb = np.zeros((200, 200, 3), np.uint8)
    metrics = VideoMetrics()
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(6):
            metrics.add(labels, labels // 2, image_rgb)
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[-1] - sizes[1] < 0.1 * labels.size  # bytes; a frame of bool has labels.size


# Bad input


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": np.zeros((3, 4), int)}, r"superpixels: \(3, 4\), but the frames are \(3, 5\)"),
        ({"gt_labels": np.zeros((5, 3), int)}, r"the mask: \(5, 3\), but"),
        ({"labels": np.full((3, 5), -1)}, "not be negative, got -1"),
        ({"gt_labels": np.full((3, 5), -2)}, "not be negative, got -2"),
        ({"labels": np.zeros((3, 5))}, "float64"),
        ({"image_rgb": np.zeros((3, 5, 3))}, "uint8, got float64"),
        ({"image_rgb": np.zeros((3, 5), np.uint8)}, r"\(H, W, 3\) uint8"),
        (
            {
                name: np.zeros(shape, np.uint8)
                for name, shape in {"labels": (3, 6), "gt_labels": (3, 6), "image_rgb": (3, 6, 3)}.items()
            },
            r"but the frames are \(3, 5\)",
        ),
    ],
)
def test_bad_frames(changes, expected):
    frame = {
        "labels": np.zeros((3, 5), int),
        "gt_labels": np.zeros((3, 5), int),
        "image_rgb": np.zeros((3, 5, 3), np.uint8),
    }
    metrics = VideoMetrics()
    metrics.add(**frame)
    with pytest.raises(ValueError, match=expected):
        metrics.add(**{**frame, **changes})
