"""Score the base model's superpixels on BSDS500, on DAVIS 2017, or on both."""

import argparse
import logging
from collections.abc import Sequence

from lib import cli
from lib.checkpoint import load_base_model
from lib.datasets import bsds
from lib.errors import InputError
from lib.evaluation import EvaluationResult, evaluate
from lib.segmentation import make_segmenter

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--bsds_root", type=cli.existing_dir, help="folder that holds BSDS500/; scores it")
    parser.add_argument(
        "--bsds_split", choices=bsds.SPLITS, default="test", help="images of BSDS500 to score"
    )
    cli.add_davis_args(parser, default_split="test")
    cli.add_bool(
        parser,
        "--eval_on_davis",
        default=None,
        help="score DAVIS; default: if --davis2017_root is given",
    )
    cli.add_iou_arg(parser)
    cli.add_nworkers_arg(parser)
    cli.add_base_weights_arg(parser)
    cli.add_spixel_args(parser, trained=True)
    cli.add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, EvaluationResult]:
    args = build_parser().parse_args(argv)
    device = cli.resolve_device(args.device)
    datasets = {}
    if args.bsds_root:
        datasets[f"BSDS500 {args.bsds_split}"] = bsds.BSDSDataset(args.bsds_root, args.bsds_split)
    with_davis = bool(args.davis2017_root) if args.eval_on_davis is None else args.eval_on_davis
    if with_davis:
        datasets[f"DAVIS {args.davis_split}"] = cli.open_davis(args.davis2017_root, args.davis_split)
    if not datasets:
        raise InputError("nothing to score: give --bsds_root, --davis2017_root or both")
    loaded = load_base_model(args.base_model_weights, n_learned_features=args.deepfdim, n_iter=args.niter)
    scales = cli.choose_scales(loaded.scales, color_scale=args.color_scale, pos_scale=args.pos_scale)
    logger.info("%s, %d superpixels, %s, on %s", args.base_model_weights, args.nspix, scales, device)
    results = {}
    for name, dataset in datasets.items():
        results[name] = evaluate(
            make_segmenter(loaded.model.to(device), args.nspix, scales, device),
            dataset,
            n_spixels=args.nspix,
            n_workers=args.nworkers,
            ignore_background=args.eval_iou_ignore_background,
            title=name,
        )
        logger.info("%s: %s", name, results[name])
    return results


if __name__ == "__main__":
    cli.run(main)
