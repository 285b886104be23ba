"""Settings of training: the recipe defines the trained model, the run settings do not."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from lib.datasets.crops import DEFAULT_CROP_SIZE
from lib.datasets.resident import AutoBool
from lib.files.values import FLAG, Expected, check_value, number, one_of, show
from lib.losses import RECONSTRUCTION_LOSSES
from lib.runtime.device import PRECISIONS
from lib.runtime.errors import DamagedFileError, InputError
from lib.training.optimizers import OPTIMIZERS


class CountRange(NamedTuple):
    """Range of superpixel counts, both ends included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """Return a field with its help and its limits: `low`, `high`, `above`, `below` or `choices`."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def _expected(field: dataclasses.Field) -> Expected:
    """Return the values of a setting that a file may hold."""
    limits = {name: limit for name, limit in field.metadata.items() if name != "help"}
    if "choices" in limits:
        return one_of(limits["choices"])
    if field.type is bool:
        return FLAG
    if field.type is CountRange:
        return Expected(_is_count_range, "two integers of at least 1, the lower one first")
    return number(field.type, **limits)


def _is_count_range(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(type(count) is int for count in value)
        and 1 <= value[0] <= value[1] < 2**31
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that define the trained model; docs/training.md explains the defaults.

    A resumed run keeps the recipe of its checkpoint; only `n_steps` may change.
    """

    n_spixels: CountRange = _setting(
        CountRange(50, 500),
        "requested number of superpixels in a crop of `crop_size`: a number, or a range to draw from "
        "log-uniformly for every batch; evaluation and inference take single numbers",
    )
    crop_size: int = _setting(
        DEFAULT_CROP_SIZE,
        "height and width of a crop, in pixels; `n_spixels` counts the superpixels of one crop",
        low=1,
    )
    # No run has measured the gain of the next four, so all are off.
    vertical_flips: bool = _setting(False, "flip half of the crops top to bottom, as half are left to right")
    quarter_turns: bool = _setting(False, "turn each crop by 0, 1, 2 or 3 quarters, at random")
    color_jitter: float = _setting(
        0.0,
        "scale of random changes of a crop's colours in CIELAB, from 0 (off) to 1; at 0.2, contrast and "
        "saturation change by factors of 0.82 to 1.22, L by up to 10, a and b by up to 5",
        low=0,
        high=1,
    )
    patch_jitter: float = _setting(
        0.0,
        "probability, from 0 (off) to 1, that pixels of a crop move with their labels, after AINet: two "
        "squares swap places, and a band of rows or columns moves along itself",
        low=0,
        high=1,
    )
    n_annotations: int = _setting(4, "annotations per crop; the loss is averaged over them", low=1)
    n_iter: int = _setting(
        5, "clustering iterations in training; validation and inference have their own number", low=1
    )
    n_steps: int = _setting(500_000, "number of training steps", low=1)
    batch_size: int = _setting(6, "crops per batch and rank", low=1)
    optimizer: str = _setting(
        "muon", "muon trains the hidden convolutions with Muon and the rest with AdamW", choices=OPTIMIZERS
    )
    learning_rate: float = _setting(3e-3, "peak learning rate", above=0)
    warmup_share: float = _setting(
        0.1,
        "share of the steps with a rising learning rate; afterwards it falls along half a cosine",
        low=0,
        below=1,
    )
    ema_decay: float = _setting(
        0.999,
        "decay per step of the moving average of the weights; the average is validated and saved; "
        "0 turns averaging off",
        low=0,
        below=1,
    )
    max_grad_norm: float = _setting(1.0, "clip gradients to this norm", above=0)
    loss: str = _setting("expected_error", "reconstruction loss of the labels", choices=RECONSTRUCTION_LOSSES)
    compactness: float = _setting(
        1e-5,
        "weight of the position loss, per square pixel; `pos_scale` weights the position in the clustering",
        low=0,
    )
    precision: str = _setting(
        "auto",
        "precision of the convolutions; bf16 is bfloat16, auto uses it if the device supports it; everything "
        "else stays in float32",
        choices=PRECISIONS,
    )
    seed: int = _setting(0, "seed of all random numbers; the same seed reproduces a run", low=0, below=2**63)

    @classmethod
    def from_plain(cls, plain: Any, name: str = "recipe") -> Self:
        """Rebuild a recipe from what `to_plain` returns; settings that it lacks have their defaults.

        Raises `InputError` with `name`, which has the file, if a setting has another type or is out of range.
        """
        if not isinstance(plain, dict):
            raise DamagedFileError(f"{name} must be settings by name, got {show(plain)}")
        expected = {field.name: _expected(field) for field in dataclasses.fields(cls)}
        for setting, value in plain.items():
            if setting not in expected:
                raise InputError(f"{name}: this version does not know the setting {show(setting)}")
            check_value(f"{name}: {setting}", value, expected[setting])
        settings = dict(plain)
        if "n_spixels" in settings:
            settings["n_spixels"] = CountRange(*settings["n_spixels"])
        return cls(**settings)

    def to_plain(self) -> dict[str, Any]:
        """Return the settings as plain types, for a checkpoint."""
        return {**vars(self), "n_spixels": tuple(self.n_spixels)}

    def draw_n_spixels(self, step: int) -> int:
        """Draw the number of superpixels of a step log-uniformly; it depends on seed and step only."""
        low, high = self.n_spixels
        exponent = np.random.default_rng([self.seed, 2, step]).random()
        return round(low * (high / low) ** exponent)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a training run that do not define the trained model."""

    out_dir: Path = _setting(Path("log"), "folder for the log and checkpoints of this run only")
    val_n_spixels: int = _setting(200, "requested number of superpixels in a whole validation image", low=1)
    test_interval: int = _setting(10_000, "steps between validations", low=1)
    log_interval: int = _setting(100, "steps between log lines", low=1)
    save_interval: int = _setting(
        10_000, "steps between periodic checkpoints, which are written in addition to last_model.pth", low=1
    )
    n_kept: int = _setting(3, "number of periodic checkpoints to keep; older ones are deleted", low=1)
    n_workers: int = _setting(
        4,
        "worker processes that read images; evaluation starts the same number again to compute metrics",
        low=0,
    )
    data_on_device: AutoBool = _setting(
        "auto",
        "keep all training images and annotations in the memory of the device, and cut the crops there; auto "
        "does so on a GPU if they take at most half of its free memory",
    )
    choose_settings: bool = _setting(
        False,
        "after the last step, choose the `pos_scale`, `n_iter`, `fine_factor` and `merge_pos_scale` of "
        "inference on the validation images, and store them in the best model",
    )
    ignore_background: bool = _setting(
        False, "leave segment 0 out of the mean IoU; it is the background in DAVIS, BSDS500 has no background"
    )
    compiled: bool = _setting(False, "compile the network with torch.compile")
    with_loader: bool = True  # False repeats the first batch, to measure speed without data loading


def check_resumed(ours: Mapping[str, Any], theirs: Mapping[str, Any], resume: Path) -> None:
    """Check that settings equal the settings stored in the checkpoint `resume`.

    Raises
    ------
    InputError
        For the first setting that differs, with both values.
    """
    for name, value in ours.items():
        if value != theirs.get(name):
            raise InputError(
                f"{value} contradicts {theirs.get(name, 'the default')} of `resume` {resume}; "
                "leave it out to continue that run",
                parameter=name,
            )
