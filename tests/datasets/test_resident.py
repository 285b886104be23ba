"""Training data in the memory of the device: its crops are the crops of the loader."""

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import lab2rgb

from helpers import make_quadrants, make_texture
from lib.datasets.augmentations import augment
from lib.datasets.base import VOID, channels_first, check_image
from lib.datasets.bsds import BSDSDataset
from lib.datasets.crops import Crop, TrainingCrops
from lib.datasets.davis import DAVISDataset
from lib.datasets.folder import FolderDataset
from lib.datasets.loaders import training_loader
from lib.datasets.resident import find_places, load_resident
from lib.datasets.synthetic import SyntheticDataset
from lib.network.inputs import rgb_to_lab
from lib.runtime.errors import InputError, TooLargeError
from lib.runtime.signals import Stop, stop_flag

CPU = torch.device("cpu")

SHAPES = [(60, 92), (92, 60), (7, 45), (1, 30), (150, 131)]


@pytest.fixture
def folder(tmp_path):
    """Noisy images of several sizes, larger and smaller than a crop, with one to three annotations."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for idx, shape in enumerate(SHAPES):
        image_rgb = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(image_rgb).save(folder / f"{idx}.bmp")
        for annotation in range(1 + idx % 3):
            labels = make_quadrants(*shape)[1] * 50 + rng.integers(0, 7, shape)  # with gaps
            np.save(folder / f"{idx}.{annotation}.npy", labels)
    return folder


def load(dataset, device=CPU):
    places = find_places(dataset, device, data_on_device=True)
    return load_resident(dataset, places, device, n_workers=0)


def collect(loader, data=None):
    """Return the samples of the batches of a loader: tensors by name."""
    samples = []
    for batch in loader:
        batch = data.cut(batch) if data else batch
        names = list(batch)
        samples += [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    return samples


def drawn_crop(dataset, crops, sample_idx):
    """Return the image of a sample, in CIELAB, and its crop."""
    image = check_image(dataset[crops.image_idx(sample_idx, len(dataset))])
    return rgb_to_lab(channels_first(image.image_rgb)), crops.draw(sample_idx, image.annotations)[1]


def resize_by_pillow(image_lab, crop):
    """Cut a crop from CIELAB with Pillow."""
    box = (crop.left, crop.top, crop.left + crop.extent, crop.top + crop.extent)
    size = (crop.size, crop.size)
    cut = [
        np.asarray(Image.fromarray(channel.numpy()).resize(size, Image.Resampling.BILINEAR, box=box))
        for channel in image_lab
    ]
    flipped = np.stack(cut)[:, :: -1 if crop.is_upside_down else 1, :: -1 if crop.is_flipped else 1]
    return torch.from_numpy(np.rot90(flipped, crop.n_quarter_turns, axes=(1, 2)).copy())


@pytest.mark.parametrize("turns", [{}, {"vertical_flips": True, "quarter_turns": True}])
@pytest.mark.parametrize("jitter", [{}, {"color_jitter": 0.2, "patch_jitter": 0.5}])
@pytest.mark.parametrize("crop_size", [1, 40, 75])
def test_crops_are_those_of_the_loader(folder, device, crop_size, turns, jitter):
    dataset = FolderDataset(folder)
    drawing = {"n_annotations": 2, "seed": 4, "crop_size": crop_size, **turns, **jitter}
    crops, data = TrainingCrops(dataset, **drawing), load(dataset, device)
    samples = collect(training_loader(data.plans(**drawing), batch_size=5, n_steps=8, n_workers=0), data)
    reductions, directions = [], set()
    for sample_idx, sample in enumerate(samples):
        expected = crops[sample_idx]
        assert sample["gt_labels"].dtype == torch.int64
        assert sample["gt_labels"].cpu().equal(expected["gt_labels"])
        assert sample["n_labels"] == expected["n_labels"] == expected["gt_labels"].max() + 1
        # Colours are resized in CIELAB here, and in RGB by the loader; so Pillow resizes CIELAB for the test.
        image_lab, crop = drawn_crop(dataset, crops, sample_idx)
        resized = {"image_lab": resize_by_pillow(image_lab, crop)}
        resized = augment(resized, crops.draw_augmentation(sample_idx))
        ours = sample["image_lab"].cpu()
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, resized["image_lab"], rtol=0, atol=0.05)  # float16
        reductions.append(crop.extent / crop.size)
        directions.add((crop.is_flipped, crop.is_upside_down, crop.n_quarter_turns))
    assert min(reductions) < 0.8 or crop_size == 1  # which is at least one pixel of the image
    assert max(reductions) == pytest.approx(1 / 0.75)
    assert len(directions) > 12 if turns else len(directions) == 2


def test_colours_are_within_two_steps_of_the_loader_unless_reduced(tmp_path, device):
    """Compare in RGB, on edges of up to 26 steps a pixel; at harder ones, mixtures in Lab and RGB differ."""
    texture = 60 + make_texture() / 2
    image_rgb = np.stack([texture, texture[::-1], texture[:, ::-1]], axis=-1).round().astype(np.uint8)
    Image.fromarray(image_rgb).save(tmp_path / "a.bmp")
    np.save(tmp_path / "a.npy", make_quadrants(*texture.shape)[1])
    dataset = FolderDataset(tmp_path)
    drawing = {"n_annotations": 1, "seed": 0, "crop_size": 64}
    crops, data = TrainingCrops(dataset, **drawing), load(dataset, device)
    samples = collect(training_loader(data.plans(**drawing), batch_size=4, n_steps=8, n_workers=0), data)
    n_compared = 0
    for sample_idx, sample in enumerate(samples):
        if drawn_crop(dataset, crops, sample_idx)[1].extent <= 64:
            ours, theirs = (
                255 * lab2rgb(each["image_lab"].cpu().permute(1, 2, 0).numpy())
                for each in (sample, crops[sample_idx])
            )
            assert np.abs(ours - theirs).max() < 2
            n_compared += 1
    assert n_compared > 5


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("jitter", [{}, {"color_jitter": 0.2, "patch_jitter": 0.5}])
def test_samples_depend_on_seed_and_number_alone(folder, monkeypatch, device, n_ranks, batch_size, jitter):
    dataset = FolderDataset(folder)
    data = load(dataset, device)
    plans = data.plans(n_annotations=1, seed=3, crop_size=20, **jitter)
    alone = collect(training_loader(plans, batch_size=6, n_steps=6, n_workers=0), data)
    monkeypatch.setattr("lib.datasets.loaders.n_ranks", lambda: n_ranks)
    first = 5  # of a resumed run
    for rank in range(n_ranks):
        monkeypatch.setattr("lib.datasets.loaders.rank", lambda rank=rank: rank)
        loader = training_loader(plans, batch_size=batch_size, n_steps=2, first_sample=first, n_workers=0)
        shared = collect(loader, data)
        for idx, sample in enumerate(shared):
            step, position = divmod(idx, batch_size)
            same = alone[first + (step * n_ranks + rank) * batch_size + position]
            assert sample["gt_labels"].equal(same["gt_labels"])
            torch.testing.assert_close(sample["image_lab"], same["image_lab"], rtol=0, atol=1e-4)
    for one, other in pairwise(alone):
        assert not one["image_lab"].equal(other["image_lab"])


def test_crops_and_images_are_read_in_worker_processes(bsds_root):
    dataset = BSDSDataset(bsds_root, "train")
    places = find_places(dataset, CPU, data_on_device=True)
    alone, data = (load_resident(dataset, places, CPU, n_workers=n_workers) for n_workers in (0, 2))
    assert data.image_lab.equal(alone.image_lab)
    assert data.labels.equal(alone.labels)
    plans = data.plans(n_annotations=1, seed=0, crop_size=20, color_jitter=0.2, patch_jitter=0.5)
    expected, loaded = (
        collect(training_loader(plans, batch_size=2, n_steps=3, n_workers=n_workers), data)
        for n_workers in (0, 2)
    )
    for ours, theirs in zip(loaded, expected, strict=True):
        for name, value in theirs.items():
            assert value.equal(ours[name])


def test_annotations_of_more_segments_than_a_byte_holds(folder):
    labels = np.arange(150 * 131).reshape(150, 131)
    np.save(folder / "4.0.npy", 3 * labels)
    data = load(FolderDataset(folder))
    assert data.labels.dtype == torch.int32
    place = data.places[4]
    in_order = data.labels[place.first_label : place.first_label + labels.size]
    assert in_order.equal(torch.from_numpy(labels.ravel()).int() + 1)  # 0 is void


def test_void_is_that_of_the_loader(folder):
    for file in folder.glob("*.npy"):
        labels = np.load(file)
        labels[: len(labels) // 2, ::3] = 99
        np.save(file, labels)
    dataset = FolderDataset(folder, ignore_label=99)
    drawing = {"n_annotations": 2, "seed": 4, "crop_size": 40}
    crops, data = TrainingCrops(dataset, **drawing), load(dataset)
    samples = collect(training_loader(data.plans(**drawing), batch_size=5, n_steps=4, n_workers=0), data)
    shares = []
    for sample_idx, sample in enumerate(samples):
        expected = crops[sample_idx]
        assert sample["gt_labels"].equal(expected["gt_labels"])
        assert sample["n_labels"] == expected["n_labels"]
        shares.append((sample["gt_labels"] == VOID).double().mean())
    assert 0.1 < np.mean(shares) < 0.3


def test_wide_annotations_that_do_not_fit(folder, monkeypatch):
    np.save(folder / "4.0.npy", np.arange(150 * 131).reshape(150, 131))
    dataset = FolderDataset(folder)
    places = find_places(dataset, CPU, data_on_device=True)
    monkeypatch.setattr("lib.runtime.memory.free_memory", lambda device: 4 * places[-1].end_label - 1)
    monkeypatch.setattr("lib.runtime.memory._UNCHECKED", 0)
    with pytest.raises(TooLargeError, match=r"`data_on_device`: .* more than 255 segments in an image needs"):
        load_resident(dataset, places, CPU, n_workers=0)


def test_memory_of_the_data(bsds_root):
    """Count six bytes a pixel, and one more for every annotation."""
    dataset = BSDSDataset(bsds_root, "train")
    data = load(dataset)
    assert data.image_lab.nbytes + data.labels.nbytes == 4 * 60 * 92 * (6 + 2)


NEEDED = 4 * 60 * 92 * (6 + 2)


@pytest.mark.parametrize(
    ("choice", "device", "free", "is_kept"),
    [
        (False, "cuda", 100 * NEEDED, False),
        ("auto", "cpu", 100 * NEEDED, False),
        ("auto", "cuda", 2 * NEEDED, True),
        ("auto", "cuda", 2 * NEEDED - 2, False),
        (True, "cuda", NEEDED, True),
        (True, "cpu", NEEDED, True),
        (True, "cpu", None, True),
    ],
)
def test_choice_by_free_memory(bsds_root, monkeypatch, choice, device, free, is_kept):
    monkeypatch.setattr("lib.datasets.resident.free_memory", lambda device: free)
    places = find_places(BSDSDataset(bsds_root, "train"), torch.device(device), data_on_device=choice)
    assert (places is not None) == is_kept


def test_data_that_does_not_fit(bsds_root, monkeypatch, caplog):
    monkeypatch.setattr("lib.datasets.resident.free_memory", lambda device: 30_000_000)
    dataset = BSDSDataset(bsds_root, "train")
    monkeypatch.setattr(dataset, "annotation_counts", lambda: [5000] * 4)  # 5006 bytes a pixel
    device = torch.device("cuda", 1)
    with pytest.raises(
        InputError, match=r"^`data_on_device` True: needs 0\.11 GB, 0\.03 GB are free on cuda:1$"
    ):
        find_places(dataset, device, data_on_device=True)
    with caplog.at_level(logging.INFO):
        assert find_places(dataset, device, data_on_device="auto") is None
    assert caplog.messages == [
        "training data stays with the loader: needs 0.11 GB, 0.03 GB are free on cuda:1, "
        "and at most 50% of it is used"
    ]


def test_extra_channels_and_made_images_stay_with_the_loader(davis_root, optflow_folder, caplog):
    flow = DAVISDataset(davis_root, str(davis_root / "both.txt"), optflow_folder=optflow_folder)
    for dataset, reason in ((flow, "extra channels"), (SyntheticDataset(2), "not read from files")):
        with pytest.raises(InputError, match=f"`data_on_device` True: .*{reason}"):
            find_places(dataset, CPU, data_on_device=True)
        with caplog.at_level(logging.INFO):
            assert find_places(dataset, torch.device("cuda"), data_on_device="auto") is None
        assert reason in caplog.messages[-1]


def test_frames_without_flow(davis_root):
    dataset = DAVISDataset(davis_root, str(davis_root / "both.txt"))
    data = load(dataset)
    drawing = {"n_annotations": 1, "seed": 0, "crop_size": 50}
    (sample, *_) = collect(training_loader(data.plans(**drawing), batch_size=1, n_steps=1, n_workers=0), data)
    assert sample["gt_labels"].equal(TrainingCrops(dataset, **drawing)[0]["gt_labels"])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_broken_image_is_named(bsds_root, n_workers):
    dataset = BSDSDataset(bsds_root, "train")
    places = find_places(dataset, CPU, data_on_device=True)
    file = dataset.image_files[2]
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=str(file)):
        load_resident(dataset, places, CPU, n_workers=n_workers)


def test_reading_stops_on_request(bsds_root, monkeypatch):
    dataset = BSDSDataset(bsds_root, "train")
    places = find_places(dataset, CPU, data_on_device=True)

    def stop():
        raise Stop(2)

    monkeypatch.setattr(stop_flag, "raise_if_set", stop)
    with pytest.raises(Stop):
        load_resident(dataset, places, CPU, n_workers=0)


def test_drawing_does_not_depend_on_label_numbers():
    labels = np.zeros((90, 90), np.int32)
    labels[40:50, 40:50] = 1000
    crops = [
        Crop.draw(each, np.random.default_rng(seed), 20)
        for each in (labels, (labels > 0).astype(np.uint8))
        for seed in range(5)
    ]
    assert crops[:5] == crops[5:]
