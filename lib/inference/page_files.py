"""Files of the page: the superpixels of a session with their merge tree, and drawings of them."""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lib.inference.outputs import ExportStyle, OutputFiles, OverlayStyle, write_outputs
from lib.inference.page_settings import Download
from lib.runtime.errors import InputError
from lib.superpixels.merge_tree import MergeTree
from lib.superpixels.regions import Superpixels

_N_KEPT_DRAWINGS = 3  # a browser may still load the last but one
_PNG_COMPRESS_LEVEL = 1  # fast


class Drawn(NamedTuple):
    """Files of a drawing."""

    before: Path  # PNG of the image
    after: Path  # PNG of the overlay
    download: Path | None
    problem: str | None = None  # reason why no file can be downloaded


class StoredSuperpixels:
    """Superpixels in a folder, to draw at any level of their merge tree; nothing is kept in memory.

    Parameters
    ----------
    folder : Path
        Existing folder; its other files are left alone.
    superpixels : Superpixels
        To store.
    """

    def __init__(self, folder: Path, superpixels: Superpixels) -> None:
        self._folder = folder
        self._before = folder / "image.png"
        self._file = folder / "superpixels.npz"
        self._n_drawings = 0
        self.has_levels = superpixels.tree is not None
        Image.fromarray(superpixels.image_rgb).save(self._before, compress_level=_PNG_COMPRESS_LEVEL)
        tree = superpixels.tree
        merges = {} if tree is None else {"merges": tree.merges, "costs": tree.costs}
        labels = superpixels.labels if tree is None else tree.leaves
        np.savez(self._file, labels=labels, image=superpixels.image_rgb, n=superpixels.n_spixels, **merges)

    def at(self, level: int) -> Superpixels:
        """Return the superpixels at a level of the tree; without levels, as they were stored."""
        with np.load(self._file) as file:
            tree = MergeTree(file["labels"], file["merges"], file["costs"]) if self.has_levels else None
            stored = Superpixels(file["labels"], file["image"], int(file["n"]), tree=tree)
        return stored.at(level) if self.has_levels else stored

    def draw(self, superpixels: Superpixels, style: OverlayStyle, download: Download, image: Path) -> Drawn:
        """Write the overlay and the file to download, which are named after the file `image`."""
        self._n_drawings += 1
        folder = self._folder / f"drawing_{self._n_drawings}"
        folder.mkdir()
        shutil.rmtree(self._folder / f"drawing_{self._n_drawings - _N_KEPT_DRAWINGS}", ignore_errors=True)
        overlay = folder / f"{image.stem}_superpixels.png"
        file = folder / f"{image.stem}_{download.ending}"
        problem = None
        try:
            write_outputs(
                superpixels,
                OutputFiles(**{"overlay": overlay, download.kind: file}),
                style=style,
                export=ExportStyle(annotation_format=download.annotation_format),
                image=folder / image.name,
            )
        except InputError as error:  # the format cannot hold so many superpixels
            write_outputs(superpixels, OutputFiles(overlay), style=style)
            file, problem = None, str(error)
        return Drawn(self._before, overlay, file, problem)
