"""What the command lines of the scripts share: options, their types, and how errors are told."""

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from PIL import Image

from lib.checkpoint import (
    DEFAULT_COLOR_SCALE,
    DEFAULT_N_EXTRA_FEATURES,
    DEFAULT_N_ITER,
    DEFAULT_N_LEARNED_FEATURES,
    DEFAULT_OPTFLOW_SCALE,
    DEFAULT_POS_SCALE,
    read_checkpoint,
)
from lib.datasets.davis import DAVISDataset
from lib.datasets.samples import LOST_WORKER, is_lost_worker
from lib.distributed import end_process, is_first_rank, joined_ranks, local_rank, n_ranks, on_first_rank
from lib.errors import InputError, OtherRankError, RunError, is_out_of_memory
from lib.features import InputScales
from lib.losses import RECONSTRUCTION_LOSSES
from lib.memory import keep_freed_memory
from lib.optimizers import OPTIMIZERS
from lib.precision import PRECISIONS, resolve_precision
from lib.training_files import find_resumable
from lib.training_run import CountRange, Recipe

logger = logging.getLogger(__name__)

Number = TypeVar("Number", int, float)

REPO_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_BASE_WEIGHTS = REPO_ROOT / "trained_models" / "best_model.pth"
DEFAULT_COMPOSITE_WEIGHTS = REPO_ROOT / "trained_models" / "best_composite_model.pth"
DEFAULT_VAL_N_ITER = 7  # see docs/training.md

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

# In pixels. Pillow takes larger ones for attacks, and refuses those of twice the size.
_LARGEST_SAFE_IMAGE = 2**29

AUTO = "auto"  # in place of a file to resume from


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults and tells an error in one line, with status 2."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n" if is_first_rank() else None)


class _Distinct(argparse.Action):
    """Keeps a list of values, each once."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # An option that is required or whose help tells the default needs no "(default: None)".
        return action.help if action.default is None else super()._get_help_string(action)


def run(main: Callable[[], object]) -> NoReturn:
    """Run a script: bad input ends in one line and status 2, a run that failed in status 1.

    Of the processes that `torchrun` starts, the first tells what happens; errors are told by all.
    """
    keep_freed_memory()
    Image.MAX_IMAGE_PIXELS = _LARGEST_SAFE_IMAGE
    end_process(_exit_status(main, Path(sys.argv[0]).name))


def _exit_status(main: Callable[[], object], program: str) -> int:
    """Exit status of a script, which is run here, after its error is told."""
    try:
        with joined_ranks():
            level = logging.INFO if is_first_rank() else logging.ERROR
            logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
            main()
    except OtherRankError:
        return 1
    except (InputError, OSError) as error:
        return _tell(program, error, 2)
    except RunError as error:
        return _tell(program, error, 1)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return _tell(program, RunError("out of memory; smaller batches or images take less"), 1)
        if "InvalidCxxCompiler" in str(error):  # found missing by PyTorch when the network first runs
            return _tell(program, InputError("--compile needs a C++ compiler, and there is none"), 2)
        if not is_lost_worker(error):  # of which PyTorch may tell in the midst of anything
            raise
        return _tell(program, RunError(LOST_WORKER), 1)
    except KeyboardInterrupt:
        return 130  # what shells report for a program that Ctrl-C ended
    return 0


def _tell(program: str, error: Exception, status: int) -> int:
    # An error of a data loader's worker arrives as the text of its traceback: the last line is the error.
    message = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    message = message.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")
    print(f"{program}: error: {message}", file=sys.stderr)
    return status


def parse_bool(text: str) -> bool:
    """Read True or False, in any case."""
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return lowered == "true"


def positive_int(text: str) -> int:
    """Read an integer of at least 1."""
    return _read_number(text, int, lambda value: value >= 1, "an integer of at least 1")


def non_negative_int(text: str) -> int:
    """Read an integer of at least 0."""
    return _read_number(text, int, lambda value: value >= 0, "an integer of at least 0")


def seed_int(text: str) -> int:
    """Read an integer that PyTorch and NumPy both take as a seed."""
    return _read_number(text, int, lambda value: 0 <= value < 2**63, "an integer from 0 to 2**63 - 1")


def positive_float(text: str) -> float:
    """Read a finite number above 0."""
    return _read_number(text, float, lambda value: 0 < value < math.inf, "a number above 0")


def non_negative_float(text: str) -> float:
    """Read a finite number of at least 0."""
    return _read_number(text, float, lambda value: 0 <= value < math.inf, "a number of at least 0")


def count_range(text: str) -> CountRange:
    """Read an integer of at least 1, or two with a hyphen between them."""
    low, hyphen, high = text.partition("-")
    counts = CountRange(positive_int(low), positive_int(high if hyphen else low))
    if counts.low > counts.high:
        raise argparse.ArgumentTypeError(f"expected the lower end of a range first, got {text!r}")
    return counts


def share_float(text: str) -> float:
    """Read a number of at least 0 and below 1."""
    return _read_number(text, float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def _read_number(
    text: str, kind: type[Number], is_allowed: Callable[[Number], bool], expected: str
) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_allowed(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def existing_dir(text: str) -> Path:
    """Read the path of a folder that exists."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {text}")
    return path


