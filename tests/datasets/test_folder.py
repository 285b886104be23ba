"""Folders of images: pairing of files, supported label maps, rejected files."""

import os

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from helpers import make_quadrants
from lib.datasets.base import fingerprint, hold_out
from lib.datasets.folder import FolderDataset
from lib.files.images import ImageReader
from lib.metrics.label_map import VOID
from lib.runtime.errors import InputError

SHAPE = (20, 31)
LABELS = make_quadrants(*SHAPE)[1]
HUGE = 2**63 + np.arange(4, dtype=np.uint64)


def write(folder, *names, labels=LABELS, **options):
    """Write files by name: label maps as .npy and 8-bit .png, but image.png and other types as images."""
    for name in names:
        if name.lower().endswith(".npy"):
            with (folder / name).open("wb") as file:
                np.save(file, labels, allow_pickle=True)
        else:
            is_image = name in ("image.png", "image.PNG") or not name.lower().endswith(".png")
            pixels = make_quadrants(*SHAPE)[0] if is_image else labels.astype(np.uint8)
            Image.fromarray(pixels).save(folder / name, **options)


def contents(folder):
    """Return the names of the images, each with the corner label of each annotation."""
    dataset = FolderDataset(folder)
    images = [dataset[idx] for idx in range(len(dataset))]
    return {image.name: [int(labels[0, 0]) for labels in image.annotations] for image in images}


def test_images_are_sorted_by_name_and_have_their_labels(tmp_path):
    write(tmp_path, "b.jpg", "b.png", "c.tif", "c.npy", "a.bmp", "a.png", quality=95)
    dataset = FolderDataset(tmp_path)
    assert len(dataset) == 3
    assert [dataset[idx].name for idx in range(3)] == ["a", "b", "c"]
    assert dataset.annotation_counts() == [1, 1, 1]
    for idx in range(3):
        _, image_rgb, annotations, extra, _ = dataset[idx]
        assert np.abs(image_rgb.astype(int) - make_quadrants(*SHAPE)[0]).mean() < 10  # JPEG
        assert len(annotations) == 1
        assert annotations[0].dtype == np.int32
        np.testing.assert_array_equal(annotations[0], LABELS)
        assert extra is None


@pytest.mark.parametrize(
    ("names", "paired"),
    [
        (["a.jpg", "a.png"], {"a": 1}),
        (["a.JPEG", "a.PNG", "b.Tiff", "b.NPY"], {"a": 1, "b": 1}),
        (["image.png", "image.npy"], {"image": 1}),
        (["image.png", "image.3.png"], {"image": 1}),
        (["a.webp", "a.png", "a.npy", "a.7.png", "a.7.npy"], {"a": 4}),
        (["a.jpg", "a.png", "a.1.jpg", "a.1.png"], {"a.1": 1, "a": 1}),
        (["a.jpg", "a.1.2.npy", "a.1.jpg", "a.1.npy", "a.2.npy"], {"a.1": 2, "a": 1}),
        (["a.b.jpg", "a.b.png", "7.jpg", "7.0.png"], {"7": 1, "a.b": 1}),
    ],
)
def test_files_are_paired_by_name(tmp_path, names, paired):
    write(tmp_path, *names)
    found = {name: len(corners) for name, corners in contents(tmp_path).items()}
    assert list(found.items()) == list(paired.items())


def test_annotations_are_ordered_by_number(tmp_path):
    write(tmp_path, "a.jpg")
    for label, name in enumerate(["a.npy", "a.2.png", "a.009.npy", "a.10.png", "a.100.npy"]):
        write(tmp_path, name, labels=np.full(SHAPE, label))
    assert contents(tmp_path) == {"a": [0, 1, 2, 3, 4]}


