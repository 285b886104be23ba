"""Serve a page to try the models: drop an image, move sliders, see superpixels, download them."""

import argparse
import ipaddress
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lib import cli
from lib.cli.page_command import command_of
from lib.cli.types import port_int, positive_float
from lib.files.sessions import SessionFiles, temporary_folder
from lib.inference.page import Page, PageResult
from lib.inference.page_settings import (
    BORDER_COLORS,
    BORDER_WIDTH,
    COMPACTNESS,
    DOWNLOADS,
    MODELS,
    N_ITER,
    N_SPIXELS,
    OWN_FILE,
    STYLES,
    Choice,
    Drawing,
    Inputs,
    Range,
)
from lib.runtime.device import resolve_device
from lib.runtime.errors import InputError
from lib.runtime.notices import RESULT
from lib.runtime.ranks import skip_teardown
from lib.runtime.signals import stop_flag
from lib.weights import COMPOSITE

logger = logging.getLogger("demo_app")


class Example(NamedTuple):
    """Image to click, and the model that segments it."""

    image: Path
    model: str
    next_frame: Path | None = None


_DEMO_DIR = cli.REPO_ROOT / "demo"
_CLIP = [_DEMO_DIR / "clip" / f"0000{number}.jpg" for number in range(2)]
_BASE_NAME, _COMPOSITE_NAME, _ = MODELS.names
DEMO_IMAGE = _DEMO_DIR / "cat.jpg"
EXAMPLES = (Example(DEMO_IMAGE, _BASE_NAME), Example(_CLIP[0], _COMPOSITE_NAME, _CLIP[1]))
_ABOUT_CLIP = "In the second one, a horse of gravel walks over gravel: only its motion shows it."
EXAMPLE_FILES = [DEMO_IMAGE, *_CLIP]

