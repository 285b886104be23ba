"""Options of the evaluation scripts, and the methods and datasets that they describe."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lib import cli
from lib.cli.fields import add_fields
from lib.datasets.bsds import BSDSDataset
from lib.datasets.davis import DAVISDataset
from lib.datasets.folder import FolderDataset
from lib.evaluation.methods import GridMethod, Method, NetworkMethod, SLICMethod
from lib.evaluation.protocol import EvaluationSet
from lib.inference import Segmenter
from lib.metrics.registry import METRICS
from lib.runtime.device import resolve_precision
from lib.runtime.errors import InputError
from lib.training.recipe import Recipe, RunSettings
from lib.weights import NO_NETWORK, LoadedModel, file_sha256

_SSN_PIX, _SLIC, _GRID = "ssn_pix", "slic", "grid"
_METHOD_NAME = r"[\w.+-]+"  # characters that are safe in file names and table cells


def add_evaluation_args(parser: argparse.ArgumentParser) -> None:
    """Add the options of metrics, compared methods and output files."""
    add_fields(parser, RunSettings, "ignore_background", "n_workers")
    add_fields(parser, Recipe, "precision", precision="fp32")
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="METHOD",
        help=f"more methods to score: {_SLIC} (scikit-image's), {_SSN_PIX} (no network), {_GRID}, or "
        "weight files, FILE.pth or NAME=FILE.pth",
    )
    group.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help=f"metrics to compute: {', '.join(METRICS)}; default: all",
    )
    cli.add_bool(group, "--protocol", default=False, help="log the protocol in words")
    group.add_argument("--out_dir", type=Path, help="folder for tables, curves and pictures; default: none")
    exclusive = group.add_mutually_exclusive_group()
    cli.add_bool(
        exclusive,
        "--resume",
        default=False,
        help="continue an interrupted run from its results in --out_dir; in training, --resume names a file",
    )
    cli.add_bool(exclusive, "--overwrite", default=False, help="replace the results in --out_dir")


def evaluation_settings(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `lib.evaluation.run.run_evaluation` that all evaluation scripts share.

    Raises
    ------
    InputError
        If `--resume` or `--overwrite` lacks its folder.
    """
    for name in ("resume", "overwrite"):
        if getattr(args, name) and args.out_dir is None:
            raise InputError(f"--{name} needs --out_dir")
    metrics = list(args.metrics or METRICS)
    if args.eval_iou_ignore_background and "mean_iou" in metrics and "mean_iou_foreground" not in metrics:
        metrics.insert(metrics.index("mean_iou"), "mean_iou_foreground")
    return {
        "n_spixels": args.nspix,
        "metrics": tuple(metrics),
        "device": device,
        "n_workers": args.nworkers,
        "ignore_background": args.eval_iou_ignore_background,
        "out_dir": args.out_dir,
        "resume": args.resume,
        "overwrite": args.overwrite,
        "with_protocol": args.protocol,
        "options": cli.options_as_strings(args),
    }


def davis_set(dataset: DAVISDataset, split: str) -> EvaluationSet:
    """Return DAVIS videos as an evaluation set, named after their split or list file."""
    return EvaluationSet(f"DAVIS {Path(split).name}", f"davis_{Path(split).stem}", dataset)


def bsds_set(bsds_root: Path, split: str) -> EvaluationSet:
    """Return a split of BSDS500 as an evaluation set."""
    dataset = BSDSDataset(bsds_root, split)
    return EvaluationSet(f"BSDS500 {split}", f"bsds500_{split}", dataset)


def folder_set(data_root: Path) -> EvaluationSet:
    """Return a folder of a user's own images as an evaluation set, named after the folder."""
    dataset = FolderDataset(data_root)
    name = data_root.resolve().name
    return EvaluationSet(name, re.sub(r"[^\w.+-]", "_", name), dataset)


def network_method(
    name: str, path: Path | str, loaded: LoadedModel, args: argparse.Namespace, device: torch.device
) -> NetworkMethod:
    """Build a method from a loaded model and the options."""
    given = {"color_scale": args.color_scale, "extra_scale": getattr(args, "optflow_scale", None)}
    if loaded.scales.extra_scale is None:
        given["extra_scale"] = None
    weights = {} if str(path) == NO_NETWORK else {"weights": Path(path).name, "sha256": file_sha256(path)}
    segmenter = Segmenter(
        loaded.model,
        cli.choose_scales(loaded.scales, **given),
        device=device,
        with_bfloat16=resolve_precision(args.precision, device) == "bf16",
        pos_scale_dist=args.pos_scale_dist,
    )
    return NetworkMethod(
        name,
        segmenter,
        pos_scales=args.pos_scale or (),
        description=weights,
    )


def compared_methods(
    args: argparse.Namespace, device: torch.device, load: Callable[[str], LoadedModel], taken: Sequence[str]
) -> list[Method]:
    """Build the methods that `--compare` names.

    Parameters
    ----------
    args : Namespace
        Options of the script.
    device : torch.device
        Device of the networks.
    load : callable
        Loads a weight file, or "none".
    taken : sequence of str
        Names of the methods that are evaluated without `--compare`.

    Raises
    ------
    InputError
        If a method is unknown, two have one name, or a weight file cannot be used.
    """
    methods: list[Method] = []
    for text in args.compare:
        if text == _SLIC:
            methods.append(SLICMethod())
        elif text == _GRID:
            methods.append(GridMethod())
        elif text == _SSN_PIX:
            methods.append(network_method(_SSN_PIX, NO_NETWORK, load(NO_NETWORK), args, device))
        else:
            name, path = _split_name(text)
            if not path.endswith(".pth") and not Path(path).is_file():
                raise InputError(
                    f"--compare {text}: no such method; there are {_SLIC}, {_SSN_PIX}, {_GRID} and weight "
                    "files, FILE.pth or NAME=FILE.pth"
                )
            if not re.fullmatch(_METHOD_NAME, name):
                raise InputError(
                    f"--compare {text}: a name may hold letters, digits and ._+- only; use NAME=FILE.pth"
                )
            methods.append(network_method(name, path, load(path), args, device))
    names = [*taken, *(method.name for method in methods)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(
            f"--compare: two methods are named {twice[0]}; name a weight file with NAME=FILE.pth"
        )
    return methods


def _split_name(text: str) -> tuple[str, str]:
    """Split FILE or NAME=FILE into name and file; the path may contain "="."""
    name, separator, path = text.partition("=")
    if Path(text).is_file() or not separator:
        return Path(text).stem, text
    return name, path
