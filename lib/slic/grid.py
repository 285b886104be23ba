"""Grid of cells that superpixels start from, and the layout of pixels by cell.

The image is divided into `n_rows` x `n_cols` cells, one per superpixel. A pixel may join the superpixel of
its own cell or of one of the eight cells around it. All pixels of a cell therefore share nine candidates.

Candidates beyond the image border do not exist. In the published PyTorch code, column -1 instead wraps around
to the end of the previous row.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Memory for the grids of the last images. A grid takes 17 bytes a pixel; the newest is always kept.
_CACHE_BYTES = 2**26


def compute_grid_shape(height: int, width: int, n_spixels: int) -> tuple[int, int]:
    """Compute the number of rows and columns of the superpixel grid, each at least 1.

    Raises a ValueError if the requested number `n_spixels` is not between 1 and the number of pixels.
    """
    if not 1 <= n_spixels <= height * width:
        raise ValueError(
            f"n_spixels must lie between 1 and the number of pixels, {height * width} "
            f"({height}x{width}), got {n_spixels}"
        )
    # floor(sqrt(q)) = isqrt(floor(q)) is exact; a floating-point root could be rounded to the wrong integer.
    n_rows = max(1, math.isqrt(n_spixels * height // width))
    n_cols = max(1, math.isqrt(n_spixels * width // height))
    return n_rows, n_cols


def check_devices(**tensors: Tensor | None) -> None:
    """Raise a ValueError that names the devices if tensors, by the names of arguments, are on several."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        places = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all tensors must be on one device, got {places}; move them with .to(device)")


class Axis(NamedTuple):
    """Rows of pixels in rows of cells, or columns in columns: n cells of at most Q of the coordinates."""

    bounds: list[int]  # (n + 1): first coordinate of each cell, then the number of coordinates
    coordinate: Tensor  # (n, Q), int64
    is_valid: Tensor  # (n, Q), bool: the coordinate lies in the cell
    cell: Tensor  # (H or W,), int64: cell of each coordinate
    slot: Tensor  # (H or W,), int64: place of each coordinate in its cell


