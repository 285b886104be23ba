"""Measure time and memory from an image file to its overlay file, relative to a plain network.

The plain network has the same weights. It uses channels-first memory, separate batch norm layers, one output
convolution on all concatenated scales, and the default memory allocator settings. Each workload runs in a
fresh process, so that its peak memory can be measured. Needs Linux.

    python -m benchmarks.benchmark_inference
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.measuring import MIB, Cost, describe, in_process, make_photograph, measure
from lib.cli.options import DEFAULT_BASE_WEIGHTS
from lib.files.images import read_image
from lib.inference.outputs import OutputFiles, write_outputs
from lib.inference.segmenter import Segmenter
from lib.network.inputs import input_channels, rgb_to_lab
from lib.runtime.device import resolve_precision
from lib.runtime.memory import keep_freed_memory
from lib.runtime.stopwatch import Stopwatch
from lib.weights import load_model
from model import FeatureExtractor

SIZE = (480, 854)
DENSITY = 1000 / (SIZE[0] * SIZE[1])  # superpixels per pixel


def plain_network_cost(device: torch.device, size: tuple[int, int], n_repeats: int) -> Cost:
    """Measure the plain network alone."""
    model, scales, *_ = load_model(DEFAULT_BASE_WEIGHTS)
    extractor = model.feature_extract.to(device, memory_format=torch.contiguous_format)
    image_rgb = torch.from_numpy(make_photograph(*size)).to(device)
    image_lab = rgb_to_lab(image_rgb.movedim(-1, 0)[None])
    labyx = input_channels(image_lab, None, round(DENSITY * size[0] * size[1]), scales)
    with torch.inference_mode():
        return measure(lambda: _plain_forward(extractor, labyx), device, n_repeats)


def _plain_forward(extractor: FeatureExtractor, x: Tensor) -> Tensor:
    def run(layers: nn.Module, values: Tensor) -> Tensor:
        for layer in layers:
            # Call the layers one by one: a whole block folds its batch norm into the convolution.
            values = run(layer, values) if isinstance(layer, nn.Sequential) else layer(values)
        return values

    scale1 = run(extractor.scale1, x)
    scale2 = run(extractor.scale2, scale1)
    scale3 = run(extractor.scale3, scale2)
    resized = [
        F.interpolate(scale, size=x.shape[2:], mode="bilinear", align_corners=False)
        for scale in (scale2, scale3)
    ]
    return torch.cat([extractor.output_conv(torch.cat([x, scale1, *resized], dim=1)), x], dim=1)


def whole_cost(device: torch.device, precision: str, size: tuple[int, int], n_repeats: int) -> Cost:
    """Measure everything from image file to overlay file, with the weights already loaded."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        image_file, overlay_file = Path(folder, "image.jpg"), Path(folder, "overlay.png")
        Image.fromarray(make_photograph(*size)).save(image_file)
        step, _ = _inference(device, precision, image_file, overlay_file, size)
        return measure(step, device, n_repeats)


def agreement_and_stages(device: torch.device, size: tuple[int, int]) -> tuple[float, str]:
    """Return the share of labels equal in bfloat16 and float32, and the float32 time per stage."""
    keep_freed_memory()
    image_rgb = make_photograph(*size)
    labels = []
    for with_bfloat16 in (False, True):
        segmenter = Segmenter.from_checkpoint(
            DEFAULT_BASE_WEIGHTS, device=device, with_bfloat16=with_bfloat16
        )
        n_spixels = round(DENSITY * size[0] * size[1])
        labels.append(segmenter(image_rgb, n_spixels, connected=False).labels)
    with tempfile.TemporaryDirectory() as folder:
        image_file, overlay_file = Path(folder, "image.jpg"), Path(folder, "overlay.png")
        Image.fromarray(image_rgb).save(image_file)
        step, segmenter = _inference(device, "fp32", image_file, overlay_file, size)
        step()
        segmenter.stopwatch.seconds.clear()
        for _ in range(5):
            step()
    return float((labels[0] == labels[1]).mean()), str(segmenter.stopwatch)


def _inference(
    device: torch.device, precision: str, image_file: Path, overlay_file: Path, size: tuple[int, int]
) -> tuple:
    loaded = load_model(DEFAULT_BASE_WEIGHTS)
    segmenter = Segmenter(
        loaded.model,
        loaded.scales,
        device=device,
        with_bfloat16=precision == "bf16",
        merging=loaded.merging,
        stopwatch=Stopwatch(device),
    )
    n_spixels = round(DENSITY * size[0] * size[1])

    def step() -> None:
        with segmenter.stopwatch.stage("reading"):
            image_rgb = read_image(image_file)
        superpixels = segmenter(image_rgb, n_spixels)
        with segmenter.stopwatch.stage("writing"):
            write_outputs(superpixels, OutputFiles(overlay_file))

    return step, segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:N]")
    device = torch.device(parser.parse_args().device)
    print(f"torch {torch.__version__} on {describe(device)}")

    plain = in_process(plain_network_cost, device, SIZE, 7)
    precisions = ["fp32", "bf16"] if resolve_precision("auto", device) == "bf16" else ["fp32"]
    for precision in precisions:
        whole = in_process(whole_cost, device, precision, SIZE, 7)
        print(
            f"480x854, file to file, {precision}: {whole.seconds:.3f} s, {whole.seconds / plain.seconds:.2f} "
            f"times the plain network's {plain.seconds:.3f} s"
        )
    agreement, stages = in_process(agreement_and_stages, device, SIZE)
    print(f"stages in fp32: {stages}")
    print(f"labels equal in bf16 and fp32: {100 * agreement:.2f} %")

    smaller = None
    for factor in (1, 2, 4, 8):
        size = (SIZE[0] * factor, SIZE[1] * factor)
        cost = in_process(whole_cost, device, "fp32", size, 3)
        line = f"{size[0]}x{size[1]}: {cost.seconds:.2f} s, {cost.total_bytes / MIB:.0f} MiB"
        if smaller:
            n_more_pixels = 0.75 * size[0] * size[1]
            line += (
                f", {cost.seconds / smaller.seconds:.2f} times the time for 4 times the pixels, "
                f"{(cost.total_bytes - smaller.total_bytes) / n_more_pixels:.0f} bytes for each further pixel"
            )
        print(line)
        smaller = cost


if __name__ == "__main__":
    main()
