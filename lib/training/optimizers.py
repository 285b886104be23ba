"""The optimizers: AdamW, and Muon, which gets further in the same number of steps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model import FeatureExtractor

OPTIMIZERS = ("muon", "adamw")

# Newton-Schulz iteration of the first reference of `Muon`, which takes the singular values of a matrix of
# norm 1 to between about 0.7 and 1.2.
_NEWTON_SCHULZ_COEFFICIENTS = 3.4445, -4.7750, 2.0315
_N_NEWTON_SCHULZ_STEPS = 5

_ADAMW_RMS = 0.2  # of a typical step of AdamW at a learning rate of 1, from the second reference


def build_optimizers(name: str, model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Optimizers that together train the weights of a model that require a gradient.

    Parameters
    ----------
    name : {"muon", "adamw"}
        "muon" is `Muon` for the weights of hidden convolutions and AdamW for the others, "adamw" is AdamW for
        all. Hidden ones are those before the output: batch norm makes the size of their weights matter
        little. That of the output's is the sharpness of the superpixels, which steps of a constant size would
        soon drive to where there are no gradients.
    model : Module
        What to train.
    learning_rate : float
        The same for all.

    Raises
    ------
    ValueError
        If `name` is unknown.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"name must be one of {OPTIMIZERS}, got {name!r}")
    extractors = [module for module in model.modules() if isinstance(module, FeatureExtractor)]
    of_output = {id(weight) for extractor in extractors for weight in extractor.output_conv.parameters()}
    hidden, others = [], []
    for weight in model.parameters():
        if weight.requires_grad:
            is_hidden = name == "muon" and weight.ndim > 1 and id(weight) not in of_output
            (hidden if is_hidden else others).append(weight)
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, lr=learning_rate))
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=learning_rate, fused=True))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose steps are made orthogonal.

    The step of a weight, as a matrix (outputs, inputs x kernel), has all singular values near one, so that
    directions in which gradients are small are learnt as fast as others. It is scaled to the size of a step
    of AdamW, which then takes the same learning rate.

    Parameters
    ----------
    weights : sequence of Parameter
        Weights of two or more dimensions, the outputs first.
    lr : float
        Learning rate.
    momentum : float
        Share of the averaged gradient that a step keeps.
    weight_decay : float
        Share of the weights, in learning rates, that a step takes away.

    References
    ----------
    .. [1] Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    .. [2] Liu et al., "Muon is Scalable for LLM Training", 2025 (arXiv 2502.16982).
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move each weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, **group)

    def _move(self, weight: Tensor, *, lr: float, momentum: float, weight_decay: float, **_: object) -> None:
        state = self.state[weight]
        if not state:
            state["average"] = torch.zeros_like(weight)
        average = state["average"].lerp_(weight.grad, 1 - momentum)
        direction = orthogonalize(weight.grad.lerp(average, momentum).flatten(1))
        size = _ADAMW_RMS * math.sqrt(max(direction.shape))
        weight.mul_(1 - lr * weight_decay)
        weight.sub_(direction.view(weight.shape), alpha=lr * size)


def orthogonalize(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors, with singular values near 1.

    Parameters
    ----------
    matrix : Tensor, shape (M, N)
        Any matrix; where it is zero, so is the result.

    Returns
    -------
    Tensor, shape (M, N)
        Its singular values are between about 0.7 and 1.2, but for those that were next to nothing beside
        the largest.
    """
    a, b, c = _NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(_N_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
