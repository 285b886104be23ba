"""Datasets, augmentation and the stream of training samples."""

import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_array

from helpers import make_quadrants
from lib.datasets.base import SegmentedImage, fingerprint, hold_out, renumber
from lib.datasets.bsds import BSDSDataset
from lib.datasets.crops import DEFAULT_CROP_SIZE, Crop, TrainingCrops
from lib.datasets.davis import SPLITS, DAVISDataset, read_split
from lib.datasets.loaders import evaluation_loader, training_loader
from lib.metrics.label_map import VOID
from lib.runtime.errors import InputError


def test_bsds_yields_every_annotation(bsds_root):
    dataset = BSDSDataset(bsds_root, "val")
    assert len(dataset) == 3
    image = dataset[1]
    image_rgb, labels = make_quadrants(seed=11)
    assert image.name == "101"
    assert np.abs(image.image_rgb.astype(int) - image_rgb).mean() < 10  # JPEG
    assert len(image.annotations) == 2
    np.testing.assert_array_equal(image.annotations[0], labels + 1)
    np.testing.assert_array_equal(image.annotations[1], labels // 2 + 1)


def test_bsds_splits_follow_one_another(bsds_root):
    both = BSDSDataset(bsds_root, "train", "val")
    parts = [BSDSDataset(bsds_root, split) for split in ("train", "val")]
    assert len(both) == 4 + 3
    assert both.image_files == parts[0].image_files + parts[1].image_files
    assert both.annotation_counts() == [2] * 7
    for part, offset in zip(parts, (0, 4), strict=True):
        for idx in range(len(part)):
            np.testing.assert_array_equal(both[offset + idx].image_rgb, part[idx].image_rgb)
            np.testing.assert_array_equal(both[offset + idx].annotations, part[idx].annotations)
    with pytest.raises(InputError, match=r"`bsds_root` .*no folder .*images/no"):
        BSDSDataset(bsds_root, "train", "no")


def test_bsds_subset_has_its_images_and_annotations(bsds_root):
    whole = BSDSDataset(bsds_root, "train", "val")
    subset = whole.subset([6, 1])
    assert [len(whole), len(subset)] == [7, 2]
    for idx, original in enumerate((6, 1)):
        np.testing.assert_array_equal(subset[idx].image_rgb, whole[original].image_rgb)
        np.testing.assert_array_equal(subset[idx].annotations, whole[original].annotations)
    assert len({fingerprint(whole), fingerprint(subset), fingerprint(whole.subset([1, 6]))}) == 3


def test_bsds_without_a_validation_set_holds_out_every_tenth_image(bsds_root):
    images = bsds_root / "BSDS500/data/images"
    annotations = bsds_root / "BSDS500/data/groundTruth"
    for idx in range(200, 208):
        shutil.copy(images / "val/100.jpg", images / f"val/{idx}.jpg")
        shutil.copy(annotations / "val/100.mat", annotations / f"val/{idx}.mat")
    training, held_out = hold_out(BSDSDataset(bsds_root, "train", "val"))
    # 4 images of train, then 100, 101, 102 and 200 to 207 of val: numbers 0 and 10 are held out.
    assert [file.relative_to(images).as_posix() for file in held_out.image_files] == [
        "train/100.jpg",
        "val/203.jpg",
    ]
    assert len(training) == 4 + 11 - 2
    assert not set(training.image_files) & set(held_out.image_files)
    assert {file.stem for file in held_out.annotation_files} == {"100", "203"}


def test_bsds_in_another_layout_names_the_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"`bsds_root` .*no folder .*BSDS500/data/images/train"):
        BSDSDataset(tmp_path, "train")


def test_bsds_image_without_annotation_is_named(bsds_root):
    (bsds_root / "BSDS500/data/groundTruth/val/102.mat").unlink()
    with pytest.raises(InputError, match=r"1 images have no annotations.*102\.mat"):
        BSDSDataset(bsds_root, "val")


def test_bsds_folder_without_images(bsds_root):
    for file in (bsds_root / "BSDS500/data/images/val").glob("*.jpg"):
        file.unlink()
    with pytest.raises(InputError, match=r"no \*\.jpg in"):
        BSDSDataset(bsds_root, "val")


