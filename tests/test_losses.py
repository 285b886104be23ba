"""Compare the losses with hand-computed values and with the reference implementation."""

import math

import pytest
import torch

from lib.losses import (
    RECONSTRUCTION_LOSSES,
    compute_loss_terms,
    expected_error,
    imitation_loss,
    position_loss,
    reconstruct_labels,
    soft_iou_loss,
    true_label_share,
)
from lib.metrics.label_map import VOID
from lib.slic import reference
from lib.slic.iteration import slic

# One row of three pixels, two labels: shares of label 0 are 0.8, 0.5 and 0.25.
SHARES = torch.tensor([[[[0.8, 0.5, 0.25]], [[0.2, 0.5, 0.75]]]], dtype=torch.float64)
LABELS = torch.tensor([[[0, 1, 1]]])


def test_reference_cross_entropy_by_hand():
    expected = -(math.log(0.8) + math.log(0.5) + math.log(0.75)) / 3
    assert reference.cross_entropy(SHARES, LABELS).item() == pytest.approx(expected)
    assert reference.cross_entropy(3 * SHARES, LABELS).item() == pytest.approx(expected)


def test_soft_iou_by_hand():
    # Label 0: 0.8 / (1.55 + 1 - 0.8); label 1: 1.25 / (1.45 + 2 - 1.25).
    expected = 1 - (0.8 / 1.75 + 1.25 / 2.2) / 2
    assert soft_iou_loss(SHARES, LABELS).item() == pytest.approx(expected)


def test_soft_iou_ignores_absent_labels():
    padded = torch.cat([SHARES, torch.zeros(1, 2, 1, 3)], dim=1)
    assert soft_iou_loss(padded, LABELS).item() == pytest.approx(soft_iou_loss(SHARES, LABELS).item())


@pytest.mark.parametrize("n_labels", [3, 90])
def test_losses_equal_dense_reference(n_labels):
    features = torch.randn(2, 4, 20, 31, dtype=torch.float64)
    gt_labels = torch.randint(n_labels, (2, 20, 31))
    assignment = slic(features, 12)
    labels = assignment.labels()
    affinity, candidates, n_cells = reference.gather_slic(features, 12)
    dense = reference.dense_affinity(affinity, candidates, n_cells)
    onehot = torch.nn.functional.one_hot(gt_labels, n_labels).permute(0, 3, 1, 2).double()

    reconstructed = reconstruct_labels(assignment, gt_labels, n_labels)
    torch.testing.assert_close(reconstructed, reference.reconstruct(dense, onehot))
    torch.testing.assert_close(reconstructed.sum(1), torch.ones(2, 20, 31, dtype=torch.float64))
    torch.testing.assert_close(position_loss(assignment, labels), reference.position_loss(dense, labels))


def test_position_loss_by_hand():
    # A single superpixel holds all 3x5 pixels: variance of the rows plus variance of the columns.
    assignment = slic(torch.zeros(1, 2, 3, 5), 1)
    assert position_loss(assignment, assignment.labels()).item() == pytest.approx(2 / 3 + 2)


