"""From an image in memory to its superpixels: the one path of scripts, evaluation and your own code."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lib.files.conversion import find_unmasked
from lib.files.images import to_rgb_array
from lib.files.sizes import size_text
from lib.files.value_range import ValueRange
from lib.network.bands import Rows, split_into_bands
from lib.network.inputs import (
    InputScales,
    check_features,
    largest_with_same_input,
    model_input,
    pixel_pos_scale,
    rgb_to_lab,
    rows_to_lab,
)
from lib.runtime.device import full_precision
from lib.runtime.errors import InputError
from lib.runtime.memory import check_memory
from lib.runtime.stopwatch import Stopwatch
from lib.slic.soft_assignment import SoftAssignment
from lib.superpixels.connectivity import OUTSIDE
from lib.superpixels.counts import check_n_spixels, check_parts, fit_grid_to_mask
from lib.superpixels.merge_settings import MergeSettings, setting_at
from lib.superpixels.merge_tree import build_merge_trees
from lib.superpixels.region_graph import RegionGraph, build_region_graph
from lib.superpixels.regions import Superpixels
from lib.weights import load_model
from model import N_BASE_CHANNELS, LearnedFeatures, SSNPix, cluster, cluster_labels, without_position

_FEATURE_COUNTS = ("n_learned_features", "n_extra_features")  # attributes of models


class PreprocessedImage(NamedTuple):
    """An image ready for a network; see `Segmenter.preprocess`."""

    image_rgb: np.ndarray  # (H, W, 3), uint8
    pixels: Tensor  # (3, H, W), uint8, or float32 in [0, 1], on the CPU: what the network reads
    extra: Tensor | None  # (n_extra_channels, H, W), float32, on the CPU
    mask: np.ndarray | None  # (H, W), bool: pixels to segment; None for all
    name: str  # for error messages

    @property
    def n_pixels(self) -> int:
        """Number of pixels to segment."""
        return self.pixels[0].numel() if self.mask is None else np.count_nonzero(self.mask)

    def pinned(self) -> Self:
        """Return a copy in page-locked memory, which a GPU reads while the CPU goes on."""
        extra = None if self.extra is None else self.extra.pin_memory()
        return self._replace(pixels=self.pixels.pin_memory(), extra=extra)

    def on_grid(self, n_spixels: int) -> int:
        """Return how many superpixels to request for the whole image to get about `n_spixels` in the mask."""
        return n_spixels if self.mask is None else fit_grid_to_mask(self.mask, n_spixels)


class _Inputs(NamedTuple):
    """Images of one size on the device, or a band of an image."""

    image_lab: Tensor  # (B, 3, H, W), float32
    extra: Tensor | None  # (B, n_extra_channels, H, W), float32
    name: str  # for error messages
    band: Rows | None = None  # `image_lab` and `extra` are its context


class ClusteringPlan(NamedTuple):
    """Settings of the clustering of an image, and of the merges after it."""

    n_spixels: int  # to cluster, on the grid of the whole image
    position_factor: float  # from the position channels of the features to those that are clustered
    merge_pos_scale: float | None  # factor of the position channels in the merges; None: nothing is merged


class Clustered(NamedTuple):
    """Images of one size that are clustered, on the device; `Segmenter.finish` merges and downloads them."""

    images: Sequence[PreprocessedImage]
    pixel_features: Tensor  # (B, C, H, W), float32: what was clustered, at the scale of the network's input
    labels: Tensor  # (B, H, W), int32; -1 outside the mask
    n_spixels: int  # that were clustered
    merge_pos_scale: float | None  # None: nothing is merged
    soft_assignment: SoftAssignment | None
    learned: Tensor | None  # (B, C, H, W), float32: features to keep

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors on the device that `Segmenter.finish` reads."""
        return [each for each in (self.pixel_features, self.labels, self.learned) if each is not None]


