"""Moving average of a model's weights; it scores better than the weights of any single step."""

import copy

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of weights and batch norm statistics.

    The decay per step rises to its final value `decay` in [0, 1) over the first steps, so that the initial
    weights soon lose influence. At 0 the average equals the model.

    References
    ----------
    .. [1] Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on
       Control and Optimization, 1992.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights after a step; steps count from 1."""
        decay = min(self.decay, step / (10 + step))
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])
