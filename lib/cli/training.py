"""The options of the training scripts, and how a run that goes on takes over those of its checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lib.cli.options import add_bool, add_feature_args, add_nworkers_arg, add_precision_arg
from lib.cli.types import count_range, non_negative_float, positive_float, positive_int, seed_int, share_float
from lib.losses import RECONSTRUCTION_LOSSES
from lib.runtime.device import resolve_precision
from lib.runtime.errors import InputError
from lib.runtime.ranks import on_first_rank
from lib.training.optimizers import OPTIMIZERS
from lib.training.recipe import Recipe
from lib.training.run_folder import find_resumable
from lib.weights import read_checkpoint

# Options that may change when a run is resumed. They change neither the score nor what a step computes, but
# for the length of the run: the learning rate then goes on along the curve of the new one.
_FREE_ON_RESUME = {
    "compile",
    "davis2017_root",
    "davis_optflow_folder",
    "davis_split",
    "device",
    "eval_on_davis",
    "keep",
    "log_interval",
    "nworkers",
    "resume",
    "save_interval",
    "test_interval",
    "train_iter",
}

# Folders that may have moved when a run is resumed; which of them are given may not change.
_MOVABLE = {"bsds_root", "data_root", "val_data_root"}

AUTO = "auto"  # in place of a file to resume from

DEFAULT_VAL_N_ITER = 7  # see docs/training.md


def add_training_args(parser: argparse.ArgumentParser, *, n_annotations: int) -> None:
    """Add the options of a training run."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default=Recipe.optimizer,
        help="muon trains the hidden convolutions with Muon and the rest with AdamW",
    )
    group.add_argument("--lr", type=positive_float, default=Recipe.learning_rate, help="peak learning rate")
    group.add_argument(
        "--warmup_share",
        type=share_float,
        default=Recipe.warmup_share,
        help="share of the steps in which the learning rate rises; then it falls along half a cosine",
    )
    group.add_argument(
        "--max_grad_norm",
        type=positive_float,
        default=Recipe.max_grad_norm,
        help="gradients longer than that are shortened to it",
    )
    group.add_argument(
        "--ema_decay",
        type=share_float,
        default=Recipe.ema_decay,
        help="what a step keeps of the moving average of the weights, which is the model that is validated "
        "and saved; 0 for no average",
    )
    group.add_argument(
        "--batchsize", type=positive_int, default=Recipe.batch_size, help="crops in a batch, of each rank"
    )
    group.add_argument(
        "--crop_size",
        type=positive_int,
        default=Recipe.crop_size,
        metavar="PIXELS",
        help="rows and columns of a crop; --nspix is meant for one of them",
    )
    add_nworkers_arg(group)
    group.add_argument("--train_iter", type=positive_int, default=Recipe.n_steps, help="steps in all")
    group.add_argument("--test_interval", type=positive_int, default=10_000, help="steps between validations")
    group.add_argument(
        "--log_interval", type=positive_int, default=100, help="steps between lines of the log"
    )
    group.add_argument(
        "--loss",
        choices=RECONSTRUCTION_LOSSES,
        default=Recipe.loss,
        help="reconstruction loss of the labels",
    )
    group.add_argument(
        "--compactness",
        type=non_negative_float,
        default=Recipe.compactness,
        help="weight of the position loss, per square pixel",
    )
    group.add_argument(
        "--nannotations",
        type=positive_int,
        default=n_annotations,
        help="annotations of each crop, over which the loss is averaged",
    )
    add_precision_arg(group, default="auto")
    add_bool(group, "--compile", default=False, help="compile the network with torch.compile")
    group.add_argument("--seed", type=seed_int, default=Recipe.seed, help="repeats a run")
    group.add_argument(
        "--out_dir", type=Path, default=Path("log"), help="folder of this run alone: its log and checkpoints"
    )
    group.add_argument(
        "--save_interval",
        type=positive_int,
        default=10_000,
        help="steps between checkpoints that are kept beside the last state",
    )
    group.add_argument(
        "--keep", type=positive_int, default=3, help="how many of those are kept, the last ones"
    )
    group.add_argument(
        "--resume",
        metavar="FILE|auto",
        help="checkpoint of a run to continue; options left out are taken from it. auto takes the last one "
        "in --out_dir, and starts anew if there is none",
    )


