"""Run a whole training: check the data, start or resume, train, validate and save."""

import itertools
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.utils.data import Dataset

from lib.datasets.base import FileDataset, SegmentedImage, fingerprint
from lib.datasets.crops import TrainingCrops
from lib.datasets.loaders import EvaluationImages, training_loader
from lib.evaluation.loop import check_first_image, connected_superpixels, evaluate, list_runs
from lib.evaluation.methods import NetworkMethod, Setting
from lib.evaluation.summary import summarize
from lib.inference import Segmenter
from lib.losses import compute_loss_terms
from lib.network.inputs import InputScales, model_input
from lib.runtime.device import resolve_precision
from lib.runtime.errors import InputError
from lib.runtime.ranks import data_parallel, is_first_rank, n_ranks, on_first_rank, synchronize, together
from lib.superpixels.counts import check_n_spixels
from lib.superpixels.drawing import draw_boundaries
from lib.training.recipe import Recipe, RunSettings, check_resumed
from lib.training.run_folder import BEST_MODEL, RunFolder, Validation, has_best_model, prepare_run_folder
from lib.training.trainer import Trainer, TrainingState
from lib.weights import read_checkpoint

logger = logging.getLogger(__name__)

VALIDATION_METRICS = (
    "n_spixels",
    "asa",
    "ue_np",
    "boundary_recall",
    "boundary_precision",
    "mean_iou",
    "mean_iou_foreground",
    "compactness",
)

# Prefix of a fingerprint in a checkpoint. Older checkpoints hold a SHA-256 of the names only, without prefix.
_WITH_SIZES = "names+sizes:"

TRAIN_SET = "train"  # name of the training set in the log and in checkpoints

_COUNT_PARAMETER = "val_n_spixels"  # named in errors about the number of superpixels

N_PICTURES = 4  # overlays per validation set in TensorBoard


def run_training(
    model: nn.Module,
    scales: InputScales,
    recipe: Recipe,
    settings: RunSettings,
    *,
    train_set: Dataset[SegmentedImage],
    validation_sets: Mapping[str, Dataset[SegmentedImage]],
    score: str,
    device: torch.device,
    description: Mapping[str, Any] | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
) -> TrainingState:
    """Train and validate a model, and keep the best; under `torchrun`, every rank calls it.

    Parameters
    ----------
    model : SSNModel or CompositeSSNModel
        Moved to `device`. Weights that require no gradient are not trained.
    scales : InputScales
        Weights of the input channels.
    recipe : Recipe
        Settings that define the trained model.
    settings : RunSettings
        Settings of the run.
    train_set : Dataset of SegmentedImage
        Source of random crops. Holds extra channels if the model reads any.
    validation_sets : mapping of str to Dataset of SegmentedImage
        Whole images to validate on, by name.
    score : str
        Name of the score that chooses the best model: validation set, "_" and metric, say "bsds_val_asa".
    device : torch.device
        Device to train on.
    description : mapping, optional
        Further checkpoint entries of plain types, such as the options of the run.
    resume : Path, optional
        Checkpoint to continue from.
    overwrite : bool
        Replace an earlier run in `settings.out_dir`, if it has no best model yet.

    Raises
    ------
    InputError, ValueError
        If files or settings cannot be used; if `score` is unknown or a validation set is named "train".
    RunError
        If the loss is not finite, or a file cannot be written.
    Stop
        On Ctrl-C, after saving, if signals set the stop flag. After SIGTERM the state is saved, and the
        function returns.
    """
    _check_names(validation_sets, score)
    datasets = {TRAIN_SET: train_set, **validation_sets}
    with_bfloat16 = resolve_precision(recipe.precision, device) == "bf16"
    image_names = _check_sets(recipe, datasets, settings.val_n_spixels)
    model = model.to(device, memory_format=torch.channels_last)
    out_dir = settings.out_dir
    state = _start_state(model, recipe, image_names, score, out_dir, resume)
    on_first_rank(lambda: prepare_run_folder(out_dir, is_resumed=resume is not None, overwrite=overwrite))
    _log_start(state, datasets, device, with_bfloat16=with_bfloat16)
    run_folder = together(
        lambda: (
            _open_run_folder(model, scales, recipe, settings, state, image_names, description)
            if is_first_rank()
            else None
        )
    )
    trainer = Trainer(
        state,
        _BatchLosses(state, recipe, scales, device, with_bfloat16=with_bfloat16, compiled=settings.compiled),
        _ModelValidation(state.average.model, scales, settings, device, validation_sets, score),
        batch_size=recipe.batch_size,
        test_interval=settings.test_interval,
        log_interval=settings.log_interval,
        save_interval=settings.save_interval,
        run_folder=run_folder,
    )
    # All crops have one size, so benchmark mode pays off; TF32 is precise enough for gradients.
    fast = cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)
    with closing(run_folder) if run_folder else nullcontext(), fast:
        trainer.run(_remaining_batches(train_set, recipe, settings, state, device))
    if state.is_finished and state.best_score > -math.inf:
        logger.info("best validation score: %.4f, %s", state.best_score, out_dir / BEST_MODEL)
    return state


