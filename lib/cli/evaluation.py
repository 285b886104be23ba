"""Options of the evaluation scripts, and the evaluation that they describe."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from lib.cli.dataclass_options import add_fields
from lib.cli.options import add_bool, add_shared, add_spixel_args, open_segmenter, options_as_strings
from lib.cli.types import positive_int
from lib.datasets.davis import DAVISDataset
from lib.evaluation.loop import Run
from lib.evaluation.methods import GridMethod, Method, NetworkMethod, SLICMethod
from lib.evaluation.protocol import EvaluationSet
from lib.evaluation.run import run_evaluation
from lib.evaluation.summary import Summary
from lib.evaluation.video import VideoSummary, run_video_evaluation
from lib.evaluation.video_methods import LabelVolumes, VideoMethod, in_videos
from lib.files.folder_lock import own_folder
from lib.metrics.registry import DEFAULT_METRICS, METRICS
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.runtime.ranks import n_ranks
from lib.training.recipe import Recipe, RunSettings
from lib.weights import NO_NETWORK, LoadedModel, file_sha256

_SSN_PIX, _SLIC, _GRID = "ssn_pix", "slic", "grid"
_METHOD_NAME = r"[\w.+-]+"  # characters that are safe in file names and table cells
_FOR_IMAGES_ALONE = ("bsds_root", "data_root", "metrics", "eval_iou_ignore_background", "resume", "limit")


def add_evaluation_args(parser: argparse.ArgumentParser) -> None:
    """Add the options of superpixels, metrics, compared methods, output files and device."""
    add_shared(parser, "base_model_weights", "device")
    add_spixel_args(parser, swept=True)
    add_fields(parser, RunSettings, "ignore_background", "n_workers")
    add_fields(parser, Recipe, "precision", precision="fp32")
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="METHOD",
        help=f"more methods to score: {_SLIC} (scikit-image's), {_SSN_PIX} (no network), {_GRID}, or "
        "weight files, FILE.pth or NAME=FILE.pth; with --video_metrics also labels of other software, "
        "NAME=FOLDER of <video>.h5 (dataset labels, frames x height x width) or <video>/00000.png, ...",
    )
    group.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help=f"metrics to compute: {', '.join(METRICS)}; default: all but "
        + ", ".join(name for name in METRICS if name not in DEFAULT_METRICS),
    )
    group.add_argument(
        "--limit",
        type=positive_int,
        metavar="N",
        help="images to score of each dataset, from its first one, for a quick look; whole videos have "
        "--max_frames; default: all",
    )
    add_bool(group, "--protocol", help="log the protocol in words")
    group.add_argument("--out_dir", type=Path, help="folder for tables, curves and pictures; default: none")
    exclusive = group.add_mutually_exclusive_group()
    add_bool(
        exclusive,
        "--resume",
        help="continue an interrupted run from its results in --out_dir; in training, --resume names a file",
    )
    add_bool(exclusive, "--overwrite", help="replace the results in --out_dir")
    group = parser.add_argument_group("whole videos")
    add_bool(
        group,
        "--video_metrics",
        help="score labels over whole DAVIS videos, in place of each frame alone; models are scored with and "
        "without tracking, which is --temporal in inference",
    )
    group.add_argument(
        "--max_frames",
        type=positive_int,
        metavar="N",
        help="frames to score of each video, from its first one; default: all",
    )


def check_video_args(args: argparse.Namespace) -> None:
    """Raise `InputError` if other options do not fit `--video_metrics`, or need it."""
    if not args.video_metrics:
        if args.max_frames is not None:
            raise InputError("--max_frames needs --video_metrics")
        return
    for option in _FOR_IMAGES_ALONE:
        if getattr(args, option, None):
            raise InputError(f"--{option} cannot be used with --video_metrics")
    if args.davis2017_root is None or getattr(args, "eval_on_davis", None) is False:
        raise InputError("--video_metrics scores DAVIS: give --davis2017_root, and not --eval_on_davis False")
    if n_ranks() > 1:
        raise InputError("--video_metrics needs a single process, without torchrun")


def limit_sets(sets: Sequence[EvaluationSet], limit: int | None) -> list[EvaluationSet]:
    """Return datasets of the first `limit` images of each one; None keeps all images."""
    return [each._replace(dataset=each.dataset.subset(range(len(each.dataset))[:limit])) for each in sets]


def davis_set(dataset: DAVISDataset, split: str) -> EvaluationSet:
    """Return DAVIS videos as an evaluation set, named after their split or list file."""
    return EvaluationSet(f"DAVIS {Path(split).name}", f"davis_{Path(split).stem}", dataset)


def evaluate_models(
    args: argparse.Namespace,
    models: Mapping[str, tuple[Path | str, LoadedModel]],
    sets: Sequence[EvaluationSet],
    load: Callable[[str], LoadedModel],
) -> dict[str, dict[Run, Summary | VideoSummary]]:
    """Score models, and the methods that `--compare` names; return the summaries as `run_evaluation` does.

    With `--video_metrics`, which needs a single dataset, the summaries are those of `run_video_evaluation`.
    `models` has the weight file and the model of each method. `load` loads a file of `--compare`, or "none".

    Raises
    ------
    InputError
        If a method is unknown, two have one name, a file or the device cannot be used, or `--resume` or
        `--overwrite` lacks its folder.
    """
    for name in ("resume", "overwrite"):
        if getattr(args, name) and args.out_dir is None:
            raise InputError(f"--{name} needs --out_dir")
    device = resolve_device(args.device)
    methods = [_network_method(name, path, loaded, args, device) for name, (path, loaded) in models.items()]
    for text in args.compare:
        volumes = _compared_volumes(text, sets[0].dataset) if args.video_metrics else None
        methods.append(volumes or _compared_method(text, args, device, load))
    if args.video_metrics:
        methods = [each for method in methods for each in in_videos(method)]
    names = [method.name for method in methods]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(
            f"--compare: two methods are named {twice[0]}; name a weight file with NAME=FILE.pth"
        )
    if args.video_metrics:
        return _evaluate_videos(args, methods, sets[0], device)
    metrics = list(args.metrics or DEFAULT_METRICS)
    if args.eval_iou_ignore_background and "mean_iou" in metrics and "mean_iou_foreground" not in metrics:
        metrics.insert(metrics.index("mean_iou"), "mean_iou_foreground")
    with own_folder(args.out_dir) if args.out_dir else nullcontext():
        return run_evaluation(
            methods,
            limit_sets(sets, args.limit),
            n_spixels=args.nspix,
            metrics=tuple(metrics),
            device=device,
            n_workers=args.nworkers,
            ignore_background=args.eval_iou_ignore_background,
            out_dir=args.out_dir,
            resume=args.resume,
            overwrite=args.overwrite,
            with_protocol=args.protocol,
            options=options_as_strings(args),
        )


def _evaluate_videos(
    args: argparse.Namespace, methods: Sequence[VideoMethod], each: EvaluationSet, device: torch.device
) -> dict[str, dict[Run, VideoSummary]]:
    with own_folder(args.out_dir) if args.out_dir else nullcontext():
        return run_video_evaluation(
            methods,
            each,
            n_spixels=args.nspix,
            device=device,
            n_workers=args.nworkers,
            out_dir=args.out_dir,
            overwrite=args.overwrite,
            with_protocol=args.protocol,
            options=options_as_strings(args),
        )


def _network_method(
    name: str, path: Path | str, loaded: LoadedModel, args: argparse.Namespace, device: torch.device
) -> NetworkMethod:
    """Return the method of a loaded model; a model without extra channels has no scale of them."""
    given = ["color_scale"] if loaded.scales.extra_scale is None else ["color_scale", "extra_scale"]
    segmenter = open_segmenter(args, loaded, device, given)
    weights = {} if str(path) == NO_NETWORK else {"weights": Path(path).name, "sha256": file_sha256(path)}
    return NetworkMethod(name, segmenter, pos_scales=args.pos_scale or (), description=weights)


def _compared_volumes(text: str, dataset: DAVISDataset) -> LabelVolumes | None:
    """Return the labels that `NAME=FOLDER` of `--compare` names; None for another value."""
    name, _, folder = text.partition("=")
    if not folder or not Path(folder).is_dir():
        return None
    _check_name(name, text, "NAME=FOLDER")
    return LabelVolumes(name, Path(folder), dataset)


def _compared_method(
    text: str, args: argparse.Namespace, device: torch.device, load: Callable[[str], LoadedModel]
) -> Method:
    """Return the method of a value of `--compare`."""
    if text == _SLIC:
        return SLICMethod()
    if text == _GRID:
        return GridMethod()
    if text == _SSN_PIX:
        return _network_method(_SSN_PIX, NO_NETWORK, load(NO_NETWORK), args, device)
    name, separator, path = text.partition("=")
    if Path(text).is_file() or not separator:  # the path may contain "="
        name, path = Path(text).stem, text
    if separator and Path(path).is_dir():
        raise InputError(f"--compare {text}: label volumes need --video_metrics")
    if not path.endswith(".pth") and not Path(path).is_file():
        raise InputError(
            f"--compare {text}: no such method; choose {_SLIC}, {_SSN_PIX}, {_GRID} or weight "
            "files, FILE.pth or NAME=FILE.pth; with --video_metrics also folders, NAME=FOLDER"
        )
    _check_name(name, text, "NAME=FILE.pth")
    return _network_method(name, path, load(path), args, device)


def _check_name(name: str, text: str, expected: str) -> None:
    if not re.fullmatch(_METHOD_NAME, name):
        raise InputError(f"--compare {text}: a name may hold letters, digits and ._+- only; use {expected}")