def test_other_files_are_ignored(tmp_path):
    write(tmp_path, "a.jpg", "a.png", ".image.png", "._b.jpg", ".c.npy")
    (tmp_path / "Thumbs.db").write_bytes(b"stray")
    (tmp_path / "folder.jpg").mkdir()
    assert contents(tmp_path) == {"a": [0]}


def test_formats_are_those_of_inference(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, "a.gif", "a.png", "b.ppm", "b.npy", "c.jp2", "c.npy", "d.sgi", "d.png")
    for name in ("notes.txt", "a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "e").write_bytes((tmp_path / "a.gif").read_bytes())
    write(tmp_path, "e.png")
    assert contents(tmp_path) == {"a": [0], "b": [0], "c": [0], "d": [0], "e": [0]}
    assert caplog.messages == ["3 files that are no readable images are left out: .json, .txt"]


def write_satellite(folder):
    """Write an image of five bands, whose bands 4, 3 and 2 are red, green and blue, and its label map."""
    image_rgb = make_quadrants(*SHAPE)[0].astype(np.uint16) * 4  # up to 10 bits
    extra = np.full(SHAPE, 60_000, np.uint16)
    values = np.dstack([extra, image_rgb[..., 2], image_rgb[..., 1], image_rgb[..., 0], extra])
    tifffile.imwrite(folder / "a.tif", values, photometric="minisblack", planarconfig="contig")
    write(folder, "a.png")
    return image_rgb


def test_chosen_bands(tmp_path):
    values = write_satellite(tmp_path)
    dataset = FolderDataset(tmp_path, reader=ImageReader((0, 1020), (4, 3, 2)))
    np.testing.assert_array_equal(dataset[0].image_rgb, values // 4)
    with pytest.raises(InputError, match=r"a\.tif has 5 bands; `bands` chooses three"):
        FolderDataset(tmp_path)
    with pytest.raises(InputError, match=r"a\.tif has 5 bands, and so no band 6"):
        FolderDataset(tmp_path, reader=ImageReader(bands=(6,)))
    with pytest.raises(InputError, match=r"`bands` 1 2: "):
        FolderDataset(tmp_path, reader=ImageReader(bands=(1, 2)))


def palette_png(labels):
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([200, 0, 0, 0, 0, 0, 0, 0, 200, 9, 9, 9])  # grey values would be in another order
    return image


@pytest.mark.parametrize(
    ("make_image", "expected"),
    [
        (lambda labels: Image.fromarray(labels.astype(np.uint8) * 80), LABELS * 80),
        (lambda labels: Image.fromarray(labels.astype(np.uint16) * 20000), LABELS * 20000),
        (lambda labels: Image.fromarray(labels > 1), LABELS > 1),
        (palette_png, LABELS),
    ],
    ids=["8-bit grey", "16-bit grey", "1-bit", "palette"],
)
def test_png_label_maps_of_any_single_channel_kind(tmp_path, make_image, expected):
    write(tmp_path, "a.jpg")
    make_image(LABELS).save(tmp_path / "a.png")
    labels = FolderDataset(tmp_path)[0].annotations[0]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 5, 7, 2**31 - 1]), [0, 5, 7, 2**31 - 1]),
        (np.array([9, -1, 4, 4], np.int8), [2, 0, 1, 1]),
        (np.array([0, 7, 2**31, 3]), [0, 2, 3, 1]),
        (HUGE[[2, 0, 1, 3]], [2, 0, 1, 3]),
        (np.array([-(2**63), 2**63 - 1, 0, 1]), [0, 3, 1, 2]),
        (np.array([0, 300, 2, 1], ">u2"), [0, 300, 2, 1]),
        (np.array([False, True, True, False]), [0, 1, 1, 0]),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_label_maps_keep_their_labels_or_are_renumbered_in_order(tmp_path, values, expected, order):
    write(tmp_path, "a.jpg")
    write(tmp_path, "a.npy", labels=np.asarray(values[LABELS], order=order))
    labels = FolderDataset(tmp_path)[0].annotations[0]
    assert labels.dtype == np.int32
    assert labels.flags.c_contiguous
    np.testing.assert_array_equal(labels, np.array(expected)[LABELS])


