"""Parts of the iteration that are only about speed and memory."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.slic.grid import CellGrid

# Distances beyond the nearest candidate's count no further in the softmax. exp(-55) is nothing beside 1, but
# it and products with it are normal numbers of float32: processors take up to a hundred times longer for
# subnormal ones.
_MAX_DISTANCE_GAP = 55.0


# Keeps the gradient of the square root finite where a pixel coincides with a superpixel.
_MIN_SQUARED_DISTANCE = 1e-12


# What is laid out by cell at a time where no gradient is wanted, on any device: no tensor of gigabytes, whose
# pages Linux clears anew each time, nor blocks so large that gaps between them add up.
_PIECE_BYTES = 2**24


# Working set of a step on the CPU: about what the second-level caches of two cores hold.
_CHUNK_BYTES = 4 * 2**20


def _cells_per_chunk(points_shape: Sequence[int], like: Tensor) -> int:
    """Number of cells to iterate over at a time: on CPU as many as fit its cache, elsewhere all."""
    if like.device.type != "cpu":
        return points_shape[0] * points_shape[1]
    return _cells_in(_CHUNK_BYTES, points_shape, like)


def _cells_in(n_bytes: int, points_shape: Sequence[int], like: Tensor) -> int:
    """Number of cells whose points and affinities take so much memory, at least 1."""
    _, _, n_rows, n_slots = points_shape
    return max(1, n_bytes // ((n_rows + 9) * n_slots * like.element_size()))


def _nearest(squared_distance: Tensor) -> Tensor:
    """Which candidate is nearest, (cells, P), of (cells, 9, P); the first of equals.

    Three times as fast as `Tensor.argmin` would be on CPU, which is slow where the dimension is not the last.
    """
    is_nearest = squared_distance == squared_distance.amin(dim=1, keepdim=True)
    n_candidates = squared_distance.shape[1]
    from_last = torch.arange(n_candidates, 0, -1, dtype=torch.uint8, device=squared_distance.device)
    return (n_candidates - (is_nearest * from_last[:, None]).amax(dim=1)).long()


def _gather_points(pixels: Tensor, pixel_idx: Tensor, origins: Tensor, occupied: Tensor) -> Tensor:
    """Stack [p, 1, |p|^2] for the pixels p of some cells, relative to their origins: (B, cells, C+2, P).

    All rows are zero in slots that are not occupied. The 1 makes sums of weights, and |s|^2, part of the same
    products. Written channel by channel, because at full image size every temporary tensor costs as much
    time as the arithmetic.

    Parameters
    ----------
    pixels : Tensor, shape (B, C, H*W)
        Pixel features.
    pixel_idx : Tensor, shape (B, cells, P)
        Pixel of each slot, counted through the batch.
    origins, occupied : Tensor, shape (B, cells, C); (1 or B, cells, P), of the pixels' dtype
        What to subtract; 1 where a slot counts, else 0.
    """
    batch, n_channels = pixels.shape[:2]
    n_cells, n_slots = pixel_idx.shape[1:]
    flat_idx = pixel_idx.flatten()
    points = pixels.new_empty(batch, n_cells, n_channels + 2, n_slots)
    squared_norm = pixels.new_zeros(batch, n_cells, n_slots)
    for channel in range(n_channels):
        cells = pixels[:, channel].flatten().index_select(0, flat_idx).view(batch, n_cells, n_slots)
        cells.sub_(origins[:, :, channel, None]).mul_(occupied)
        points[:, :, channel] = cells
        squared_norm.addcmul_(cells, cells)
    points[:, :, -2] = occupied
    points[:, :, -1] = squared_norm
    return points


class _LocalPoints(torch.autograd.Function):
    """`_gather_points` of all cells, with a gradient."""

    @staticmethod
    def forward(ctx, pixels: Tensor, origins: Tensor, occupied: Tensor, grid: CellGrid) -> Tensor:
        # One flat index over the batch: `index_select` is fastest along a single dimension.
        offset = torch.arange(len(pixels), device=pixels.device) * math.prod(grid.image_shape)
        points = _gather_points(pixels.flatten(2), grid.pixel_idx + offset[:, None, None], origins, occupied)
        ctx.grid = grid
        ctx.save_for_backward(points, occupied)
        return points

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        points, occupied = ctx.saved_tensors
        grad_local = torch.addcmul(grad[:, :, :-2], points[:, :, :-2], grad[:, :, -1:], value=2)
        grad_local.mul_(occupied[:, :, None])
        return ctx.grid.to_pixels(grad_local), -grad_local.sum(dim=3), None, None


class _EuclideanSoftmin(torch.autograd.Function):
    """softmax(-sqrt(x)) over dimension 1 of squared distances x, in place.

    As composed PyTorch operations it would touch six tensors of this size, and hold three for the
    gradient; here it is one, and two.
    """

    @staticmethod
    def forward(ctx, squared_distance: Tensor) -> Tensor:
        ctx.mark_dirty(squared_distance)
        distance = squared_distance.clamp_(min=_MIN_SQUARED_DISTANCE).sqrt_()
        kept_distance = distance.clone() if ctx.needs_input_grad[0] else None
        affinity = torch.sub(distance.amin(dim=1, keepdim=True), distance, out=distance)
        affinity = affinity.clamp_(min=-_MAX_DISTANCE_GAP).exp_()
        affinity.div_(affinity.sum(dim=1, keepdim=True))
        ctx.save_for_backward(kept_distance, affinity)
        return affinity

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        distance, affinity = ctx.saved_tensors
        grad = grad * affinity
        grad.addcmul_(affinity, grad.sum(dim=1, keepdim=True), value=-1)  # of the softmax
        # d(-sqrt(x)) / dx = -1 / (2 sqrt(x)); a coinciding pixel and superpixel do not attract.
        is_clamped = distance <= math.sqrt(_MIN_SQUARED_DISTANCE)
        return grad.div_(-2 * distance).masked_fill_(is_clamped, 0)
