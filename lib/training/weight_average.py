"""An average of a model's weights over the last steps of its training, which does better than any of them."""

import copy

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of weights and batch norm statistics.

    The decay rises to its final value over the first steps, so that the start is soon forgotten.

    Parameters
    ----------
    model : nn.Module
        The model in training, of whose architecture `model` of the average is.
    decay : float
        Final share of the average that a step keeps, in [0, 1); 0 gives the model itself.

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
        """Take in the weights after a step, which are counted from 1."""
        decay = min(self.decay, step / (10 + step))
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])
