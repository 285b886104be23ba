"""Write the network of a weight file for other runtimes, and compare the file with PyTorch.

It maps scaled channels to pixel features; the clustering and the merges stay in Python. docs/library.md
describes the channels.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib import cli
from lib.export import Export, export_model
from lib.weights import load_model


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="weight file of a base or composite model"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: .onnx, .pt2 (a program of torch.export) or .safetensors (weights and settings, "
        "which all scripts read as they read .pth)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> Export:
    args = build_parser().parse_args(argv)
    return export_model(load_model(args.weights), args.out)


if __name__ == "__main__":
    cli.run(main)