def _check_names(validation_sets: Mapping[str, Dataset[SegmentedImage]], score: str) -> None:
    """Raise `ValueError` if a validation set is named "train" or the score is unknown."""
    if TRAIN_SET in validation_sets:
        raise ValueError(f"no validation set may be named {TRAIN_SET!r}")
    scores = [name for validation_set in validation_sets for name in _score_names(validation_set)]
    if score not in scores:
        raise ValueError(f"score must be one of {', '.join(scores)}, got {score!r}")


def _check_sets(
    recipe: Recipe, datasets: Mapping[str, Dataset[SegmentedImage]], val_n_spixels: int
) -> dict[str, str]:
    """Check counts, sizes and annotations, without decoding all images.

    Returns
    -------
    dict of str to str
        Fingerprint of each dataset that consists of files, by name.
    """
    if max(recipe.n_spixels) > recipe.crop_size**2:
        raise InputError(
            f"{max(recipe.n_spixels)} is above the {recipe.crop_size**2} pixels of a crop",
            parameter="n_spixels",
        )
    if len(datasets[TRAIN_SET]) == 0:
        raise InputError("the training set holds no images")
    names_sha256 = {}
    for name, dataset in datasets.items():
        shapes = on_first_rank(dataset.image_shapes) if isinstance(dataset, FileDataset) else {}
        if name != TRAIN_SET:
            check_first_image(dataset, [val_n_spixels], parameter=_COUNT_PARAMETER)
            for image_name, (height, width) in shapes.items():
                check_n_spixels(val_n_spixels, height * width, image_name, parameter=_COUNT_PARAMETER)
        if shapes:
            names_sha256[name] = _WITH_SIZES + on_first_rank(partial(fingerprint, dataset))
    return names_sha256


def _start_state(
    model: nn.Module,
    recipe: Recipe,
    image_names: Mapping[str, str],
    score: str,
    out_dir: Path,
    resume: Path | None,
) -> TrainingState:
    """Return the state to start from: a new one, or the state in the checkpoint `resume`."""
    state = TrainingState(
        model,
        n_steps=recipe.n_steps,
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        warmup_share=recipe.warmup_share,
        ema_decay=recipe.ema_decay,
        max_grad_norm=recipe.max_grad_norm,
    )
    if resume is None:
        return state
    checkpoint = read_checkpoint(resume)
    if "recipe" in checkpoint:  # only n_steps may change in a resumed run
        stored = replace(Recipe.from_plain(checkpoint["recipe"]), n_steps=recipe.n_steps)
        check_resumed(vars(recipe), vars(stored), resume)
    state.restore(checkpoint, resume)
    changed = _changed_sets(image_names, checkpoint.get("image_names_sha256", {}))
    if changed:
        logger.warning("datasets that differ from the run of `resume` %s: %s", resume, ", ".join(changed))
    has_best = on_first_rank(lambda: has_best_model(out_dir, validated_step=state.validated_step))
    if not has_best or any(score in _score_names(name) for name in changed):
        state.best_score = -math.inf  # the next validation replaces the best model
    return state


def _log_start(
    state: TrainingState,
    datasets: Mapping[str, Dataset[SegmentedImage]],
    device: torch.device,
    *,
    with_bfloat16: bool,
) -> None:
    n_trained = sum(weight.numel() for weight in state.trained_weights())
    sizes = ", ".join(f"{len(dataset)} images in {name}" for name, dataset in datasets.items())
    precision = "bfloat16" if with_bfloat16 else "float32"
    logger.info(
        "device: %s, convolutions in %s, ranks: %d; %d trained parameters; %s",
        device,
        precision,
        n_ranks(),
        n_trained,
        sizes,
    )


def _open_run_folder(
    model: nn.Module,
    scales: InputScales,
    recipe: Recipe,
    settings: RunSettings,
    state: TrainingState,
    image_names: Mapping[str, str],
    description: Mapping[str, Any] | None,
) -> RunFolder:
    entries = {
        "model_args": model.config(),
        "input_args": {name: value for name, value in scales._asdict().items() if value is not None},
        "image_names_sha256": image_names,
        "recipe": recipe.to_plain(),
        **(description or {}),
    }
    return RunFolder(settings.out_dir, entries, state.weights(), state.progress(), n_kept=settings.n_kept)