@pytest.mark.parametrize(
    ("values", "ignore_label", "expected"),
    [
        (np.array([0, 1, 255, 2], np.uint8), 255, [0, 1, VOID, 2]),
        (np.array([0, 1, 255, 2], np.uint8), None, [0, 1, 255, 2]),
        (np.array([0, 1, 255, 2], np.uint8), 0, [VOID, 1, 255, 2]),
        (np.array([0, 1, 3, 2], np.uint8), 300, [0, 1, 3, 2]),
        (np.array([5, -1, 4, 4]), -1, [5, VOID, 4, 4]),
        (np.array([5, -1, 4, -7]), -1, [2, VOID, 1, 0]),
        (np.array([5, 2**40, 4, 0]), 2**40, [5, VOID, 4, 0]),
        (np.array([9, 9, 9, 9]), 9, [VOID, VOID, VOID, VOID]),
    ],
)
def test_ignored_label_is_void(tmp_path, values, ignore_label, expected):
    write(tmp_path, "a.jpg")
    write(tmp_path, "a.npy", labels=values[LABELS])
    labels = FolderDataset(tmp_path, ignore_label=ignore_label)[0].annotations[0]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.array(expected)[LABELS])


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_label_maps_fit_the_image_after_exif_rotation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    write(tmp_path, f"a{suffix}", exif=exif)
    turned, unturned = (LABELS, LABELS.T) if orientation == 3 else (LABELS.T, LABELS)
    write(tmp_path, "a.npy", labels=turned)
    image = FolderDataset(tmp_path)[0]
    assert image.image_rgb.shape[:2] == image.annotations[0].shape == turned.shape
    write(tmp_path, "a.npy", labels=unturned)
    with pytest.raises(InputError, match=r"a\.npy is \(.*\), but the image is"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"`own` DIR holds no image that can be read \("),
        (["a.npy", "video.0001.png"], r"`own` DIR holds no image .*<name>\.<number>\.png is a label map"),
        (["a.jpg", "a.webp", "a.png"], r"`own` DIR: a\.jpg and a\.webp are two images of the same name"),
        (["image.png", "image.PNG"], r"image\.PNG and image\.png are two images of the same name"),
        (["a.jpg", "a.png", "b.npy"], r"`own` DIR: the label map b\.npy has no image, such as b\.jpg"),
        (["a.jpg", "a.png", "b.12.png"], r"the label map b\.12\.png has no image, such as b\.jpg"),
        (
            ["a.jpg", "a.png", "b.jpg", "c.tif", "d.bmp"],
            r"`own` DIR: images without a label map: 3, the first is b\.jpg, expected "
            r"b\.png, b\.npy, b\.0\.png, b\.0\.npy, \.\.\.$",
        ),
        (["image.png"], r"images without a label map: 1, the first is image\.png, expected image\.npy, "),
    ],
)
def test_folders_that_do_not_pair_up(tmp_path, names, message):
    write(tmp_path, *names)
    with pytest.raises(InputError, match=message.replace("DIR", str(tmp_path))):
        FolderDataset(tmp_path, parameter="own")