@pytest.mark.parametrize("reconstruction", RECONSTRUCTION_LOSSES)
def test_gradients_of_loss_terms(reconstruction):
    gt_labels = torch.arange(6).view(1, 2, 3).repeat_interleave(3, 1).repeat_interleave(2, 2)
    gt_labels = torch.stack([gt_labels, gt_labels.flip(2)], dim=1)
    features = torch.randn(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    def total(features):
        assignment = slic(features, 4, n_iter=2)
        terms = compute_loss_terms(
            assignment,
            assignment.labels(),
            gt_labels,
            6,
            reconstruction=reconstruction,
            compactness=0.1,
        )
        return terms["reconstruction"] + terms["position"]

    assert torch.autograd.gradcheck(total, (features,))


def test_compactness_is_weight_of_position_term():
    assignment = slic(torch.randn(1, 3, 6, 6), 4)
    labels, gt_labels = assignment.labels(), torch.zeros(1, 1, 6, 6, dtype=torch.int64)
    terms = compute_loss_terms(
        assignment, labels, gt_labels, 1, reconstruction="cross_entropy", compactness=0.5
    )
    torch.testing.assert_close(terms["position"], 0.5 * position_loss(assignment, labels))
    assert terms["reconstruction"].item() == pytest.approx(0, abs=1e-6)


def test_true_label_share_equals_reconstruction():
    assignment = slic(torch.randn(2, 3, 13, 17), 12)
    gt_labels = torch.randint(0, 5, (2, 13, 17))
    dense = reconstruct_labels(assignment, gt_labels, 5).gather(1, gt_labels[:, None])[:, 0]
    torch.testing.assert_close(true_label_share(assignment, gt_labels, 5), dense)


def test_expected_error_by_hand():
    # One superpixel of three pixels, two of label 0: they get a share of 2/3, the third gets 1/3.
    assignment = slic(torch.zeros(1, 2, 1, 3), 1)
    terms = compute_loss_terms(
        assignment,
        assignment.labels(),
        torch.tensor([[[[0, 0, 1]]]]),
        2,
        reconstruction="expected_error",
        compactness=0,
    )
    assert terms["reconstruction"].item() == pytest.approx(1 - (2 / 3 + 2 / 3 + 1 / 3) / 3)


@pytest.mark.parametrize("reconstruction", RECONSTRUCTION_LOSSES)
def test_loss_is_mean_over_annotations(reconstruction):
    assignment = slic(torch.randn(2, 3, 12, 15), 9)
    gt_labels = torch.randint(0, 4, (2, 3, 12, 15))

    def loss_of(annotations):
        terms = compute_loss_terms(
            assignment, assignment.labels(), annotations, 4, reconstruction=reconstruction, compactness=0
        )
        return terms["reconstruction"]

    each = torch.stack([loss_of(gt_labels[:, [idx]]) for idx in range(3)])
    assert len(each.unique()) == 3
    torch.testing.assert_close(loss_of(gt_labels), each.mean())


@pytest.mark.parametrize("reconstruction", ["cross_entropy", "cross_entropy_logsoftmax"])
def test_cross_entropies_equal_reconstruction(reconstruction):
    assignment = slic(torch.randn(2, 3, 13, 17), 12)
    gt_labels = torch.randint(4, (2, 13, 17))
    shares = reconstruct_labels(assignment, gt_labels, 4)
    if reconstruction == "cross_entropy":
        expected = reference.cross_entropy(shares, gt_labels)
    else:
        weights = shares.exp()
        expected = -(weights.gather(1, gt_labels[:, None]) / weights.sum(1, keepdim=True)).log().mean()
    terms = compute_loss_terms(
        assignment,
        assignment.labels(),
        gt_labels[:, None],
        4,
        reconstruction=reconstruction,
        compactness=0,
    )
    torch.testing.assert_close(terms["reconstruction"], expected)


@pytest.mark.parametrize("reconstruction", RECONSTRUCTION_LOSSES)
def test_void_half_does_not_change_the_loss(reconstruction, device):
    """The superpixels of the two halves are kept apart by their colours."""
    torch.manual_seed(0)
    half = torch.randn(2, 3, 12, 18, dtype=torch.float64, device=device)
    gt_labels = torch.randint(4, (2, 1, 12, 18), device=device)
    features = torch.cat([half, 1e3 + torch.randn_like(half)], dim=3).requires_grad_()

    def loss_of(features, gt_labels, n_spixels):
        assignment = slic(features, n_spixels)
        terms = compute_loss_terms(
            assignment, assignment.labels(), gt_labels, 4, reconstruction=reconstruction, compactness=0
        )
        return terms["reconstruction"]

    expected = loss_of(half, gt_labels, 6)
    with_void = torch.cat([gt_labels, torch.full_like(gt_labels, VOID)], dim=3)
    loss = loss_of(features, with_void, 12)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient[..., :18].abs().max() > 1e-5
    assert gradient[..., 18:].abs().max() < 1e-12


def test_expected_error_beside_void_by_hand():
    # One superpixel holds labels 0, 0, 1 and void: the shares of the true labels are 2/3, 2/3 and 1/3.
    assignment = slic(torch.zeros(1, 2, 1, 4), 1)
    loss = expected_error(assignment, torch.tensor([[[0, VOID, 0, 1]]]), 2)
    assert loss.item() == pytest.approx(1 - (2 / 3 + 2 / 3 + 1 / 3) / 3)


@pytest.mark.parametrize("reconstruction", RECONSTRUCTION_LOSSES)
def test_void_alone_has_neither_loss_nor_gradient(reconstruction):
    features = torch.randn(2, 3, 12, 15, requires_grad=True)
    gt_labels = torch.full((2, 2, 12, 15), VOID)
    for n_void, n_labels in ((2, 0), (1, 3)):
        gt_labels[n_void:] = torch.randint(3, (2 - n_void, 2, 12, 15))
        assignment = slic(features, 9)
        terms = compute_loss_terms(
            assignment, assignment.labels(), gt_labels, n_labels, reconstruction=reconstruction, compactness=0
        )
        assert (terms["reconstruction"] > 0.01) == (n_void == 1)
        (gradient,) = torch.autograd.grad(terms["reconstruction"], features)
        assert (gradient[:n_void] == 0).all()
        assert gradient.isfinite().all()


def test_expected_error_is_mean_share_of_wrong_labels():
    """The sum over superpixels and labels equals the mean over pixels, including gradients."""
    features = torch.randn(2, 3, 13, 17, dtype=torch.float64, requires_grad=True)
    gt_labels = torch.randint(0, 5, (2, 13, 17))
    mask = torch.ones(2, 13, 17, dtype=torch.bool)
    mask[:, :4, :6] = False
    for options in ({}, {"mask": mask}):
        assignment = slic(features, 12, **options)
        ours = expected_error(assignment, gt_labels, 5)
        theirs = 1 - true_label_share(assignment, gt_labels, 5).mean()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        grads = [torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in (ours, theirs)]
        assert grads[0].abs().max() > 1e-6
        torch.testing.assert_close(*grads, rtol=0, atol=1e-9)


def test_labels_on_another_device_are_refused():
    assignment = slic(torch.rand(1, 3, 8, 9), 4)
    gt_labels = torch.empty(1, 1, 8, 9, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="affinity on cpu, labels on cpu, gt_labels on meta"):
        compute_loss_terms(
            assignment, assignment.labels(), gt_labels, 3, reconstruction="expected_error", compactness=1e-5
        )


# Two channels of variance 1 and 4, on one row of two pixels.
TARGET = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]], dtype=torch.float64)


