"""Train the base model, which sees colour and position, on BSDS500."""

import argparse
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lib import cli
from lib.checkpoint import InputScales, read_checkpoint
from lib.datasets.augmentation import CROP_SIZE
from lib.datasets.bsds import BSDSDataset
from lib.datasets.samples import TrainingCrops, training_loader
from lib.errors import InputError
from lib.evaluation import evaluate
from lib.losses import compute_loss_terms
from lib.segmentation import base_segmenter, segment_lab
from lib.training import BEST_MODEL, TrainingState, prepare_run_dir, train
from model import SSNModel

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--bsds_root", type=cli.existing_dir, required=True, help="folder that holds BSDS500/"
    )
    cli.add_davis_args(parser, default_split="val")
    cli.add_bool(parser, "--eval_on_davis", default=False, help="validate on DAVIS too")
    cli.add_iou_arg(parser)
    cli.add_training_args(parser)
    cli.add_spixel_args(parser, trained=False)
    cli.add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> TrainingState:
    args = cli.parse_training_args(build_parser(), argv)
    device = cli.resolve_device(args.device)
    if args.nspix > CROP_SIZE**2:
        raise InputError(f"--nspix {args.nspix} is above the {CROP_SIZE**2} pixels of a crop")
    scales = InputScales(args.color_scale, args.pos_scale)
    with_bfloat16 = args.precision == "bf16"

    train_set = BSDSDataset(args.bsds_root, "train")
    validation_sets = {"bsds_val": BSDSDataset(args.bsds_root, "val")}
    if args.eval_on_davis:
        validation_sets["davis"] = cli.open_davis(args.davis2017_root, args.davis_split)

    torch.manual_seed(args.seed)
    model_args = {
        "n_learned_features": args.deepfdim,
        "n_iter": args.niter,
        "distance": "euclidean",
    }
    model = SSNModel(**model_args).to(device, memory_format=torch.channels_last)
    state = TrainingState(model, n_steps=args.train_iter, learning_rate=args.lr)
    if args.resume:
        state.restore(read_checkpoint(args.resume), args.resume)
    prepare_run_dir(args.out_dir, is_resumed=args.resume is not None)
    cli.log_run(args, device, model, {"train": train_set, **validation_sets})

    def compute_losses(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        n_labels = int(batch["gt_labels"].max()) + 1
        image_lab = batch["image_lab"].to(device, non_blocking=True)
        gt_labels = batch["gt_labels"].to(device, non_blocking=True)
        output = segment_lab(model, image_lab, args.nspix, scales, with_bfloat16=with_bfloat16)
        return compute_loss_terms(
            output.assignment,
            output.labels,
            gt_labels,
            n_labels,
            reconstruction=args.loss,
            compactness=args.compactness,
        )

    def validate() -> tuple[float, dict[str, float]]:
        figures = {}
        for name, dataset in validation_sets.items():
            result = evaluate(
                base_segmenter(model, args.nspix, scales, device),
                dataset,
                n_spixels=args.nspix,
                n_workers=args.nworkers,
                ignore_background=args.eval_iou_ignore_background,
                title=name,
            )
            logger.info("step %d %s: %s", state.step, name, result)
            figures |= {f"{name}_{metric}": value for metric, value in result._asdict().items()}
        return figures["bsds_val_asa"], figures

    crops = TrainingCrops(train_set, args.train_iter * args.batchsize, seed=args.seed)
    batches = training_loader(
        crops, batch_size=args.batchsize, first_step=state.step, n_workers=args.nworkers
    )
    train(
        state,
        batches,
        compute_losses,
        validate,
        batch_size=args.batchsize,
        test_interval=args.test_interval,
        log_interval=args.log_interval,
        out_dir=args.out_dir,
        description={
            "model_args": model_args,
            "input_args": scales._asdict(),
            "options": cli.options_as_strings(args),
        },
    )
    logger.info("best validation score: %.4f, %s", state.best_score, args.out_dir / BEST_MODEL)
    return state


if __name__ == "__main__":
    cli.run(main)