@pytest.mark.parametrize("content", ["garbage", "other variable", "no annotation", "other size"])
def test_bsds_bad_annotation_file_is_named(bsds_root, content):
    file = bsds_root / "BSDS500/data/groundTruth/val/100.mat"
    if content == "garbage":
        file.write_bytes(b"MATLAB? no")
    elif content == "other variable":
        savemat(file, {"labels": np.zeros((3, 3))})
    elif content == "no annotation":
        savemat(file, {"groundTruth": np.empty((1, 0), dtype=object)})
    else:
        Image.fromarray(make_quadrants(30, 40)[0]).save(bsds_root / "BSDS500/data/images/val/100.jpg")
    with pytest.raises(InputError, match=str(file)):
        BSDSDataset(bsds_root, "val")[0]


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (np.array([[1.0, 2.0]]), [1, 2]),  # MATLAB's default type
        (np.array([[0, 2**31 - 1]], np.uint64), [0, 2**31 - 1]),
        (np.array([[True, False]]), [1, 0]),
        (np.array([[1.0, 1.5]]), "the label 1.5;"),
        (np.array([[1.0, np.nan]]), "the label nan;"),
        (np.array([[1.0, np.inf]]), "the label inf;"),
        (np.array([[1, 2**31]], np.int64), "the label 2147483648;"),
        (np.array([[1, 2**64 - 1]], np.uint64), "the label 18446744073709551615;"),
        (np.array([[-1, 1]], np.int16), "the label -1;"),
    ],
)
def test_bsds_labels_are_whole_numbers_or_refused_by_name(bsds_root, labels, kept):
    Image.new("RGB", (2, 1)).save(bsds_root / "BSDS500/data/images/val/100.jpg")
    file = bsds_root / "BSDS500/data/groundTruth/val/100.mat"
    cells = np.empty((1, 1), dtype=object)
    cells[0, 0] = {"Segmentation": labels}
    savemat(file, {"groundTruth": cells})
    if isinstance(kept, list):
        (annotation,) = BSDSDataset(bsds_root, "val")[0].annotations
        assert annotation.dtype == np.int32
        assert annotation.tolist() == [kept]
    else:
        with pytest.raises(InputError, match=f"{file} holds {kept} expected whole numbers"):
            BSDSDataset(bsds_root, "val")[0]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (np.array([[1j, 1]]), "complex double"),
        (csc_array(np.array([[1.0, 0.0]])), "sparse"),
        ("labels", "char"),
    ],
)
def test_bsds_labels_that_are_no_numbers_are_refused_by_name(bsds_root, labels, kind):
    file = bsds_root / "BSDS500/data/groundTruth/val/100.mat"
    cells = np.empty((1, 1), dtype=object)
    cells[0, 0] = {"Segmentation": labels}
    savemat(file, {"groundTruth": cells})
    with pytest.raises(InputError, match=rf"{file} is not a readable .* of type {kind}; expected numbers"):
        BSDSDataset(bsds_root, "val")[0]


def test_davis_void_is_not_trained_on(davis_root):
    file = davis_root / "DAVIS/Annotations/480p/dogs/00000.png"
    labels = make_quadrants()[1]
    Image.fromarray(np.choose(labels, [0, 4, 255, 7]).astype(np.uint8)).save(file)
    dataset = DAVISDataset(davis_root, str(davis_root / "both.txt"))
    np.testing.assert_array_equal(dataset[2].annotations[0], np.choose(labels, [0, 4, VOID, 7]))
    samples = TrainingCrops(dataset, n_annotations=1, seed=0, crop_size=80)
    seen = {tuple(samples[idx]["gt_labels"].unique().tolist()) for idx in range(40)}
    assert (VOID, 0, 1, 2) in seen


def test_davis_reads_two_label_and_multi_object_masks(davis_root):
    dataset = DAVISDataset(davis_root, str(davis_root / "both.txt"))
    assert [dataset[idx].name for idx in range(len(dataset))] == [
        "car/00000",
        "car/00001",
        "dogs/00000",
        "dogs/00001",
    ]
    _, labels = make_quadrants()
    np.testing.assert_array_equal(dataset[0].annotations[0], np.minimum(labels, 1))
    np.testing.assert_array_equal(dataset[2].annotations[0], labels % 3)


def test_davis_frames_of_another_size_are_resized(davis_root):
    for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".png")):
        file = davis_root / "DAVIS" / folder / "480p" / "dogs" / f"00000{suffix}"
        with Image.open(file) as image:
            image.resize((120, 60), Image.Resampling.NEAREST).save(file)
    image = DAVISDataset(davis_root, str(davis_root / "both.txt"))[2]
    assert image.image_rgb.shape == (60, 92, 3)
    assert image.annotations[0].shape == (60, 92)
    assert np.unique(image.annotations[0]).tolist() == [0, 1, 2]


