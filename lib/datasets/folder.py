"""Dataset of your own images: a folder of images with one or more label maps each."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from lib.datasets.base import FileDataset, SegmentedImage
from lib.files.images import DEFAULT_READER, ImageReader, is_image
from lib.files.listing import list_visible, log_left_out
from lib.metrics.label_map import VOID
from lib.runtime.errors import InputError

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"\.\d+\Z")  # number of an annotation, at the end of the file's stem


class FolderDataset(FileDataset):
    """Images of a folder with their label maps, read lazily, in the order of the file names.

    Expects a flat folder. Hidden files are ignored; other files that are no images are counted in the log::

        <root>/<name>.{jpg,png,tif,...}  an image in any format of `is_image`, and either
        <root>/<name>.{png,npy}          its label map, or
        <root>/<name>.0.{png,npy}        its label maps, if it has several; any
        <root>/<name>.1.{png,npy}        numbers, which sort the annotations

    If an image `<name>` of another type exists, `<name>.png` is its label map, else an image.
    `<name>.<number>.png` is always a label map. The case of suffixes is ignored.

    A label map has the size of its image after EXIF rotation. It is a PNG with one channel (grey values or
    palette indices), or an array (H, W) of integers or bool. Labels from 0 to 2**31 - 1 are kept. If others
    occur, all labels are renumbered from 0 in ascending order. Pixels of `ignore_label` are void; by default
    no pixel is. `reader` holds the settings of reading the images.

    Raises `InputError` with `parameter` as the name of `root`, if the folder has no image, images and label
    maps do not pair up, or the header of a file shows that it cannot be used. Reading broken pixels later
    raises it too.
    """

    per_image = ("image_files", "label_files", "_shapes")

    def __init__(
        self,
        root: Path,
        *,
        ignore_label: int | None = None,
        reader: ImageReader = DEFAULT_READER,
        parameter: str = "data_root",
    ) -> None:
        reader.check()
        self.reader = reader
        self.ignore_label = ignore_label
        self.shown_as = f"`{parameter}` {root}"
        if not Path(root).is_dir():
            raise InputError(f"{self.shown_as} is not a folder")
        self.image_files, unpaired = _find_files(Path(root))
        if not self.image_files:
            raise InputError(
                f"{self.shown_as} holds no image that can be read (<name>.<number>.png is a label map)"
            )
        self.label_files = _pair(self.image_files, unpaired, shown_as=self.shown_as)
        self._shapes = [reader.read_shape(image_file) for image_file in self.image_files]
        for image_shape, label_files in zip(self._shapes, self.label_files, strict=True):
            for label_file in label_files:
                with open_label_map(label_file, image_shape):
                    pass  # opening checks the header

    @property
    def sources(self) -> list[str]:
        files = self.image_files + [file for files in self.label_files for file in files]
        return [f"{file.name} {file.stat().st_size}" for file in files]

    def image_shapes(self) -> dict[str, tuple[int, int]]:
        return {file.stem: shape for file, shape in zip(self.image_files, self._shapes, strict=True)}

    def annotation_counts(self) -> list[int]:
        return [len(files) for files in self.label_files]

    def __getitem__(self, idx: int) -> SegmentedImage:
        image_file = self.image_files[idx]
        image_rgb = self.reader.read(image_file)
        annotations = [
            _read_labels(file, image_rgb.shape[:2], self.ignore_label) for file in self.label_files[idx]
        ]
        return SegmentedImage(image_file.stem, image_rgb, annotations)


def _find_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Find the images and the label maps of a folder, each in the order of the file names."""
    visible = [file for file in list_visible(root) if file.is_file()]
    files = [file for file in visible if file.suffix.lower() == ".npy" or is_image(file)]
    log_left_out(logger, set(visible) - set(files))
    stems = {file.stem for file in files if file.suffix.lower() not in (".png", ".npy")}  # certainly images
    image_files, label_files = [], []
    for file in files:
        may_be_image = file.stem not in stems and not _NUMBER.search(file.stem)
        if file.suffix.lower() == ".npy" or (file.suffix.lower() == ".png" and not may_be_image):
            label_files.append(file)
        else:
            image_files.append(file)
    return image_files, label_files


def _pair(image_files: list[Path], label_files: list[Path], *, shown_as: str) -> list[list[Path]]:
    """Return the label maps of each image, sorted by number; a map without a number comes first."""
    image_of_stem = {}
    for file in image_files:
        if file.stem in image_of_stem:
            raise InputError(
                f"{shown_as}: {image_of_stem[file.stem].name} and {file.name} are two images of the same name"
            )
        image_of_stem[file.stem] = file
    numbered = {stem: [] for stem in image_of_stem}
    for file in label_files:
        # If an image a.1.jpg exists, a.1.png is its label map, not one of a.jpg.
        stem = file.stem if file.stem in image_of_stem else _NUMBER.sub("", file.stem)
        if stem not in image_of_stem:
            raise InputError(f"{shown_as}: the label map {file.name} has no image, such as {stem}.jpg")
        number = int(file.stem[len(stem) + 1 :] or -1)
        numbered[stem].append((number, file))
    missing = [file for file in image_files if not numbered[file.stem]]
    if missing:
        stem = missing[0].stem
        plain_png = "" if missing[0].suffix.lower() == ".png" else f"{stem}.png, "
        raise InputError(
            f"{shown_as}: images without a label map: {len(missing)}, the first is {missing[0].name}, "
            f"expected {plain_png}{stem}.npy, {stem}.0.png, {stem}.0.npy, ..."
        )
    return [[file for _, file in sorted(numbered[image_file.stem])] for image_file in image_files]


@contextmanager
def open_label_map(file: Path, image_shape: tuple[int, int]) -> Iterator[Image.Image | np.ndarray]:
    """Check the header of a label map, PNG or .npy, and yield it; converting it to an array reads its pixels.

    Raises `InputError` if it has another size or several channels, or cannot be read, even in the block.
    """
    is_array = file.suffix.lower() == ".npy"
    try:
        # open_memmap refuses pickled objects.
        opened = nullcontext(open_memmap(file, mode="r")) if is_array else Image.open(file, formats=["PNG"])
        with opened as labels:
            if is_array and (labels.ndim != 2 or labels.dtype.kind not in "iub"):
                raise InputError(
                    f"{file} must be an array (H, W) of integers, got {labels.dtype} of shape {labels.shape}"
                )
            if not is_array and len(labels.getbands()) != 1:
                raise InputError(f"{file} must be a PNG with one channel of labels, got {labels.mode}")
            shape = labels.shape if is_array else labels.size[::-1]
            if shape != image_shape:
                raise InputError(f"{file} is {shape}, but the image is {image_shape}")
            yield labels
    except InputError:
        raise
    except Exception as error:  # NumPy and Pillow raise various errors for broken bytes
        raise InputError(f"{file} is not a readable label map ({error})") from error


def _read_labels(file: Path, image_shape: tuple[int, int], ignore_label: int | None) -> np.ndarray:
    """Read labels (H, W), int32, at least 0, and `VOID` in place of `ignore_label`."""
    with open_label_map(file, image_shape) as opened:
        labels = np.array(opened, order="C")
    is_void = np.zeros(labels.shape, bool) if ignore_label is None else labels == ignore_label
    kept = labels[~is_void]
    if kept.size and (kept.min() < 0 or kept.max() > np.iinfo(np.int32).max):
        numbers = np.unique(kept, return_inverse=True)[1].ravel()
        labels = np.empty(image_shape, np.int64)
        labels[~is_void] = numbers
    labels = labels.astype(np.int32)
    labels[is_void] = VOID
    return labels
