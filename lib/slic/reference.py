"""Per-pixel form of the clustering, as a specification: gather nine candidates for every pixel.

This form is simple, not fast. Tests and benchmarks compare `lib.slic` with it. An iteration builds a
(B, 9, H, W, C) tensor; training also builds a dense (B, S, H*W) affinity.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_slic(
    pixel_features: Tensor, n_spixels: int, *, n_iter: int = 5, distance: str = "euclidean"
) -> tuple[Tensor, Tensor, int]:
    """Cluster (B, C, H, W) pixel features.

    Returns the affinity (B, 9, H, W), the candidates (9, H, W), -1 beyond the border, and the number of
    superpixels.
    """
    height, width = pixel_features.shape[2:]
    n_rows = max(1, math.floor(math.sqrt(n_spixels * height / width)))
    n_cols = max(1, math.floor(math.sqrt(n_spixels * width / height)))
    candidates = list_candidates(height, width, n_rows, n_cols).to(pixel_features.device)
    spixel_features = F.adaptive_avg_pool2d(pixel_features, (n_rows, n_cols)).flatten(2)
    affinity = compute_affinity(pixel_features, spixel_features, candidates, distance)
    for _ in range(n_iter - 1):
        spixel_features = update_centroids(pixel_features, affinity, candidates, n_rows * n_cols)
        affinity = compute_affinity(pixel_features, spixel_features, candidates, distance)
    return affinity, candidates, n_rows * n_cols


def compute_affinity(
    pixel_features: Tensor, spixel_features: Tensor, candidates: Tensor, distance: str
) -> Tensor:
    """Compute the softmax of the negative distances to the candidates, (B, 9, H, W)."""
    gathered = spixel_features.transpose(1, 2)[:, candidates.clamp(min=0)]  # (B, 9, H, W, C)
    difference = pixel_features.permute(0, 2, 3, 1)[:, None] - gathered
    distances = difference.square().sum(-1)
    if distance == "euclidean":
        distances = distances.clamp(min=1e-12).sqrt()
    return torch.softmax(-distances.masked_fill(candidates < 0, torch.inf), dim=1)


def list_candidates(height: int, width: int, n_rows: int, n_cols: int) -> Tensor:
    """Return the superpixel index of the 3x3 candidates of each pixel, (9, H, W), -1 beyond the border."""
    row = torch.arange(height)[:, None] * n_rows // height
    col = torch.arange(width)[None, :] * n_cols // width
    padded = F.pad(torch.arange(n_rows * n_cols).view(n_rows, n_cols), (1, 1, 1, 1), value=-1)
    offsets = [(y, x) for y in range(3) for x in range(3)]
    return torch.stack([padded[row + y, col + x] for y, x in offsets])


def update_centroids(pixel_features: Tensor, affinity: Tensor, candidates: Tensor, n_cells: int) -> Tensor:
    """Compute the affinity-weighted mean of each superpixel's pixels, (B, C, S)."""
    batch, channels = pixel_features.shape[:2]
    # Candidates beyond the border have zero affinity, so index 0 may stand in for them.
    target = candidates.clamp(min=0).flatten()
    weighted = affinity[..., None] * pixel_features.permute(0, 2, 3, 1)[:, None]  # (B, 9, H, W, C)
    sums = weighted.new_zeros(batch, n_cells, channels)
    sums = sums.index_add(1, target, weighted.reshape(batch, -1, channels))
    weight = affinity.new_zeros(batch, n_cells).index_add(1, target, affinity.reshape(batch, -1))
    return (sums / (weight[..., None] + 1e-16)).transpose(1, 2)


def labels_of(affinity: Tensor, candidates: Tensor) -> Tensor:
    """Return the most likely superpixel of every pixel, (B, H, W)."""
    choice = affinity.argmax(dim=1, keepdim=True)
    return candidates.expand(affinity.shape[0], -1, -1, -1).gather(1, choice).squeeze(1)


def dense_affinity(affinity: Tensor, candidates: Tensor, n_cells: int) -> Tensor:
    """Return the affinity as a dense matrix (B, S, H*W)."""
    batch = affinity.shape[0]
    shares = affinity.flatten(2)  # (B, 9, H*W)
    target = candidates.clamp(min=0).flatten(1).expand(batch, -1, -1)
    return shares.new_zeros(batch, n_cells, shares.shape[2]).scatter_add(1, target, shares)


def reconstruct(dense: Tensor, values: Tensor) -> Tensor:
    """Average values (B, K, H, W) into superpixels and spread them back by products with the dense matrix."""
    means = torch.bmm(dense, values.flatten(2).transpose(1, 2))  # (B, S, K)
    means = means / (dense.sum(2, keepdim=True) + 1e-16)
    return torch.bmm(dense.transpose(1, 2), means).transpose(1, 2).reshape(values.shape)


def position_loss(dense: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean squared distance of pixels to their superpixel's mean position, in square pixels."""
    height, width = labels.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    yx = torch.stack([y, x]).flatten(1).T.to(dense)  # (H*W, 2)
    means = dense @ yx / (dense.sum(2, keepdim=True) + 1e-16)  # (B, S, 2)
    own = means.gather(1, labels.flatten(1)[..., None].expand(-1, -1, 2))  # (B, H*W, 2)
    return (yx - own).square().sum(2).mean()


def cross_entropy(reconstructed: Tensor, gt_labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy of true labels (B, H, W) under reconstructed shares (B, L, H, W)."""
    true_share = reconstructed.gather(1, gt_labels[:, None]) / reconstructed.sum(dim=1, keepdim=True)
    return -true_share.clamp(min=1e-8).log().mean()
