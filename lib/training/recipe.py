"""How a model is trained."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lib.datasets.crops import DEFAULT_CROP_SIZE


class CountRange(NamedTuple):
    """Numbers of superpixels from `low` to `high`."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


DEFAULT_COUNT_RANGE = CountRange(50, 500)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. The defaults are those of docs/training.md."""

    n_spixels: CountRange = DEFAULT_COUNT_RANGE  # requested in a crop, drawn for every batch
    crop_size: int = DEFAULT_CROP_SIZE  # pixels, both ways
    n_annotations: int = 4  # of each crop
    n_iter: int = 5  # of the clustering; validation has the model's own
    n_steps: int = 500_000
    batch_size: int = 6  # of each rank
    optimizer: str = "muon"  # see lib.training.optimizers.build_optimizers
    learning_rate: float = 3e-3  # peak
    warmup_share: float = 0.1  # of all steps
    ema_decay: float = 0.999  # of the averaged weights
    max_grad_norm: float = 1.0  # longer gradients are shortened to it
    loss: str = "expected_error"  # see lib.losses.compute_loss_terms
    compactness: float = 1e-5
    with_bfloat16: bool = False  # the convolutions alone
    seed: int = 0

    def draw_n_spixels(self, step: int) -> int:
        """Number of superpixels of a step: log-uniform, a function of the seed and the step."""
        low, high = self.n_spixels
        exponent = np.random.default_rng([self.seed, 2, step]).random()
        return round(low * (high / low) ** exponent)
