"""A whole training run: any model, any data set; what the training scripts share."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib.checkpoint import read_checkpoint
from lib.datasets.augmentation import CROP_SIZE
from lib.datasets.samples import TrainingCrops, training_loader
from lib.datasets.segmented_image import SegmentedImage
from lib.errors import InputError
from lib.evaluation.loop import evaluate, list_runs
from lib.evaluation.methods import NetworkMethod
from lib.evaluation.summary import summarize
from lib.features import InputScales
from lib.losses import compute_loss_terms
from lib.segmentation import segment_lab
from lib.training import BEST_MODEL, TrainingState, prepare_run_dir, train

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained."""

    n_spixels: int = 200  # requested in a crop of 200x200 pixels, and in a whole image at validation
    n_steps: int = 500_000
    batch_size: int = 6
    learning_rate: float = 1e-4  # peak
    loss: str = "cross_entropy"  # see lib.losses.compute_loss_terms
    compactness: float = 1e-5
    with_bfloat16: bool = False  # the convolutions alone
    seed: int = 0


def run_training(
    model: nn.Module,
    scales: InputScales,
    recipe: Recipe,
    *,
    train_set: Dataset[SegmentedImage],
    validation_sets: Mapping[str, Dataset[SegmentedImage]],
    score: str,
    device: torch.device,
    out_dir: Path,
    description: Mapping[str, Any] | None = None,
    resume: Path | None = None,
    test_interval: int = 10_000,
    log_interval: int = 100,
    n_workers: int = 4,
    ignore_background: bool = False,
) -> TrainingState:
    """Train a model, validate it now and then, and keep the best; see `lib.training.train`.

    Parameters
    ----------
    model : SSNModel or CompositeSSNModel
        Moved to `device`; weights that require no gradient stay as they are.
    scales : InputScales
        Weights of the input channels.
    recipe : Recipe
        How to train.
    train_set : Dataset of SegmentedImage
        Source of random crops. With extra channels, if the model reads any.
    validation_sets : mapping of str to Dataset of SegmentedImage
        Whole images to validate on, by name.
    score : str
        The figure that chooses the best model, higher is better: the name of a validation set, "_" and a
        metric of `VALIDATION_METRICS`, say "bsds_val_asa".
    device : torch.device
        Where to compute.
    out_dir : Path
        Folder of this run alone, for its log and its checkpoints.
    description : mapping, optional
        What the checkpoints say beside the arguments of the model and the scales of its input, as plain
        types: the options of the run, say.
    resume : Path, optional
        `last_model.pth` of a run to continue, which must be this one.
    test_interval, log_interval : int
        Steps between two validations, and between two lines of the log.
    n_workers : int
        Processes that read images, and as many that compute metrics in validation.
    ignore_background : bool
        Leave segment 0 out of the mean IoU.

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
        On Ctrl-C or SIGTERM, after saving.
    """
    if recipe.n_spixels > CROP_SIZE**2:
        raise InputError(f"--nspix {recipe.n_spixels} is above the {CROP_SIZE**2} pixels of a crop")
    scores = [f"{name}_{metric}" for name in validation_sets for metric in VALIDATION_METRICS]
    if score not in scores:
        raise ValueError(f"score must be one of {', '.join(scores)}, got {score!r}")
    model = model.to(device, memory_format=torch.channels_last)
    state = TrainingState(model, n_steps=recipe.n_steps, learning_rate=recipe.learning_rate)
    if resume:
        state.restore(read_checkpoint(resume), resume)
    prepare_run_dir(out_dir, is_resumed=resume is not None)
    n_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    datasets = {"train": train_set, **validation_sets}
    sizes = ", ".join(f"{len(dataset)} images in {name}" for name, dataset in datasets.items())
    logger.info("device: %s; %d trained parameters; %s", device, n_trained, sizes)

    def compute_losses(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        n_labels = int(batch["gt_labels"].max()) + 1
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        output = segment_lab(
            model,
            batch["image_lab"],
            recipe.n_spixels,
            scales,
            extra=batch.get("extra"),
            with_bfloat16=recipe.with_bfloat16,
        )
        return compute_loss_terms(
            output.assignment,
            output.labels,
            batch["gt_labels"],
            n_labels,
            reconstruction=recipe.loss,
            compactness=recipe.compactness,
        )

    def validate() -> tuple[float, dict[str, float]]:
        figures = {}
        for name, dataset in validation_sets.items():
            method = NetworkMethod("model", model, scales, device)
            images = evaluate(
                [method],
                dataset,
                n_spixels=[recipe.n_spixels],
                metrics=VALIDATION_METRICS,
                n_workers=n_workers,
                title=name,
            )
            (run,) = list_runs([method], [recipe.n_spixels])
            summary = summarize(run, [image[run] for image in images])
            logger.info("step %d %s: %s", state.step, name, summary.line(ignore_background=ignore_background))
            values = summary.figures(ignore_background=ignore_background)
            figures |= {f"{name}_{metric}": value for metric, value in values.items()}
        return figures[score], figures

    input_args = {name: value for name, value in scales._asdict().items() if value is not None}
    crops = TrainingCrops(train_set, recipe.n_steps * recipe.batch_size, seed=recipe.seed)
    train(
        state,
        training_loader(crops, batch_size=recipe.batch_size, first_step=state.step, n_workers=n_workers),
        compute_losses,
        validate,
        batch_size=recipe.batch_size,
        test_interval=test_interval,
        log_interval=log_interval,
        out_dir=out_dir,
        description={"model_args": model.arguments(), "input_args": input_args, **(description or {})},
    )
    logger.info("best validation score: %.4f, %s", state.best_score, out_dir / BEST_MODEL)
    return state
