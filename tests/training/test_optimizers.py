"""Optimizers: the steps of Muon, and the weights it trains."""

import copy
import math

import pytest
import torch
from torch import nn

from lib.training.optimizers import (
    OPTIMIZERS,
    Muon,
    build_optimizers,
    orthogonalize,
    orthogonalize_together,
)
from model import CompositeSSNModel, SSNModel

# Names within a scale of the network. Batch norm is the second layer of a block; each scale after the first
# starts with pooling.
HIDDEN = {
    1: (".0.0.weight", ".1.0.weight"),
    2: (".1.0.weight", ".2.0.weight"),
    3: (".1.0.weight", ".2.0.weight"),
}


# Wide, tall and square matrices, among them convolutions with few input channels.
MIXED_SHAPES = [(6, 5, 3, 3), (4, 1, 1, 2), (40, 6), (9, 2, 2, 2), (8, 8), (1, 5)]


def random_weights(shapes, device, *, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).to(device) for shape in shapes]


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (1, 5)])
def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values(shape):
    generator = torch.Generator().manual_seed(0)
    n = min(shape)
    u = torch.linalg.qr(torch.randn(shape[0], n, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(shape[1], n, generator=generator)).Q
    matrix = u @ torch.diag(torch.logspace(0, -1.5, n)) @ v.T

    in_its_own_bases = u.T @ orthogonalize(1e-4 * matrix) @ v

    values = in_its_own_bases.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(in_its_own_bases, values.diag(), atol=1e-4, rtol=0)


def test_orthogonalize_of_zeros_is_zero():
    assert (orthogonalize(torch.zeros(3, 4)) == 0).all()


def test_orthogonalize_together_equals_one_by_one(device):
    weights = random_weights(MIXED_SHAPES, device, dtype=torch.float64)
    weights[0] *= 1e6  # the size of one matrix does not affect the others
    for weight, result in zip(weights, orthogonalize_together(weights), strict=True):
        assert result.shape == weight.shape
        torch.testing.assert_close(
            result.flatten(1), orthogonalize(weight.flatten(1)), rtol=1e-10, atol=1e-12
        )


def test_orthogonalize_together_takes_channels_last(device):
    weights = random_weights([(6, 5, 3, 3), (30, 2, 2, 2)], device)
    expected = orthogonalize_together(weights)
    results = orthogonalize_together([w.contiguous(memory_format=torch.channels_last) for w in weights])
    assert all(map(torch.equal, results, expected))


def test_orthogonalize_together_keeps_zeros():
    weights = [torch.zeros(3, 4), torch.ones(5, 2)]
    zeros, ones = orthogonalize_together(weights)
    assert (zeros == 0).all()
    torch.testing.assert_close(ones, orthogonalize(weights[1]))


def test_muon_step_equals_the_step_weight_by_weight(device):
    lr, momentum, decay, n_steps = 0.02, 0.9, 0.1, 3
    weights = [nn.Parameter(weight) for weight in random_weights(MIXED_SHAPES, device)]
    expected = [weight.detach().clone() for weight in weights]
    averages = [torch.zeros_like(weight) for weight in weights]
    muon = Muon(weights, lr=lr, momentum=momentum, weight_decay=decay)
    for step in range(n_steps):
        gradients = random_weights(MIXED_SHAPES, device, seed=1 + step)
        gradients[1] = None
        for idx, gradient in enumerate(gradients):
            weights[idx].grad = gradient
            if gradient is not None:
                averages[idx] = momentum * averages[idx] + (1 - momentum) * gradient
                matrix = ((1 - momentum) * gradient + momentum * averages[idx]).flatten(1)
                size = 0.2 * math.sqrt(max(matrix.shape))
                expected[idx] *= 1 - lr * decay
                expected[idx] -= lr * size * orthogonalize(matrix).view_as(gradient)
        muon.step()
    assert torch.equal(weights[1], expected[1])  # had no gradient
    for weight, value in zip(weights, expected, strict=True):
        error = torch.linalg.vector_norm(weight.detach() - value) / torch.linalg.vector_norm(value)
        assert error < 2e-7


def test_muon_continues_from_a_checkpoint_of_single_weights():
    """Checkpoints hold the averaged gradient by weight, as they did when Muon moved one weight at a time."""
    weights = [nn.Parameter(weight) for weight in random_weights([(2, 3), (4, 2)], "cpu")]
    checkpoint = {
        "state": {0: {"average": torch.ones(2, 3)}, 1: {"average": torch.eye(4, 2)}},
        "param_groups": [{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "params": [0, 1]}],
    }
    before = copy.deepcopy(weights)
    muon = Muon(weights, lr=0.5)
    muon.load_state_dict(checkpoint)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    muon.step()
    torch.testing.assert_close(muon.state_dict()["state"][0]["average"], torch.full((2, 3), 0.9))
    for weight, earlier, average in zip(weights, before, (torch.ones(2, 3), torch.eye(4, 2)), strict=True):
        step = 0.1 * 0.2 * math.sqrt(max(weight.shape)) * orthogonalize(average)
        torch.testing.assert_close(earlier - weight, step)


def test_muon_computes_the_products_of_all_weights_at_once(monkeypatch):
    calls = []
    original = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *args, **kw: calls.append(args) or original(*args, **kw))
    orthogonalize_together(random_weights(MIXED_SHAPES, "cpu"))
    assert {len(batch) for batch, *_ in calls} == {len(MIXED_SHAPES)}