class Segmenter:
    """Cuts images into superpixels with a trained model.

    Parameters
    ----------
    model : SSNModel, CompositeSSNModel or SSNPix
        Put into evaluation mode and moved to `device`.
    scales : InputScales
        Weights of the input channels.
    device : torch.device or str
        Where to compute.
    with_bfloat16 : bool
        Run the convolutions in bfloat16; the clustering stays in float32.
    pos_scale_dist : float
        Factor of the position in the distances of the clustering; the network's input stays as it is.
        Higher values give more compact superpixels.
    n_iter : int, optional
        Iterations of the clustering; default: the number in the weight file.
    fine_factor : float, optional
        Superpixels to segment for each requested one, or for each of the largest number for which the network
        reads the same. Neighbours are then merged until exactly the requested number is left. 1 merges
        nothing, as in the paper: connectivity is enforced, and the number is about the requested one.
        Default: by `merging`.
    merge_pos_scale : float, optional
        Factor of the position in the cost of a merge; higher values give more compact superpixels. Default:
        by `merging`.
    merging : MergeSettings, optional
        Defaults of `fine_factor` and `merge_pos_scale` for each number of superpixels.
    stopwatch : Stopwatch, optional
        Times the stages.

    Examples
    --------
    >>> from pathlib import Path
    >>> from lib.files.images import read_image
    >>> from lib.inference import Segmenter
    >>> segmenter = Segmenter.from_checkpoint("trained_models/best_model.pth")
    >>> superpixels = segmenter(read_image(Path("demo/cat.jpg")), 200, with_features=True)
    >>> superpixels.labels.shape
    (300, 451)
    >>> superpixels.n_measured == len(superpixels.colors) == len(superpixels.features)
    True

    Input of a graph network: a vector for each superpixel, and pairs of neighbours.

    >>> nodes = np.concatenate([superpixels.features, superpixels.positions], axis=1)
    >>> nodes.shape[1]
    17
    >>> superpixels.edges.shape[1]
    2

    Nested levels: each of the 200 superpixels lies in one of the 50.

    >>> coarser = superpixels.at(50)
    >>> pairs = np.stack([superpixels.labels, coarser.labels]).reshape(2, -1)
    >>> coarser.n_measured, np.unique(pairs, axis=1).shape[1]
    (50, 200)
    """

    def __init__(
        self,
        model: nn.Module,
        scales: InputScales,
        *,
        device: torch.device | str = "cpu",
        with_bfloat16: bool = False,
        pos_scale_dist: float = 1.0,
        n_iter: int | None = None,
        fine_factor: float | None = None,
        merge_pos_scale: float | None = None,
        merging: MergeSettings | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        if fine_factor is not None and not 1 <= fine_factor < math.inf:
            raise InputError(f"{fine_factor} is not a number of at least 1", parameter="fine_factor")
        if merge_pos_scale is not None and not 0 <= merge_pos_scale < math.inf:
            raise InputError(f"{merge_pos_scale} is not a number of at least 0", parameter="merge_pos_scale")
        self.device = torch.device(device)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.scales = scales
        self.with_bfloat16 = with_bfloat16
        self.pos_scale_dist = pos_scale_dist
        self.n_iter = model.n_iter if n_iter is None else n_iter
        self.fine_factor = fine_factor
        self.merge_pos_scale = merge_pos_scale
        self.merging = merging or MergeSettings()
        self.stopwatch = stopwatch or Stopwatch()

    @classmethod
    def from_checkpoint(cls, path: Path | str, **options: Any) -> Self:
        """Load the base or composite model in a weight file.

        Parameters
        ----------
        path : Path or str
            One of our checkpoints, a published state dict, or "none" for the model without a network.
        **options
            Options of the class but for `merging`, which the file holds.

        Raises
        ------
        InputError
            If the file cannot be used.
        """
        loaded = load_model(path)
        return cls(loaded.model, loaded.scales, merging=loaded.merging, **options)

    @property
    def learns_features(self) -> bool:
        """True if the model has a network."""
        return not isinstance(self.model, SSNPix)

    def __call__(
        self,
        image: np.ndarray | Image.Image,
        n_spixels: int = 200,
        *,
        extra: np.ndarray | Tensor | None = None,
        mask: np.ndarray | Tensor | None = None,
        value_range: ValueRange | None = None,
        connected: bool = True,
        exact: bool = False,
        with_features: bool = False,
        with_soft_assignment: bool = False,
    ) -> Superpixels:
        """Cut an image into superpixels.

        Parameters
        ----------
        image : ndarray or PIL image
            An array (H, W), (H, W, 1), (H, W, 3), or with a last channel of opacity (H, W, 2 or 4), of
            integers or of floats in [0, 1]; or any PIL image. It is taken as its file would be read. NaN
            and masked pixels, of `numpy.ma`, are left out, as pixels outside a mask are.
        n_spixels : int
            Requested number of superpixels; with a mask, the number within it.
        extra : ndarray or Tensor, shape (H, W, n_extra_channels), optional
            Extra channels of a composite model, such as the optical flow of the frame. Masked pixels are left
            out; the network reads the mean of the channel there.
        mask : ndarray or Tensor, shape (H, W), bool, optional
            Pixels to segment; the others get the label -1. The network reads them nevertheless.
        value_range : pair of float, optional
            Values of `image` that are black and white, for floats and for integers of more than 8 bits; those
            beyond are clipped. Default: [0, 1] for floats, and 0 to the largest number of the fewest bits, of
            8, 10, 12, 14 and 16, that hold the values for integers.
        connected : bool
            Make superpixels connected. Otherwise nothing is merged: labels are the most likely superpixel of
            each pixel, with numbers below n_rows * n_cols that need not all occur.
        exact : bool
            With a fine factor of 1, merge or split superpixels by size until exactly `n_spixels` exist; above
            1, the number is exact anyway.
        with_features, with_soft_assignment : bool
            Keep the learned features, or the soft assignment; see `Superpixels`.

        Raises
        ------
        InputError
            If the image has another layout or fewer than `n_spixels` pixels, the extra channels are not
            what the model reads, of another size or not finite, or the mask is of another size, empty, or in
            more parts than the requested superpixels.
        """
        (superpixels,) = self._run(
            [self.preprocess(image, extra, mask, value_range=value_range)],
            n_spixels,
            connected=connected,
            exact=exact,
            with_features=with_features,
            with_soft_assignment=with_soft_assignment,
        )
        return superpixels

    def segment_batch(
        self,
        images: Tensor,
        n_spixels: int = 200,
        *,
        extra: np.ndarray | Tensor | None = None,
        mask: np.ndarray | Tensor | None = None,
        value_range: ValueRange | None = None,
        **options: bool,
    ) -> list[Superpixels]:
        """Cut each image of a batch into superpixels.

        Parameters
        ----------
        images : Tensor, shape (B, 3 or 1, H, W)
            See the call.
        n_spixels : int
            Requested number of superpixels of each image.
        extra : ndarray or Tensor, shape (B, n_extra_channels, H, W), optional
            Extra channels.
        mask : ndarray or Tensor, shape (B, H, W), bool, optional
            Pixels to segment.
        value_range : pair of float, optional
            See the call; by default, each image has its own.
        **options
            `connected`, `exact`, `with_features` and `with_soft_assignment` of the call.

        Raises
        ------
        InputError
            If an image, extra channels or a mask cannot be used, see the call.
        """
        return self._run(self._preprocess_batch(images, extra, mask, value_range), n_spixels, **options)

    def _run(
        self,
        images: Sequence[PreprocessedImage],
        n_spixels: int,
        *,
        connected: bool = True,
        exact: bool = False,
        **kept: bool,
    ) -> list[Superpixels]:
        if exact and not connected:
            raise InputError("an exact number of superpixels needs connected ones")
        if self.fine_factor not in (None, 1) and not connected:
            raise InputError("above 1 needs connected superpixels", parameter="fine_factor")
        superpixels = self.segment(images, n_spixels, merged=connected, **kept)
        if connected:
            superpixels = [self.postprocess(each, n_spixels, exact=exact) for each in superpixels]
        return superpixels

    def preprocess(
        self,
        image: np.ndarray | Image.Image,
        extra: np.ndarray | Tensor | None = None,
        mask: np.ndarray | Tensor | None = None,
        *,
        value_range: ValueRange | None = None,
        name: str = "the image",
    ) -> PreprocessedImage:
        """Prepare an image for the network. Needs no device and may run in another thread.

        `name` is used in error messages; the other parameters are the same as for the call.
        """
        with self.stopwatch.stage("conversion"):
            pixels, is_known = to_rgb_array(image, value_range=value_range, name=name)
            extra = _as_array(extra)
            channels = _extra_channels(extra, pixels.shape[:2], name=name)
            mask = _combine_masks(
                _as_array(mask), [is_known, find_unmasked(extra)], pixels.shape[:2], name=name
            )
            # A copy: statistics of superpixels, computed later, must not change with the caller's array.
            pixels = pixels.copy()
            as_bytes = pixels if pixels.dtype == np.uint8 else np.rint(255 * pixels).astype(np.uint8)
            return PreprocessedImage(as_bytes, torch.from_numpy(pixels).movedim(-1, 0), channels, mask, name)

    @torch.no_grad()
    def segment(
        self, images: Sequence[PreprocessedImage], n_spixels: int, **options: bool
    ) -> list[Superpixels]:
        """Cut images of one size into superpixels that `postprocess` completes.

        Images with masks are segmented one by one, each on its own grid. `options` are keywords of `cluster`.
        """
        if len(images) > 1 and any(image.mask is not None for image in images):
            return [self.segment([image], n_spixels, **options)[0] for image in images]
        return self.finish(self.cluster(images, n_spixels, **options))

    @torch.no_grad()
    def cluster(
        self,
        images: Sequence[PreprocessedImage],
        n_spixels: int,
        *,
        merged: bool = True,
        with_features: bool = False,
        with_soft_assignment: bool = False,
    ) -> Clustered:
        """Do the part of `segment` before the merges, for one image with a mask or several without.

        With `merged`, the results of `finish` are fine superpixels and their merge tree, unless the fine
        factor is 1. Otherwise they are the requested superpixels, which may be in pieces.

        A GPU may still be at work when the method returns.
        """
        shape = images[0].image_rgb.shape[:2]
        check_memory(self.needed_memory(shape), _described(images[0]), device=self.device)
        check_n_spixels(n_spixels, images[0].n_pixels, images[0].name)
        if merged and images[0].mask is not None and self._n_fine(images[0], n_spixels) is not None:
            check_parts(images[0].mask, n_spixels, images[0].name)
        n_on_grid = images[0].on_grid(n_spixels)
        inputs = self._upload(images)
        with self.stopwatch.stage("network", on_device=True):
            pixel_features, known = self._features(inputs, n_on_grid)
            learned = self._position_invariant(inputs, n_on_grid, known) if with_features else None
        clustered = self._cluster(images, pixel_features, n_spixels, merged, with_soft_assignment)
        return clustered._replace(learned=learned)

    @property
    def n_features(self) -> int:
        """Number of pixel features to cluster."""
        return N_BASE_CHANNELS + sum(getattr(self.model, name, 0) for name in _FEATURE_COUNTS)

    def needed_memory(self, image_shape: tuple[int, int]) -> int:
        """Return the bytes that `cluster` needs at least: channels of an image, features, those in cells."""
        n_values = N_BASE_CHANNELS + self.model.n_extra_channels + 2 * self.n_features  # per pixel, float32
        return 4 * n_values * math.prod(image_shape)

    @torch.no_grad()
    def finish(self, clustered: Clustered) -> list[Superpixels]:
        """Do the rest of `segment`: merge, and copy the results from the device.

        For a call in another thread, see `lib.runtime.streams`.
        """
        images, labels = clustered.images, clustered.labels
        trees = [None] * len(images)
        if clustered.merge_pos_scale is not None:
            features, scale = clustered.pixel_features, clustered.merge_pos_scale
            with self.stopwatch.stage("merging"), self._scaled_position(features, scale):
                trees = build_merge_trees(labels, features)
        learned = None if clustered.learned is None else clustered.learned.cpu().numpy()
        assignment = clustered.soft_assignment
        return [
            Superpixels(
                labels[idx].cpu().numpy() if trees[idx] is None else trees[idx].leaves,
                image.image_rgb,
                clustered.n_spixels,
                pixel_features=None if learned is None else learned[idx],
                n_base_features=0 if learned is None else self.model.n_learned_features,
                soft_assignment=None if assignment is None else assignment.of_image(idx),
                tree=trees[idx],
            )
            for idx, image in enumerate(images)
        ]

    def postprocess(self, superpixels: Superpixels, n_spixels: int, *, exact: bool = False) -> Superpixels:
        """Merge to the requested number; without a tree, enforce connectivity and, if `exact`, the number.

        Raises
        ------
        InputError
            If the mask is in more parts than the requested superpixels.
        """
        with self.stopwatch.stage("connectivity"):
            try:
                if superpixels.tree is not None:
                    return superpixels.at(n_spixels)
                connected = superpixels.connected()
                return connected.with_count(n_spixels) if exact else connected
            except ValueError as error:
                raise InputError(str(error)) from error

    @torch.no_grad()
    def sweep(self, image: PreprocessedImage, settings: Sequence[tuple[int, float]]) -> list[Superpixels]:
        """Cut an image without mask into connected superpixels, with several settings.

        A setting is a requested number of superpixels, and a position scale in place of the one in `scales`.
        Settings that give the network the same input, see `lib.network.inputs.pixel_pos_scale`, share learned
        features and, where only the number differs, a merge tree. Features of extra channels are computed
        once in all.
        """
        by_scale: dict[float, list[tuple[int, float]]] = {}
        for setting in settings:
            scale = pixel_pos_scale(image.image_rgb.shape[:2], *setting)
            by_scale.setdefault(scale, []).append(setting)
        found: dict[tuple[int, float], Superpixels] = {}
        inputs, learned = self._upload([image]), None
        for group in by_scale.values():
            features, learned = self._features(inputs, *group[0], known=learned)
            clustered: dict[int, Superpixels] = {}
            for setting in group:
                n_spixels = setting[0]
                is_merged = self._n_fine(image, n_spixels) is not None
                shared = largest_with_same_input(n_spixels) if is_merged else n_spixels
                if shared not in clustered:
                    (clustered[shared],) = self.finish(self._cluster([image], features, n_spixels))
                found[setting] = self.postprocess(clustered[shared], n_spixels)
        return [found[setting] for setting in settings]

    @torch.no_grad()
    def sweep_merging(
        self,
        image: PreprocessedImage,
        n_spixels: int,
        fine_factors: Sequence[float],
        merge_pos_scales: Sequence[float],
    ) -> dict[tuple[float, float], Superpixels]:
        """Cut an image without mask into `n_spixels` superpixels, with each pair of settings of the merges.

        Factors are above 1. Learned features are computed once in all, and the fine superpixels once for each
        factor.
        """
        found = {}
        features, _ = self._features(self._upload([image]), n_spixels)
        varied = copy.copy(self)
        varied.fine_factor = None
        for factor in fine_factors:
            varied.merging = MergeSettings(fine_factor={n_spixels: factor})
            clustered = varied._cluster([image], features, n_spixels)
            for scale in merge_pos_scales:
                (superpixels,) = self.finish(clustered._replace(merge_pos_scale=scale))
                found[factor, scale] = self.postprocess(superpixels, n_spixels)
        return found

    @torch.no_grad()
    def region_graph(self, image: PreprocessedImage, n_spixels: int) -> RegionGraph:
        """Return the fine superpixels of a video frame as a graph, with the features that merges compare.

        Raises `InputError` if the frame has a mask, or nothing is merged.
        """
        if image.mask is not None:
            raise InputError(f"{image.name} has a mask or NaN pixels, which a video cannot have")
        clustered = self.cluster([image], n_spixels)
        if clustered.merge_pos_scale is None:
            raise InputError("of 1 merges nothing, but tracks are made by merging", parameter="fine_factor")
        features, scale = clustered.pixel_features, clustered.merge_pos_scale
        with self.stopwatch.stage("merging"), self._scaled_position(features, scale):
            return build_region_graph(clustered.labels[0], features[0])

    def _upload(self, images: Sequence[PreprocessedImage]) -> _Inputs:
        """Copy images to the device, as they were read, and convert them there."""

        def batch(parts: Sequence[Tensor]) -> Tensor:
            return parts[0][None] if len(parts) == 1 else torch.stack(parts)

        with self.stopwatch.stage("conversion", on_device=True):
            pixels = [image.pixels.to(self.device, non_blocking=True) for image in images]
            image_lab = batch([rgb_to_lab(each) for each in pixels])
            has_extra = images[0].extra is not None
            extras = [image.extra.to(self.device, non_blocking=True) for image in images if has_extra]
            extra = batch(extras) if has_extra else None
        return _Inputs(image_lab, extra, images[0].name if len(images) == 1 else "a batch")

    def _features(
        self,
        inputs: _Inputs,
        n_spixels: int,
        pos_scale: float | None = None,
        *,
        known: LearnedFeatures | None = None,
    ) -> tuple[Tensor, LearnedFeatures]:
        """Return what is clustered, (B, C, H, W), and the learned features in it."""
        channels = self._channels(inputs, n_spixels, pos_scale)
        with self._numerics():
            learned = self.model.encode(channels, known, band=inputs.band)
            if inputs.band is not None:
                channels = channels[:, :, inputs.band.own]
            pixel_features = self.model.assemble(learned, channels)
        if self.pos_scale_dist != 1:
            pixel_features[:, self.model.position_channels] *= self.pos_scale_dist
        check_features(pixel_features, inputs.name)
        return pixel_features, learned

    @torch.no_grad()
    def features_in_bands(self, image: PreprocessedImage, n_spixels: int) -> Iterator[tuple[Rows, Tensor]]:
        """Yield the features that `cluster` clusters, in bands of rows from the top, with the rows.

        They are (1, C, n_rows, W) on the device. Arrays of `image` may be memory maps: only the rows of a
        band are read.
        """
        n_on_grid = image.on_grid(n_spixels)
        for band in split_into_bands(*image.image_rgb.shape[:2]):
            with self.stopwatch.stage("conversion", on_device=True):
                image_lab = rows_to_lab(image.pixels, band.context, self.device)[None]
                extra = image.extra
                extra = None if extra is None else extra[None, :, band.context].to(self.device)
            with self.stopwatch.stage("network", on_device=True):
                features, _ = self._features(_Inputs(image_lab, extra, image.name, band), n_on_grid)
            yield band, features

    def _cluster(
        self,
        images: Sequence[PreprocessedImage],
        pixel_features: Tensor,
        n_spixels: int,
        merged: bool = True,
        with_soft_assignment: bool = False,
    ) -> Clustered:
        """Cluster features (B, C, H, W) made for `n_spixels`, on a finer grid if superpixels are merged."""
        first, assignment = images[0], None
        mask = first.mask
        plan = self.plan(first, n_spixels, merged=merged)
        options = self.clustering_options(mask)
        with (
            self.stopwatch.stage("clustering", on_device=True),
            self._scaled_position(pixel_features, plan.position_factor),
        ):
            if with_soft_assignment:
                assignment, labels, _ = cluster(pixel_features, plan.n_spixels, **options)
            else:
                labels = cluster_labels(pixel_features, plan.n_spixels, **options)
            labels = labels.to(torch.int32)
            if mask is not None:
                labels = torch.where(options["mask"], labels, OUTSIDE)
        merge_pos_scale = plan.merge_pos_scale
        return Clustered(images, pixel_features, labels, plan.n_spixels, merge_pos_scale, assignment, None)

    def plan(self, image: PreprocessedImage, n_spixels: int, *, merged: bool = True) -> ClusteringPlan:
        """Return the settings by which `cluster` cuts an image."""
        n_fine = self._n_fine(image, n_spixels) if merged else None
        n_requested, n_clustered = image.on_grid(n_spixels), image.on_grid(n_fine or n_spixels)
        shape = image.image_rgb.shape[:2]
        finer = pixel_pos_scale(shape, n_clustered, 1) / pixel_pos_scale(shape, n_requested, 1)
        if n_fine is None:
            return ClusteringPlan(n_clustered, finer, None)
        merge_pos_scale = self.merge_pos_scale
        if merge_pos_scale is None:
            merge_pos_scale = setting_at(self.merging.merge_pos_scale, largest_with_same_input(n_spixels))
        return ClusteringPlan(n_clustered, finer, merge_pos_scale)

    def _n_fine(self, image: PreprocessedImage, n_spixels: int) -> int | None:
        """Return the number of superpixels to segment before any merge; None if nothing is merged.

        Without a mask, it is the same for all numbers for which the network reads the same.
        """
        shared = largest_with_same_input(n_spixels)
        factor = self._fine_factor_at(n_spixels)
        if self.fine_factor is not None and factor * n_spixels > image.n_pixels:
            largest = math.floor(1000 * image.n_pixels / n_spixels) / 1000
            raise InputError(
                f"{factor:g} times {n_spixels} superpixels are more than the {image.n_pixels} pixels of "
                f"{image.name}; the largest factor is {largest:g}",
                parameter="fine_factor",
            )
        return None if factor == 1 else min(int(factor * shared), image.n_pixels)

    def merges(self, n_spixels: int) -> bool:
        """Return True if superpixels are merged to the requested number, which is exact then."""
        return self._fine_factor_at(n_spixels) != 1

    def _fine_factor_at(self, n_spixels: int) -> float:
        if self.fine_factor is not None:
            return self.fine_factor
        return setting_at(self.merging.fine_factor, largest_with_same_input(n_spixels))

    @contextmanager
    def _scaled_position(self, pixel_features: Tensor, factor: float) -> Iterator[None]:
        """Multiply the position channels of the features (B, C, H, W) in the block."""
        position = pixel_features[:, self.model.position_channels]
        original = position.clone()
        position *= factor
        yield
        position.copy_(original)

    def _position_invariant(self, inputs: _Inputs, n_spixels: int, known: LearnedFeatures) -> Tensor:
        """Return learned features that do not depend on the position, (B, C, H, W)."""
        if not self.learns_features:
            raise InputError("a model without a network has no learned features")
        with self._numerics():
            learned = self.model.encode(without_position(self._channels(inputs, n_spixels)), known)
        parts = [learned.base[:, : self.model.n_learned_features]]
        parts += [] if learned.extra is None else [learned.extra]
        return torch.cat(parts, dim=1).float().contiguous()

    def clustering_options(self, mask: np.ndarray | None = None) -> dict[str, Any]:
        """Return the options of `slic_labels` but the features and the number of superpixels."""
        mask = None if mask is None else torch.from_numpy(mask)[None].to(self.device)
        return {"n_iter": self.n_iter, "distance": self.model.distance, "mask": mask}

    def _channels(self, inputs: _Inputs, n_spixels: int, pos_scale: float | None = None) -> Tensor:
        scales = self.scales if pos_scale is None else self.scales._replace(pos_scale=pos_scale)
        extra, band = inputs.extra, inputs.band
        return model_input(self.model, inputs.image_lab, n_spixels, scales, extra=extra, band=band)

    @contextmanager
    def _numerics(self) -> Iterator[None]:
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.with_bfloat16)
        with full_precision(), autocast:
            yield

    def _preprocess_batch(
        self,
        images: Tensor,
        extra: np.ndarray | Tensor | None,
        mask: np.ndarray | Tensor | None,
        value_range: ValueRange | None,
    ) -> list[PreprocessedImage]:
        if images.ndim != 4 or len(images) == 0:
            raise InputError(f"a batch must be a tensor (B, 3, H, W), got {tuple(images.shape)}")
        for name, values, n_dims in (("extra channels", extra, 4), ("masks", mask, 3)):
            if values is not None and (values.ndim != n_dims or len(values) != len(images)):
                raise InputError(
                    f"the {name} of a batch must have {n_dims} dimensions and one entry for each of the "
                    f"{len(images)} images, got {tuple(values.shape)}"
                )
        nothing = [None] * len(images)
        arrays = _as_array(images.movedim(1, -1))
        extras = nothing if extra is None else np.moveaxis(_as_array(extra), 1, -1)
        masks = nothing if mask is None else _as_array(mask)
        parts = zip(arrays, extras, masks, strict=True)
        return [self.preprocess(*each, value_range=value_range) for each in parts]


