"""Settings of training: the recipe, which defines the trained model, and the settings of a run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from lib.datasets.crops import DEFAULT_CROP_SIZE
from lib.losses import RECONSTRUCTION_LOSSES
from lib.runtime.device import PRECISIONS
from lib.runtime.errors import InputError
from lib.training.optimizers import OPTIMIZERS


class CountRange(NamedTuple):
    """Numbers of superpixels from `low` to `high`."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """Return a field with its help and its limits: `low`, `above`, `below` or `choices`."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that define the trained model. The defaults are those of docs/training.md.

    A resumed run has the recipe of its checkpoint, but for `n_steps`.
    """

    n_spixels: CountRange = _setting(
        CountRange(50, 500),
        "requested number of superpixels in a crop of `crop_size`: a number, or a range from which it is "
        "drawn for every batch, log-uniformly; evaluation and inference take numbers alone",
    )
    crop_size: int = _setting(
        DEFAULT_CROP_SIZE, "rows and columns of a crop, in pixels; `n_spixels` is meant for one crop", low=1
    )
    n_annotations: int = _setting(4, "annotations of each crop, over which the loss is averaged", low=1)
    n_iter: int = _setting(
        5, "iterations of the clustering in training; validation and use have their own", low=1
    )
    n_steps: int = _setting(500_000, "steps in all", low=1)
    batch_size: int = _setting(6, "crops in a batch, of each rank", low=1)
    optimizer: str = _setting(
        "muon", "muon trains the hidden convolutions with Muon and the rest with AdamW", choices=OPTIMIZERS
    )
    learning_rate: float = _setting(3e-3, "peak learning rate", above=0)
    warmup_share: float = _setting(
        0.1,
        "share of the steps in which the learning rate rises; then it falls along half a cosine",
        low=0,
        below=1,
    )
    ema_decay: float = _setting(
        0.999,
        "share that a step keeps of the moving average of the weights; the average is validated and saved; "
        "0 for no average",
        low=0,
        below=1,
    )
    max_grad_norm: float = _setting(1.0, "norm to which longer gradients are shortened", above=0)
    loss: str = _setting("expected_error", "reconstruction loss of the labels", choices=RECONSTRUCTION_LOSSES)
    compactness: float = _setting(
        1e-5, "weight of the position loss, per square pixel; `pos_scale` acts in the clustering", low=0
    )
    precision: str = _setting(
        "auto",
        "precision of the convolutions; bf16 is bfloat16, auto takes it where the device has it; all else "
        "stays in float32",
        choices=PRECISIONS,
    )
    seed: int = _setting(0, "seed of all random numbers; the same seed repeats a run", low=0, below=2**63)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild a recipe from plain types."""
        return cls(**{**plain, "n_spixels": CountRange(*plain["n_spixels"])})

    def to_plain(self) -> dict[str, Any]:
        """Return the settings as plain types, as checkpoints hold them."""
        return {**vars(self), "n_spixels": tuple(self.n_spixels)}

    def draw_n_spixels(self, step: int) -> int:
        """Number of superpixels of a step: log-uniform, a function of the seed and the step."""
        low, high = self.n_spixels
        exponent = np.random.default_rng([self.seed, 2, step]).random()
        return round(low * (high / low) ** exponent)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a training run that do not define the trained model."""

    out_dir: Path = _setting(Path("log"), "folder of this run alone: its log and checkpoints")
    val_n_spixels: int = _setting(
        200, "requested number of superpixels in a whole image at validation", low=1
    )
    test_interval: int = _setting(10_000, "steps between validations", low=1)
    log_interval: int = _setting(100, "steps between lines of the log", low=1)
    save_interval: int = _setting(
        10_000, "steps between checkpoints that are kept beside the last state", low=1
    )
    n_kept: int = _setting(3, "number of these checkpoints to keep, the last ones", low=1)
    n_workers: int = _setting(
        4, "processes that read images; evaluation starts as many to compute metrics", low=0
    )
    ignore_background: bool = _setting(
        False, "leave segment 0, the background of DAVIS, out of the mean IoU; BSDS500 has none"
    )
    compiled: bool = _setting(False, "compile the network with torch.compile")
    with_loader: bool = True  # False repeats the first batch, so that no time goes into loading


def check_resumed(ours: Mapping[str, Any], theirs: Mapping[str, Any], resume: Path) -> None:
    """Check that settings equal those of the checkpoint `resume`.

    Raises
    ------
    InputError
        With the first setting that differs, and both values.
    """
    for name, value in ours.items():
        if value != theirs.get(name):
            raise InputError(
                f"{value} contradicts {theirs.get(name, 'the default')} of `resume` {resume}; "
                "leave it out to go on with that run",
                parameter=name,
            )
