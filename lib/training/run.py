"""Run a whole training: check the data, start or resume, train, validate and save."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib.datasets.base import FileDataset, SegmentedImage, fingerprint
from lib.datasets.crop_plans import ImagePlace
from lib.datasets.crops import CropStream, TrainingCrops
from lib.datasets.loaders import EvaluationImages, training_loader
from lib.datasets.resident import AUTO, ResidentData, find_places, load_resident
from lib.evaluation.loop import check_first_image, evaluate, list_runs
from lib.evaluation.methods import NetworkMethod, Setting
from lib.evaluation.settings_choice import choose_and_store
from lib.evaluation.summary import summarize
from lib.files.values import TEXTS_BY_NAME, check_value
from lib.inference import Segmenter
from lib.losses import compute_loss_terms, imitation_loss
from lib.network.inputs import InputScales, model_input
from lib.runtime.device import fast_convolutions, resolve_precision
from lib.runtime.errors import InputError, TooLargeError, is_out_of_memory
from lib.runtime.memory import check_memory
from lib.runtime.ranks import data_parallel, is_first_rank, n_ranks, on_first_rank, synchronize, together
from lib.superpixels.counts import check_n_spixels
from lib.superpixels.drawing import draw_boundaries
from lib.superpixels.merge_settings import MergeSettings
from lib.training.recipe import Recipe, RunSettings, check_resumed
from lib.training.run_folder import BEST_MODEL, RunFolder, Validation, has_best_model, prepare_run_folder
from lib.training.trainer import Trainer, TrainingState
from lib.weights import load_model, read_checkpoint
from model import SuperpixelModel

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

# Bytes per pixel of a crop that training needs at least.
_CROP_BYTES, _ANNOTATION_BYTES = 12, 8  # CIELAB in float32, labels in int64
_STEP_BYTES = 256  # 4 results of 32 channels in bfloat16, which the gradient needs

N_PICTURES = 4  # overlays per validation set in TensorBoard

Datasets = Mapping[str, Dataset[SegmentedImage]]  # by name


def run_training(
    model: nn.Module,
    scales: InputScales,
    recipe: Recipe,
    settings: RunSettings,
    *,
    train_set: Dataset[SegmentedImage],
    validation_sets: Datasets,
    score: str,
    device: torch.device,
    merging: MergeSettings | None = None,
    description: Mapping[str, Any] | None = None,
    teacher: SuperpixelModel | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
) -> TrainingState:
    """Train and validate a model, and keep the best; under `torchrun`, every rank calls it.

    Parameters
    ----------
    model, device : SSNModel or CompositeSSNModel, torch.device
        Model, and the device that it is moved to. Weights that require no gradient are not trained.
    scales : InputScales
        Weights of the input channels.
    recipe, settings : Recipe, RunSettings
        Settings that define the trained model, and settings of the run.
    train_set : Dataset of SegmentedImage
        Source of random crops. Holds extra channels if the model reads any.
    validation_sets : mapping of str to Dataset of SegmentedImage
        Whole images to validate on, by name; "train" is not a valid name.
    score : str
        Name of the score that chooses the best model: validation set, "_" and metric, say "bsds_val_asa".
    merging : MergeSettings, optional
        Settings of merged superpixels in validation. Weight files hold them as defaults of inference.
    description : mapping, optional
        Further checkpoint entries of plain types, such as the options of the run.
    teacher : SSNModel, optional
        Trained model whose learned features the model imitates, in addition to the losses of the annotations.
        Both have the same number of learned features.
    resume : Path, optional
        Checkpoint to continue from.
    overwrite : bool
        Replace an earlier run in `settings.out_dir`, if it has no best model yet.

    Raises
    ------
    InputError, ValueError
        If files or settings cannot be used; if `score` or the name of a validation set is not valid.
    RunError
        If the loss is not finite, or a file cannot be written.
    Stop
        On Ctrl-C, after saving, if signals set the stop flag. After SIGTERM the state is saved, and the
        function returns.
    """
    if TRAIN_SET in validation_sets:
        raise ValueError(f"no validation set may be named {TRAIN_SET!r}")
    datasets = {TRAIN_SET: train_set, **validation_sets}
    fingerprints = _check_data(recipe, datasets, settings.val_n_spixels, score)
    together(lambda: _check_step_memory(recipe, device))
    with_bfloat16 = resolve_precision(recipe.precision, device) == "bf16"
    state = TrainingState(model.to(device, memory_format=torch.channels_last), recipe)
    if resume:
        _restore(state, resume, fingerprints, score, settings.out_dir)
    places = find_places(train_set, device, data_on_device=settings.data_on_device)
    on_first_rank(lambda: prepare_run_folder(settings.out_dir, is_resumed=bool(resume), overwrite=overwrite))
    _log_start(state, datasets, device, with_bfloat16=with_bfloat16)
    entries = {"image_names_sha256": fingerprints, **(description or {})}
    merging = merging or MergeSettings()
    open_folder = partial(_open_run_folder, state, scales, merging, settings, entries)
    run_folder = together(open_folder if is_first_rank() else lambda: None)
    if settings.compiled:
        model.compile_network()
    if teacher:
        teacher.to(device, memory_format=torch.channels_last).eval()
    compute_losses = _make_loss_function(state, scales, device, teacher, with_bfloat16=with_bfloat16)
    method = NetworkMethod("model", Segmenter(state.average.model, scales, device=device, merging=merging))
    validate_model = partial(_validate, method, validation_sets, settings, score)
    trainer = Trainer(state, settings, compute_losses, validate_model, run_folder)
    with closing(run_folder) if run_folder else nullcontext(), fast_convolutions():
        trainer.run(together(lambda: _open_batches(train_set, places, state, settings, device)))
    if state.is_finished and state.best_score > -math.inf:
        best_model = settings.out_dir / BEST_MODEL
        logger.info("best validation score: %.4f, %s", state.best_score, best_model)
        if settings.choose_settings:
            on_first_rank(lambda: _choose_settings(method.segmenter, best_model, validation_sets, score))
    return state


def _choose_settings(trained: Segmenter, best_model: Path, validation_sets: Datasets, score: str) -> None:
    """Choose the settings of the best model on the images of `score`, and store them in its file.

    The search starts from the settings of `trained`, not from those in the file, so that a run that is
    resumed after its last step chooses the same again.
    """
    options = {"device": trained.device, "n_iter": trained.n_iter, "merging": trained.merging}
    segmenter = Segmenter(load_model(best_model).model, trained.scales, **options)
    name = next(name for name in validation_sets if score in _score_names(name))
    figure = score.removeprefix(f"{name}_")
    choose_and_store(segmenter, validation_sets[name], best_model, figure=figure)


def _score_names(validation_set: str) -> list[str]:
    return [f"{validation_set}_{metric}" for metric in VALIDATION_METRICS]


def _check_data(recipe: Recipe, datasets: Datasets, val_n_spixels: int, score: str) -> dict[str, str]:
    """Check counts, sizes, annotations and score; return the fingerprint of each dataset of files.

    Not all images are decoded.
    """
    scores = [name for dataset in datasets if dataset != TRAIN_SET for name in _score_names(dataset)]
    if score not in scores:
        raise ValueError(f"score must be one of {', '.join(scores)}, got {score!r}")
    if max(recipe.n_spixels) > recipe.crop_size**2:
        raise InputError(
            f"{max(recipe.n_spixels)} is above the {recipe.crop_size**2} pixels of a crop",
            parameter="n_spixels",
        )
    if len(datasets[TRAIN_SET]) == 0:
        raise InputError("the training set holds no images")
    fingerprints = {}
    for name, dataset in datasets.items():
        shapes = on_first_rank(dataset.image_shapes) if isinstance(dataset, FileDataset) else {}
        if name != TRAIN_SET:
            check_first_image(dataset, [val_n_spixels], parameter=_COUNT_PARAMETER)
            for image_name, (height, width) in shapes.items():
                check_n_spixels(val_n_spixels, height * width, image_name, parameter=_COUNT_PARAMETER)
        if shapes:
            fingerprints[name] = _WITH_SIZES + on_first_rank(partial(fingerprint, dataset))
    return fingerprints


def _check_step_memory(recipe: Recipe, device: torch.device) -> None:
    """Raise `InputError` if the crops of a step do not fit the memory."""
    what = f"{recipe.crop_size}: a step with `batch_size` {recipe.batch_size}"
    n_pixels = recipe.batch_size * recipe.crop_size**2
    for n_bytes, place in (
        (_STEP_BYTES, device),
        (_CROP_BYTES + _ANNOTATION_BYTES * recipe.n_annotations, torch.device("cpu")),
    ):
        check_memory(n_bytes * n_pixels, f"`crop_size` {what}", device=place)


def _restore(
    state: TrainingState, resume: Path, fingerprints: Mapping[str, str], score: str, out_dir: Path
) -> None:
    """Continue from the checkpoint `resume`."""
    checkpoint = read_checkpoint(resume)
    if "recipe" in checkpoint:  # only n_steps may change in a resumed run
        stored = replace(
            Recipe.from_plain(checkpoint["recipe"], f"{resume}: recipe"), n_steps=state.recipe.n_steps
        )
        check_resumed(vars(state.recipe), vars(stored), resume)
    state.restore(checkpoint, resume)
    logger.info("continuing from step %d of %d, %s", state.step, state.recipe.n_steps, resume)
    earlier = checkpoint.get("image_names_sha256", {})
    check_value(f"{resume}: image_names_sha256", earlier, TEXTS_BY_NAME)
    changed = [
        name
        for name, value in fingerprints.items()
        if earlier.get(name, "").startswith(_WITH_SIZES) and earlier[name] != value
    ]
    if changed:
        logger.warning("datasets that differ from the run of `resume` %s: %s", resume, ", ".join(changed))
    has_best = on_first_rank(lambda: has_best_model(out_dir, validated_step=state.validated_step))
    if not has_best or any(score in _score_names(name) for name in changed):
        state.best_score = -math.inf  # the next validation replaces the best model


def _log_start(
    state: TrainingState, datasets: Datasets, device: torch.device, *, with_bfloat16: bool
) -> None:
    logger.info(
        "device: %s, convolutions in %s, ranks: %d; %d trained parameters; %s",
        device,
        "bfloat16" if with_bfloat16 else "float32",
        n_ranks(),
        sum(weight.numel() for weight in state.trained_weights()),
        ", ".join(f"{len(dataset)} images in {name}" for name, dataset in datasets.items()),
    )


def _open_run_folder(
    state: TrainingState,
    scales: InputScales,
    merging: MergeSettings,
    settings: RunSettings,
    entries: Mapping[str, Any],
) -> RunFolder:
    description = {
        "model_args": state.model.config(),
        "input_args": {name: value for name, value in scales._asdict().items() if value is not None},
        "merge_args": merging._asdict(),
        "recipe": state.recipe.to_plain(),
        **entries,
    }
    return RunFolder(settings.out_dir, description, state.weights(), state.progress(), n_kept=settings.n_kept)


def _open_batches(
    train_set: Dataset[SegmentedImage],
    places: list[ImagePlace] | None,
    state: TrainingState,
    settings: RunSettings,
    device: torch.device,
) -> Iterator[dict[str, Tensor]]:
    """Return this rank's batches, beginning at `state.step`; `places` are from `find_places`.

    Data that is kept on the device is read now, and worker processes start now.
    """
    recipe = state.recipe
    if state.step == recipe.n_steps:
        return iter(())
    drawing = {field.name: getattr(recipe, field.name) for field in fields(CropStream)}
    resident = _load_on_device(train_set, places, settings, device) if places else None
    loader = training_loader(
        resident.plans(**drawing) if resident else TrainingCrops(train_set, **drawing),
        batch_size=recipe.batch_size,
        n_steps=recipe.n_steps - state.step,
        first_sample=state.n_samples,
        n_workers=settings.n_workers,
        pin_memory=device.type == "cuda",
    )
    batches = map(resident.cut, loader) if resident else iter(loader)
    return batches if settings.with_loader else itertools.repeat(next(batches))


def _load_on_device(
    train_set: FileDataset, places: list[ImagePlace], settings: RunSettings, device: torch.device
) -> ResidentData | None:
    """Return the training set on the device; None if "auto" chose it, but it does not fit after all."""
    try:
        return load_resident(train_set, places, device, n_workers=settings.n_workers)
    except (MemoryError, RuntimeError, TooLargeError) as error:
        if settings.data_on_device != AUTO or not is_out_of_memory(error):
            raise
    logger.warning("training data stays with the loader: %s has too little free memory by now", device)
    return None


def _make_loss_function(
    state: TrainingState,
    scales: InputScales,
    device: torch.device,
    teacher: SuperpixelModel | None,
    *,
    with_bfloat16: bool,
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a function that computes the loss terms of a batch."""
    recipe, model = state.recipe, state.model
    forward = data_parallel(model)

    def compute_losses(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        n_labels = int(batch["n_labels"].max())  # on the CPU, as reading it from the GPU would block
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        n_spixels = recipe.draw_n_spixels(state.step)
        channels = model_input(model, batch["image_lab"], n_spixels, scales, extra=batch.get("extra"))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=with_bfloat16):
            output = forward(channels, n_spixels, n_iter=recipe.n_iter)
            if teacher:
                with torch.no_grad():
                    target = teacher.encode(channels).base
        terms = compute_loss_terms(
            output.assignment,
            output.labels,
            batch["gt_labels"],
            n_labels,
            reconstruction=recipe.loss,
            compactness=recipe.compactness,
        )
        if teacher:
            learned = slice(model.n_learned_features)
            terms["imitation"] = imitation_loss(output.pixel_features[:, learned], target[:, learned])
        return terms

    return compute_losses


