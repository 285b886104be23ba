"""Cut one image into superpixels with the base model, and draw them over it."""

import argparse
import logging
import time
from collections.abc import Sequence

from torch import Tensor

from lib import cli
from lib.checkpoint import load_base_model
from lib.inference import Superpixels, segment_file
from lib.segmentation import segment_lab
from model import SSNOutput

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    cli.add_inference_args(parser, demo_image=cli.REPO_ROOT / "demo" / "cat.jpg")
    cli.add_base_weights_arg(parser)
    cli.add_spixel_args(parser, trained=True)
    cli.add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> Superpixels:
    args = build_parser().parse_args(argv)
    cli.check_inference_files(args.image, args.out, args.save_labels)
    device = cli.resolve_device(args.device)
    loaded = load_base_model(args.base_model_weights, n_learned_features=args.deepfdim, n_iter=args.niter)
    model = loaded.model.to(device)
    scales = cli.choose_scales(loaded.scales, color_scale=args.color_scale, pos_scale=args.pos_scale)

    def segment(image_lab: Tensor) -> SSNOutput:
        return segment_lab(model, image_lab.to(device), args.nspix, scales)

    start = time.perf_counter()
    superpixels = segment_file(
        segment,
        args.image,
        args.nspix,
        connected=args.enforce_connectivity,
        overlay_file=args.out,
        labels_file=args.save_labels,
    )
    logger.info(
        "%s: %d superpixels requested, %d measured, %.2f s on %s, overlay in %s",
        args.image,
        args.nspix,
        superpixels.n_measured,
        time.perf_counter() - start,
        device,
        args.out,
    )
    return superpixels


if __name__ == "__main__":
    cli.run(main)
