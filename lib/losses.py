"""Training losses: how well superpixels can carry segmentations, and how compact they are.

Labels are averaged into superpixels with the soft assignment and spread back; the reconstruction losses
compare the result with the labels. There is no limit on the number of labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.network.inputs import pixel_positions
from lib.slic.soft_assignment import SoftAssignment

RECONSTRUCTION_LOSSES = ("expected_error", "cross_entropy", "cross_entropy_logsoftmax", "soft_iou")

_MIN_PROBABILITY = 1e-8  # keeps the logarithm and its gradient finite


def compute_loss_terms(
    assignment: SoftAssignment,
    labels: Tensor,
    gt_labels: Tensor,
    n_labels: int,
    *,
    reconstruction: str,
    compactness: float,
) -> dict[str, Tensor]:
    """Terms whose sum a model is trained to minimise.

    Parameters
    ----------
    assignment, labels : SoftAssignment; Tensor, shape (B, H, W), int64
        Soft and hard result of a model.
    gt_labels : Tensor, shape (B, A, H, W), int64
        Labels of A annotations of each image, 0 to `n_labels` - 1.
    n_labels : int
        Number of labels of an annotation.
    reconstruction : {"expected_error", "cross_entropy", "cross_entropy_logsoftmax", "soft_iou"}
        Which reconstruction loss; its mean over the annotations is taken. "expected_error" is the mean share
        of wrong labels in what the superpixels carry to a pixel, which is 0 if each lies within one segment.
        "cross_entropy" takes these shares as probabilities, "cross_entropy_logsoftmax" their softmax.
    compactness : float
        Weight of the position term, per square pixel.

    Returns
    -------
    dict of str to Tensor
        Weighted scalars "reconstruction" and "position".

    Raises
    ------
    ValueError
        If `reconstruction` is unknown.
    """
    if reconstruction not in RECONSTRUCTION_LOSSES:
        raise ValueError(f"reconstruction must be one of {RECONSTRUCTION_LOSSES}, got {reconstruction!r}")

    def loss_of(annotation: Tensor) -> Tensor:
        if reconstruction == "expected_error":
            return 1 - true_label_share(assignment, annotation, n_labels).mean()
        if reconstruction == "cross_entropy":
            return _negative_log_likelihood(true_label_share(assignment, annotation, n_labels))
        reconstructed = reconstruct_labels(assignment, annotation, n_labels)
        if reconstruction == "soft_iou":
            return soft_iou_loss(reconstructed, annotation)
        return F.cross_entropy(reconstructed, annotation)

    loss = torch.stack([loss_of(annotation) for annotation in gt_labels.unbind(1)]).mean()
    return {"reconstruction": loss, "position": compactness * position_loss(assignment, labels)}


def reconstruct_labels(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    """Carry a segmentation through the superpixels and back.

    Parameters
    ----------
    assignment : SoftAssignment
        Soft assignment of the B images.
    gt_labels : Tensor, shape (B, H, W), int64
        Ground-truth labels, 0 to `n_labels` - 1.
    n_labels : int
        Number of labels L.

    Returns
    -------
    Tensor, shape (B, L, H, W)
        Share of each label in each pixel, in [0, 1], summing to 1 over the labels; differentiable.
    """
    gt_onehot = F.one_hot(gt_labels, n_labels).permute(0, 3, 1, 2).to(assignment.affinity.dtype)
    return assignment.reconstruct(gt_onehot)


def true_label_share(assignment: SoftAssignment, gt_labels: Tensor, n_labels: int) -> Tensor:
    """Share of the true label in the labels that superpixels carry to each pixel.

    That is `reconstruct_labels` gathered at `gt_labels`, without the shares of the other labels: no tensor
    has labels and pixels among its dimensions.

    Parameters
    ----------
    assignment, gt_labels, n_labels
        As for `reconstruct_labels`.

    Returns
    -------
    Tensor, shape (B, H, W)
        In [0, 1]; differentiable.
    """
    grid, affinity = assignment.grid, assignment.affinity
    # (B, S, 9, P): the label of a slot's pixel, for each of its candidates
    label_idx = grid.to_cells(gt_labels[:, None]).expand_as(affinity)
    shares = affinity * grid.pixel_mask[:, None]
    of_labels = affinity.new_zeros(*affinity.shape[:3], n_labels).scatter_add(3, label_idx, shares)
    of_labels = grid.sum_over_candidates(of_labels)  # (B, S, L)
    carried = of_labels / (of_labels.sum(dim=2, keepdim=True) + _MIN_PROBABILITY)
    carried = grid.to_candidates(carried).gather(3, label_idx)  # (B, S, 9, P)
    return grid.to_pixels((affinity * carried).sum(dim=2, keepdim=True)).squeeze(1)


def _negative_log_likelihood(true_share: Tensor) -> Tensor:
    return -true_share.clamp(min=_MIN_PROBABILITY).log().mean()


def soft_iou_loss(reconstructed: Tensor, gt_labels: Tensor) -> Tensor:
    """One minus the soft mean IoU of reconstructed and true labels.

    Intersection and union are sums over an image's pixels of r*g and r + g - r*g; the mean is over the
    labels that occur in the image, then over images.

    Parameters
    ----------
    reconstructed : Tensor, shape (B, L, H, W)
        Share of each label, from `reconstruct_labels`.
    gt_labels : Tensor, shape (B, H, W), int64
        True labels.

    Returns
    -------
    Tensor, scalar
        In [0, 1].

    References
    ----------
    .. [1] Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
       Segmentation", ISVC 2016.
    """
    gt_onehot = F.one_hot(gt_labels, reconstructed.shape[1]).permute(0, 3, 1, 2)
    gt_size = gt_onehot.sum(dim=(2, 3))  # (B, L)
    intersection = (reconstructed * gt_onehot).sum(dim=(2, 3))
    union = reconstructed.sum(dim=(2, 3)) + gt_size - intersection
    occurs = gt_size > 0
    # A label that is absent from an image has no IoU there; 1 stands in for its empty union.
    iou = torch.where(occurs, intersection / torch.where(occurs, union, 1), 0)
    return 1 - (iou.sum(dim=1) / occurs.sum(dim=1)).mean()


def position_loss(assignment: SoftAssignment, labels: Tensor) -> Tensor:
    """Mean squared distance, in square pixels, of pixels to the mean position of their superpixel.

    The mean position is weighted by affinity, hence differentiable; which superpixel a pixel belongs to
    is decided by its hard label.

    Parameters
    ----------
    assignment : SoftAssignment
        Soft assignment of the B images.
    labels : Tensor, shape (B, H, W), int64
        `assignment.labels()`.

    Returns
    -------
    Tensor, scalar
        At least 0.
    """
    affinity = assignment.affinity
    height, width = assignment.grid.image_shape
    yx = pixel_positions(affinity.new_empty(labels.shape[0], 0, height, width))  # (B, 2, H, W)
    means = assignment.spixel_means(yx)  # (B, 2, S)
    own_mean = means.gather(2, labels.flatten(1)[:, None].expand(-1, 2, -1))  # (B, 2, H*W)
    return (yx.flatten(2) - own_mean).square().sum(dim=1).mean()
