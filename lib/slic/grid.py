"""Grid of cells that superpixels start from, and the layout of pixels by cell.

The image is divided into `n_rows` x `n_cols` cells, one per superpixel. A pixel may join the superpixel of
its own cell or of one of the eight cells around it. All pixels of a cell therefore share nine candidates.

Candidates beyond the image border do not exist. In the published PyTorch code, column -1 instead wraps around
to the end of the previous row.
"""

import math
import threading
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class CellGrid:
    """Layout of an image's pixels in S = n_rows * n_cols cells of at most P pixels.

    Pixel (y, x) lies in cell (floor(y * n_rows / H), floor(x * n_cols / W)). Cells are numbered row by
    row, like pixels. Each cell has P slots. Its pixels fill them row by row; the other slots stay empty.

    Attributes
    ----------
    image_shape, grid_shape : tuple of int
        (H, W) in pixels, (n_rows, n_cols) in cells.
    pixel_idx : Tensor, shape (S, P), int64
        Flat index of the pixel in each slot; 0 in empty slots.
    pixel_mask : Tensor, shape (S, P), bool
        False in empty slots.
    slot_idx : Tensor, shape (H*W,), int64
        Flat index of each pixel's slot in (S, P).
    neighbor_idx : Tensor, shape (S, 9), int64
        The 3x3 candidate superpixels of each cell, row by row; 0 beyond the border.
    neighbor_mask : Tensor, shape (S, 9), bool
        False where the candidate lies beyond the border.
    """

    image_shape: tuple[int, int]
    grid_shape: tuple[int, int]
    pixel_idx: Tensor
    pixel_mask: Tensor
    slot_idx: Tensor
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

    @property
    def nbytes(self) -> int:
        """Memory of the index tensors."""
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
        if mask is None:
            return F.adaptive_avg_pool2d(pixels, self.grid_shape).flatten(2).transpose(1, 2)
        weight = mask[:, None].to(pixels.dtype)
        sums = F.adaptive_avg_pool2d(torch.where(mask[:, None], pixels, 0), self.grid_shape)
        share = F.adaptive_avg_pool2d(weight, self.grid_shape)
        return torch.where(share > 0, sums / share, 0).flatten(2).transpose(1, 2)


# The last grids by image size, grid shape and device, oldest first. Several threads may use them.
_grids: dict[tuple, CellGrid] = {}
_lock = threading.Lock()


# Training may reuse a grid that validation built. Autograd rejects tensors created in inference mode.
@torch.inference_mode(mode=False)
def _build_grid(height: int, width: int, n_rows: int, n_cols: int, device: torch.device) -> CellGrid:
    y, y_mask, row, slot_y = _split_axis(height, n_rows, device)
    x, x_mask, col, slot_x = _split_axis(width, n_cols, device)
    n_slots = y.shape[1] * x.shape[1]

    pixel_mask = (y_mask[:, None, :, None] & x_mask[None, :, None, :]).reshape(-1, n_slots)
    pixel_idx = (y[:, None, :, None] * width + x[None, :, None, :]).reshape(-1, n_slots)
    cell = row[:, None] * n_cols + col
    slot = slot_y[:, None] * x.shape[1] + slot_x

    offset = torch.arange(-1, 2, device=device)
    rows = (torch.arange(n_rows, device=device)[:, None] + offset)[:, None, :, None]
    cols = (torch.arange(n_cols, device=device)[:, None] + offset)[None, :, None, :]
    neighbor_mask = ((rows >= 0) & (rows < n_rows) & (cols >= 0) & (cols < n_cols)).reshape(-1, 9)
    neighbor_idx = (rows * n_cols + cols).reshape(-1, 9)
    return CellGrid(
        image_shape=(height, width),
        grid_shape=(n_rows, n_cols),
        pixel_idx=pixel_idx.masked_fill(~pixel_mask, 0),
        pixel_mask=pixel_mask,
        slot_idx=(cell * n_slots + slot).flatten(),
        neighbor_idx=neighbor_idx.masked_fill(~neighbor_mask, 0),
        neighbor_mask=neighbor_mask,
    )


def _split_axis(length: int, n_cells: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each cell's coordinates along an axis, their validity, and each coordinate's cell and slot."""
    coordinate = torch.arange(length, device=device)
    cell = (coordinate * n_cells).div(length, rounding_mode="floor")
    # The first coordinate with floor(coordinate * n_cells / length) = cell is ceil(cell * length / n_cells).
    start = -(-torch.arange(n_cells + 1, device=device) * length).div(n_cells, rounding_mode="floor")
    coordinates = start[:-1, None] + torch.arange(-(-length // n_cells), device=device)
    return coordinates, coordinates < start[1:, None], cell, coordinate - start[cell]


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
