"""Superpixels that keep their track ID from frame to frame of a video.

Fine superpixels are merged as in an image, but a merge costs the mean of its cost in this frame and its cost
in the last one: each pixel has its own features, and the mean features of the superpixel that it was in.
Optical flow in both directions finds the pixels again. Superpixels of two frames are linked if they have
enough pixels in common; pixels that are hidden count, those that leave the frame do not.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from lib.inference.segmenter import PreprocessedImage, Segmenter
from lib.inference.tracks import TrackedSuperpixels
from lib.optflow.correspondence import NO_ORIGIN, find_origins, stay_inside
from lib.optflow.sources import FlowPair
from lib.superpixels.merge_tree import merge_graph
from lib.superpixels.overlap import NO_REGION, count_overlaps, intersection_over_union, link_regions
from lib.superpixels.region_graph import RegionGraph
from lib.superpixels.regions import Superpixels

# Share of the last frame in the cost of a merge.
_MEMORY = 0.5

# Intersection over union from which superpixels of two frames are linked. Higher values leak less and end
# tracks earlier.
_MIN_OVERLAP = 0.25

# A frame with a smaller share of pixels that come from the last one starts a new scene. With the flow of DIS,
# the share is at least 0.49 in 30 videos of DAVIS, and at most 0.20 from the frame of one to that of another.
_MIN_SHARE_FOUND = 0.3

# A track may return after at most so many frames, and within so many superpixel widths.
_MAX_FRAMES_LOST, _REACH = 10, 2.0

NO_TRACK = -1  # in place of a track ID


class TrackedFrame(NamedTuple):
    """Frame that is segmented by a `Tracker`."""

    levels: list[TrackedSuperpixels]  # one for each number of superpixels, the coarsest first; they nest
    is_cut: bool  # starts a new scene: no track ID continues


class _Motion(NamedTuple):
    """Motion from the last frame to the next one."""

    origins: Tensor  # (H, W) of the next frame; see `find_origins`
    stays: Tensor  # (H, W), bool: pixels of the last frame that do not leave
    forward: np.ndarray  # (H, W, 2): flow (dy, dx) of the pixels of the last frame

    @property
    def share_found(self) -> float:
        """Share of the pixels that come from the last frame."""
        return (self.origins != NO_ORIGIN).double().mean().item()


class Tracker:
    """Cuts the frames of a video into exactly the requested superpixels, which keep their track IDs.

    Parameters
    ----------
    segmenter : Segmenter
        With a fine factor above 1.
    levels : sequence of int
        Requested numbers of superpixels. Each has track IDs of its own.
    """

    def __init__(self, segmenter: Segmenter, levels: Sequence[int]) -> None:
        self._segmenter = segmenter
        position, device = segmenter.model.position_channels, segmenter.device
        self._levels = [_Tracks(n_spixels, position, device) for n_spixels in sorted(levels)]

    def segment(self, image: PreprocessedImage, flow: FlowPair | None) -> TrackedFrame:
        """Segment the next frame.

        Parameters
        ----------
        image : PreprocessedImage
            The frame, of the size of the one before.
        flow : pair of ndarray, each (H, W, 2) float32, optional
            Flow (dy, dx) in pixels from the last frame to this one, and back; None for the first frame.

        Raises
        ------
        InputError
            If the frame has fewer pixels than the requested superpixels, or a mask, or the segmenter merges
            nothing.
        """
        graph = self._segmenter.region_graph(image, self._levels[-1].n_spixels)
        with self._segmenter.stopwatch.stage("tracking"):
            motion = None if flow is None else self._find_motion(flow)
            is_cut = motion is not None and motion.share_found < _MIN_SHARE_FOUND
            motion = None if is_cut else motion
            for level in self._levels:
                level.follow(motion)
            tree = merge_graph(graph if motion is None else self._with_memory(graph))
            superpixels = Superpixels(tree.leaves, image.image_rgb, self._levels[-1].n_spixels, tree=tree)
            tracked = []
            for level in self._levels:
                at_level = superpixels.at(level.n_spixels)
                tracked.append(TrackedSuperpixels(at_level, level.identify(at_level, graph)))
            return TrackedFrame(tracked, is_cut)

    def _find_motion(self, flow: FlowPair) -> _Motion:
        forward, backward = (torch.from_numpy(each).to(self._segmenter.device) for each in flow)
        return _Motion(find_origins(forward, backward), stay_inside(forward), flow[0])

    def _with_memory(self, graph: RegionGraph) -> RegionGraph:
        """Add features from the last frame, so that each squared distance is a weighted mean over both."""
        weight = math.sqrt(_MEMORY / len(self._levels))
        means = [math.sqrt(1 - _MEMORY) * graph.means]
        means += [weight * level.remember(graph) for level in self._levels]
        return graph._replace(means=np.concatenate(means, axis=1))


class _Tracks:
    """Tracks of the superpixels of a video at one number of superpixels.

    For each frame, call `follow`, then `identify`. What has a value for each pixel is on the device.
    """

    def __init__(self, n_spixels: int, position: slice, device: torch.device) -> None:
        self.n_spixels = n_spixels
        self._position = position  # channels of the features
        self._device = device
        # Of the last frame:
        self._labels: Tensor | None = None  # (H, W)
        self._positions: np.ndarray | None = None  # (S, 2): mean row and column of superpixels
        self._features: np.ndarray | None = None  # (S, C), float64: their means
        self._track_ids: np.ndarray | None = None  # (S,), int32
        self._n_track_ids = 0
        self._lost: list[_LostTrack] = []
        # Of the next frame:
        self._carried: Tensor | None = None  # (H, W): superpixel in the last frame, or `NO_REGION`
        self._n_staying: np.ndarray | None = None  # (S,): pixels of superpixels that do not leave
        self._places: np.ndarray | None = None  # (S, 2): row and column that superpixels have moved to

    def follow(self, motion: _Motion | None) -> None:
        """Move the superpixels of the last frame to the next one; None lets no track go on."""
        if motion is None:
            self._carried, self._lost = None, []
            return
        has_origin = motion.origins != NO_ORIGIN
        origins = torch.where(has_origin, motion.origins, 0)
        self._carried = torch.where(has_origin, self._labels.flatten()[origins], NO_REGION)
        staying = self._labels[motion.stays]
        self._n_staying = torch.bincount(staying, minlength=self.n_spixels).cpu().numpy()
        self._places = _move(self._positions, motion.forward)
        moved = (
            track._replace(place=_move(track.place, motion.forward), n_frames=track.n_frames + 1)
            for track in self._lost
        )
        self._lost = [track for track in moved if track.n_frames <= _MAX_FRAMES_LOST]

    def remember(self, graph: RegionGraph) -> np.ndarray:
        """Return the mean features of the superpixels that the pixels of a region were in, (n_regions, C).

        The position of a superpixel is the mean position of its pixels in this frame. Pixels without an
        origin have the features of their region.
        """
        leaves = self._upload(graph.leaves)
        overlaps = count_overlaps(leaves, self._carried, (len(graph.sizes), self.n_spixels))
        features = self._features.copy()
        n_found = np.maximum(overlaps.sum(axis=0), 1)
        features[:, self._position] = (overlaps.T @ graph.means[:, self._position]) / n_found[:, None]
        n_unknown = graph.sizes - overlaps.sum(axis=1)
        return (overlaps @ features + n_unknown[:, None] * graph.means) / graph.sizes[:, None]

    def identify(self, superpixels: Superpixels, graph: RegionGraph) -> np.ndarray:
        """Return the track ID of each superpixel of the next frame, (S,) int32."""
        n_spixels, labels = self.n_spixels, self._upload(superpixels.labels)
        shared = count_overlaps(labels, self._upload(graph.leaves), (n_spixels, len(graph.sizes)))
        features = (shared @ graph.means) / superpixels.sizes[:, None]
        track_ids = np.full(n_spixels, NO_TRACK, np.int32)
        if self._carried is not None:
            overlaps = count_overlaps(labels, self._carried, (n_spixels, n_spixels))
            scores = intersection_over_union(overlaps, superpixels.sizes, self._n_staying)
            linked = link_regions(scores, min_score=_MIN_OVERLAP)
            is_linked = linked != NO_REGION
            track_ids[is_linked] = self._track_ids[linked[is_linked]]
            self._bring_back(track_ids, superpixels, features)
            ended = np.setdiff1d(np.arange(n_spixels), linked)
            self._lost += [
                _LostTrack(self._track_ids[idx], self._features[idx], self._places[idx], 1) for idx in ended
            ]
        is_new = track_ids == NO_TRACK
        n_new = np.count_nonzero(is_new)
        track_ids[is_new] = self._n_track_ids + np.arange(n_new)
        self._n_track_ids += n_new
        self._labels, self._positions = labels, superpixels.positions
        self._features, self._track_ids = features, track_ids
        return track_ids

    def _upload(self, labels: np.ndarray) -> Tensor:
        return torch.from_numpy(labels).to(self._device)

    def _bring_back(self, track_ids: np.ndarray, superpixels: Superpixels, features: np.ndarray) -> None:
        """Give superpixels without a track the ID of a lost one, most similar pairs first.

        A superpixel must be more similar to the lost one than to any of its neighbours, and near the place
        that it has moved to, which must be inside the frame. Changes `track_ids`.
        """
        new = np.flatnonzero(track_ids == NO_TRACK)
        if len(new) == 0 or not self._lost:
            return
        lost = self._lost
        distance = cdist(features[new], [track.features for track in lost], "sqeuclidean")
        is_similar = distance < _nearest_neighbors(features, superpixels.edges)[new, None]
        reach = _REACH * math.sqrt(superpixels.labels.size / self.n_spixels)
        places = np.array([track.place for track in lost])
        is_inside = ((places >= 0) & (places < superpixels.labels.shape)).all(axis=1)
        is_near = is_inside & (cdist(superpixels.positions[new], places) < reach)
        new_idx, lost_idx = np.nonzero(is_similar & is_near)
        returned = set()
        for pair in np.argsort(distance[new_idx, lost_idx], kind="stable"):
            region, idx = new[new_idx[pair]], lost_idx[pair]
            if track_ids[region] == NO_TRACK and idx not in returned:
                track_ids[region] = lost[idx].track_id
                returned.add(idx)
        self._lost = [track for idx, track in enumerate(lost) if idx not in returned]


class _LostTrack(NamedTuple):
    """Track that ended and may return."""

    track_id: int
    features: np.ndarray  # (C,): mean features in its last frame
    place: np.ndarray  # (2,): row and column that the flow has moved it to since
    n_frames: int  # since its last frame


def _move(places: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Move places (..., 2), rows and columns, by the flow (H, W, 2) there, or at the edge that they left."""
    row, col = np.moveaxis(np.rint(places).astype(np.int64), -1, 0)
    height, width = flow.shape[:2]
    return places + flow[row.clip(0, height - 1), col.clip(0, width - 1)]


def _nearest_neighbors(features: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the squared distance of each superpixel to the most similar one that touches it, (S,)."""
    distance = np.square(features[edges[:, 0]] - features[edges[:, 1]]).sum(axis=1)
    nearest = np.full(len(features), np.inf)
    for ends in edges.T:
        np.minimum.at(nearest, ends, distance)
    return nearest