def _remaining_batches(
    train_set: Dataset[SegmentedImage],
    recipe: Recipe,
    settings: RunSettings,
    state: TrainingState,
    device: torch.device,
) -> Iterable[dict[str, Tensor]]:
    """Return this rank's batches, beginning at `state.step`."""
    crops = TrainingCrops(
        train_set, n_annotations=recipe.n_annotations, seed=recipe.seed, crop_size=recipe.crop_size
    )
    loader = training_loader(
        crops,
        batch_size=recipe.batch_size,
        n_steps=recipe.n_steps - state.step,
        first_sample=state.n_samples,
        n_workers=settings.n_workers,
        pin_memory=device.type == "cuda",
    )
    return loader if settings.with_loader else itertools.repeat(next(iter(loader), None))


def _score_names(validation_set: str) -> list[str]:
    return [f"{validation_set}_{metric}" for metric in VALIDATION_METRICS]


def _changed_sets(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return the names of changed datasets; fingerprints of older checkpoints cannot be compared."""
    return [
        name
        for name, value in ours.items()
        if theirs.get(name, "").startswith(_WITH_SIZES) and theirs[name] != value
    ]


class _BatchLosses:
    """Callable that computes the loss terms of a batch."""

    def __init__(
        self,
        state: TrainingState,
        recipe: Recipe,
        scales: InputScales,
        device: torch.device,
        *,
        with_bfloat16: bool,
        compiled: bool,
    ) -> None:
        if compiled:
            state.model.compile_network()
        self._forward = data_parallel(state.model)
        self._state = state
        self._recipe = recipe
        self._scales = scales
        self._device = device
        self._with_bfloat16 = with_bfloat16

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        recipe, model = self._recipe, self._state.model
        n_labels = int(batch["gt_labels"].max()) + 1  # on the CPU, as reading it from the GPU would block
        batch = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        n_spixels = recipe.draw_n_spixels(self._state.step)
        channels = model_input(model, batch["image_lab"], n_spixels, self._scales, extra=batch.get("extra"))
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._with_bfloat16):
            output = self._forward(channels, n_spixels, n_iter=recipe.n_iter)
        return compute_loss_terms(
            output.assignment,
            output.labels,
            batch["gt_labels"],
            n_labels,
            reconstruction=recipe.loss,
            compactness=recipe.compactness,
        )


class _ModelValidation:
    """Callable that validates a model on datasets, on all ranks."""

    def __init__(
        self,
        model: nn.Module,
        scales: InputScales,
        settings: RunSettings,
        device: torch.device,
        datasets: Mapping[str, Dataset[SegmentedImage]],
        score: str,
    ) -> None:
        self._model = model
        self._method = NetworkMethod("model", Segmenter(model, scales, device=device))
        self._datasets = datasets
        self._score = score
        self._settings = settings

    def __call__(self) -> Validation:
        synchronize(self._model)
        figures, pictures = {}, {}
        for name, dataset in self._datasets.items():
            figures |= self._evaluate(name, dataset)
            draw = partial(self._draw_overlays, name, dataset)
            pictures |= together(draw if is_first_rank() else dict)
        return Validation(figures[self._score], figures, pictures)

    def _evaluate(self, name: str, dataset: Dataset[SegmentedImage]) -> dict[str, float]:
        """Return the scores of a dataset, named by dataset and metric."""
        settings = self._settings
        images = evaluate(
            [self._method],
            dataset,
            n_spixels=[settings.val_n_spixels],
            metrics=VALIDATION_METRICS,
            n_workers=settings.n_workers,
            title=name,
            parameter=_COUNT_PARAMETER,
        )
        (run,) = list_runs([self._method], [settings.val_n_spixels])
        summary = summarize(run, [image[run] for image in images])
        line = summary.line(ignore_background=settings.ignore_background)
        logger.info("validation on %s: %s", name, line)
        values = summary.figures(ignore_background=settings.ignore_background)
        return {f"{name}_{metric}": value for metric, value in values.items()}

    def _draw_overlays(self, name: str, dataset: Dataset[SegmentedImage]) -> dict[str, np.ndarray]:
        """Return overlays of a dataset's first images, by name."""
        images = EvaluationImages(dataset)
        setting = Setting(self._settings.val_n_spixels, self._method.pos_scales[0])
        pictures = {}
        for idx in range(min(N_PICTURES, len(images))):
            image = images[idx]
            labels = connected_superpixels(self._method, image, setting)
            pictures[f"{name}/{image.name}"] = draw_boundaries(image.image_rgb, labels)
        return pictures