def _validate(method: NetworkMethod, datasets: Datasets, settings: RunSettings, score: str) -> Validation:
    """Validate a model on datasets, on all ranks."""
    synchronize(method.segmenter.model)
    n_spixels = settings.val_n_spixels
    figures, pictures = {}, {}
    for name, dataset in datasets.items():
        images = evaluate(
            [method],
            dataset,
            n_spixels=[n_spixels],
            metrics=VALIDATION_METRICS,
            n_workers=settings.n_workers,
            title=name,
            parameter=_COUNT_PARAMETER,
        )
        (run,) = list_runs([method], [n_spixels])
        summary = summarize(run, [image[run] for image in images])
        logger.info("validation on %s: %s", name, summary.line(ignore_background=settings.ignore_background))
        values = summary.figures(ignore_background=settings.ignore_background)
        figures |= {f"{name}_{metric}": value for metric, value in values.items()}
        draw = partial(_draw_overlays, method, name, dataset, n_spixels)
        pictures |= together(draw if is_first_rank() else dict)
    return Validation(figures[score], figures, pictures)


def _draw_overlays(
    method: NetworkMethod, name: str, dataset: Dataset[SegmentedImage], n_spixels: int
) -> dict[str, np.ndarray]:
    """Return overlays of a dataset's first images, by name."""
    setting = Setting(n_spixels, method.pos_scales[0])
    pictures = {}
    images = EvaluationImages(dataset)
    for idx in range(min(N_PICTURES, len(images))):
        image = images[idx]
        (labels,) = method.segment(image, [setting])
        pictures[f"{name}/{image.name}"] = draw_boundaries(image.image_rgb, labels)
    return pictures
