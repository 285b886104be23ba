"""Score the composite model's superpixels on DAVIS 2017, beside those of the base model it builds on."""

import argparse
import logging
from collections.abc import Sequence

from lib import cli
from lib.checkpoint import check_base_of_composite, load_base_model, load_composite_model
from lib.datasets.davis import DAVISDataset
from lib.evaluation import EvaluationResult, evaluate
from lib.segmentation import make_segmenter
from model import N_FLOW_CHANNELS

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--davis2017_root", type=cli.existing_dir, required=True, help="folder that holds DAVIS/"
    )
    cli.add_davis_split_arg(parser, default_split="test")
    cli.add_optflow_folder_args(parser)
    cli.add_iou_arg(parser)
    cli.add_nworkers_arg(parser)
    cli.add_base_weights_arg(parser)
    cli.add_composite_weights_arg(parser)
    cli.add_spixel_args(parser, trained=True)
    cli.add_optflow_args(parser, trained=True)
    cli.add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, EvaluationResult]:
    args = build_parser().parse_args(argv)
    device = cli.resolve_device(args.device)
    dataset = DAVISDataset(
        args.davis2017_root,
        args.davis_split,
        optflow_folder=args.davis_optflow_folder,
        optflow_method=args.optflow_method,
    )
    base = load_base_model(args.base_model_weights, n_learned_features=args.deepfdim, n_iter=args.niter)
    composite = load_composite_model(
        args.comp_model_weights,
        n_learned_features=args.deepfdim,
        n_extra_features=args.optflow_deepfdim,
        n_iter=args.niter,
        n_extra_channels=N_FLOW_CHANNELS,
    )
    check_base_of_composite(base, args.base_model_weights, composite, args.comp_model_weights)
    given = {"color_scale": args.color_scale, "pos_scale": args.pos_scale}
    scales = {
        "base": cli.choose_scales(base.scales, **given),
        "composite": cli.choose_scales(composite.scales, **given, extra_scale=args.optflow_scale),
    }
    results = {}
    for name, loaded in (("base", base), ("composite", composite)):
        logger.info("%s model, %d superpixels, %s, on %s", name, args.nspix, scales[name], device)
        results[name] = evaluate(
            make_segmenter(loaded.model.to(device), args.nspix, scales[name], device),
            dataset,
            n_spixels=args.nspix,
            n_workers=args.nworkers,
            ignore_background=args.eval_iou_ignore_background,
            title=name,
        )
    for name, result in results.items():
        logger.info("DAVIS %s, %s: %s", args.davis_split, name, result)
    return results


if __name__ == "__main__":
    cli.run(main)
