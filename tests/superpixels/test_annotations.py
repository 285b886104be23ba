"""Test annotations for labelling tools with the readers of the formats, as far as they are small."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from lib.runtime.errors import InputError
from lib.superpixels.annotations import to_coco, to_cvat, to_labelme
from lib.superpixels.regions import Superpixels
from properties import arrays, given, settings, st


def make_superpixels(labels):
    labels = np.asarray(labels, dtype=np.int32)
    return Superpixels(labels, np.zeros((*labels.shape, 3), dtype=np.uint8), 4)


def ring_labels():
    """Make a ring around another superpixel and pixels outside, and a superpixel of two parts."""
    labels = np.full((20, 31), 5, dtype=np.int32)
    labels[3:15, 4:20] = 2
    labels[6:9, 7:12] = 0
    labels[10:12, 13:15] = -1
    labels[:2, :3] = labels[17:, 28:] = 7
    return labels


def load_coco(text):
    coco = COCO()
    coco.dataset = json.loads(text)
    coco.createIndex()
    return coco


def check_coco(labels):
    coco = load_coco(to_coco(make_superpixels(labels), "photo.jpg"))
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1], catIds=coco.getCatIds(["superpixel"])))
    assert [each["id"] - 1 for each in annotations] == [label for label in np.unique(labels) if label >= 0]
    for annotation in annotations:
        expected = labels == annotation["id"] - 1
        encoded = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))
        np.testing.assert_array_equal(coco.annToMask(annotation), expected)
        assert annotation["segmentation"]["counts"] == encoded["counts"].decode()
        assert annotation["area"] == coco_mask.area(encoded)
        assert annotation["bbox"] == coco_mask.toBbox(encoded).tolist()


def test_coco_masks_with_holes_and_parts():
    check_coco(ring_labels())


@settings(deadline=None, max_examples=100)
@given(arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-1, 3)))
def test_coco_masks_of_any_labels(labels):
    if labels.max() >= 0:
        check_coco(labels)


def test_coco_masks_of_long_runs():
    labels = np.zeros((300, 500), dtype=np.int32)  # runs of several characters, and negative differences
    labels[7:250, 100:400] = 1
    labels[40:41, 200:203] = 2
    check_coco(labels)


def test_coco_image_and_category():
    coco = load_coco(to_coco(make_superpixels(ring_labels()), "photo.jpg"))
    assert coco.loadImgs([1]) == [{"id": 1, "file_name": "photo.jpg", "height": 20, "width": 31}]
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "superpixel"}]
    assert {each["iscrowd"] for each in coco.dataset["annotations"]} == {0}


def test_coco_masks_of_65536_regions():
    labels = np.arange(2**16, dtype=np.int32).reshape(256, 256)
    annotations = json.loads(to_coco(make_superpixels(labels), "photo.jpg"))["annotations"]
    assert len(annotations) == 2**16
    decoded = coco_mask.decode(annotations[300]["segmentation"])
    np.testing.assert_array_equal(np.argwhere(decoded), [[1, 44]])


def read_labelme(text):
    """Read masks into a label map as `labelme.utils.shapes_to_label` does, after its checks of a file."""
    content = json.loads(text)
    labels = np.full((content["imageHeight"], content["imageWidth"]), -1)
    assert content["imageData"] is None
    assert (content["version"], content["flags"]) == ("5.4.0", {})
    for shape in content["shapes"]:
        assert shape["shape_type"] == "mask"
        assert shape["label"] == "superpixel"
        assert shape["flags"] == {}
        (x1, y1), (x2, y2) = shape["points"]
        mask = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
        window = labels[y1 : y2 + 1, x1 : x2 + 1]
        assert (window[mask] == -1).all()  # no pixel twice
        window[mask] = shape["group_id"]
    return labels, content["imagePath"]


def test_labelme_masks_with_holes_and_parts():
    labels = ring_labels()
    found, image_path = read_labelme(to_labelme(make_superpixels(labels), "../photos/a.jpg"))
    np.testing.assert_array_equal(found, labels)
    assert image_path == "../photos/a.jpg"


def read_cvat(content):
    """Read CVAT's "Segmentation mask 1.1"; return the names, the map of labels, and both pictures."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        [name] = archive.read("ImageSets/Segmentation/default.txt").decode().splitlines()
        lines = archive.read("labelmap.txt").decode().splitlines()
        fields = [line.split(":") for line in lines if not line.startswith("#")]
        pictures = [
            np.asarray(Image.open(archive.open(f"{folder}/{name}.png")))
            for folder in ("SegmentationClass", "SegmentationObject")
        ]
        assert len(archive.namelist()) == 4
    colors = {label: tuple(map(int, color.split(","))) for label, color, _, _ in fields}
    return name, colors, *pictures


def test_cvat_masks():
    labels = ring_labels()
    name, colors, classes, objects = read_cvat(to_cvat(make_superpixels(labels), "day 1é"))
    assert name == "day 1é"
    assert colors == {"background": (0, 0, 0), "superpixel": (128, 0, 0)}
    np.testing.assert_array_equal((classes == colors["superpixel"]).all(axis=2), labels >= 0)
    np.testing.assert_array_equal((classes == 0).all(axis=2), labels < 0)
    palette = {-1: (0, 0, 0), 0: (128, 0, 0), 2: (0, 128, 0), 5: (128, 128, 0), 7: (0, 0, 128)}
    for label, color in palette.items():  # of PASCAL VOC
        np.testing.assert_array_equal((objects == color).all(axis=2), labels == label)


def test_cvat_masks_of_as_many_objects_as_the_palette_has_colors():
    labels = np.arange(255, dtype=np.int32).reshape(15, 17)
    *_, objects = read_cvat(to_cvat(make_superpixels(labels), "a"))
    assert len(np.unique(objects.reshape(-1, 3), axis=0)) == 255
    assert objects[-1, -1].tolist() == [224, 224, 192]  # the last colour of PASCAL VOC
    assert (objects != 0).any(axis=2).all()
    with pytest.raises(InputError, match=r"`annotations` .*at most 255 .* has 256; .*COCO.*\.json"):
        to_cvat(make_superpixels(np.arange(256).reshape(16, 16)), "a")
