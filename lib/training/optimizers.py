"""Optimizers: AdamW, and Muon, which reaches a lower loss in the same number of steps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.files.values import show
from lib.runtime.errors import DamagedFileError
from lib.weights import check_tensors
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


def check_optimizer_state(optimizer: torch.optim.Optimizer, stored: Any, name: str, *, is_new: bool) -> None:
    """Check the state of an optimizer that was read from a file; `is_new` if it took no step.

    Raises `InputError` with `name`, which has the file, unless it has the state of each weight, see
    `check_tensors`.
    """
    state = stored.get("state") if isinstance(stored, dict) else None
    if not (isinstance(state, dict) and all(isinstance(entry, dict) for entry in state.values())):
        raise DamagedFileError(f"{name} must have the state of each weight, got {show(stored)}")
    weights = [] if is_new else [weight for group in optimizer.param_groups for weight in group["params"]]
    names = ("average",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
    expected = {
        f"{idx}.{entry}": torch.zeros(()) if entry == "step" else weight
        for idx, weight in enumerate(weights)
        for entry in names
    }
    tensors = {f"{idx}.{entry}": value for idx, entries in state.items() for entry, value in entries.items()}
    check_tensors(tensors, expected, name)


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
        """Move all weights that have a gradient, together and without waiting for the device."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._move(weights, **group)

    def _move(
        self, weights: list[Tensor], *, lr: float, momentum: float, weight_decay: float, **_: object
    ) -> None:
        # Like PyTorch's optimizers, use `_foreach` functions: on a GPU, most need one launch for all weights.
        gradients = [weight.grad for weight in weights]
        averages = [self._average(weight) for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        steps = orthogonalize_together(torch._foreach_lerp(gradients, averages, momentum))
        torch._foreach_mul_(steps, [lr * _ADAMW_RMS * math.sqrt(max(_matrix_shape(step))) for step in steps])
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_sub_(weights, steps)

    def _average(self, weight: Tensor) -> Tensor:
        """Return the averaged gradient of a weight, zero before its first step."""
        state = self.state[weight]
        if not state:
            state["average"] = torch.zeros_like(weight)
        return state["average"]


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return a matrix (M, N) with the same singular vectors and singular values of about 0.7 to 1.2.

    Singular values far below the largest one of `matrix` stay smaller. A zero matrix stays zero. This is the
    plain form; `Muon` uses `orthogonalize_together`.
    """
    a, b, c = _NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(_N_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def orthogonalize_together(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return `orthogonalize` of every weight as a matrix (outputs, inputs x kernel), in the weight's shape.

    All matrices go into one batch; padding with zeros changes no singular vector. The number of launches on a
    GPU no longer grows with the number of weights: 15 products in place of 20 for each weight. On a CPU it
    takes as long as one by one, or less. The results are views of the batch.
    """
    a, b, c = _NEWTON_SCHULZ_COEFFICIENTS
    shapes = [_matrix_shape(weight) for weight in weights]
    # All matrices are wide: tall ones are transposed.
    x = weights[0].new_zeros(len(weights), max(map(min, shapes)), max(map(max, shapes)))
    torch._foreach_copy_(_unpadded(x, weights), weights)
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = x / norm.clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(_N_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return _unpadded(x, weights)


def _matrix_shape(weight: Tensor) -> tuple[int, int]:
    """Return the shape (outputs, inputs x kernel) of a weight as a matrix."""
    return weight.shape[0], math.prod(weight.shape[1:])


def _unpadded(batch: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return views of the matrices in a padded batch, in the shapes of the weights."""
    views = []
    for matrix, weight in zip(batch.unbind(), weights, strict=True):
        n_rows, n_cols = _matrix_shape(weight)
        is_tall = n_rows > n_cols
        view = matrix[:n_cols, :n_rows].T if is_tall else matrix[:n_rows, :n_cols]
        views.append(view.unflatten(1, weight.shape[1:]))
    return views
