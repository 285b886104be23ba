"""Serve a page to try the base model: drop an image, move sliders, see superpixels, download labels."""

import argparse
import ipaddress
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lib import cli
from lib.cli.types import port_int, positive_float
from lib.files.sessions import SessionFiles, temporary_folder
from lib.inference.page import COMPACTNESS, N_ITER, N_SPIXELS, PICTURES, Page, PageResult, Range
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.runtime.notices import RESULT
from lib.runtime.ranks import skip_teardown
from lib.runtime.signals import stop_flag

logger = logging.getLogger("demo_app")

DEMO_IMAGE = cli.REPO_ROOT / "demo" / "cat.jpg"
FOLDER_PREFIX = "superpixels_page_"  # of the temporary folder
_KEPT_SECONDS = 24 * 3600  # age at which Gradio deletes uploads, also of sessions that are still open
_MAX_BYTES_PER_PIXEL = 8  # of an uncompressed image: 16-bit colours and opacity


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "base_model_weights", "device")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at; 0.0.0.0 opens the page to everyone on the network",
    )
    parser.add_argument("--port", type=port_int, default=7860, help="port of the page on this machine")
    parser.add_argument(
        "--max_megapixels",
        type=positive_float,
        default=50.0,
        help="largest image to accept, in millions of pixels",
    )
    return parser


def build_app(page: Page, files: SessionFiles) -> gr.Blocks:
    """Build the page; `launch` serves it. From here on, Gradio stores uploads in the folder of `files`."""
    os.environ["GRADIO_TEMP_DIR"] = str(files.folder)
    gr.set_static_paths([DEMO_IMAGE])  # Gradio serves the file, and no copy

    def segment(
        image: dict[str, Any] | None,
        n_spixels: float | None,
        compactness: float | None,
        n_iter: float | None,
        request: gr.Request,
    ) -> tuple:
        return updates(
            page.segment(path_of(image), n_spixels, compactness, n_iter, session=request.session_hash)
        )

    def clear_if_removed(image: dict[str, Any] | None, request: gr.Request) -> tuple | Any:
        return gr.skip() if path_of(image) else updates(page.remove(request.session_hash))

    def path_of(image: dict[str, Any] | None) -> Path | None:
        return Path(image["path"]) if image and image["path"] else None

    def updates(result: PageResult) -> tuple:
        has_labels = result.labels is not None
        download = gr.update(value=str(result.labels) if has_labels else None, interactive=has_labels)
        return *result.pictures, download, result.text

    def end_session(request: gr.Request) -> None:
        page.close(request.session_hash)

    with gr.Blocks(title="Superpixels", delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as app:
        gr.Markdown("# Superpixels\nDrop an image and move the sliders.")
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(str(DEMO_IMAGE), type="filepath", label="Image", elem_id="image")
                n_spixels = _slider(N_SPIXELS, 200, step=10, elem_id="count")
                compactness = _slider(COMPACTNESS, 1, step=0.1, elem_id="compactness")
                n_iter = _slider(N_ITER, page.n_iter, step=1, elem_id="iterations")
                result = gr.Textbox(label="Result", elem_id="result")
                labels = gr.DownloadButton("Labels (.npy)", elem_id="labels", interactive=False)
            with gr.Column(scale=2), gr.Tabs():
                pictures = []
                for name in PICTURES:
                    with gr.Tab(name):
                        pictures.append(gr.Image(label=name, format="png", elem_id=name.split()[0].lower()))
        # An upload over an image takes that one away at once. This must not start a computation, whose result
        # races with the new one. If the upload is refused, the old image stays away.
        image.change(
            clear_if_removed,
            image,
            [*pictures, labels, result],
            preprocess=False,
            queue=False,
            show_progress="hidden",
        )
        gr.on(
            [image.upload, n_spixels.change, compactness.change, n_iter.change, app.load],
            segment,
            [image, n_spixels, compactness, n_iter],
            [*pictures, labels, result],
            # Otherwise Gradio opens the image and checks the sliders, fails without a reason on the page, and
            # leaves the old result there.
            preprocess=False,
            show_progress="minimal",
            trigger_mode="always_last",  # a change made during a computation starts another one afterwards
        )
        app.unload(end_session)
    return app


def _slider(values: Range, value: float, **options: Any) -> gr.Slider:
    return gr.Slider(values.low, values.high, value, label=values.label, **options)


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio tests its own server with it
    device = resolve_device(args.device)
    with temporary_folder(FOLDER_PREFIX) as folder:
        files = SessionFiles(folder, examples=[DEMO_IMAGE])
        page = Page(args.base_model_weights, files, device=str(device), max_megapixels=args.max_megapixels)
        app = build_app(page, files)
        try:
            _serve(app, args.host, args.port, args.max_megapixels)
        finally:
            app.close(verbose=False)
            files.close_all()
            if page.is_computing:
                skip_teardown()


def _serve(app: gr.Blocks, host: str, port: int, max_megapixels: float) -> None:
    """Serve the page until a signal stops the program."""
    if not _is_local(host):
        logger.warning("--host %s: anyone on the network can open this page and upload images", host)
    max_bytes = int(1e6 * (1 + _MAX_BYTES_PER_PIXEL * max_megapixels))  # with 1 MB of metadata
    try:
        _, address, _ = app.launch(
            server_name=host, server_port=port, max_file_size=max_bytes, prevent_thread_lock=True, quiet=True
        )
    except OSError as error:  # Gradio's message names Gradio's options
        text = f"--host {host} --port {port} is taken or may not be used; choose another"
        raise InputError(text) from error
    logger.log(RESULT, "page at %s, Ctrl-C stops it", address)
    while True:
        stop_flag.raise_if_set()
        time.sleep(0.1)


def _is_local(host: str) -> bool:
    """Return True if only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


if __name__ == "__main__":
    cli.run(main)
