"""Moving average of a model's weights; it scores better than the weights of any single step."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


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
        averages, current = self.model.state_dict(), model.state_dict()
        floats = [name for name, average in averages.items() if average.is_floating_point()]
        counts = [name for name, average in averages.items() if not average.is_floating_point()]
        torch._foreach_lerp_(_values(averages, floats), _values(current, floats), 1 - decay)
        if counts:
            torch._foreach_copy_(_values(averages, counts), _values(current, counts))


def _values(state: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    return [state[name] for name in names]
