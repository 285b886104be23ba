"""Superpixels of images that visitors of a page upload: pictures and files, or the reason for a refusal."""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL import Image

from lib.files.images import read_image
from lib.files.sessions import SessionFiles
from lib.inference.page_files import StoredSuperpixels
from lib.inference.page_settings import (
    COMPACTNESS,
    MODELS,
    N_ITER,
    N_SPIXELS,
    OWN_FILE,
    Drawing,
    Inputs,
    Range,
    Segmentation,
    View,
)
from lib.inference.segmenter import Segmenter
from lib.runtime.errors import InputError, RunError, is_out_of_memory
from lib.runtime.notices import silence_readers
from lib.weights import BASE, COMPOSITE, LoadedModel, expect, load_model
from model import N_FLOW_CHANNELS

Progress = Callable[[float, str], object]  # share that is done, from 0 to 1, and the name of the next stage


class PageResult(NamedTuple):
    """Files and text for the page to show; without files, the page must clear the ones it shows."""

    text: str
    pictures: tuple[Path, Path] | None = None  # PNG of the image and of the overlay
    download: Path | None = None
    view: View | None = None
    has_levels: bool = False


NO_IMAGE = PageResult("Drop an image above.")
_ENDED = PageResult("The session has ended.")


class _Shown(NamedTuple):
    """Superpixels that a session shows."""

    segmentation: Segmentation
    stored: StoredSuperpixels


