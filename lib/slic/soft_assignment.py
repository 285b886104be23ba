"""Soft assignment of pixels to superpixels."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lib.slic.grid import CellGrid, check_devices

_TINY = 1e-16  # added to the total affinity; without it, the mean of a superpixel that has none is NaN


@dataclass(frozen=True, eq=False)
class SoftAssignment:
    """Share of every pixel in each of its nine candidate superpixels (Q in the paper).

    Attributes
    ----------
    grid : CellGrid
        Grid that defines the pixels and candidates of `affinity`.
    affinity : Tensor, shape (B, S, 9, P)
        Share of each candidate; differentiable. The shares of a pixel sum to 1 over the nine candidates.
        Candidates beyond the border have at most exp(-55). Pixels outside the mask have zero. Without a mask,
        empty slots hold arbitrary values.
    """

    grid: CellGrid
    affinity: Tensor

    def of_image(self, idx: int) -> Self:
        """Return the assignment of one image in the batch."""
        return replace(self, affinity=self.affinity[idx : idx + 1])

    def labels(self) -> Tensor:
        """Return the most likely superpixel of every pixel (H in the paper), shape (B, H, W), int64."""
        # On a CPU, `max` is several times faster than `argmax` over an axis that is not the last.
        choice = self.affinity.detach().max(dim=2).indices  # (B, S, P)
        labels = self.grid.neighbor_idx.expand(len(choice), -1, -1).gather(2, choice)
        return self.grid.to_pixels(labels.unsqueeze(2)).squeeze(1)

    def spixel_means(self, values: Tensor) -> Tensor:
        """Average per-pixel values in each superpixel, weighted by affinity: (B, K, H, W) to (B, K, S).

        `values` have the affinity's dtype. The result is differentiable in them and in the affinity. Raises a
        ValueError if they are on another device.
        """
        check_devices(affinity=self.affinity, values=values)
        cells = self.grid.to_cells(values)
        occupied = self.grid.pixel_mask.to(cells.dtype)[None, :, None].expand(len(cells), -1, -1, -1)
        cells = torch.cat([cells, occupied], dim=2)  # (B, S, K+1, P)
        totals = self.grid.sum_over_candidates(self.affinity @ cells.transpose(2, 3))
        sums, weight = totals[..., :-1], totals[..., -1:]
        return (sums / (weight + _TINY)).transpose(1, 2)

    def to_pixels(self, spixel_values: Tensor) -> Tensor:
        """Blend superpixel values by affinity: (B, K, S) to (B, K, H, W), differentiable.

        Raises a ValueError if the values are on another device.
        """
        check_devices(affinity=self.affinity, spixel_values=spixel_values)
        candidates = self.grid.to_candidates(spixel_values.transpose(1, 2))  # (B, S, 9, K)
        return self.grid.to_pixels(candidates.transpose(2, 3) @ self.affinity)

    def reconstruct(self, values: Tensor) -> Tensor:
        """Average per-pixel values (B, K, H, W) into superpixels and spread them back, both by affinity."""
        return self.to_pixels(self.spixel_means(values))

    def to_sparse(self) -> Tensor:
        """Return the affinity as a sparse COO tensor of shape (B, S, H*W), differentiable.

        A column holds the shares of one pixel in its existing candidates and sums to 1.
        """
        grid, batch = self.grid, self.affinity.shape[0]
        exists = grid.neighbor_mask[:, :, None] & grid.pixel_mask[:, None, :]  # (S, 9, P)
        spixel = grid.neighbor_idx[:, :, None].expand_as(exists)[exists]
        pixel = grid.pixel_idx[:, None, :].expand_as(exists)[exists]
        item = torch.arange(batch, device=pixel.device).repeat_interleave(len(pixel))
        indices = torch.stack([item, spixel.repeat(batch), pixel.repeat(batch)])
        size = (batch, grid.n_cells, math.prod(grid.image_shape))
        values = self.affinity[:, exists].flatten()
        return torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