def test_root_must_be_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"`data_root` .*nowhere is not a folder"):
        FolderDataset(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("a.npy", LABELS[1:], r"a\.npy is \(19, 31\), but the image is \(20, 31\)"),
        ("a.4.png", LABELS.T, r"a\.4\.png is \(31, 20\), but the image is \(20, 31\)"),
        ("a.npy", LABELS[:0], r"a\.npy is \(0, 31\), but the image is"),
        (
            "a.npy",
            LABELS.astype(np.float32),
            r"a\.npy must be .* of integers, got float32 of shape \(20, 31\)",
        ),
        ("a.npy", LABELS.astype("m8[s]"), r"a\.npy must be .* of integers, got timedelta64"),
        ("a.npy", LABELS[None], r"a\.npy must be an array \(H, W\) .* of shape \(1, 20, 31\)"),
        ("a.npy", LABELS.astype(object), r"a\.npy is not a readable label map \(.*Python objects"),
    ],
)
def test_unusable_label_maps_are_rejected_at_once(tmp_path, name, labels, message):
    write(tmp_path, "a.jpg")
    write(tmp_path, name, labels=labels)
    with pytest.raises(InputError, match=message):
        FolderDataset(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_label_maps_are_rejected_at_once(tmp_path, mode):
    write(tmp_path, "a.jpg")
    Image.fromarray(LABELS.astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=rf"a\.png must be a PNG with one channel of labels, got {mode}$"):
        FolderDataset(tmp_path)


def test_label_map_in_another_format_is_rejected_at_once(tmp_path):
    write(tmp_path, "a.jpg")
    Image.fromarray(LABELS.astype(np.uint8)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(InputError, match=r"a\.png is not a readable label map"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.0.npy"])
def test_broken_files_are_named(tmp_path, name):
    write(tmp_path, "a.jpg", "a.png", "a.0.npy", labels=np.random.default_rng(0).integers(0, 99, SHAPE))
    dataset = FolderDataset(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
    with pytest.raises(InputError, match=rf"{file} is not a readable"):
        dataset[0]
    file.write_bytes(b"garbage")
    with pytest.raises(InputError, match=rf"{file} is not a readable"):
        FolderDataset(tmp_path)


def test_only_headers_are_read_at_first(tmp_path, monkeypatch):
    write(tmp_path, "image.png", "image.0.png", "a.jpg", "a.png")

    def load(image):
        raise AssertionError("pixels are decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    FolderDataset(tmp_path)


def test_files_are_closed(tmp_path):
    resource = pytest.importorskip("resource")
    for idx in range(30):
        write(tmp_path, f"{idx}.jpg", f"{idx}.png", f"{idx}.npy")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + 15, limits[1]))
    try:
        dataset = FolderDataset(tmp_path)
        images = [dataset[idx] for idx in range(30)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(images) == 30


def test_sources_differ_if_a_file_changes_its_size(tmp_path):
    write(tmp_path, "a.jpg", "a.png", "a.1.npy", "b.jpg", "b.png")
    seen = [FolderDataset(tmp_path).sources]
    known = [fingerprint(FolderDataset(tmp_path))]
    assert f"a.1.npy {(tmp_path / 'a.1.npy').stat().st_size}" in seen[0]
    assert len(seen[0]) == 5
    for name in ("a.jpg", "a.1.npy", "b.png"):
        with (tmp_path / name).open("ab") as longer:
            longer.write(b"0")
        seen.append(FolderDataset(tmp_path).sources)
        known.append(fingerprint(FolderDataset(tmp_path)))
    assert len({tuple(each) for each in seen}) == len(set(known)) == 4


@pytest.mark.parametrize(("n_images", "held_out"), [(2, [0]), (10, [0]), (11, [0, 10]), (23, [0, 10, 20])])
def test_every_tenth_image_is_held_out(tmp_path, n_images, held_out):
    for idx in range(n_images):
        write(tmp_path, f"{idx:02}.bmp", f"{idx:02}.npy")
    training, validation = hold_out(FolderDataset(tmp_path))
    assert [int(validation[idx].name) for idx in range(len(validation))] == held_out
    others = [idx for idx in range(n_images) if idx not in held_out]
    assert [int(training[idx].name) for idx in range(len(training))] == others


def test_single_image_cannot_be_split(tmp_path):
    write(tmp_path, "a.jpg", "a.png")
    with pytest.raises(InputError, match=rf"{tmp_path} holds a single image; at least 2 are needed"):
        hold_out(FolderDataset(tmp_path))