def add_drawn_spixel_args(parser: argparse.ArgumentParser, *, trained: bool) -> None:
    """Add the options of the superpixels in training, where a range of counts may be drawn from.

    With `trained`, what belongs to a trained base model is left to its weight file.
    """
    group = parser.add_argument_group("superpixels")
    group.add_argument(
        "--nspix",
        type=count_range,
        default=Recipe.n_spixels,
        metavar="N|LOW-HIGH",
        help="requested number of superpixels in a crop of --crop_size: a number, or a range from which "
        "it is drawn for every batch, log-uniformly",
    )
    group.add_argument(
        "--val_nspix",
        type=positive_int,
        default=200,
        help="requested number of superpixels in a whole image at validation",
    )
    group.add_argument(
        "--niter", type=positive_int, default=Recipe.n_iter, help="iterations of the clustering in training"
    )
    if not trained:
        group.add_argument(
            "--val_niter",
            type=positive_int,
            default=DEFAULT_VAL_N_ITER,
            help="iterations of the clustering in validation and, by the weight file, in use",
        )
    add_feature_args(group, trained=trained)


def read_recipe(args: argparse.Namespace, device: torch.device) -> Recipe:
    """Recipe of the training run that the options describe."""
    return Recipe(
        n_spixels=args.nspix,
        crop_size=args.crop_size,
        n_annotations=args.nannotations,
        n_iter=args.niter,
        n_steps=args.train_iter,
        batch_size=args.batchsize,
        optimizer=args.optimizer,
        learning_rate=args.lr,
        warmup_share=args.warmup_share,
        ema_decay=args.ema_decay,
        max_grad_norm=args.max_grad_norm,
        loss=args.loss,
        compactness=args.compactness,
        with_bfloat16=resolve_precision(args.precision, device) == "bf16",
        seed=args.seed,
    )


def parse_training_args(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of a training script; with `--resume`, those left out are the checkpoint's.

    A run goes on in the folder its checkpoint lies in, wherever that has been moved.

    Raises
    ------
    InputError
        If an option contradicts the checkpoint.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--resume", nargs="?")
    finder.add_argument("--out_dir", nargs="?", type=Path, default=parser.get_default("out_dir"))
    found = finder.parse_known_args(argv)[0]
    resume_file = found.resume
    if resume_file == AUTO and found.out_dir:
        resume_file = on_first_rank(lambda: find_resumable(found.out_dir))
        if resume_file:
            argv += ["--resume", str(resume_file)]  # of two values the latter counts
    if resume_file is None:
        return parser.parse_args(argv)
    checkpoint = read_checkpoint(Path(resume_file))
    if "last_weights" not in checkpoint or not isinstance(checkpoint.get("options"), dict):
        raise InputError(
            f"--resume {resume_file} holds weights only, not a training run; use a last_model.pth"
        )
    options = checkpoint["options"] | {"out_dir": Path(resume_file).parent}
    stored = {name: f"--{name}={value}" for name, value in options.items()}
    given = {argument.split("=")[0].removeprefix("--") for argument in argv if argument.startswith("--")}
    left_out = [option for name, option in stored.items() if name not in given]
    unknown = set(parser.parse_known_args(left_out + argv)[1]) & set(left_out)
    if unknown:
        raise InputError(f"--resume {resume_file} is of another model or version: it has {min(unknown)}")
    recipe = [option for name, option in stored.items() if name not in _FREE_ON_RESUME | _MOVABLE]
    args = parser.parse_args(left_out + argv)
    stored_args = parser.parse_args(left_out + argv + recipe)  # of two values the latter counts
    for name in sorted(vars(args).keys() - _FREE_ON_RESUME):
        ours = getattr(args, name)
        theirs = getattr(stored_args, name) if name in stored else parser.get_default(name)
        are_paths = isinstance(ours, Path) and isinstance(theirs, Path)
        if ours != theirs and not (are_paths and ours.resolve() == theirs.resolve()):
            raise InputError(
                f"--{name} {ours} contradicts {'the default' if theirs is None else theirs} of "
                f"--resume {resume_file}; leave it out to go on with that run"
            )
    return args


def resumed_from(args: argparse.Namespace) -> Path | None:
    """The checkpoint that the run continues from; None for a new run."""
    return None if args.resume in (None, AUTO) else Path(args.resume)


def run_settings(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """The settings of `lib.training.run.run_training` that are the same in all training scripts."""
    return {
        "device": device,
        "out_dir": args.out_dir,
        "resume": resumed_from(args),
        "overwrite": args.resume == AUTO,
        "val_n_spixels": args.val_nspix,
        "test_interval": args.test_interval,
        "log_interval": args.log_interval,
        "save_interval": args.save_interval,
        "n_kept": args.keep,
        "n_workers": args.nworkers,
        "ignore_background": args.eval_iou_ignore_background,
        "compiled": args.compile,
        "with_loader": not getattr(args, "synthetic_data", False),
    }