def test_davis_split_file_may_repeat_a_video_and_start_with_a_byte_order_mark(davis_root):
    split = davis_root / "windows.txt"
    split.write_bytes(b"\xef\xbb\xbfcar\r\ndogs\r\ncar\r\n")
    assert read_split(str(split)) == ["car", "dogs"]


def test_davis_split_with_missing_videos_names_them_all(davis_root):
    split = davis_root / "more.txt"
    split.write_text("car\nboat\nbus\n")
    with pytest.raises(InputError, match=r"more\.txt names videos that are not in .*: boat, bus"):
        DAVISDataset(davis_root, str(split))


def test_davis_frame_without_mask_is_named(davis_root):
    (davis_root / "DAVIS/Annotations/480p/car/00001.png").unlink()
    with pytest.raises(InputError, match=r"1 frames have no mask.*car/00001\.png"):
        DAVISDataset(davis_root, str(davis_root / "both.txt"))


def test_davis_in_another_layout_names_the_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*DAVIS/JPEGImages/480p"):
        DAVISDataset(tmp_path, "val")


@pytest.fixture
def davis_with_flow(davis_root, optflow_folder):
    return DAVISDataset(davis_root, str(davis_root / "both.txt"), optflow_folder=optflow_folder)


def test_davis_frames_carry_their_flow(davis_with_flow):
    first, last = davis_with_flow[0], davis_with_flow[1]  # of the video "car"
    assert first.n_vector_channels == 4
    assert first.extra.shape == (60, 92, 4)
    assert first.extra.dtype == np.float32
    np.testing.assert_array_equal(first.extra[20, 30:71:40], [[0, 0, 0, 0], [0, 5, 0, 0]])
    np.testing.assert_array_equal(last.extra[20, 30:71:40], [[0, 0, 0, 0], [0, 0, 0, -5]])


def test_sources_differ_if_a_file_changes_its_size(davis_root, optflow_folder, bsds_root):
    def sources():
        davis = DAVISDataset(davis_root, str(davis_root / "both.txt"), optflow_folder=optflow_folder)
        return davis.sources + BSDSDataset(bsds_root, "test").sources

    seen = [sources()]
    assert len(seen[0]) == 2 * (4 + 1) + 2 * 2  # frames and masks, archives; images and annotations
    for file in (
        optflow_folder / "optflow_gma_car.h5",
        davis_root / "DAVIS/Annotations/480p/dogs/00001.png",
        bsds_root / "BSDS500/data/groundTruth/test/100.mat",
    ):
        with file.open("ab") as longer:
            longer.write(b"0")
        seen.append(sources())
        assert len({tuple(each) for each in seen}) == len(seen)


def test_davis_archive_of_another_size_or_length(davis_root, optflow_folder):
    path = optflow_folder / "optflow_gma_dogs.h5"
    for shape, message in (
        ((1, 60, 120, 2), "the flow in .*dogs.h5 is 120x60, but DAVIS frames are 92x60"),
        ((2, 60, 92, 2), "dogs.h5 holds the flow of 3 frames, but .*dogs has 2"),
    ):
        with h5py.File(path, "w") as file:
            for name in ("flows", "inv_flows"):
                file.create_dataset(name, shape=shape, dtype=np.float16)
        with pytest.raises(InputError, match=message):
            DAVISDataset(davis_root, str(davis_root / "both.txt"), optflow_folder=optflow_folder)


def test_davis_names_all_missing_archives(davis_root, optflow_folder):
    for file in optflow_folder.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"lacks optflow_<method>_car\.h5, optflow_<method>_dogs\.h5"):
        DAVISDataset(davis_root, str(davis_root / "both.txt"), optflow_folder=optflow_folder)


def test_flow_is_read_in_worker_processes(davis_with_flow):
    crops = TrainingCrops(davis_with_flow, n_annotations=1, seed=0)
    plain = [crops[idx] for idx in range(8)]
    assert plain[0]["extra"].shape == (4, DEFAULT_CROP_SIZE, DEFAULT_CROP_SIZE)
    batches = list(training_loader(crops, batch_size=2, n_steps=4, n_workers=2))
    for step, batch in enumerate(batches):
        for name in ("image_lab", "gt_labels", "extra"):
            assert batch[name].equal(torch.stack([plain[2 * step][name], plain[2 * step + 1][name]]))
    image = next(iter(evaluation_loader(davis_with_flow, n_workers=2)))
    assert image.extra.shape == (60, 92, 4)
    assert image.extra[20, 50].tolist() == [0, 5, 0, 0]


