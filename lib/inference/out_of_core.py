"""Segment images that do not fit the memory: the same superpixels, with temporary files between the steps.

Every step takes rows of the image from the top, and does what `Segmenter` does for the whole image, in the
same order of additions. The network writes the features of each band of rows to a file. Each iteration of
the clustering reads the file once. The label map is cut into pieces of components, band by band; merges need
only the sizes, mean features and neighbours of the components.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.files.row_file import RowFile, check_disk
from lib.files.sizes import size_text
from lib.inference.segmenter import ClusteringPlan, PreprocessedImage, Segmenter
from lib.runtime.errors import InputError
from lib.runtime.signals import stop_flag
from lib.superpixels.components import ComponentsInBands
from lib.superpixels.connectivity import OUTSIDE, join_small_components
from lib.superpixels.counts import check_n_spixels, check_parts
from lib.superpixels.merge_tree import merge_graph
from lib.superpixels.region_graph import graph_of_bands
from model import cluster_label_rows

_FLOAT32_BYTES = INT32_BYTES = 4

# Size of the features of the rows that are summed at a time. More take more memory.
_SUMMED_BYTES = 2**28


class LabelFile(NamedTuple):
    """Label map (H, W) in a temporary file."""

    file: RowFile  # (1, H, W), int32: pieces of superpixels; -1 outside the mask
    superpixel: np.ndarray  # int32: of each piece, then -1
    n_measured: int  # number of superpixels that occur

    @property
    def shape(self) -> tuple[int, int]:
        return self.file.shape[1:]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows of the label map, (n_rows, W) int32."""
        return self.superpixel[self.file.read(start, stop)[0]]  # index -1 maps to the last

    def bands(self, n_rows: int) -> Iterator[np.ndarray]:
        """Yield the label map from the top, in bands of `n_rows` rows."""
        for start in range(0, self.shape[0], n_rows):
            stop_flag.raise_if_set()
            yield self.rows(start, min(start + n_rows, self.shape[0]))


def needed_disk(segmenter: Segmenter, image_shape: tuple[int, int]) -> int:
    """Return the bytes of the temporary files of `segment_out_of_core`."""
    height, width = image_shape
    return height * width * (_FLOAT32_BYTES * segmenter.n_features + INT32_BYTES)


@contextmanager
def segment_out_of_core(
    segmenter: Segmenter,
    image: PreprocessedImage,
    n_spixels: int,
    folder: Path,
    *,
    connected: bool = True,
) -> Iterator[LabelFile]:
    """Cut an image into superpixels, with little memory.

    The labels are those of `segmenter(..., connected=connected)`. Temporary files are gone after the block,
    and when the process ends in whatever way.

    Parameters
    ----------
    segmenter : Segmenter
        Its device computes; the merges are always on the CPU.
    image : PreprocessedImage
        Its arrays may be memory maps: rows are read when they are needed.
    n_spixels : int
        Requested number of superpixels.
    folder : Path
        Folder for temporary files, of `needed_disk` bytes.
    connected : bool
        Make superpixels connected; see the call of the segmenter.

    Raises
    ------
    InputError
        If the folder has too little space, or the image cannot be cut into so many superpixels.
    RunError
        If a temporary file cannot be written.
    Stop
        If the stop flag is set; it is polled between bands of rows.
    """
    shape = image.image_rgb.shape[:2]
    check_n_spixels(n_spixels, image.n_pixels, image.name)
    plan = segmenter.plan(image, n_spixels, merged=connected)
    if plan.merge_pos_scale is not None and image.mask is not None:
        check_parts(image.mask, n_spixels, image.name)
    check_disk(needed_disk(segmenter, shape), folder, f"{image.name} of {size_text(shape)} pixels")
    with RowFile(folder, (1, *shape), np.int32) as label_file:
        with RowFile(folder, (segmenter.n_features, *shape), np.float32) as feature_file:
            for band, features in segmenter.features_in_bands(image, n_spixels):
                stop_flag.raise_if_set()
                feature_file.write(band.start, features[0].cpu().numpy())
            features = _Features(feature_file, segmenter)
            label_rows = _cluster(segmenter, features, image, plan)
            if connected:
                labels = _connect(segmenter, features, label_rows, label_file, plan, n_spixels)
            else:
                labels = _write_labels(label_rows, label_file)
        yield labels


