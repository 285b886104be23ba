"""A whole training run: any model, any data set; what the training scripts share."""

import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Mapping
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

from lib.datasets.base import FileDataset, SegmentedImage
from lib.datasets.crops import TrainingCrops
from lib.datasets.loaders import EvaluationImages, training_loader
from lib.evaluation.loop import check_first_image, connected_superpixels, evaluate, list_runs
from lib.evaluation.methods import NetworkMethod, Setting
from lib.evaluation.summary import summarize
from lib.losses import compute_loss_terms
from lib.network.inputs import InputScales, model_input
from lib.runtime.device import resolve_precision
from lib.runtime.errors import InputError
from lib.runtime.ranks import data_parallel, is_first_rank, n_ranks, on_first_rank, synchronize, together
from lib.superpixels.counts import check_n_spixels
from lib.superpixels.drawing import draw_boundaries
from lib.training.recipe import Recipe, RunSettings, check_resumed
from lib.training.run_folder import BEST_MODEL, RunFolder, Validation, has_best_model, prepare_run_folder
from lib.training.trainer import TrainingState, train
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

_COUNT = "val_n_spixels"  # names the number of superpixels in error messages

N_PICTURES = 4  # overlays of each validation set


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
    """Train a model, validate it now and then, and keep the best; see `lib.training.trainer.train`.

    Under `torchrun`, all ranks call it alike.

    Parameters
    ----------
    model : SSNModel or CompositeSSNModel
        Moved to `device`; weights that require no gradient stay as they are.
    scales : InputScales
        Weights of the input channels.
    recipe : Recipe
        Settings that define the trained model.
    settings : RunSettings
        Folder, intervals and workers of the run.
    train_set : Dataset of SegmentedImage
        Source of random crops. With extra channels, if the model reads any.
    validation_sets : mapping of str to Dataset of SegmentedImage
        Whole images to validate on, by name.
    score : str
        The figure that chooses the best model, higher is better: the name of a validation set, "_" and a
        metric of `VALIDATION_METRICS`, say "bsds_val_asa".
    device : torch.device
        Where to compute.
    description : mapping, optional
        What the checkpoints say beside the arguments of the model and the scales of its input, as plain
        types: the options of the run, say.
    resume : Path, optional
        Checkpoint of a run to continue, which must be this one.
    overwrite : bool
        Replace the log and the checkpoints of an earlier run in `out_dir` that had no best model yet.

    Returns
    -------
    TrainingState
        With the trained model.

    Raises
    ------
    InputError
        If files or settings cannot be used.
    ValueError
        If `score` is no figure of the validation.
    RunError
        If the loss is not finite, or a file cannot be written.
    KeyboardInterrupt
        On Ctrl-C, after saving. SIGTERM saves and returns.
    """
    scores = {f"{name}_{metric}": name for name in validation_sets for metric in VALIDATION_METRICS}
    if score not in scores:
        raise ValueError(f"score must be one of {', '.join(scores)}, got {score!r}")
    datasets = {"train": train_set, **validation_sets}
    with_bfloat16 = resolve_precision(recipe.precision, device) == "bf16"
    image_names = _check_sets(recipe, datasets, settings.val_n_spixels)
    model = model.to(device, memory_format=torch.channels_last)
    state = TrainingState(
        model,
        n_steps=recipe.n_steps,
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        warmup_share=recipe.warmup_share,
        ema_decay=recipe.ema_decay,
        max_grad_norm=recipe.max_grad_norm,
    )
    if resume:
        checkpoint = read_checkpoint(resume)
        _check_recipe(recipe, checkpoint, resume)
        state.restore(checkpoint, resume)
        changed = _changed_sets(image_names, checkpoint.get("image_names_sha256", {}))
        if changed:
            logger.warning("not the images that `resume` %s was trained with: %s", resume, ", ".join(changed))
        has_best = on_first_rank(
            lambda: has_best_model(settings.out_dir, validated_step=state.validated_step)
        )
        if not has_best or scores[score] in changed:
            state.best_score = -math.inf  # the next validation has nothing to beat
    on_first_rank(
        lambda: prepare_run_folder(settings.out_dir, is_resumed=resume is not None, overwrite=overwrite)
    )
    n_trained = sum(weight.numel() for weight in state.trained_weights())
    sizes = ", ".join(f"{len(dataset)} images in {name}" for name, dataset in datasets.items())
    logger.info(
        "device: %s, convolutions in %s, ranks: %d; %d trained parameters; %s",
        device,
        "bfloat16" if with_bfloat16 else "float32",
        n_ranks(),
        n_trained,
        sizes,
    )

    input_args = {name: value for name, value in scales._asdict().items() if value is not None}
    description = {
        "model_args": model.arguments(),
        "input_args": input_args,
        "image_names_sha256": image_names,
        "recipe": recipe.to_plain(),
        **(description or {}),
    }
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
    run_folder = together(
        lambda: (
            RunFolder(
                settings.out_dir,
                description,
                state.weights(),
                state.progress(),
                n_kept=settings.n_kept,
            )
            if is_first_rank()
            else None
        )
    )
    method = NetworkMethod("model", state.average.model, scales, device)

    def validate() -> Validation:
        synchronize(state.average.model)
        figures, pictures = {}, {}
        with cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):  # as in use
            for name, dataset in validation_sets.items():
                figures |= _validate_on(
                    dataset,
                    name,
                    method,
                    settings.val_n_spixels,
                    settings.n_workers,
                    ignore_background=settings.ignore_background,
                )
                draw = partial(_draw_overlays, dataset, name, method, settings.val_n_spixels)
                pictures |= together(draw if is_first_rank() else dict)
        return Validation(figures[score], figures, pictures)

    batches = loader if settings.with_loader else itertools.repeat(next(iter(loader), None))
    # All crops have one size, and TF32 is precise enough for gradients.
    fast = cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)
    with closing(run_folder) if run_folder else nullcontext(), fast:
        train(
            state,
            batches,
            _losses_of(
                state, recipe, scales, device, with_bfloat16=with_bfloat16, compiled=settings.compiled
            ),
            validate,
            batch_size=recipe.batch_size,
            test_interval=settings.test_interval,
            log_interval=settings.log_interval,
            save_interval=settings.save_interval,
            run_folder=run_folder,
        )
    if state.is_finished and state.best_score > -math.inf:
        logger.info("best validation score: %.4f, %s", state.best_score, settings.out_dir / BEST_MODEL)
    return state


