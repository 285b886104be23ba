"""Optimizers: AdamW, and Muon, which reaches a lower loss in the same number of steps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model import FeatureExtractor

OPTIMIZERS = ("muon", "adamw")

# Newton-Schulz iteration from reference [1] of `Muon`. It moves the singular values of a matrix of norm 1 to
# between about 0.7 and 1.2.
_NEWTON_SCHULZ_COEFFICIENTS = 3.4445, -4.7750, 2.0315
_N_NEWTON_SCHULZ_STEPS = 5

_ADAMW_RMS = 0.2  # root mean square of a typical AdamW step at learning rate 1, from reference [2]


def build_optimizers(name: str, model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Build optimizers that together train all weights that require a gradient.

    The name "muon" uses `Muon` for hidden convolutions and AdamW for all other weights; "adamw" uses AdamW
    only. Batch norm follows a hidden convolution, so the size of its weights matters little. The size of the
    output weights sets the sharpness of the superpixels: Muon's steps of constant size would soon saturate
    the soft assignment, and its gradients would vanish.

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
    """Nesterov momentum with orthogonalized steps.

    A weight's step, as a matrix (outputs, inputs x kernel), has all singular values near one. Directions with
    small gradients are therefore learnt as fast as others. The step is scaled to the size of an AdamW step,
    so that both optimizers take the same learning rate.

    Parameters
    ----------
    weights : sequence of Parameter
        Weights with at least two dimensions, output channels first.
    lr, momentum, weight_decay : float
        Learning rate; decay of the averaged gradient per step, in [0, 1); a step shrinks the weights by the
        factor 1 - lr * weight_decay.

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
    """Return a matrix (M, N) with the same singular vectors and singular values of about 0.7 to 1.2.

    Singular values far below the largest one of `matrix` stay smaller. A zero matrix stays zero.
    """
    a, b, c = _NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(_N_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