class _Features:
    """Features in a file, with scaled position channels; see `FeatureRows`."""

    def __init__(self, file: RowFile, segmenter: Segmenter, position_factor: float = 1.0) -> None:
        self._file = file
        self._segmenter = segmenter
        self._position_factor = position_factor
        self.shape = file.shape
        self.device = segmenter.device
        self._buffer = np.empty(0, np.float32)

    def scaled(self, position_factor: float) -> "_Features":
        return _Features(self._file, self._segmenter, position_factor)

    def read(self, start: int, stop: int) -> Tensor:
        stop_flag.raise_if_set()
        n_values = self.shape[0] * (stop - start) * self.shape[2]
        if n_values > len(self._buffer):  # kept, as new memory for each reading would fragment
            self._buffer = np.empty(n_values, np.float32)
        features = torch.from_numpy(self._file.read(start, stop, buffer=self._buffer))
        features[self._segmenter.model.position_channels] *= self._position_factor
        return features.to(self.device)


def _cluster(
    segmenter: Segmenter, features: _Features, image: PreprocessedImage, plan: ClusteringPlan
) -> Iterator[np.ndarray]:
    """Yield the labels of the clustering from the top, (n_rows, W) int32; -1 outside the mask."""
    options = segmenter.clustering_options(image.mask)
    row = 0
    with segmenter.stopwatch.stage("clustering", on_device=True):
        for labels in cluster_label_rows(features.scaled(plan.position_factor), plan.n_spixels, **options):
            labels = labels.to(torch.int32).cpu().numpy()
            if image.mask is not None:
                labels[~image.mask[row : row + len(labels)]] = OUTSIDE
            row += len(labels)
            yield labels


def _write_labels(label_rows: Iterator[np.ndarray], label_file: RowFile) -> LabelFile:
    """Write the labels as they are."""
    row, found = 0, np.empty(0, np.int32)
    for labels in label_rows:
        label_file.write(row, labels[None])
        row += len(labels)
        found = np.union1d(found, labels[labels != OUTSIDE])
    return _mapped(label_file, np.arange(found.max() + 1, dtype=np.int32), len(found))


def _connect(
    segmenter: Segmenter,
    features: _Features,
    label_rows: Iterator[np.ndarray],
    label_file: RowFile,
    plan: ClusteringPlan,
    n_spixels: int,
) -> LabelFile:
    """Write the pieces of the connected components, and number their superpixels."""
    components, row = ComponentsInBands(), 0
    for labels in label_rows:
        label_file.write(row, components.add(labels)[None])
        row += len(labels)
    component = components.components_of_pieces()
    component_map = _mapped(label_file, component, int(component.max()) + 1)
    if plan.merge_pos_scale is None:
        with segmenter.stopwatch.stage("connectivity"):
            superpixel = _join(component_map, plan.n_spixels)
    else:
        with segmenter.stopwatch.stage("merging"):
            superpixel = _merge(component_map, features.scaled(plan.merge_pos_scale), n_spixels)
    return _mapped(label_file, superpixel[component], int(superpixel.max()) + 1)


def _mapped(label_file: RowFile, superpixel: np.ndarray, n_measured: int) -> LabelFile:
    return LabelFile(label_file, np.append(superpixel, np.int32(OUTSIDE)), n_measured)


def _join(components: LabelFile, n_spixels: int) -> np.ndarray:
    """Return the superpixel of each component, as `enforce_connectivity` does."""
    n_rows = max(1, _SUMMED_BYTES // (INT32_BYTES * components.shape[1]))
    sizes = np.zeros(components.n_measured, dtype=np.int64)
    for band in components.bands(n_rows):
        sizes += np.bincount((band - OUTSIDE).ravel(), minlength=len(sizes) + 1)[1:]
    n_pixels = components.shape[0] * components.shape[1]
    return join_small_components(components.bands(n_rows), sizes, n_pixels, n_spixels)


def _merge(components: LabelFile, features: _Features, n_spixels: int) -> np.ndarray:
    """Return the superpixel of each component, as the merge tree gives it."""
    n_channels, height, width = features.shape
    n_rows = max(1, _SUMMED_BYTES // (_FLOAT32_BYTES * n_channels * width))
    starts = range(0, height, n_rows)
    bands = (
        (components, features.read(start, start + len(components)).cpu())
        for start, components in zip(starts, components.bands(n_rows), strict=True)
    )
    tree = merge_graph(graph_of_bands(bands, components.n_measured))
    if n_spixels > tree.n_leaves:
        raise InputError(
            f"{n_spixels} superpixels need splits of the {tree.n_leaves} that were clustered, which an image "
            "beyond the memory cannot have; request fewer"
        )
    return tree.cut(n_spixels)[0]  # of a map with one pixel for each component