def _described(image: PreprocessedImage) -> str:
    return f"{image.name} of {size_text(image.image_rgb.shape)} pixels"


def _as_array(values: np.ndarray | Tensor | None) -> np.ndarray | None:
    if not isinstance(values, Tensor):
        return None if values is None else np.asanyarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _extra_channels(extra: np.ndarray | None, image_shape: tuple[int, int], *, name: str) -> Tensor | None:
    if extra is None:
        return None
    if extra.ndim != 3 or extra.shape[:2] != image_shape:
        raise InputError(f"extra channels are {extra.shape}, but {name} is {image_shape}")
    if np.ma.is_masked(extra):
        extra = np.where(extra.mask, extra.mean(axis=(0, 1)).filled(0), extra.data)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        channels = np.ascontiguousarray(extra.transpose(2, 0, 1), dtype=np.float32)
    if not np.isfinite(channels).all():
        raise InputError(f"extra channels of {name} hold NaN or infinite values")
    return torch.from_numpy(channels)


def _combine_masks(
    mask: np.ndarray | None,
    known: Sequence[np.ndarray | None],
    image_shape: tuple[int, int],
    *,
    name: str,
) -> np.ndarray | None:
    """Return the pixels in the mask that are known everywhere in `known`; None for all."""
    if mask is not None and mask.shape != image_shape:
        raise InputError(f"the mask is {mask.shape}, but {name} is {image_shape}")
    given = [np.nan_to_num(np.ma.filled(each, 0)) != 0 for each in (mask, *known) if each is not None]
    if not given:
        return None
    combined = np.logical_and.reduce(given)
    if not combined.any():
        raise InputError(f"the mask of {name} leaves no pixel to segment")
    return combined
