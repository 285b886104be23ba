"""Labels of whole videos in files of other software."""

import re

import h5py
import numpy as np
import pytest
from PIL import Image

from lib.datasets.davis import DAVISDataset
from lib.datasets.label_volumes import open_label_volume
from lib.runtime.errors import InputError

SHAPE = (6, 9)
LABELS = np.random.default_rng(0).integers(0, 60_000, (11, *SHAPE)).astype(np.uint16)


def write_h5(path, labels, *, name="labels"):
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=labels)


def write_pngs(folder, labels):
    folder.mkdir()
    for idx, frame in enumerate(labels):
        Image.fromarray(frame).save(folder / f"{idx}.png")


def test_both_formats_hold_the_same_labels(tmp_path):
    write_h5(tmp_path / "car.h5", LABELS.astype(np.int64))
    write_pngs(tmp_path / "dogs", LABELS)
    write_pngs(tmp_path / "pigs", LABELS.astype(np.uint8))
    (tmp_path / "dogs" / "._0.png").write_bytes(b"hidden")
    for video, expected in (("car", LABELS), ("dogs", LABELS), ("pigs", LABELS % 256)):
        volume = open_label_volume(tmp_path, video)
        assert volume.n_frames == len(LABELS)
        for idx in (0, 2, 10):  # 10.png comes after 2.png
            np.testing.assert_array_equal(volume.read(idx, SHAPE), expected[idx])


@pytest.mark.parametrize("shape", [(9, 6), (6, 8)])
def test_other_sizes_are_refused_by_name(tmp_path, shape):
    write_h5(tmp_path / "car.h5", LABELS)
    write_pngs(tmp_path / "dogs", LABELS)
    for video, file in (("car", "car.h5"), ("dogs", "dogs/3.png")):
        with pytest.raises(InputError, match=re.escape(f"{tmp_path / file} ") + r".*\(6, 9\)"):
            open_label_volume(tmp_path, video).read(3, shape)


def test_missing_and_double_volumes(tmp_path):
    with pytest.raises(InputError, match=r"lacks the labels of car: car.h5, or car/00000.png"):
        open_label_volume(tmp_path, "car")
    write_h5(tmp_path / "car.h5", LABELS)
    write_pngs(tmp_path / "car", LABELS)
    with pytest.raises(InputError, match=r"twice: car.h5 and car/"):
        open_label_volume(tmp_path, "car")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no .png file"):
        open_label_volume(tmp_path, "empty")


@pytest.mark.parametrize(
    ("labels", "name", "expected"),
    [
        (LABELS, "other", "car.h5 lacks the dataset labels; it holds other"),
        (LABELS[0], "labels", r"car.h5 must be \(T, H, W\) integers, got uint16 of \(6, 9\)"),
        (LABELS.astype(np.float32), "labels", "car.h5 must be .* got float32"),
        (LABELS.astype(np.int32) - 60_000, "labels", "car.h5: frame 0 holds the negative label -"),
    ],
)
def test_bad_hdf5_files(tmp_path, labels, name, expected):
    write_h5(tmp_path / "car.h5", labels, name=name)
    with pytest.raises(InputError, match=expected):
        open_label_volume(tmp_path, "car").read(0, SHAPE)


def test_damaged_files(tmp_path):
    (tmp_path / "car.h5").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"car.h5 is not a readable HDF5 file"):
        open_label_volume(tmp_path, "car")
    write_pngs(tmp_path / "dogs", LABELS)
    content = (tmp_path / "dogs" / "4.png").read_bytes()
    (tmp_path / "dogs" / "4.png").write_bytes(content[:60])
    with pytest.raises(InputError, match=r"dogs/4.png is not a readable label map"):
        open_label_volume(tmp_path, "dogs").read(4, SHAPE)
    Image.new("RGB", SHAPE[::-1]).save(tmp_path / "dogs" / "5.png")
    with pytest.raises(InputError, match=r"dogs/5.png must be a PNG with one channel"):
        open_label_volume(tmp_path, "dogs").read(5, SHAPE)


def test_subset_of_frames_has_their_masks_and_flow(davis_root, optflow_folder):
    every = DAVISDataset(davis_root, str(davis_root / "both.txt"), optflow_folder=optflow_folder)
    (image,) = every.subset([3])
    assert image.name == every[3].name == "dogs/00001"
    np.testing.assert_array_equal(image.annotations, every[3].annotations)
    np.testing.assert_array_equal(image.extra, every[3].extra)
    assert len(every) == 4


def test_first_frames_of_each_video(davis_root, optflow_folder):
    split = str(davis_root / "both.txt")
    every = DAVISDataset(davis_root, split, optflow_folder=optflow_folder)
    first = DAVISDataset(davis_root, split, optflow_folder=optflow_folder, max_frames=1)
    assert [image.name for image in first] == ["car/00000", "dogs/00000"]
    for image, expected in zip(first, (every[0], every[2]), strict=True):
        np.testing.assert_array_equal(image.image_rgb, expected.image_rgb)
        np.testing.assert_array_equal(image.extra, expected.extra)
    assert first.video_lengths == every.video_lengths == {"car": 2, "dogs": 2}
    assert [first.n_used("car"), every.n_used("car")] == [1, 2]
    assert len(DAVISDataset(davis_root, split, max_frames=5)) == 4