def test_crops_of_flow_are_scaled_and_flipped_with_the_image(davis_with_flow):
    crops = TrainingCrops(davis_with_flow, n_annotations=1, seed=1)
    directions = set()
    for idx in range(40):
        flow = crops[idx]["extra"]  # either forward or backward: a video has two frames
        assert not flow[[0, 2]].any()
        motion = flow[1] - flow[3]
        if motion.any():
            longest = motion.flatten()[motion.abs().argmax()]
            factor = DEFAULT_CROP_SIZE / 60  # the height of the frame fills the crop
            assert longest.abs() == pytest.approx(5 * factor)
            directions.add(float(longest.sign()))
    assert directions == {-1.0, 1.0}


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("is_upside_down", [False, True])
@pytest.mark.parametrize("n_quarter_turns", [0, 1, 2, 3])
def test_vectors_point_to_the_same_pixel_after_flips_and_turns(is_flipped, is_upside_down, n_quarter_turns):
    start, end = (2, 5), (11, 8)
    labels = np.zeros((16, 16), np.int32)
    labels[start], labels[end] = 1, 2
    flow = np.zeros((16, 16, 4), np.float32)
    flow[start] = [*np.subtract(end, start), *np.subtract(start, end)]
    image = SegmentedImage("a", np.zeros((16, 16, 3), np.uint8), [labels], flow, n_vector_channels=4)
    crop = Crop(0, 0, 16, is_flipped, 16, is_upside_down, n_quarter_turns).apply(image)
    (labels,) = crop.annotations
    start, end = np.argwhere(labels == 1)[0], np.argwhere(labels == 2)[0]
    assert crop.extra[tuple(start)].tolist() == [*(end - start), *(start - end)]


def test_turns_are_counterclockwise_after_flips():
    labels = np.arange(9, dtype=np.int32).reshape(3, 3)
    image = SegmentedImage("a", np.zeros((3, 3, 3), np.uint8), [labels])
    crop = Crop(0, 0, 3, is_flipped=False, size=3, is_upside_down=True, n_quarter_turns=1).apply(image)
    assert crop.annotations[0].tolist() == [[8, 5, 2], [7, 4, 1], [6, 3, 0]]


def test_vertical_flips_and_turns_change_no_other_choice(bsds_root):
    dataset = BSDSDataset(bsds_root, "train")
    annotations = dataset[0].annotations
    plain, flipped, turned = (
        TrainingCrops(dataset, n_annotations=2, seed=0, **more)
        for more in ({}, {"vertical_flips": True}, {"quarter_turns": True})
    )
    flips, turns = set(), set()
    for idx in range(30):
        drawn, crop = plain.draw(idx, annotations)
        assert not crop.is_upside_down
        assert crop.n_quarter_turns == 0
        for crops in (flipped, turned):
            also_drawn, changed = crops.draw(idx, annotations)
            assert drawn.tolist() == also_drawn.tolist()
            assert changed[:5] == crop[:5]
            flips.add((crops is flipped, changed.is_upside_down))
            turns.add((crops is turned, changed.n_quarter_turns))
    assert flips == {(True, False), (True, True), (False, False)}
    assert turns == {(False, 0), (True, 0), (True, 1), (True, 2), (True, 3)}


def test_crops_without_a_border_are_drawn_again():
    labels = np.zeros((400, 600), dtype=np.int32)
    labels[180:200, 280:300] = 1
    image = SegmentedImage("image", np.zeros((400, 600, 3), dtype=np.uint8), [labels])
    rng = np.random.default_rng(0)
    crops = [Crop.draw(labels, rng).apply(image) for _ in range(100)]
    n_with_border = sum(len(np.unique(crop.annotations[0])) == 2 for crop in crops)
    assert n_with_border > 60  # about 15 at the first draw


@pytest.mark.parametrize(
    "labels", [[[3, 0], [3, 9]], [[7, 7], [7, 7]], [[2, 1], [3, 2]], [[-5, 2**31], [0, 8]]]
)
def test_renumbering_closes_gaps_and_keeps_the_order(labels):
    renumbered = renumber(np.array(labels))
    rank = sorted(np.unique(labels).tolist()).index
    assert renumbered.tolist() == [[rank(value) for value in row] for row in labels]
    assert renumbered.dtype == np.int64


