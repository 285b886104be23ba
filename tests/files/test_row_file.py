"""Arrays in temporary files."""

import numpy as np
import pytest

from helpers import full_disk
from lib.files.row_file import RowFile, check_disk, mapped_in_file
from lib.runtime.errors import InputError, RunError


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_rows_in_any_order(dtype, tmp_path):
    values = np.arange(3 * 20 * 31).reshape(3, 20, 31).astype(dtype)
    with RowFile(tmp_path, values.shape, dtype) as file:
        for start in (13, 0, 7):
            file.write(start, values[:, start : start + 7])
        np.testing.assert_array_equal(file.read(0, 20), values)
        np.testing.assert_array_equal(file.read(5, 9), values[:, 5:9])
        file.write(5, values[:, 5:6] + 1)
        np.testing.assert_array_equal(file.read(5, 7), values[:, 5:7] + np.array([[1], [0]]))
        assert file.read(19, 20).dtype == dtype
        assert list(tmp_path.iterdir()) == []


def test_mapped_bands(tmp_path):
    values = np.arange(240, dtype=np.uint8).reshape(20, 4, 3)
    with mapped_in_file((values[row : row + 3] for row in range(0, 20, 3)), values.shape, tmp_path) as mapped:
        np.testing.assert_array_equal(mapped, values)
        assert isinstance(mapped, np.memmap)
        assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path):
    with (
        full_disk(10_000),
        pytest.raises(RunError, match="cannot write a temporary file in"),
        RowFile(tmp_path, (3, 100, 100), np.float32) as file,
    ):
        file.write(0, np.zeros((3, 100, 100), np.float32))
    with (
        full_disk(10_000),
        pytest.raises(RunError, match="cannot write a temporary file in"),
        mapped_in_file([np.zeros((100, 100, 3), np.uint8)], (100, 100, 3), tmp_path),
    ):
        pass


def test_missing_folder(tmp_path):
    with pytest.raises(RunError, match=r"cannot write a temporary file in .*none \(No such file"):
        RowFile(tmp_path / "none", (1, 2, 3), np.float32)


def test_free_space(tmp_path):
    check_disk(1, tmp_path, "a.png")
    with pytest.raises(
        InputError, match=rf"^a\.png needs 10000000\.0 GB for temporary files in {tmp_path}, "
    ):
        check_disk(1e16, tmp_path, "a.png")