class Page:
    """Segments images for the sessions of a page.

    Limits the size of images that Pillow reads, for the whole process.

    Parameters
    ----------
    base_weights, composite_weights : Path or str
        Weight files of the models to offer.
    files : SessionFiles
        Stores the results.
    device : str
        Where to compute.
    max_megapixels : float
        Largest image to accept, in millions of pixels.

    Raises
    ------
    InputError
        If the weights cannot be used.
    """

    def __init__(
        self,
        base_weights: Path | str,
        composite_weights: Path | str,
        files: SessionFiles,
        *,
        device: str = "cpu",
        max_megapixels: float,
    ) -> None:
        self._weights = {"base": Path(base_weights), "composite": Path(composite_weights)}
        self._models = {
            "base": _load(base_weights, kind=BASE),
            "composite": _load(composite_weights, kind=COMPOSITE),
        }
        self._files = files
        self._device = device
        self._max_megapixels = max_megapixels
        self._computing = Lock()
        self._shown: dict[str, _Shown] = {}  # by session
        self._removed: set[str] = set()  # sessions whose image was removed after the last request
        # Pillow compares sizes in headers, also of images in an image, before it decodes pixels. It warns
        # above this number, and refuses more than twice as many pixels.
        Image.MAX_IMAGE_PIXELS = 1e6 * max_megapixels / 2
        silence_readers()

    @property
    def n_iter(self) -> int:
        """Iterations of the clustering in the weight file of the base model."""
        return self._models["base"].model.n_iter

    @property
    def is_computing(self) -> bool:
        """True while an image is segmented."""
        return self._computing.locked()

    def segment(
        self,
        inputs: Inputs,
        drawing: Drawing,
        *,
        session: str,
        on_stage: Progress = lambda share, stage: None,
    ) -> PageResult:
        """Segment an upload or example, and store the superpixels for `redraw`.

        Errors in the input, and a lack of memory, are reported in the result.
        """
        self._shown.pop(session, None)
        if inputs.image is None:
            return NO_IMAGE
        self._removed.discard(session)
        return self._answer(lambda: self._segment(inputs, drawing, session, on_stage), inputs.paths, session)

    def redraw(self, level: object, drawing: Drawing, *, session: str) -> PageResult | None:
        """Draw the superpixels of a session at another level or in another style, without a new segmentation.

        Returns None if the session shows none, or others meanwhile: the page then stays as it is.
        """
        shown = self._shown.get(session)
        if shown is None:
            return None
        image = shown.segmentation.image
        result = self._answer(lambda: self._draw(shown, level, drawing), [image], session)
        return result if self._shown.get(session) is shown else None

    def remove(self, session: str) -> PageResult:
        """Clear the page of a session whose image is removed, perhaps while it is segmented."""
        self._removed.add(session)
        self._shown.pop(session, None)
        return NO_IMAGE

    def close(self, session: str) -> None:
        """Delete the files of a session."""
        self._files.close(session)
        self._shown.pop(session, None)
        self._removed.discard(session)

    def _segment(self, inputs: Inputs, drawing: Drawing, session: str, on_stage: Progress) -> PageResult:
        for path in inputs.paths:
            self._files.open(session, path)
        n_spixels, compactness = int(N_SPIXELS.check(inputs.n_spixels)), COMPACTNESS.check(inputs.compactness)
        n_iter = int(N_ITER.check(inputs.n_iter))
        weights, loaded = self._choose_model(inputs)
        drawing.check()
        has_flow = loaded.model.n_extra_channels > 0
        segmentation = Segmentation(
            inputs.image,
            inputs.next_frame if has_flow else None,
            weights,
            n_spixels,
            compactness,
            None if n_iter == loaded.model.n_iter else n_iter,
        )
        with self._computing:
            on_stage(0.1, "Reading")
            image_rgb = read_image(inputs.image)
            flow = estimate_flow(inputs.image, inputs.next_frame, image_rgb) if has_flow else None
            segmenter = Segmenter(
                loaded.model,
                loaded.scales,
                device=self._device,
                pos_scale_dist=compactness,
                n_iter=n_iter,
                merging=loaded.merging,
            )
            on_stage(0.3, "Segmenting")
            superpixels = segmenter(image_rgb, n_spixels, extra=flow)
        on_stage(0.8, "Drawing")
        folder = self._files.add_result(session)
        if folder is None:
            return _ENDED
        shown = _Shown(segmentation, StoredSuperpixels(folder, superpixels))
        result = self._draw(shown, n_spixels, drawing)
        if session in self._removed:
            return NO_IMAGE
        self._shown[session] = shown
        return result

    def _choose_model(self, inputs: Inputs) -> tuple[Path, LoadedModel]:
        name = MODELS.check(inputs.model)
        if name != OWN_FILE:
            return self._weights[name], self._models[name]
        if inputs.weights is None:
            raise InputError("Drop a weight file of your own, .pth or .safetensors.")
        return inputs.weights, _load(inputs.weights)

    def _draw(self, shown: _Shown, level: object, drawing: Drawing) -> PageResult:
        segmentation, stored = shown
        level = int(Range("Level", 1, segmentation.n_spixels).check(level))
        style, download = drawing.check()
        superpixels = stored.at(level)
        drawn = stored.draw(superpixels, style, download, segmentation.image)
        text = f"{superpixels.n_measured} superpixels"
        if drawn.problem:
            text = f"{text}; no file: {drawn.problem}"
        pictures = (drawn.before, drawn.after)
        view = View(segmentation, level, style, download)
        return PageResult(text, pictures, drawn.download, view, stored.has_levels)

    def _answer(self, compute: Callable[[], PageResult], paths: list[Path], session: str) -> PageResult:
        """Return the result of `compute`, or the reason for a refusal, in which `paths` have no folders."""
        try:
            return compute()
        except (InputError, MemoryError, OSError, RuntimeError) as error:
            if isinstance(error, FileNotFoundError | RunError) and not self._files.is_open(session):
                return _ENDED  # its folder is gone
            reason = self._reason(error, paths)
            if reason is None:
                raise
            return PageResult(reason)

    def _reason(self, error: Exception, paths: list[Path]) -> str | None:
        """Return the reason for a refusal in one line; None for an error of the program."""
        cause = error.__cause__ or error  # of the file's reader
        names = " or ".join(path.name for path in paths)
        if isinstance(cause, Image.DecompressionBombError):
            return f"{names} has more than {self._max_megapixels:g} megapixels, the limit of this page"
        if is_out_of_memory(cause):
            return f"out of memory: {names} is too large for this machine; drop a smaller image"
        if not isinstance(error, InputError):
            return None
        reason = str(error)
        for path in paths:
            reason = reason.replace(str(path), path.name)
        for path in paths:  # errors of the flow name the folder of the frames
            reason = reason.replace(str(path.parent), path.name)
        return reason.replace("`n_spixels`", f"{N_SPIXELS.label}:")


def estimate_flow(frame: Path, next_frame: Path | None, image_rgb: np.ndarray) -> np.ndarray:
    """Return the flow (H, W, 4) of a frame (H, W, 3) to the next one, in pixels; it has no previous one."""
    if next_frame is None:
        raise InputError("This model reads the motion between two frames: drop the next frame too.")
    try:
        from lib.optflow.lookup import EstimatedFlow
    except ImportError as error:
        raise InputError("optical flow needs OpenCV: pip install opencv-python-headless") from error
    return EstimatedFlow(frame, None, next_frame).read(image_rgb)


def _load(weights: Path | str, *, kind: str | None = None) -> LoadedModel:
    return expect(load_model(weights), weights, kind=kind, n_extra_channels=N_FLOW_CHANNELS)
