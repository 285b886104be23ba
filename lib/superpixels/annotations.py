"""Superpixels as annotations for labelling tools: masks in the formats of COCO, labelme and CVAT.

Masks keep holes and separate parts. Each superpixel is an object of the one category `superpixel`; in a tool,
it then gets the category of what it shows.
"""

import base64
import io
import json
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects

from lib.runtime.errors import InputError
from lib.superpixels.connectivity import OUTSIDE
from lib.superpixels.regions import Superpixels

ANNOTATION_SUFFIXES = {"coco": ".json", "labelme": ".json", "cvat": ".zip"}  # by format
_CATEGORY = "superpixel"
_LABELME_VERSION = "5.4.0"  # reads masks cut to bounding boxes

# CVAT reads objects as colours of the PASCAL VOC palette; the first of its 256 colours is the background.
_MAX_CVAT_OBJECTS = 255


def to_coco(superpixels: Superpixels, image_name: str) -> str:
    """Return COCO instances in JSON: a compressed RLE mask for each superpixel of the image `image_name`.

    The image has ID 1; the annotation of superpixel s has ID s + 1, because evaluation with COCO ignores 0.
    """
    height, width = superpixels.labels.shape
    annotations = [
        {
            "id": label + 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": [height, width], "counts": _compress(counts)},
            "area": sum(counts[1::2]),
            "bbox": [cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start],
            "iscrowd": 0,
        }
        for (label, counts), (_, (rows, cols)) in zip(
            _run_lengths(superpixels.labels), _windows(superpixels.labels), strict=True
        )
    ]
    dataset = {
        "info": {"description": f"superpixels of {image_name}"},
        "images": [{"id": 1, "file_name": image_name, "height": height, "width": width}],
        "categories": [{"id": 1, "name": _CATEGORY}],
        "annotations": annotations,
    }
    return json.dumps(dataset)


def to_labelme(superpixels: Superpixels, image_path: str) -> str:
    """Return labelme JSON with a mask for each superpixel, whose `group_id` is its label.

    `image_path` leads from the folder of the JSON file to the image.
    """
    height, width = superpixels.labels.shape
    shapes = []
    for label, (rows, cols) in _windows(superpixels.labels):
        mask = superpixels.labels[rows, cols] == label
        shapes.append(
            {
                "label": _CATEGORY,
                "points": [[cols.start, rows.start], [cols.stop - 1, rows.stop - 1]],  # first, last pixel
                "group_id": label,
                "description": "",
                "shape_type": "mask",
                "flags": {},
                "mask": base64.b64encode(_png(mask.astype(np.uint8))).decode(),
            }
        )
    content = {
        "version": _LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return json.dumps(content)


def to_cvat(superpixels: Superpixels, image_name: str) -> bytes:
    """Return a zip file in CVAT's format "Segmentation mask 1.1"; `image_name` is without suffix.

    Superpixels are the objects, in colours of the PASCAL VOC palette in the order of their labels.

    Raises
    ------
    InputError
        If there are more than 255 superpixels.
    """
    if superpixels.n_measured > _MAX_CVAT_OBJECTS:
        raise InputError(
            f"masks for CVAT hold at most {_MAX_CVAT_OBJECTS} superpixels, but the image has "
            f"{superpixels.n_measured}; CVAT also imports COCO, a name that ends in .json",
            parameter="annotations",
        )
    inside = superpixels.labels != OUTSIDE
    objects = np.zeros(superpixels.labels.shape, dtype=np.int64)
    objects[inside] = np.unique(superpixels.labels[inside], return_inverse=True)[1] + 1
    image_name = image_name.encode(errors="replace").decode()  # of a file whose name is not UTF-8
    palette = _voc_palette()
    red, green, blue = palette[1]
    files = {
        "labelmap.txt": f"# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
        f"{_CATEGORY}:{red},{green},{blue}::\n",
        "ImageSets/Segmentation/default.txt": f"{image_name}\n",
        f"SegmentationClass/{image_name}.png": _png(palette[inside.astype(np.int64)]),
        f"SegmentationObject/{image_name}.png": _png(palette[objects]),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time: equal content, equal file
    return buffer.getvalue()


def _windows(labels: np.ndarray) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Yield each label that occurs, with the rows and the columns of its bounding box."""
    for label, window in enumerate(find_objects(labels + 1)):
        if window is not None:
            yield label, window


def _run_lengths(labels: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Yield each label that occurs, with the lengths of the runs without and with it, column by column.

    The first run is without the label, and may be empty.
    """
    pixels = labels.ravel(order="F")
    starts = np.flatnonzero(np.concatenate([[True], pixels[1:] != pixels[:-1]]))
    ends = np.append(starts[1:], len(pixels))
    order = np.argsort(pixels[starts], kind="stable")
    starts, ends, owners = starts[order], ends[order], pixels[starts][order]
    firsts = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]]))
    gaps = starts - np.concatenate([[0], ends[:-1]])
    gaps[firsts] = starts[firsts]
    lengths = np.stack([gaps, ends - starts], axis=1)
    for first, last in zip(firsts.tolist(), [*firsts[1:].tolist(), len(owners)], strict=True):
        if owners[first] != OUTSIDE:
            rest = len(pixels) - int(ends[last - 1])
            yield int(owners[first]), lengths[first:last].ravel().tolist() + [rest] * (rest > 0)


def _compress(counts: list[int]) -> str:
    """Return run lengths as COCO's compressed string.

    From the fourth on, a run is its difference from the one before the last. Numbers are in two's complement,
    5 bits a character, the lowest first; bit 6 says that more follow. Characters start at "0".
    """
    characters = []
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        while True:
            bits, rest = rest & 31, rest >> 5
            is_last = rest == (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + (0 if is_last else 32)))
            if is_last:
                break
    return "".join(characters)


def _voc_palette() -> np.ndarray:
    """Return the colours of the PASCAL VOC palette, (256, 3) uint8.

    The bits of an index go in turn to red, green and blue, whose highest bits are filled first.
    """
    index, channel, bit = np.ogrid[:256, :3, :8]
    bits = (index >> (3 * bit + channel)) & 1
    return (bits << (7 - bit)).sum(axis=2).astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
