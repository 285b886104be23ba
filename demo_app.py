"""Serve a page to try the base model: drop an image, move sliders, see superpixels, download labels."""

import argparse
import shutil
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
import numpy as np

from lib import cli
from lib.cli.types import port_int
from lib.files.images import read_image
from lib.inference.outputs import DEFAULT_STYLE, OverlayStyle
from lib.inference.segmenter import Segmenter
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.superpixels.regions import Superpixels
from lib.weights import BASE, expect, load_model

DEMO_IMAGE = cli.REPO_ROOT / "demo" / "cat.jpg"
_KEPT_SECONDS = 3600  # age at which Gradio deletes its copies of images


class LabelFiles:
    """Temporary files of the last label maps, for download; deleted when the program ends."""

    def __init__(self, n_kept: int = 20) -> None:
        self._n_kept = n_kept
        self._folder = tempfile.TemporaryDirectory(prefix="superpixels_")
        self._paths: deque[Path] = deque()

    def save(self, labels: np.ndarray) -> Path:
        """Write a label map and return its path; delete the oldest beyond `n_kept`."""
        path = Path(tempfile.mkdtemp(dir=self._folder.name), "labels.npy")
        np.save(path, labels)
        self._paths.append(path)
        if len(self._paths) > self._n_kept:
            shutil.rmtree(self._paths.popleft().parent)
        return path


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "base_model_weights", "device")
    parser.add_argument("--port", type=port_int, default=7860, help="port of the page on this machine")
    return parser


def build_app(weights: str | Path, device: str = "cpu") -> gr.Blocks:
    """Build the page; `launch` serves it.

    Raises
    ------
    InputError
        If the weights cannot be used.
    """
    loaded = expect(load_model(weights), weights, kind=BASE)
    label_files = LabelFiles()

    def segment(image: str | None, n_spixels: int, compactness: float, n_iter: int) -> tuple:
        if image is None:
            return None, None, None, None, "Drop an image above."
        segmenter = Segmenter(
            loaded.model,
            loaded.scales,
            device=device,
            pos_scale_dist=compactness,
            n_iter=int(n_iter),
            merging=loaded.merging,
        )
        try:
            superpixels = segmenter(read_image(Path(image)), int(n_spixels))
        except InputError as error:
            raise gr.Error(str(error).replace(image, Path(image).name)) from error
        result = f"{superpixels.n_measured} superpixels"
        return *draw_pictures(superpixels), str(label_files.save(superpixels.labels)), result

    with gr.Blocks(title="Superpixels", delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as app:
        gr.Markdown("# Superpixels\nDrop an image and move the sliders.")
        with gr.Row():
            with gr.Column(scale=1):
                # Pass the file unread: Gradio decodes palettes, 16 bits and transparency differently.
                image = gr.Image(
                    str(DEMO_IMAGE), type="filepath", image_mode=None, label="Image", elem_id="image"
                )
                n_spixels = gr.Slider(10, 2000, 200, step=10, label="Superpixels", elem_id="count")
                compactness = gr.Slider(
                    0.2, 5, 1, step=0.1, label="Compactness, 1 as trained", elem_id="compactness"
                )
                n_iter = gr.Slider(
                    1, 20, loaded.model.n_iter, step=1, label="Iterations", elem_id="iterations"
                )
                result = gr.Textbox(label="Result", elem_id="result")
                labels = gr.DownloadButton("Labels (.npy)", elem_id="labels")
            with gr.Column(scale=2), gr.Tabs():
                pictures = []
                for name in ("Overlay", "Mean colours", "Boundaries"):
                    with gr.Tab(name):
                        pictures.append(gr.Image(label=name, format="png", elem_id=name.split()[0].lower()))
        inputs, outputs = [image, n_spixels, compactness, n_iter], [*pictures, labels, result]
        events = [image.change, n_spixels.change, compactness.change, n_iter.change, app.load]
        gr.on(
            events,
            segment,
            inputs,
            outputs,
            show_progress="minimal",
            trigger_mode="always_last",  # a change made during a computation starts another one afterwards
        )
    return app


def draw_pictures(superpixels: Superpixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the overlay, the mean colours, and white boundaries on black, each (H, W, 3) uint8."""
    black = superpixels.with_image(np.zeros_like(superpixels.image_rgb))
    return (
        DEFAULT_STYLE.draw(superpixels),
        OverlayStyle("mean_colors").draw(superpixels),
        OverlayStyle(color=(255, 255, 255)).draw(black),
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = resolve_device(args.device)
    app = build_app(args.base_model_weights, str(device))
    try:
        app.launch(server_port=args.port)
    except OSError as error:  # Gradio's message names a Gradio option instead of --port
        raise InputError(f"--port {args.port} is taken or may not be used; choose another") from error


if __name__ == "__main__":
    cli.run(main)
