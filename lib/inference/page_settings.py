"""Settings of the page: their ranges and choices, and checks of what a browser sends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.inference.outputs import OverlayStyle
from lib.runtime.errors import InputError


class Range(NamedTuple):
    """Numbers that a setting accepts."""

    label: str
    low: float
    high: float

    def check(self, value: object) -> float:
        """Return a value, or raise `InputError` if it is missing or out of range."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise InputError(f"{self.label}: enter a number from {self.low} to {self.high}")
        return value


class Choice(NamedTuple):
    """Names that a setting accepts, and what they stand for; the first one is the default."""

    label: str
    values: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return list(self.values)

    def check(self, name: object) -> Any:
        """Return what a name stands for, or raise `InputError` if it is none of the names."""
        if not isinstance(name, str) or name not in self.values:
            raise InputError(f"{self.label}: choose one of {', '.join(self.values)}")
        return self.values[name]


class Download(NamedTuple):
    """File that a visitor may download."""

    kind: str  # a field of `OutputFiles`
    ending: str  # of its name, after the name of the image
    annotation_format: str | None = None


N_SPIXELS = Range("Superpixels", 10, 2000)
COMPACTNESS = Range("Compactness, 1 as trained", 0.2, 5)
N_ITER = Range("Iterations", 1, 20)
BORDER_WIDTH = Range("Border width, 0 for automatic", 0, 10)  # pixels

OWN_FILE = "own file"
MODELS = Choice("Model", {"Base": "base", "Composite, two frames": "composite", "Own file": OWN_FILE})

STYLES = Choice(
    "Style", {"Borders": "boundaries", "Mean colours": "mean_colors", "Label colours": "label_colors"}
)
BORDER_COLORS = Choice(
    "Border colour",
    {
        "yellow": (255, 255, 0),
        "red": (255, 0, 0),
        "lime": (0, 255, 0),
        "cyan": (0, 255, 255),
        "magenta": (255, 0, 255),
        "white": (255, 255, 255),
        "black": (0, 0, 0),
    },
)
DOWNLOADS = Choice(
    "File to download",
    {
        "Overlay (.png)": Download("overlay", "superpixels.png"),
        "Labels (.npy)": Download("labels", "labels.npy"),
        "Outlines (.geojson)": Download("outlines", "outlines.geojson"),
        "Outlines (.svg)": Download("outlines", "outlines.svg"),
        "Annotations, COCO (.json)": Download("annotations", "coco.json", "coco"),
        "Annotations, labelme (.json)": Download("annotations", "labelme.json", "labelme"),
        "Annotations, CVAT (.zip)": Download("annotations", "cvat.zip", "cvat"),
    },
)


class Inputs(NamedTuple):
    """Input of a segmentation, as a browser sends it."""

    image: Path | None
    n_spixels: object = 200
    compactness: object = 1
    n_iter: object = 5
    model: object = MODELS.names[0]
    next_frame: Path | None = None  # of a video, for models that read optical flow
    weights: Path | None = None  # the visitor's own file

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.image, self.next_frame, self.weights) if path is not None]


class Drawing(NamedTuple):
    """How to draw superpixels, and the file to offer, as a browser sends them."""

    style: object = STYLES.names[0]
    color: object = BORDER_COLORS.names[0]
    width: object = 0
    download: object = DOWNLOADS.names[0]

    def check(self) -> tuple[OverlayStyle, Download]:
        """Return the settings; raise `InputError` if one of them cannot be used."""
        width = int(BORDER_WIDTH.check(self.width))
        style = OverlayStyle(STYLES.check(self.style), BORDER_COLORS.check(self.color), width or None)
        return style, DOWNLOADS.check(self.download)


class Segmentation(NamedTuple):
    """What was segmented, and how."""

    image: Path
    next_frame: Path | None  # None for models that read no optical flow
    weights: Path
    n_spixels: int
    compactness: float
    n_iter: int | None  # None: the number in the weight file


class View(NamedTuple):
    """What a page shows of a segmentation."""

    segmentation: Segmentation
    level: int  # number of superpixels
    style: OverlayStyle
    download: Download
