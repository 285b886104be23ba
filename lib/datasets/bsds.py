"""BSDS500: photographs with several hand-drawn segmentations each."""

from pathlib import Path

import numpy as np

from lib.datasets.base import FileDataset, SegmentedImage
from lib.files.images import read_image, read_image_shape
from lib.files.listing import list_visible
from lib.files.matlab import read_variable
from lib.runtime.errors import InputError

SPLITS = ("train", "val", "test")


class BSDSDataset(FileDataset):
    """Splits of the Berkeley Segmentation Data Set 500, read lazily, each in the order of the file names.

    Expects this tree, with 200, 100 and 200 images; hidden files and files of other types are ignored::

        <bsds_root>/BSDS500/data/images/{train,val,test}/<name>.jpg
        <bsds_root>/BSDS500/data/groundTruth/{train,val,test}/<name>.mat

    Raises `InputError` if the folder has another layout, or an image lacks its annotations.

    References
    ----------
    .. [1] Arbelaez et al., "Contour Detection and Hierarchical Image Segmentation", TPAMI 2011.
    """

    per_image = ("image_files", "annotation_files")

    def __init__(self, bsds_root: Path, *splits: str) -> None:
        self.image_files, self.annotation_files = [], []
        for split in splits:
            image_files, annotation_files = _find_files(bsds_root, split)
            self.image_files += image_files
            self.annotation_files += annotation_files

    @property
    def sources(self) -> list[str]:
        return [f"{file.name} {file.stat().st_size}" for file in self.image_files + self.annotation_files]

    def image_shapes(self) -> dict[str, tuple[int, int]]:
        shapes = {}
        for image_file, annotation_file in zip(self.image_files, self.annotation_files, strict=True):
            shapes[image_file.stem] = read_image_shape(image_file)
            _read_annotations(annotation_file, shapes[image_file.stem])
        return shapes

    def annotation_counts(self) -> list[int]:
        return [len(_read_cells(file)) for file in self.annotation_files]

    def __getitem__(self, idx: int) -> SegmentedImage:
        image_rgb = read_image(self.image_files[idx])
        annotations = _read_annotations(self.annotation_files[idx], image_rgb.shape[:2])
        return SegmentedImage(self.image_files[idx].stem, image_rgb, annotations)


def _find_files(bsds_root: Path, split: str) -> tuple[list[Path], list[Path]]:
    """Find the images of a split and their annotation files."""
    image_dir = Path(bsds_root, "BSDS500", "data", "images", split)
    annotation_dir = Path(bsds_root, "BSDS500", "data", "groundTruth", split)
    for folder in (image_dir, annotation_dir):
        if not folder.is_dir():
            raise InputError(
                f"{bsds_root}: no folder {folder}; "
                "`bsds_root` must be the folder that holds BSDS500/data/images and .../groundTruth",
                parameter="bsds_root",
            )
    image_files = list_visible(image_dir, "*.jpg")
    if not image_files:
        raise InputError(f"{bsds_root}: no *.jpg in {image_dir}", parameter="bsds_root")
    annotation_files = [annotation_dir / f"{file.stem}.mat" for file in image_files]
    missing = [file.name for file in annotation_files if not file.is_file()]
    if missing:
        raise InputError(
            f"{bsds_root}: {len(missing)} images have no annotations, "
            f"the first lacks {annotation_dir / missing[0]}",
            parameter="bsds_root",
        )
    return image_files, annotation_files


def _read_annotations(file: Path, image_shape: tuple[int, int]) -> list[np.ndarray]:
    """Read all segmentations of a .mat file, each (H, W) int32 of the size of the image."""
    annotations = _read_cells(file)
    for annotation in annotations:
        if annotation.shape != image_shape:
            raise InputError(
                f"{file} holds an annotation of shape {annotation.shape}, but the image has {image_shape}"
            )
    return annotations


def _read_cells(file: Path) -> list[np.ndarray]:
    """Read all segmentations of a .mat file, each (H, W) int32 of any size."""
    try:
        cells = read_variable(file, b"groundTruth").read_cells()
        annotations = [cell.read_field(b"Segmentation").read_numbers() for cell in cells]
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not a readable BSDS500 annotation file ({error})") from error
    if not annotations:
        raise InputError(f"{file} holds no annotation")
    for annotation in annotations:
        _check_labels(annotation, file)
    return [annotation.astype(np.int32) for annotation in annotations]


def _check_labels(annotation: np.ndarray, file: Path) -> None:
    """Check that labels fit int32; MATLAB stores whole numbers as floats by default."""
    is_whole = annotation == np.floor(annotation)
    is_label = is_whole & (annotation >= 0) & (annotation <= np.iinfo(np.int32).max)
    if not is_label.all():
        raise InputError(
            f"{file} holds the label {annotation[~is_label][0]}; expected whole numbers from 0 to 2**31 - 1"
        )
