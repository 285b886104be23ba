"""Test the grid of cells and the layout of pixels by cell."""

import pytest
import torch

from helpers import SHAPES_AND_COUNTS
from lib.slic.grid import CellGrid, compute_grid_shape


@pytest.mark.parametrize(
    ("height", "width", "n_spixels", "expected"),
    [(480, 854, 200, (10, 18)), (321, 481, 1000, (25, 38)), (9, 4, 9, (4, 2)), (3, 40, 5, (1, 8))],
)
def test_grid_shape(height, width, n_spixels, expected):
    assert compute_grid_shape(height, width, n_spixels) == expected


@pytest.mark.parametrize(("shape", "n_spixels"), SHAPES_AND_COUNTS)
def test_cells_hold_every_pixel_once(shape, n_spixels):
    height, width = shape
    grid = CellGrid.for_image(height, width, n_spixels, torch.device("cpu"))
    assert grid.pixel_idx[grid.pixel_mask].sort().values.equal(torch.arange(height * width))
    n_rows, n_cols = grid.grid_shape
    for y in range(height):
        for x in range(width):
            cell = y * n_rows // height * n_cols + x * n_cols // width
            assert grid.slot_idx[y * width + x] // grid.pixel_idx.shape[1] == cell
    pixels = torch.randn(2, 3, height, width)
    assert grid.to_pixels(grid.to_cells(pixels)).equal(pixels)


def test_last_grids_are_kept_within_their_memory(monkeypatch):
    grids = [CellGrid.for_image(40 + idx, 60, 24, torch.device("cpu")) for idx in range(4)]
    assert CellGrid.for_image(40, 60, 24, torch.device("cpu")) is grids[0]
    monkeypatch.setattr("lib.slic.grid._CACHE_BYTES", grids[3].nbytes + grids[0].nbytes)
    CellGrid.for_image(43, 60, 24, torch.device("cpu"))  # with 40x60, the last two
    assert CellGrid.for_image(40, 60, 24, torch.device("cpu")) is grids[0]
    assert CellGrid.for_image(41, 60, 24, torch.device("cpu")) is not grids[1]
    assert CellGrid.for_image(43, 60, 24, torch.device("cpu")) is not grids[3]
