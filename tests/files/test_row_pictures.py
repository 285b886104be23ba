"""Pictures and label maps that are written in bands of rows."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from lib.files.row_pictures import TILE_SIDE, write_npy, write_picture

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.png": lambda shape: RNG.integers(0, 256, (*shape, 3), np.uint8),
    "a.tif": lambda shape: RNG.integers(0, 256, (*shape, 3), np.uint8),
    "labels.png": lambda shape: RNG.integers(0, 2**16, shape, np.uint16),
    "labels.tiff": lambda shape: RNG.integers(-1, 2**20, shape, np.int32),
}


def in_bands(values, n_rows=TILE_SIDE):
    return (values[row : row + n_rows] for row in range(0, len(values), n_rows))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("shape", [(300, 517), (256, 256), (20, 31), (1, 1)])
def test_pictures_are_read_as_they_were(shape, name, tmp_path):
    values = ARRAYS[name](shape)
    write_picture(tmp_path / name, in_bands(values), values.shape, values.dtype)
    with Image.open(tmp_path / name) as image:
        np.testing.assert_array_equal(np.asarray(image), values)
    if not name.endswith("png"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), values)


def test_npy_is_the_file_of_numpy(tmp_path):
    labels = RNG.integers(-1, 9, (20, 31), np.int32)
    write_npy(tmp_path / "a.npy", in_bands(labels, 3), labels.shape, labels.dtype)
    np.save(tmp_path / "b.npy", labels)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
