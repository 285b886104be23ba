"""Training losses: a reconstruction loss for segmentations and a position loss for compactness.

Reconstruction losses leave void pixels out: these carry no label into superpixels, and are not compared. If
all pixels are void, the loss is 0. Void pixels are masked by products, because indexing by a mask would make
the host wait for the device.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.metrics.label_map import VOID
from lib.network.inputs import pixel_positions
from lib.slic.grid import check_devices
from lib.slic.soft_assignment import SoftAssignment

_MIN_PROBABILITY = 1e-8  # keeps the logarithm and its gradient finite
_MIN_VARIANCE = 1e-8  # of constant features, which a constant imitates without error
_MIN_MASS = 1e-8  # pixels, added to a superpixel's mass; a superpixel without pixels gets zero, not NaN


def compute_loss_terms(
    assignment: SoftAssignment,
    labels: Tensor,
    gt_labels: Tensor,
    n_labels: int,
    *,
    reconstruction: str,
    compactness: float,
) -> dict[str, Tensor]:
    """Compute the loss terms; training minimises their sum.

    Parameters
    ----------
    assignment, labels : SoftAssignment; Tensor, shape (B, H, W), int64
        Soft and hard assignment from a model.
    gt_labels : Tensor, shape (B, A, H, W), int64
        Labels of A annotations of each image, 0 to `n_labels` - 1, or `VOID`.
    n_labels : int
        Number of labels in an annotation, not limited; 0 if all pixels are void.
    reconstruction : {"expected_error", "cross_entropy", "cross_entropy_logsoftmax", "soft_iou"}
        Loss that compares the result of `reconstruct_labels` with the true labels, averaged over the
        annotations. "expected_error" is the mean share of wrong labels in a pixel; it is 0 if each superpixel
        lies within one segment. "cross_entropy" reads label shares as probabilities;
        "cross_entropy_logsoftmax" applies a softmax to them first. Other names raise a ValueError.
    compactness : float
        Weight of the position term, per square pixel.

    Returns
    -------
    dict of str to Tensor
        Weighted scalars "reconstruction" and "position".

    Raises
    ------
    ValueError
        If the tensors are on several devices.
    """
    check_devices(affinity=assignment.affinity, labels=labels, gt_labels=gt_labels)
    if reconstruction not in RECONSTRUCTION_LOSSES:
        raise ValueError(f"reconstruction must be one of {RECONSTRUCTION_LOSSES}, got {reconstruction!r}")
    loss_fn = _LOSSES[reconstruction]
    losses = [loss_fn(assignment, annotation, max(1, n_labels)) for annotation in gt_labels.unbind(1)]
    position = compactness * position_loss(assignment, labels)
    return {"reconstruction": torch.stack(losses).mean(), "position": position}


def reconstruct_labels(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    """Average labels (B, H, W), 0 to `n_labels` - 1 or `VOID`, into superpixels and spread them back.

    Returns the share of each label in each pixel, (B, n_labels, H, W), differentiable; sums to 1 over labels
    unless superpixels hold void pixels only.
    """
    carried = _carried_shares(assignment, gt_labels, n_labels)
    return assignment.to_pixels(carried.transpose(1, 2))


def true_label_share(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    """Compute the share of the true label in each pixel after the reconstruction, (B, H, W), differentiable.

    Equals `reconstruct_labels` gathered at `gt_labels`, but avoids tensors of size (labels) x (pixels). Void
    pixels have arbitrary shares.
    """
    grid, affinity = assignment.grid, assignment.affinity
    carried = _carried_shares(assignment, gt_labels, n_labels)
    carried = grid.to_candidates(carried).gather(3, _label_idx(assignment, gt_labels))  # (B, S, 9, P)
    return grid.to_pixels((affinity * carried).sum(dim=2, keepdim=True)).squeeze(1)


def expected_error(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    """Compute the mean share of wrong labels, 1 - mean of `true_label_share`, a scalar in [0, 1].

    Let M[s, l] be the mass of label l in superpixel s, W[s] its sum over l and N the number of pixels without
    void. The mean share of the true label is (1 / N) * sum_s sum_l M[s, l]^2 / W[s]. This form needs no
    values per pixel.
    """
    mass = _label_mass(assignment, gt_labels, n_labels)
    share = mass.square().sum(dim=2) / (mass.sum(dim=2) + _MIN_MASS)  # (B, S)
    n_pixels = _is_scored(gt_labels, mass.dtype).sum()
    return n_pixels.clamp(max=1) - share.sum() / n_pixels.clamp(min=1)


def _is_scored(gt_labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 for void pixels and 1 for others, in the shape of `gt_labels`."""
    return (gt_labels != VOID).to(dtype)


def _label_idx(assignment: SoftAssignment, gt_labels: Tensor) -> Tensor:
    """Return the label of the pixel in each slot, 0 for void, repeated for its candidates, (B, S, 9, P)."""
    return assignment.grid.to_cells(gt_labels[:, None].clamp(min=0)).expand_as(assignment.affinity)