def add_bool(group: argparse._ActionsContainer, name: str, *, default: bool | None, help: str) -> None:
    """Add a flag that works alone and with an explicit True or False."""
    group.add_argument(
        name,
        type=parse_bool,
        nargs="?",
        const=True,
        default=default,
        metavar="True|False",
        help=help,
    )


def add_device_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--device`; `resolve_device` reads it."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu or cuda[:N]; auto takes CUDA where there is one"
    )


def resolve_device(name: str) -> torch.device:
    """Turn the value of `--device` into a device that is there, and make it the current one.

    Convolutions in float32 keep all its bits there: by default, cuDNN rounds to the 11 of TF32, too few for
    positions.

    Raises
    ------
    InputError
        If it is not one of the choices, or is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu or cuda[:N]")
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        n_devices = torch.cuda.device_count()
        if n_ranks() > 1 and device.index is not None:
            raise InputError(f"--device {name}: each rank takes a device of its own; use cuda")
        idx = local_rank() if n_ranks() > 1 else device.index or 0
        if idx >= n_devices:
            needed = f", and each of {n_ranks()} ranks needs one" if n_ranks() > 1 else ""
            raise InputError(f"--device {name}: this machine has {n_devices} CUDA devices{needed}")
        torch.cuda.set_device(idx)
        return torch.device("cuda", idx)
    return device


def add_spixel_args(
    parser: argparse.ArgumentParser, *, trained: bool, swept: bool = False, drawn: bool = False
) -> None:
    """Add the options of the superpixels.

    With `trained`, what a weight file says is left to it: the defaults of those options are None. With
    `swept`, `--nspix` and `--pos_scale` take several values; with `drawn`, `--nspix` takes a range.
    """

    def default(value: float) -> dict[str, object]:
        return {"default": None if trained else value}

    otherwise = "; default: what the weight file says, else {}" if trained else ""
    group = parser.add_argument_group("superpixels")
    several = {"nargs": "+", "action": _Distinct} if swept else {}
    if drawn:
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
            "--niter",
            type=positive_int,
            default=Recipe.n_iter,
            help="iterations of the clustering in training",
        )
        if not trained:
            group.add_argument(
                "--val_niter",
                type=positive_int,
                default=DEFAULT_VAL_N_ITER,
                help="iterations of the clustering in validation and, by the weight file, in use",
            )
    else:
        group.add_argument(
            "--nspix",
            type=positive_int,
            default=[200] if swept else 200,
            help="requested number of superpixels" + (", one or several" if swept else ""),
            **several,
        )
        group.add_argument(
            "--niter",
            type=positive_int,
            **default(DEFAULT_N_ITER),
            help="iterations of the clustering" + otherwise.format(DEFAULT_N_ITER),
        )
    group.add_argument(
        "--color_scale",
        type=non_negative_float,
        **default(DEFAULT_COLOR_SCALE),
        help="weight of the Lab colour" + otherwise.format(DEFAULT_COLOR_SCALE),
    )
    group.add_argument(
        "--pos_scale",
        type=non_negative_float,
        **default(DEFAULT_POS_SCALE),
        help="weight of the position; higher is more compact"
        + (", one or several" if swept else "")
        + otherwise.format(DEFAULT_POS_SCALE),
        **several,
    )
    group.add_argument(
        "--deepfdim",
        type=positive_int,
        **default(DEFAULT_N_LEARNED_FEATURES),
        help="learned features per pixel" + ("; default: what the weight file says" if trained else ""),
    )


def add_optflow_args(parser: argparse.ArgumentParser, *, trained: bool) -> None:
    """Add the options of the composite model's second network; see `add_spixel_args`."""

    def default(value: float) -> dict[str, object]:
        return {"default": None if trained else value}

    otherwise = f"; default: what the weight file says, else {DEFAULT_OPTFLOW_SCALE}" if trained else ""
    group = parser.add_argument_group("optical flow")
    group.add_argument(
        "--optflow_scale",
        type=non_negative_float,
        **default(DEFAULT_OPTFLOW_SCALE),
        help="weight of the optical flow, per pixel of motion" + otherwise,
    )
    group.add_argument(
        "--optflow_deepfdim",
        type=positive_int,
        **default(DEFAULT_N_EXTRA_FEATURES),
        help="learned features of the flow per pixel"
        + ("; default: what the weight file says" if trained else ""),
    )


def add_optflow_folder_args(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the flow archives of DAVIS videos."""
    parser.add_argument(
        "--davis_optflow_folder",
        type=existing_dir,
        required=True,
        help="folder of optflow_<method>_<video>.h5, as estimate_optflow.py makes them",
    )
    add_optflow_method_arg(parser)


def add_optflow_method_arg(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses among archives of one video."""
    parser.add_argument(
        "--optflow_method",
        help="whose flow to take, if the folder holds that of several methods: dis, gma, ...",
    )


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


def add_precision_arg(parser: argparse._ActionsContainer, *, default: str) -> None:
    """Add `--precision`; `resolve_precision` reads it."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=default,
        help="of the convolutions; bf16 is bfloat16, auto takes it where the device has it; all else stays "
        "in float32",
    )


def add_iou_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--eval_iou_ignore_background`."""
    add_bool(
        parser,
        "--eval_iou_ignore_background",
        default=False,
        help="leave segment 0, the background of DAVIS, out of the mean IoU; BSDS500 has none",
    )


def add_nworkers_arg(parser: argparse._ActionsContainer) -> None:
    """Add `--nworkers`."""
    parser.add_argument(
        "--nworkers",
        type=non_negative_int,
        default=4,
        help="processes that read images; evaluation starts as many to compute metrics",
    )


def add_davis_args(parser: argparse.ArgumentParser, *, default_split: str) -> None:
    """Add the options that name DAVIS videos."""
    parser.add_argument("--davis2017_root", type=existing_dir, help="folder that holds DAVIS/")
    add_davis_split_arg(parser, default_split=default_split)


def add_davis_split_arg(parser: argparse.ArgumentParser, *, default_split: str) -> None:
    """Add `--davis_split`."""
    parser.add_argument(
        "--davis_split",
        default=default_split,
        help="DAVIS videos to score: train, val, test, or a text file with one video a line",
    )


def open_davis(root: Path | None, split: str) -> DAVISDataset:
    """Open the DAVIS videos that the options name.

    Raises
    ------
    InputError
        If `--davis2017_root` was left out, or the data set cannot be opened.
    """
    if root is None:
        raise InputError("--eval_on_davis needs --davis2017_root")
    return DAVISDataset(root, split)


def add_base_weights_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--base_model_weights`, by default the weights that come with the repo."""
    parser.add_argument(
        "--base_model_weights",
        default=DEFAULT_BASE_WEIGHTS,
        metavar="FILE",
        help="weights of the base model; 'none' clusters colour and position without a network",
    )


def add_composite_weights_arg(parser: argparse.ArgumentParser) -> None:
    """Add `--comp_model_weights`, by default the weights that come with the repo."""
    parser.add_argument(
        "--comp_model_weights",
        default=DEFAULT_COMPOSITE_WEIGHTS,
        metavar="FILE",
        help="weights of the composite model",
    )


def choose_scales(trained: InputScales, **given: float | None) -> InputScales:
    """Input scales to use: those given on the command line, else those the model was trained with."""
    return trained._replace(**{name: value for name, value in given.items() if value is not None})


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


def options_as_strings(args: argparse.Namespace) -> dict[str, str]:
    """Options of a run, as a checkpoint keeps them; unset ones are left out."""
    return {name: str(value) for name, value in sorted(vars(args).items()) if value is not None}


def log_options(args: argparse.Namespace) -> None:
    """Tell with which options a script runs."""
    logger.info(
        "options: %s", " ".join(f"{name}={value}" for name, value in options_as_strings(args).items())
    )


def run_settings(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """The settings of `lib.training_run.run_training` that are the same in all training scripts."""
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