def test_imitation_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]], dtype=torch.float64)
    assert imitation_loss(features, TARGET).item() == pytest.approx(0.5 / 5)  # mean of 0 and 1, over 1 + 4


def test_imitation_is_0_for_equal_features_and_1_for_their_mean():
    target = 3 * torch.randn(2, 4, 20, 31) + torch.arange(4.0)[:, None, None]
    assert imitation_loss(target, target).item() == 0
    mean = target.mean(dim=(0, 2, 3), keepdim=True).expand_as(target)
    assert imitation_loss(mean, target).item() == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_imitation_does_not_depend_on_scale_and_offset(scale):
    features, target = torch.randn(2, 2, 4, 20, 31, dtype=torch.float64)
    expected = imitation_loss(features, target).item()
    assert 1 < expected < 3
    changed = imitation_loss(scale * (features + 5), scale * (target + 5))
    assert changed.item() == pytest.approx(expected, rel=1e-4)


def test_only_the_imitating_features_get_gradients():
    features = torch.zeros(1, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    target = TARGET.clone().requires_grad_()
    imitation_loss(features, target).backward()
    assert target.grad is None
    torch.testing.assert_close(features.grad, -2 * TARGET / 2 / 5)  # of the mean over 2 pixels, over 1 + 4


def test_constant_features_are_imitated_without_nan():
    target = torch.full((1, 2, 3, 4), 0.3)
    features = target.clone().requires_grad_()
    loss = imitation_loss(features, target)
    loss.backward()
    assert loss.item() == 0
    assert features.grad.abs().max() == 0
    assert imitation_loss(target + 1, target).isfinite()


def test_imitation_of_bfloat16_is_summed_in_float32():
    features, target = torch.randn(2, 1, 4, 200, 310).bfloat16()
    loss = imitation_loss(features, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, imitation_loss(features.double(), target.double()))