def _label_mass(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    """Sum the affinities of each label's pixels to each superpixel, (B, S, L)."""
    grid, affinity = assignment.grid, assignment.affinity
    is_scored = grid.to_cells(_is_scored(gt_labels, affinity.dtype)[:, None])  # (B, S, 1, P)
    shares = affinity * (is_scored * grid.pixel_mask[:, None])
    mass = affinity.new_zeros(*affinity.shape[:3], n_labels)
    mass = mass.scatter_add(3, _label_idx(assignment, gt_labels), shares)
    return grid.sum_over_candidates(mass)


def _carried_shares(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    """Return the share of each label in each superpixel, (B, S, L); zeros if all its pixels are void."""
    mass = _label_mass(assignment, gt_labels, n_labels)
    return mass / (mass.sum(dim=2, keepdim=True) + _MIN_MASS)


def _mean_over_scored(values: Tensor, gt_labels: Tensor) -> Tensor:
    """Average values (B, H, W) over the pixels that are not void; 0 if all are."""
    is_scored = _is_scored(gt_labels, values.dtype)
    return (values * is_scored).sum() / is_scored.sum().clamp(min=1)


def _cross_entropy(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    share = true_label_share(assignment, gt_labels, n_labels)
    return _mean_over_scored(-share.clamp(min=_MIN_PROBABILITY).log(), gt_labels)


def _cross_entropy_logsoftmax(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    shares = reconstruct_labels(assignment, gt_labels, n_labels)
    losses = F.cross_entropy(shares, gt_labels, ignore_index=VOID, reduction="none")
    return _mean_over_scored(losses, gt_labels)


def _soft_iou(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    return soft_iou_loss(reconstruct_labels(assignment, gt_labels, n_labels), gt_labels)


def soft_iou_loss(reconstructed: Tensor, gt_labels: Tensor) -> Tensor:
    """Compute one minus the soft mean IoU of reconstructed and true labels.

    Let r be the reconstructed shares (B, L, H, W), from `reconstruct_labels`, and g the true shares. The
    intersection sums r*g over an image's pixels that are not void, the union r + g - r*g. The mean is over
    the labels that occur in the image, then over images with labels. The loss lies in [0, 1]. Source: Rahman
    and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation", ISVC 2016.
    """
    is_scored = _is_scored(gt_labels, reconstructed.dtype)[:, None]
    gt_onehot = F.one_hot(gt_labels.clamp(min=0), reconstructed.shape[1]).permute(0, 3, 1, 2) * is_scored
    reconstructed = reconstructed * is_scored
    gt_size = gt_onehot.sum(dim=(2, 3))  # (B, L)
    intersection = (reconstructed * gt_onehot).sum(dim=(2, 3))
    union = reconstructed.sum(dim=(2, 3)) + gt_size - intersection
    occurs = gt_size > 0
    # Labels absent from an image are left out; dividing by 1 instead of their union avoids NaN gradients.
    iou = torch.where(occurs, intersection / torch.where(occurs, union, 1), 0)
    n_labels = occurs.sum(dim=1)  # (B,)
    error = n_labels.clamp(max=1) - iou.sum(dim=1) / n_labels.clamp(min=1)
    return error.sum() / (n_labels > 0).sum().clamp(min=1)


def position_loss(assignment: SoftAssignment, labels: Tensor) -> Tensor:
    """Compute the mean squared distance of pixels to their superpixel's mean position, in square pixels.

    The mean position is weighted by affinity and therefore differentiable. The hard labels (B, H, W) assign
    pixels to superpixels. No annotation is read, so void pixels count too.
    """
    yx = pixel_positions(labels[:, None].to(assignment.affinity.dtype))  # (B, 2, H, W)
    means = assignment.spixel_means(yx)  # (B, 2, S)
    own_mean = means.gather(2, labels.flatten(1)[:, None].expand(-1, 2, -1))  # (B, 2, H*W)
    return (yx.flatten(2) - own_mean).square().sum(dim=1).mean()


def imitation_loss(features: Tensor, target: Tensor) -> Tensor:
    """Compute the error of features that imitate another network's, as a share of their variance.

    Both have shape (B, C, H, W); only `features` has a gradient. The loss is the mean squared difference
    divided by the variance of `target`, summed over channels, so that it does not depend on the scale of the
    features. It is 0 for equal features, and 1 for the mean of `target` everywhere.
    """
    target = target.detach().float()
    variance = target.var(dim=(0, 2, 3), correction=0).sum()
    error = (features.float() - target).square().mean(dim=(0, 2, 3)).sum()
    return error / variance.clamp(min=_MIN_VARIANCE)


_LOSSES: dict[str, Callable[[SoftAssignment, Tensor, int], Tensor]] = {
    "expected_error": expected_error,
    "cross_entropy": _cross_entropy,
    "cross_entropy_logsoftmax": _cross_entropy_logsoftmax,
    "soft_iou": _soft_iou,
}
RECONSTRUCTION_LOSSES = tuple(_LOSSES)