@dataclass(frozen=True, eq=False)
class CellGrid:
    """Layout of an image's pixels in S = n_rows * n_cols cells of at most P pixels.

    Pixel (y, x) lies in cell (floor(y * n_rows / H), floor(x * n_cols / W)). Cells are numbered row by
    row, like pixels. Each cell has P slots. Its pixels fill them row by row; the other slots stay empty.

    Attributes
    ----------
    image_shape, grid_shape : tuple of int
        (H, W) in pixels, (n_rows, n_cols) in cells.
    rows, cols : Axis
        Rows and columns of pixels in each row and column of cells.
    neighbor_idx : Tensor, shape (S, 9), int64
        The 3x3 candidate superpixels of each cell, row by row; 0 beyond the border.
    neighbor_mask : Tensor, shape (S, 9), bool
        False where the candidate lies beyond the border.
    """

    image_shape: tuple[int, int]
    grid_shape: tuple[int, int]
    rows: Axis
    cols: Axis
    neighbor_idx: Tensor
    neighbor_mask: Tensor

    @staticmethod
    def for_image(height: int, width: int, n_spixels: int, device: torch.device) -> "CellGrid":
        """Return the grid for an image size; recent grids are cached. Raises as `compute_grid_shape`."""
        key = (height, width, *compute_grid_shape(height, width, n_spixels), torch.device(device))
        with _lock:
            grid = _grids.pop(key, None) or _build_grid(*key)
            _grids[key] = grid
            while len(_grids) > 1 and sum(each.nbytes for each in _grids.values()) > _CACHE_BYTES:
                del _grids[next(iter(_grids))]
        return grid

    @property
    def n_cells(self) -> int:
        return self.grid_shape[0] * self.grid_shape[1]

    @cached_property
    def pixel_idx(self) -> Tensor:
        """Flat index of the pixel in each slot, (S, P) int64; 0 in empty slots."""
        return self._all_pixels[0]

    @cached_property
    def pixel_mask(self) -> Tensor:
        """False in empty slots, (S, P) bool."""
        return self._all_pixels[1]

    @cached_property
    def slot_idx(self) -> Tensor:
        """Flat index of each pixel's slot in (S, P), (H*W,) int64."""
        return self.slots_of(slice(0, self.grid_shape[0]))

    @cached_property
    def _all_pixels(self) -> tuple[Tensor, Tensor]:
        return self.pixels_of(slice(0, self.n_cells))

    # Training may reuse what validation computed. Autograd rejects tensors created in inference mode.
    @torch.inference_mode(mode=False)
    def pixels_of(self, cells: slice) -> tuple[Tensor, Tensor]:
        """Compute `pixel_idx` and `pixel_mask` of some cells."""
        cell = torch.arange(cells.start, cells.stop, device=self.neighbor_idx.device)
        row, col = cell.div(self.grid_shape[1], rounding_mode="floor"), cell % self.grid_shape[1]
        y, x = self.rows.coordinate[row] * self.image_shape[1], self.cols.coordinate[col]
        is_valid = (self.rows.is_valid[row][:, :, None] & self.cols.is_valid[col][:, None]).flatten(1)
        return (y[:, :, None] + x[:, None]).flatten(1).masked_fill_(~is_valid, 0), is_valid

    @torch.inference_mode(mode=False)
    def slots_of(self, cell_rows: slice) -> Tensor:
        """Compute `slot_idx` of the pixels in some rows of cells, counted from the first of their cells."""
        rows = slice(self.rows.bounds[cell_rows.start], self.rows.bounds[cell_rows.stop])
        row, n_slots_across = self.rows.cell[rows] - cell_rows.start, self.cols.coordinate.shape[1]
        cell = row[:, None] * self.grid_shape[1] + self.cols.cell
        slot = self.rows.slot[rows][:, None] * n_slots_across + self.cols.slot
        return (cell * self.n_slots + slot).flatten()

    def pixel_rows_of(self, cells: slice) -> slice:
        """Return the rows of pixels that some cells cover."""
        n_cols = self.grid_shape[1]
        bounds = self.rows.bounds
        return slice(bounds[cells.start // n_cols], bounds[(cells.stop - 1) // n_cols + 1])

    @property
    def n_slots(self) -> int:
        """Slots of a cell, P."""
        return self.rows.coordinate.shape[1] * self.cols.coordinate.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of the index tensors that are built so far."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def to_cells(self, pixels: Tensor) -> Tensor:
        """Lay pixels out by cell: (B, C, H, W) to (B, S, C, P), zero in empty slots."""
        return _PixelsToCells.apply(pixels, self).transpose(1, 2)

    def to_pixels(self, cells: Tensor) -> Tensor:
        """Undo `to_cells`: (B, S, C, P) to (B, C, H, W); empty slots are ignored."""
        return _CellsToPixels.apply(cells.transpose(1, 2), self)

    def to_candidates(self, spixels: Tensor) -> Tensor:
        """Gather the values of each cell's candidates: (B, S, C) to (B, S, 9, C), zero beyond the border."""
        batch, n_cells, channels = spixels.shape
        grid = spixels.transpose(1, 2).reshape(batch, channels, *self.grid_shape)
        candidates = F.unfold(grid, kernel_size=3, padding=1)  # (B, C*9, S)
        return candidates.view(batch, channels, 9, n_cells).permute(0, 3, 2, 1).contiguous()

    def sum_over_candidates(self, shares: Tensor) -> Tensor:
        """Sum the contributions of all cells to each superpixel: (B, S, 9, C) to (B, S, C)."""
        batch, n_cells, _, channels = shares.shape
        columns = shares.permute(0, 3, 2, 1).reshape(batch, channels * 9, n_cells)
        return F.fold(columns, self.grid_shape, kernel_size=3, padding=1).flatten(2).transpose(1, 2)

    def initial_centroids(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average the pixels in each cell and in the mask (B, H, W), if given: (B, C, H, W) to (B, S, C).

        Cells without pixels in the mask get zero.
        """
        return _average_in_cells(pixels, mask, self.grid_shape)

    def initial_centroids_of_row(
        self, row: int, read: Callable[[slice], Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """Return `initial_centroids` of a row of cells, (1, n_cols, C).

        `read` returns rows of pixels, (1, C, n, W), whose averages at the border of the row overlap.
        """
        (height, _), (n_rows, n_cols) = self.image_shape, self.grid_shape
        pixel_rows = slice(row * height // n_rows, -(-(row + 1) * height // n_rows))  # as in the pooling
        mask = None if mask is None else mask[:, pixel_rows]
        return _average_in_cells(read(pixel_rows), mask, (1, n_cols))


# The last grids by image size, grid shape and device, oldest first. Several threads may use them.
_grids: dict[tuple, CellGrid] = {}
_lock = threading.Lock()


# Training may reuse a grid that validation built. Autograd rejects tensors created in inference mode.
@torch.inference_mode(mode=False)
def _build_grid(height: int, width: int, n_rows: int, n_cols: int, device: torch.device) -> CellGrid:
    offset = torch.arange(-1, 2, device=device)
    rows = (torch.arange(n_rows, device=device)[:, None] + offset)[:, None, :, None]
    cols = (torch.arange(n_cols, device=device)[:, None] + offset)[None, :, None, :]
    neighbor_mask = ((rows >= 0) & (rows < n_rows) & (cols >= 0) & (cols < n_cols)).reshape(-1, 9)
    neighbor_idx = (rows * n_cols + cols).reshape(-1, 9)
    return CellGrid(
        image_shape=(height, width),
        grid_shape=(n_rows, n_cols),
        rows=_split_axis(height, n_rows, device),
        cols=_split_axis(width, n_cols, device),
        neighbor_idx=neighbor_idx.masked_fill(~neighbor_mask, 0),
        neighbor_mask=neighbor_mask,
    )


def _split_axis(length: int, n_cells: int, device: torch.device) -> Axis:
    coordinate = torch.arange(length, device=device)
    cell = (coordinate * n_cells).div(length, rounding_mode="floor")
    # The first coordinate with floor(coordinate * n_cells / length) = cell is ceil(cell * length / n_cells).
    bounds = [-(-idx * length // n_cells) for idx in range(n_cells + 1)]
    start = torch.tensor(bounds, device=device)
    coordinates = start[:-1, None] + torch.arange(-(-length // n_cells), device=device)
    return Axis(bounds, coordinates, coordinates < start[1:, None], cell, coordinate - start[cell])


def _average_in_cells(pixels: Tensor, mask: Tensor | None, grid_shape: tuple[int, int]) -> Tensor:
    """Average (B, C, H, W) in the mask (B, H, W), if given, in each cell: (B, S, C)."""
    if mask is None:
        return F.adaptive_avg_pool2d(pixels, grid_shape).flatten(2).transpose(1, 2)
    weight = mask[:, None].to(pixels.dtype)
    sums = F.adaptive_avg_pool2d(torch.where(mask[:, None], pixels, 0), grid_shape)
    share = F.adaptive_avg_pool2d(weight, grid_shape)
    return torch.where(share > 0, sums / share, 0).flatten(2).transpose(1, 2)


class _PixelsToCells(torch.autograd.Function):
    """Map (B, C, H, W) to (B, C, S, P), zero in empty slots.

    Its gradient is `_CellsToPixels`, its adjoint. Both are gathers, which are faster than scatters.
    """

    @staticmethod
    def forward(ctx, pixels: Tensor, grid: CellGrid) -> Tensor:
        ctx.grid = grid
        cells = gather_pixels(pixels.flatten(2), grid.pixel_idx)
        return cells.masked_fill_(~grid.pixel_mask, 0)  # NaN times 0 would be NaN

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _CellsToPixels.apply(grad, ctx.grid), None


class _CellsToPixels(torch.autograd.Function):
    """Map (B, C, S, P) to (B, C, H, W), ignoring empty slots; its gradient is `_PixelsToCells`."""

    @staticmethod
    def forward(ctx, cells: Tensor, grid: CellGrid) -> Tensor:
        ctx.grid = grid
        return gather_pixels(cells.flatten(2), grid.slot_idx.view(grid.image_shape))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _PixelsToCells.apply(grad, ctx.grid), None


def gather_pixels(values: Tensor, idx: Tensor) -> Tensor:
    """Return `values[:, :, idx]`, (B, C, *idx.shape), in half the time of that expression on a CPU."""
    flat_idx = idx.flatten().expand(*values.shape[:2], -1)
    return values.gather(2, flat_idx).unflatten(2, idx.shape)