FOLDER_PREFIX = "superpixels_page_"  # of the temporary folder
_KEPT_SECONDS = 24 * 3600  # age at which Gradio deletes uploads, also of sessions that are still open
_INPUT_HEIGHT = 200  # pixels, of the image to segment; the result is larger
_MAX_PICTURE_HEIGHT = 700  # pixels, so that the controls below stay on a screen
_MAX_BYTES_PER_PIXEL = 8  # of an uncompressed image: 16-bit colours and opacity


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "base_model_weights", "comp_model_weights", "device")
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
    gr.set_static_paths(EXAMPLE_FILES)  # Gradio serves the files, and no copies

    with gr.Blocks(title="Superpixels", delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as app:
        gr.Markdown(f"# Superpixels\nDrop an image, or click an example. {_ABOUT_CLIP}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = _image("Image", str(DEMO_IMAGE), elem_id="image")
                examples = gr.Dataset(
                    label="Examples",
                    components=[image],
                    samples=[[str(example.image)] for example in EXAMPLES],
                    type="index",
                    elem_id="examples",
                )
                n_spixels = _slider(N_SPIXELS, 200, step=10, elem_id="count")
                with gr.Accordion("Model and settings", open=False, elem_id="settings"):
                    model = _radio(MODELS, elem_id="model")
                    next_frame = _image("Next frame of the video", elem_id="next_frame", visible=False)
                    weights = gr.File(
                        label="Weight file: .pth, .safetensors", elem_id="weights", visible=False, height=160
                    )
                    compactness = _slider(COMPACTNESS, 1, step=0.1, elem_id="compactness")
                    n_iter = _slider(N_ITER, page.n_iter, step=1, elem_id="iterations")
            with gr.Column(scale=5, min_width=300):
                picture = gr.ImageSlider(
                    label="Before and after",
                    elem_id="picture",
                    interactive=False,
                    max_height=_MAX_PICTURE_HEIGHT,
                    buttons=["fullscreen"],
                )
                result = gr.Textbox(label="Result", elem_id="result")
                level = gr.Slider(
                    1, 200, 200, step=1, label="Level: merge down to", elem_id="level", interactive=False
                )
                with gr.Accordion("Overlay", open=False, elem_id="overlay"):
                    style = _radio(STYLES, elem_id="style")
                    color = _radio(BORDER_COLORS, elem_id="color")
                    width = _slider(BORDER_WIDTH, 0, step=1, elem_id="width")
                with gr.Row():
                    kind = gr.Dropdown(
                        DOWNLOADS.names,
                        value=DOWNLOADS.names[0],
                        label=DOWNLOADS.label,
                        container=False,
                        elem_id="kind",
                    )
                    download = gr.DownloadButton("Download", elem_id="download", interactive=False)
                with gr.Accordion("The same as a command", open=False, elem_id="shell"):
                    command = gr.Code(
                        language="shell",
                        lines=2,
                        interactive=False,
                        label="In the root of the repository",
                        wrap_lines=True,
                        elem_id="command",
                    )

        inputs = [image, n_spixels, compactness, n_iter, model, next_frame, weights]
        drawing = [style, color, width, kind]
        shown = [picture, download, result, command]
        events = _Events(page)
        # Otherwise Gradio opens the image and checks the settings, fails without a reason on the page, and
        # leaves the old result there.
        unread = {"preprocess": False}
        at_once = {"queue": False, "show_progress": "hidden"}
        segmenting = {
            "fn": events.segment,
            "inputs": [*inputs, *drawing],
            "outputs": [level, *shown],
            "show_progress_on": picture,
            "trigger_mode": "always_last",  # a change during a computation starts another one afterwards
            **unread,
        }
        changes = [n_spixels.change, compactness.change, n_iter.change, model.input]
        uploads = [image.upload, next_frame.upload, weights.upload]
        gr.on([*uploads, *changes, app.load], api_name="segment", **segmenting)
        loaded = examples.click(events.load_example, examples, [image, next_frame, model], **at_once)
        loaded.then(api_visibility="private", **segmenting)
        # An upload over an image takes that one away at once. This must not start a computation, whose result
        # races with the new one. If the upload is refused, the old image stays away.
        image.change(events.clear_if_removed, image, [level, *shown], **unread, **at_once)
        model.change(events.show_uploads, model, [next_frame, weights], **at_once)
        gr.on(
            [level.input, style.input, color.input, width.input, kind.input],
            events.redraw,
            [level, *drawing],
            shown,
            show_progress="hidden",
            trigger_mode="always_last",
            **unread,
        )
        app.unload(events.end_session)
    return app


class _Events:
    """Handlers of the events of a page; values are as the browser sends them."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def segment(
        self,
        image: object,
        n_spixels: object,
        compactness: object,
        n_iter: object,
        model: object,
        next_frame: object,
        weights: object,
        style: object,
        color: object,
        width: object,
        kind: object,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, how Gradio hands it over
    ) -> tuple:
        inputs = Inputs(
            _path(image), n_spixels, compactness, n_iter, model, _path(next_frame), _path(weights)
        )
        drawing = Drawing(style, color, width, kind)
        return _with_level(
            self._page.segment(inputs, drawing, session=request.session_hash, on_stage=progress)
        )

    def redraw(
        self, level: object, style: object, color: object, width: object, kind: object, request: gr.Request
    ) -> tuple | Any:
        drawing = Drawing(style, color, width, kind)
        result = self._page.redraw(level, drawing, session=request.session_hash)
        return gr.skip() if result is None else _updates(result)

    def clear_if_removed(self, image: object, request: gr.Request) -> tuple | Any:
        return gr.skip() if _path(image) else _with_level(self._page.remove(request.session_hash))

    def load_example(self, index: int) -> tuple[str, str | None, str]:
        example = EXAMPLES[index]
        return str(example.image), example.next_frame and str(example.next_frame), example.model

    def show_uploads(self, model: str) -> tuple[Any, Any]:
        is_own = MODELS.values[model] == OWN_FILE
        return gr.update(visible=is_own or MODELS.values[model] == COMPOSITE), gr.update(visible=is_own)

    def end_session(self, request: gr.Request) -> None:
        self._page.close(request.session_hash)


def _path(file: object) -> Path | None:
    """Return the path of a file in the browser's form."""
    is_file = isinstance(file, dict) and isinstance(file.get("path"), str)
    return Path(file["path"]) if is_file and file["path"] else None


def _updates(result: PageResult) -> tuple:
    """Return the updates of picture, download, result and command."""
    pictures = result.pictures and tuple(map(str, result.pictures))
    download = gr.update(value=None, label="Download", interactive=False)
    if result.download is not None:
        label = f"Download {result.download.name}"  # a click must not give the file that was chosen before
        download = gr.update(value=str(result.download), label=label, interactive=True)
    return pictures, download, result.text, command_of(result.view) if result.view else None


def _with_level(result: PageResult) -> tuple:
    """Return the updates of a new result, after the one of the level slider."""
    level = gr.update(interactive=False)
    if result.has_levels:
        level = gr.update(maximum=result.view.level, value=result.view.level, interactive=True)
    return level, *_updates(result)


def _image(label: str, value: str | None = None, **options: Any) -> gr.Image:
    sources = ["upload", "clipboard"]
    return gr.Image(
        value, type="filepath", label=label, sources=sources, height=_INPUT_HEIGHT, buttons=[], **options
    )


def _slider(values: Range, value: float, **options: Any) -> gr.Slider:
    return gr.Slider(values.low, values.high, value, label=values.label, **options)


def _radio(choice: Choice, **options: Any) -> gr.Radio:
    return gr.Radio(choice.names, value=choice.names[0], label=choice.label, **options)


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio tests its own server with it
    device = resolve_device(args.device)
    with temporary_folder(FOLDER_PREFIX) as folder:
        files = SessionFiles(folder, examples=EXAMPLE_FILES)
        page = Page(
            args.base_model_weights,
            args.comp_model_weights,
            files,
            device=str(device),
            max_megapixels=args.max_megapixels,
        )
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
