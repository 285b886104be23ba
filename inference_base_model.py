"""Cut one image into superpixels with the base model, and draw them over it."""

import argparse
import time
from collections.abc import Sequence

from lib import cli
from lib.checkpoint import NO_NETWORK, load_base_model
from lib.errors import InputError
from lib.images import read_image
from lib.inference import Superpixels, segment_to_files


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    cli.add_inference_args(parser, demo_image=cli.REPO_ROOT / "demo" / "cat.jpg")
    cli.add_base_weights_arg(parser)
    cli.add_spixel_args(parser, trained=True)
    cli.add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> Superpixels:
    args = build_parser().parse_args(argv)
    cli.check_inference_files(
        image=args.image, out=args.out, save_labels=args.save_labels, save_features=args.save_features
    )
    if args.save_features and str(args.base_model_weights) == NO_NETWORK:
        raise InputError(f"--save_features {args.save_features}: without a network nothing is learned")
    device = cli.resolve_device(args.device)
    loaded = load_base_model(args.base_model_weights, n_learned_features=args.deepfdim, n_iter=args.niter)
    scales = cli.choose_scales(loaded.scales, color_scale=args.color_scale, pos_scale=args.pos_scale)

    start = time.perf_counter()
    superpixels = segment_to_files(
        loaded.model.to(device),
        scales,
        read_image(args.image),
        args.nspix,
        connected=args.enforce_connectivity,
        device=device,
        image_name=str(args.image),
        overlay_file=args.out,
        labels_file=args.save_labels,
        features_file=args.save_features,
    )
    seconds = time.perf_counter() - start
    cli.log_superpixels(args.image, args.nspix, superpixels, seconds, device, args.out)
    return superpixels


if __name__ == "__main__":
    cli.run(main)