def test_muon_step_length_is_independent_of_gradient_size():
    steps = []
    for factor in (1, 1e-3):
        weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
        weight.grad = factor * torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.1).step()
        steps.append(weight.detach())
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-5)
    assert (steps[0] * weight.grad).sum() < 0
    # four singular values near 1 make a matrix of 4 x 27 with a root mean square of 1 / sqrt(27)
    assert steps[0].square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.2)


def test_muon_has_momentum():
    weight = nn.Parameter(torch.zeros(2, 2))
    muon = Muon([weight], lr=1.0, momentum=0.9)
    weight.grad = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    muon.step()
    weight.grad = torch.zeros(2, 2)
    after_one = weight.detach().clone()
    muon.step()
    assert weight[0, 0] < after_one[0, 0]


def test_muon_decays_weights():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    Muon([weight], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 0.95))


def test_muon_skips_weights_without_gradient():
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight], lr=0.5).step()
    assert (weight == 1).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_train_each_weight_once(name):
    model = CompositeSSNModel(3, 2)
    weights = list(model.feature_extract_optflow.parameters())  # the base is frozen

    optimizers = build_optimizers(name, model, 1e-3)

    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert sorted(map(id, weights)) == sorted(id(weight) for group in groups for weight in group["params"])
    assert {group["lr"] for group in groups} == {1e-3}


def test_muon_trains_the_hidden_convolutions():
    model = SSNModel(3)
    muon, adamw = build_optimizers("muon", model, 1e-3)
    names = {id(weight): name for name, weight in model.named_parameters()}
    of_muon = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    of_adamw = {names[id(weight)] for group in adamw.param_groups for weight in group["params"]}
    assert of_muon == {f"feature_extract.scale{n}" + end for n, ends in HIDDEN.items() for end in ends}
    assert "feature_extract.output_conv.0.weight" in of_adamw
    assert "feature_extract.scale1.0.1.weight" in of_adamw


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_reach_the_minimum_of_a_regression(name):
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    x = torch.randn(64, 6)
    y = x @ torch.randn(6, 4) + torch.randn(4)
    n_steps = 300
    optimizers = build_optimizers(name, model, 0.1)
    for step in range(n_steps):
        loss = (model(x) - y).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / n_steps))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss < 1e-2


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="must be one of"):
        build_optimizers("sgd", nn.Linear(2, 2), 0.1)