def _check_recipe(recipe: Recipe, checkpoint: Mapping[str, Any], resume: Path) -> None:
    """Check that a resumed run has the recipe of its checkpoint; only its length may change."""
    stored = checkpoint.get("recipe")
    if stored:
        stored = Recipe.from_plain(stored)
        check_resumed(vars(recipe), vars(replace(stored, n_steps=recipe.n_steps)), resume)


def _check_sets(
    recipe: Recipe, datasets: Mapping[str, Dataset[SegmentedImage]], val_n_spixels: int
) -> dict[str, str]:
    """Find out now what is wrong with the images, as far as can be told without reading all of them.

    Returns
    -------
    dict of str to str
        SHA-256 of the names of the images, by the name of the data set, for those that lie in files.
    """
    if max(recipe.n_spixels) > recipe.crop_size**2:
        raise InputError(
            f"{max(recipe.n_spixels)} is above the {recipe.crop_size**2} pixels of a crop",
            parameter="n_spixels",
        )
    if not len(datasets["train"]):
        raise InputError("the dataset to train on holds no images")
    names_sha256 = {}
    for name, dataset in datasets.items():
        shapes = on_first_rank(dataset.image_shapes) if isinstance(dataset, FileDataset) else {}
        if name != "train":
            check_first_image(dataset, [val_n_spixels], parameter=_COUNT)
            for image_name, (height, width) in shapes.items():
                check_n_spixels(val_n_spixels, height * width, image_name, parameter=_COUNT)
        if shapes:
            names_sha256[name] = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
    return names_sha256


def _changed_sets(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Names of the data sets that differ among those known from both."""
    return [name for name in ours if theirs.get(name, ours[name]) != ours[name]]


def _losses_of(
    state: TrainingState,
    recipe: Recipe,
    scales: InputScales,
    device: torch.device,
    *,
    with_bfloat16: bool,
    compiled: bool,
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """What maps a batch to the terms of the loss of the model in training."""
    if compiled:
        state.model.compile_network()
    forward = data_parallel(state.model)

    def compute_losses(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        n_labels = int(batch["gt_labels"].max()) + 1  # before it is on the device, which would have to wait
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        n_spixels = recipe.draw_n_spixels(state.step)
        channels = model_input(state.model, batch["image_lab"], n_spixels, scales, extra=batch.get("extra"))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=with_bfloat16):
            output = forward(channels, n_spixels, n_iter=recipe.n_iter)
        return compute_loss_terms(
            output.assignment,
            output.labels,
            batch["gt_labels"],
            n_labels,
            reconstruction=recipe.loss,
            compactness=recipe.compactness,
        )

    return compute_losses


def _validate_on(
    dataset: Dataset[SegmentedImage],
    name: str,
    method: NetworkMethod,
    n_spixels: int,
    n_workers: int,
    *,
    ignore_background: bool,
) -> dict[str, float]:
    """Figures of the model on a data set, by the name of the set and the metric."""
    images = evaluate(
        [method],
        dataset,
        n_spixels=[n_spixels],
        metrics=VALIDATION_METRICS,
        n_workers=n_workers,
        title=name,
        parameter=_COUNT,
    )
    (run,) = list_runs([method], [n_spixels])
    summary = summarize(run, [image[run] for image in images])
    logger.info("validation on %s: %s", name, summary.line(ignore_background=ignore_background))
    values = summary.figures(ignore_background=ignore_background)
    return {f"{name}_{metric}": value for metric, value in values.items()}


def _draw_overlays(
    dataset: Dataset[SegmentedImage], name: str, method: NetworkMethod, n_spixels: int
) -> dict[str, np.ndarray]:
    """The first images of a data set with their superpixels, by name."""
    images = EvaluationImages(dataset)
    pictures = {}
    for idx in range(min(N_PICTURES, len(images))):
        image = images[idx]
        labels = connected_superpixels(method, image, Setting(n_spixels, method.pos_scales[0]))
        pictures[f"{name}/{image.name}"] = draw_boundaries(image.image_rgb, labels)
    return pictures
