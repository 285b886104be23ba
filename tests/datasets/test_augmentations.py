"""Jitter of colours and patches: what changes, by how much, and what stays."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from lib.datasets.augmentations import augment, draw_color_jitter, draw_patch_jitter
from lib.datasets.bsds import BSDSDataset
from lib.datasets.crops import TrainingCrops
from lib.datasets.davis import DAVISDataset
from lib.metrics.label_map import VOID


def draw_source(seed, size, probability=1.0):
    return draw_patch_jitter(probability, np.random.default_rng(seed), size)["source"].numpy()


def encoded_crop(size=40):
    """Return a crop whose colours and flow encode the labels of both annotations."""
    gt_labels = torch.randint(VOID, 30, (2, size, size))
    first, second = gt_labels.float()
    return {
        "image_lab": torch.stack([first + 1, second, first - second]),
        "gt_labels": gt_labels,
        "n_labels": torch.tensor(30),
        "extra": torch.stack([first, -first, 2 * second, second - first]),
    }


def test_colours_and_flow_still_encode_the_labels_after_patch_jitter():
    for seed in range(20):
        plain = encoded_crop()
        crop = augment(plain, draw_patch_jitter(1, np.random.default_rng(seed), 40))
        first, second = crop["gt_labels"].float()
        assert crop["image_lab"].equal(torch.stack([first + 1, second, first - second]))
        assert crop["extra"].equal(torch.stack([first, -first, 2 * second, second - first]))
        assert crop["n_labels"] == 30
        for name in ("image_lab", "gt_labels", "extra"):
            assert crop[name].dtype == plain[name].dtype
            assert not crop[name].equal(plain[name])


def test_pixels_come_from_their_source():
    source = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
    gt_labels = torch.tensor([[[5, 6], [7, 8]]])
    crop = augment({"image_lab": torch.zeros(3, 2, 2), "gt_labels": gt_labels}, {"source": source})
    assert crop["gt_labels"].tolist() == [[[8, 6], [5, 7]]]


def explain(source):
    """Find by trial what gives `source`: is the band of rows, its width, its shift, side of the squares."""
    size = len(source)
    identity = np.arange(size * size).reshape(size, size)
    sides = range(size // 8, size // 4 + 1)
    for is_of_rows in (True, False):
        for width in sides:
            for first in range(size - width + 1):
                for shift in range(size):
                    swapped = (source if is_of_rows else source.T).copy()
                    swapped[first : first + width] = np.roll(swapped[first : first + width], -shift, axis=1)
                    swapped = swapped if is_of_rows else swapped.T
                    side = side_of_swapped_squares(swapped, identity)
                    if side in sides:
                        return is_of_rows, width, shift, side
    return None


def side_of_swapped_squares(source, identity):
    """Return the side of the two squares that swapped places, if nothing else moved; else 0."""
    moved = source != identity
    side = math.isqrt(int(moved.sum()) // 2)
    if 2 * side**2 != moved.sum() or side == 0:
        return 0
    distances = np.unique((source - identity)[moved])
    if len(distances) != 2 or distances.sum() != 0:
        return 0
    first, second = (source - identity == distance for distance in distances)
    for square in (first, second):
        rows, columns = np.nonzero(square)
        if np.ptp(rows) + 1 != side or np.ptp(columns) + 1 != side:
            return 0
    return side


def test_patch_jitter_swaps_two_squares_and_then_moves_a_band():
    found = [explain(draw_source(seed, 16)) for seed in range(24)]
    assert None not in found
    are_of_rows, widths, shifts, sides = (set(values) for values in zip(*found, strict=True))
    assert are_of_rows == {True, False}
    assert widths == sides == {2, 3, 4}
    assert len(shifts) > 8


@pytest.mark.parametrize("size", [1, 2, 4, 7, 9, 200])
def test_every_pixel_stays_in_the_crop(size):
    for seed in range(20):
        source = draw_source(seed, size)
        assert source.shape == (size, size)
        assert np.sort(source, axis=None).tolist() == list(range(size**2))


def test_squares_may_lie_anywhere():
    """Every pixel of the crop moves sometimes, and is the source of another."""
    moved = sum(draw_source(seed, 16) != np.arange(256).reshape(16, 16) for seed in range(300))
    assert moved.min() > 20
    assert moved.max() < 200


def test_probability_of_patch_jitter():
    identity = np.arange(400).reshape(20, 20)
    moved = [not np.array_equal(draw_source(seed, 20, 0.25), identity) for seed in range(400)]
    assert np.mean(moved) == pytest.approx(0.25, abs=0.06)


def jittered(image_lab, scale, seed):
    pixels = torch.tensor(image_lab).T.reshape(3, 1, -1)
    drawn = draw_color_jitter(scale, np.random.default_rng(seed))
    return augment({"image_lab": pixels}, drawn)["image_lab"].flatten(1).T


@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_range_of_color_jitter(scale):
    grey, lighter, colour = [50.0, 0.0, 0.0], [60.0, 0.0, 0.0], [50.0, 20.0, -10.0]
    results = torch.stack([jittered([grey, lighter, colour], scale, seed) for seed in range(400)])
    assert results.dtype == torch.float32
    grey, lighter, colour = results.unbind(1)
    offsets = (grey - torch.tensor([50.0, 0, 0])) / scale / torch.tensor([50.0, 25, 25])
    contrast = ((lighter - grey)[:, 0] / 10).log() / scale
    saturation = ((colour - grey)[:, 1] / 20).log() / scale
    torch.testing.assert_close((colour - grey)[:, 2], (colour - grey)[:, 1] / -2)
    torch.testing.assert_close(lighter[:, 1:], grey[:, 1:])
    drawn = torch.cat([offsets, contrast[:, None], saturation[:, None]], dim=1).double()
    assert drawn.abs().max() < 1.0001  # uniform from -1 to 1, and independent
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(drawn.std(0), 3**-0.5, atol=0.05)
    np.testing.assert_allclose(torch.corrcoef(drawn.T), np.eye(5), atol=0.15)


def test_jittered_colours_stay_in_the_range_of_cielab():
    extremes = [
        [lightness, a, b] for lightness in (0.0, 100.0) for a in (-128.0, 127.0) for b in (-110.0, 100.0)
    ]
    results = torch.cat([jittered(extremes, 1, seed) for seed in range(50)])
    assert results.amin(0).tolist() == [0, -128, -128]
    assert results.amax(0).tolist() == [100, 127, 127]


def test_batch_is_its_crops(device):
    crops = [encoded_crop() for _ in range(3)]
    drawn = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        drawn.append(draw_color_jitter(0.5, rng) | draw_patch_jitter(1, rng, 40))
    on_device = []
    for each in (crops, drawn):
        values = default_collate(each)
        on_device.append({name: value.to(device) for name, value in values.items()})
    batch = augment(*on_device)
    for idx, (crop, of_crop) in enumerate(zip(crops, drawn, strict=True)):
        for name, value in augment(crop, of_crop).items():
            torch.testing.assert_close(batch[name][idx].cpu(), value)


def test_crops_change_as_drawn_and_in_nothing_else(davis_root, optflow_folder):
    dataset = DAVISDataset(davis_root, str(davis_root / "both.txt"), optflow_folder=optflow_folder)
    plain, colored, moved, both = (
        TrainingCrops(dataset, n_annotations=1, seed=2, crop_size=48, **jitter)
        for jitter in (
            {},
            {"color_jitter": 0.4},
            {"patch_jitter": 1.0},
            {"color_jitter": 0.4, "patch_jitter": 1.0},
        )
    )
    assert plain.draw_augmentation(0) == {}
    for idx in range(8):
        before = plain[idx]
        assert not colored[idx]["image_lab"].equal(before["image_lab"])
        for name in ("gt_labels", "n_labels", "extra"):
            assert colored[idx][name].equal(before[name])
        assert both[idx]["image_lab"].equal(augment(colored[idx], moved.draw_augmentation(idx))["image_lab"])
        # Pixels move, and each takes its colour, its label and its flow along.
        pixels = []
        for sample in (before, moved[idx]):
            channels = [sample[name].flatten(1).double() for name in ("image_lab", "gt_labels", "extra")]
            pixels.append(torch.cat(channels).T)
        assert not pixels[0].equal(pixels[1])
        assert sorted(pixels[0].tolist()) == sorted(pixels[1].tolist())


def test_jitter_differs_between_samples_and_seeds(bsds_root):
    dataset = BSDSDataset(bsds_root, "train")
    colors, places = set(), set()
    for seed in range(3):
        crops = TrainingCrops(dataset, n_annotations=1, seed=seed, color_jitter=0.1, patch_jitter=1.0)
        for idx in range(20):
            drawn = crops.draw_augmentation(idx)
            assert all(value.equal(drawn[name]) for name, value in crops.draw_augmentation(idx).items())
            colors.add(tuple(drawn["lab_offset"].tolist()))
            places.add(tuple(drawn["source"].flatten().tolist()))
    assert len(colors) == len(places) == 60
