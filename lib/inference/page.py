"""Superpixels of images that visitors of a page upload: pictures and labels, or the reason for a refusal."""

from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL import Image

from lib.files.images import read_image
from lib.files.sessions import SessionFiles
from lib.inference.outputs import DEFAULT_STYLE, OverlayStyle
from lib.inference.segmenter import Segmenter
from lib.runtime.errors import InputError, is_out_of_memory
from lib.runtime.notices import silence_readers
from lib.superpixels.regions import Superpixels
from lib.weights import BASE, expect, load_model

PICTURES = ("Overlay", "Mean colours", "Boundaries")


class Range(NamedTuple):
    """Values of a setting that the page accepts."""

    label: str
    low: float
    high: float

    def check(self, value: object) -> None:
        """Raise `InputError` if a value, as the browser sent it, is missing or out of range."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise InputError(f"{self.label}: enter a number from {self.low} to {self.high}")


N_SPIXELS = Range("Superpixels", 10, 2000)
COMPACTNESS = Range("Compactness, 1 as trained", 0.2, 5)
N_ITER = Range("Iterations", 1, 20)


class PageResult(NamedTuple):
    """Files and text for the page to show; without files, the page must clear the ones it shows."""

    text: str
    pictures: tuple[Path | None, ...] = (None,) * len(PICTURES)  # PNG
    labels: Path | None = None  # NumPy file of the label map


NO_IMAGE = PageResult("Drop an image above.")


class Page:
    """Segments images for the sessions of a page.

    Limits the size of images that Pillow reads, for the whole process.

    Parameters
    ----------
    weights : Path or str
        File of a base model.
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
        self, weights: Path | str, files: SessionFiles, *, device: str = "cpu", max_megapixels: float
    ) -> None:
        self._loaded = expect(load_model(weights), weights, kind=BASE)
        self._files = files
        self._device = device
        self._max_megapixels = max_megapixels
        self._computing = Lock()
        self._removed: set[str] = set()  # sessions whose image was removed after the last request
        # Pillow compares sizes in headers, also of images in an image, before it decodes pixels. It warns
        # above this number, and refuses more than twice as many pixels.
        Image.MAX_IMAGE_PIXELS = 1e6 * max_megapixels / 2
        silence_readers()

    @property
    def n_iter(self) -> int:
        """Iterations of the clustering in the weight file."""
        return self._loaded.model.n_iter

    @property
    def is_computing(self) -> bool:
        """True while an image is segmented."""
        return self._computing.locked()

    def segment(
        self, path: Path | None, n_spixels: object, compactness: object, n_iter: object, *, session: str
    ) -> PageResult:
        """Segment an upload or example, None for no file, with settings as the browser sent them.

        Errors in the input, and a lack of memory, are reported in the result.
        """
        if path is None:
            return NO_IMAGE
        self._removed.discard(session)
        try:
            self._files.open(session, path)
            N_SPIXELS.check(n_spixels)
            COMPACTNESS.check(compactness)
            N_ITER.check(n_iter)
            with self._computing:
                segmenter = Segmenter(
                    self._loaded.model,
                    self._loaded.scales,
                    device=self._device,
                    pos_scale_dist=compactness,
                    n_iter=int(n_iter),
                    merging=self._loaded.merging,
                )
                result = self._save(segmenter(read_image(path), int(n_spixels)), session)
            return NO_IMAGE if session in self._removed else result
        except (InputError, MemoryError, RuntimeError) as error:
            reason = self._reason(error, path)
            if reason is None:
                raise
            return PageResult(reason)

    def remove(self, session: str) -> PageResult:
        """Clear the page of a session whose image is removed, perhaps while it is segmented."""
        self._removed.add(session)
        return NO_IMAGE

    def close(self, session: str) -> None:
        """Delete the files of a session."""
        self._files.close(session)
        self._removed.discard(session)

    def _save(self, superpixels: Superpixels, session: str) -> PageResult:
        folder = self._files.add_result(session)
        if folder is None:
            return PageResult("The session has ended.")
        pictures = tuple(folder / f"{name}.png" for name in PICTURES)
        for picture, pixels in zip(pictures, draw_pictures(superpixels), strict=True):
            Image.fromarray(pixels).save(picture, compress_level=1)
        labels = folder / "labels.npy"
        np.save(labels, superpixels.labels)
        return PageResult(f"{superpixels.n_measured} superpixels", pictures, labels)

    def _reason(self, error: Exception, path: Path) -> str | None:
        """Return the reason for a refusal in one line; None for an error of the program."""
        cause = error.__cause__ or error  # of the file's reader
        if isinstance(cause, Image.DecompressionBombError):
            return f"{path.name} has more than {self._max_megapixels:g} megapixels, the limit of this page"
        if is_out_of_memory(cause):
            return f"out of memory: {path.name} is too large for this machine; drop a smaller image"
        if isinstance(error, InputError):
            return str(error).replace(str(path), path.name).replace("`n_spixels`", f"{N_SPIXELS.label}:")
        return None


def draw_pictures(superpixels: Superpixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the overlay, the mean colours, and white boundaries on black, each (H, W, 3) uint8."""
    black = superpixels.with_image(np.zeros_like(superpixels.image_rgb))
    return (
        DEFAULT_STYLE.draw(superpixels),
        OverlayStyle("mean_colors").draw(superpixels),
        OverlayStyle(color=(255, 255, 255)).draw(black),
    )