def test_annotations_are_counted_before_images_are_read(bsds_root, davis_root):
    assert BSDSDataset(bsds_root, "val").annotation_counts() == [2, 2, 2]
    assert DAVISDataset(davis_root, str(davis_root / "both.txt")).annotation_counts() == [1, 1, 1, 1]


def test_davis_unknown_split():
    with pytest.raises(InputError, match="`davis_split` trian is neither test, train, val nor"):
        read_split("trian")


def test_built_in_davis_splits_do_not_overlap():
    videos = {split: read_split(split) for split in SPLITS}
    assert {split: len(names) for split, names in videos.items()} == {"train": 45, "val": 15, "test": 30}
    assert len(set().union(*videos.values())) == 90


def random_crop(image_rgb, labels, rng, size=DEFAULT_CROP_SIZE):
    crop = Crop.draw(labels, rng, size).apply(SegmentedImage("image", image_rgb, [labels]))
    return crop.image_rgb, crop.annotations[0]


@pytest.mark.parametrize("size", [DEFAULT_CROP_SIZE, 321])
@pytest.mark.parametrize("shape", [(60, 92), (321, 481), (700, 300), (1, 50)])
def test_image_and_labels_are_cropped_together(shape, size):
    # The labels are written into the image: they must still agree after flip, scale and crop.
    labels = make_quadrants(*shape)[1]
    image_rgb = np.repeat((labels * 60).astype(np.uint8)[..., None], 3, axis=2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop_rgb, crop_labels = random_crop(image_rgb, labels, rng, size)
        assert crop_rgb.shape == (size, size, 3)
        assert crop_labels.shape == (size, size)
        agreement = np.abs(crop_rgb[..., 0].astype(int) - 60 * crop_labels) < 30
        assert agreement.mean() > 0.95
        assert np.isin(crop_labels, labels).all()


@pytest.mark.parametrize("size", [DEFAULT_CROP_SIZE, 321])
def test_crops_flip_half_of_the_time_and_cover_all_scales(size):
    height, width = 600, 900
    image_rgb = np.zeros((height, width, 3), dtype=np.uint8)
    column = np.tile(np.arange(width, dtype=np.int32), (height, 1))
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(300):
        crop = random_crop(image_rgb, column, rng, size)[1]
        steps.append((int(crop[0, -1]) - int(crop[0, 0])) / (size - 1))
    extents = np.abs(steps)  # source pixels a crop pixel: 1 / scale
    assert 0.4 < np.mean(np.array(steps) < 0) < 0.6
    assert extents.max() == pytest.approx(1 / 0.75, rel=0.02)
    assert extents.min() < 1 / 2.2
    # P(N(1, 0.75) < 0.75) = 0.369 of all scales are clipped to the smallest.
    assert np.mean(extents > 1.32) == pytest.approx(0.369, abs=0.08)


@pytest.mark.parametrize("jitter", [{}, {"color_jitter": 0.2, "patch_jitter": 0.5}])
def test_samples_depend_only_on_seed_and_number(bsds_root, jitter):
    dataset = BSDSDataset(bsds_root, "train")
    crops = TrainingCrops(dataset, n_annotations=1, seed=3, **jitter)
    plain = [crops[idx] for idx in range(12)]
    loader = training_loader(crops, batch_size=2, n_steps=4, first_sample=4, n_workers=2)
    batches = list(loader)
    assert len(batches) == 4
    for step, batch in enumerate(batches, start=2):
        for name in ("image_lab", "gt_labels"):
            expected = torch.stack([plain[2 * step][name], plain[2 * step + 1][name]])
            assert batch[name].equal(expected)
    other = TrainingCrops(dataset, n_annotations=1, seed=4)
    assert not any(plain[idx]["image_lab"].equal(other[idx]["image_lab"]) for idx in range(12))


def test_samples_differ_and_draw_every_annotation(bsds_root):
    crops = TrainingCrops(BSDSDataset(bsds_root, "train"), n_annotations=1, seed=0)
    samples = [crops[idx] for idx in range(24)]
    assert len({sample["image_lab"].sum().item() for sample in samples}) == 24
    assert {int(sample["gt_labels"].max()) for sample in samples} >= {1, 3}
    for sample in samples:
        assert sample["gt_labels"].unique().tolist() == list(range(sample["gt_labels"].max() + 1))


@pytest.mark.parametrize("n_annotations", [1, 2, 5])
def test_annotations_are_drawn_without_repetition_until_all_are_drawn(bsds_root, n_annotations):
    crops = TrainingCrops(BSDSDataset(bsds_root, "train"), n_annotations=n_annotations, seed=0)
    for idx in range(6):
        gt_labels = crops[idx]["gt_labels"]
        assert gt_labels.shape == (n_annotations, DEFAULT_CROP_SIZE, DEFAULT_CROP_SIZE)
        n_finer = sum(int(labels.max()) > 1 for labels in gt_labels)  # the other one has two labels at most
        if gt_labels.max() > 1:
            assert n_finer in (n_annotations // 2, -(-n_annotations // 2))


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_ranks_share_the_samples(bsds_root, monkeypatch, n_ranks):
    crops = TrainingCrops(BSDSDataset(bsds_root, "train"), n_annotations=1, seed=0)
    monkeypatch.setattr("lib.datasets.loaders.n_ranks", lambda: n_ranks)
    taken = []
    for rank in range(n_ranks):
        monkeypatch.setattr("lib.datasets.loaders.rank", lambda rank=rank: rank)
        loader = training_loader(crops, batch_size=2, n_steps=3, first_sample=7, n_workers=0)
        batches = [list(batch) for batch in loader.batch_sampler]
        assert [len(batch) for batch in batches] == [2, 2, 2]
        taken.append(batches)
    for step in range(3):  # the samples of a step are consecutive over the ranks
        start = 7 + 2 * n_ranks * step
        of_step = [idx for batches in taken for idx in batches[step]]
        assert of_step == list(range(start, start + 2 * n_ranks))


def test_every_epoch_visits_every_image(bsds_root):
    class Names(BSDSDataset):
        seen: list[int] = []  # noqa: RUF012

        def __getitem__(self, idx):
            self.seen.append(idx)
            return super().__getitem__(idx)

    crops = TrainingCrops(Names(bsds_root, "train"), n_annotations=1, seed=0)
    for idx in range(40):
        crops[idx]
    epochs = [Names.seen[start : start + 4] for start in range(0, 40, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_evaluation_sees_all_images_in_order(bsds_root):
    loader = evaluation_loader(BSDSDataset(bsds_root, "val"), n_workers=2)
    images = list(loader)
    assert [image.name for image in images] == ["100", "101", "102"]
    assert images[0].image_rgb.shape == (60, 92, 3)
    assert all(len(image.annotations) == 2 for image in images)


class OneImage(torch.utils.data.Dataset):
    """Dataset of one grey image, with an annotation and extra channels of any type."""

    def __init__(self, labels, extra=None):
        self.image = SegmentedImage("a", np.full((60, 92, 3), 128, np.uint8), [labels], extra=extra)

    def __len__(self):
        return 1

    def __getitem__(self, idx):
        return self.image


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_annotations_and_channels_of_any_type(dtype):
    dataset = OneImage(make_quadrants()[1].astype(dtype), extra=np.ones((60, 92, 1)))
    assert TrainingCrops(dataset, n_annotations=1, seed=0)[0]["extra"].dtype == torch.float32
    image = next(iter(loaded(dataset)))
    assert (image.extra.dtype, image.annotations[0].dtype) == (np.float32, np.int32)


def loaded(dataset):
    return evaluation_loader(dataset, n_workers=0)


@pytest.mark.parametrize(
    ("labels", "extra"),
    [
        (np.full((60, 92), 2**31), None),
        (np.full((60, 92), -2), None),
        (np.full((60, 92), 0.5), None),
        (np.zeros((60, 91), int), None),
        (np.zeros((60, 92), int), np.full((60, 92, 1), np.nan)),
        (np.zeros((60, 92), int), np.full((60, 92, 1), 1e300)),
    ],
)
def test_unusable_image_is_named_in_training_and_evaluation(labels, extra):
    dataset = OneImage(labels, extra)
    with pytest.raises(InputError, match=r"^a: "):
        TrainingCrops(dataset, n_annotations=1, seed=0)[0]
    with pytest.raises(InputError, match=r"^a: "):
        next(iter(loaded(dataset)))


@pytest.mark.parametrize("size", [1, 2])
def test_smallest_crops(size):
    rng = np.random.default_rng(0)
    labels = make_quadrants()[1]
    for _ in range(50):
        crop = Crop.draw(labels, rng, size).apply(
            SegmentedImage("a", np.zeros((60, 92, 3), np.uint8), [labels])
        )
        assert crop.annotations[0].shape == (size, size)
