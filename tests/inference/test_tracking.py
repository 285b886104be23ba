"""Tracking superpixels from frame to frame."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.measure import label

import lib.inference.tracking
from helpers import make_quadrants
from lib.inference.segmenter import Segmenter
from lib.inference.tracking import Tracker, _Motion, _Tracks
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError
from lib.superpixels.region_graph import RegionGraph
from lib.superpixels.regions import Superpixels
from model import SSNPix

SCALES = InputScales(0.26, 2.5)
SEGMENTER = Segmenter(SSNPix(), SCALES)
N_SPIXELS = 54


def make_scene(height=60, width=90, seed=0):
    scene = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 3)), (5, 5, 0))
    return np.uint8(255 * (scene - scene.min()) / np.ptp(scene))


def moving_frames(n_frames, speed, height=60, width=90):
    """Move a window to the right over random colours, so that the content moves to the left."""
    scene = make_scene(height, width + n_frames * speed)
    return [scene[:, idx * speed : idx * speed + width] for idx in range(n_frames)]


def uniform_flow(dy, dx, shape=(60, 90)):
    """Return the flow of a motion of the whole frame, and back."""
    flow = np.full((*shape, 2), (dy, dx), np.float32)
    return flow, -flow


def track(frames, flows, levels=(N_SPIXELS,), segmenter=SEGMENTER):
    """Return the tracked frames; `flows` are between neighbours."""
    tracker = Tracker(segmenter, levels)
    return [
        tracker.segment(segmenter.preprocess(frame), flow)
        for frame, flow in zip(frames, [None, *flows], strict=True)
    ]


def labels_of(frames, level=0):
    return [frame.levels[level].labels for frame in frames]


def share_that_stays(last, now, speed):
    """Share of the pixels that keep their label when the content moves to the left."""
    width = last.shape[1] - speed
    return (last[:, speed:] == now[:, :width]).mean()


@pytest.mark.parametrize("speed", [0, 1, 4])
def test_labels_follow_the_motion(speed, device):
    frames = moving_frames(15, speed)
    segmenter = Segmenter(SSNPix(), SCALES, device=device)
    labels = labels_of(track(frames, 14 * [uniform_flow(0, -speed)], segmenter=segmenter))
    shares = [share_that_stays(last, now, speed) for last, now in pairwise(labels)]
    assert min(shares) > 0.7
    assert np.mean(shares) > 0.75
    assert share_that_stays(labels[0], labels[-1], 14 * speed) > 0.25


def test_without_memory_fewer_labels_stay(monkeypatch):
    rng = np.random.default_rng(0)
    scene = make_scene().astype(int)
    frames = [np.uint8((scene + rng.normal(0, 6, scene.shape)).clip(0, 255)) for _ in range(8)]

    def n_tracks():
        labels = labels_of(track(frames, 7 * [uniform_flow(0, 0)]))
        return max(each.max() for each in labels) + 1

    with_memory = n_tracks()
    monkeypatch.setattr(lib.inference.tracking, "_MEMORY", 0.0)
    assert with_memory < 0.8 * n_tracks()


def test_every_frame_has_exactly_the_requested_superpixels_each_connected():
    for labels in labels_of(track(moving_frames(5, 3), 4 * [uniform_flow(0, -3)])):
        assert len(np.unique(labels)) == N_SPIXELS
        assert label(labels + 1, background=0, connectivity=1).max() == N_SPIXELS


def test_track_ids_are_numbered_without_gaps():
    ids = np.unique(labels_of(track(moving_frames(5, 9), 4 * [uniform_flow(0, -9)])))
    np.testing.assert_array_equal(ids, np.arange(len(ids)))
    assert len(ids) > N_SPIXELS


def test_superpixels_that_leave_end_and_those_that_enter_are_new():
    labels = labels_of(track(moving_frames(8, 15), 7 * [uniform_flow(0, -15)]))
    assert not set(np.unique(labels[0])) & set(np.unique(labels[-1]))  # after 105 pixels everything is new


def test_equal_frames_keep_their_labels():
    first, second = labels_of(track(2 * [make_scene()], [uniform_flow(0, 0)]))
    assert (first == second).mean() > 0.97


def test_cut_ends_all_tracks():
    inconsistent = (np.full((60, 90, 2), 3, np.float32), np.full((60, 90, 2), 3, np.float32))
    frames = [make_scene(), make_scene(), make_scene(seed=1)]
    first, second, third = track(frames, [uniform_flow(0, 0), inconsistent])
    assert (first.is_cut, second.is_cut, third.is_cut) == (False, False, True)
    assert third.levels[0].labels.min() == second.levels[0].labels.max() + 1
    alone = SEGMENTER(frames[2], N_SPIXELS).labels
    np.testing.assert_array_equal(third.levels[0].superpixels.labels, alone)


def cover(scene):
    covered = scene.copy()
    covered[20:40, 30:60] = (255, 0, 0)
    return covered


def test_superpixels_return_after_they_were_covered(monkeypatch):
    """Something appears in front for three frames; there, the flow of both directions does not agree."""
    changed = uniform_flow(0, 0)
    changed[1][20:40, 30:60] = 20
    scene = make_scene()
    frames = [scene, *3 * [cover(scene)], scene]
    flows = [changed, *2 * [uniform_flow(0, 0)], changed]

    def share_back():
        labels = labels_of(track(frames, flows))
        return (labels[0] == labels[-1])[22:38, 32:58].mean()

    with_return = share_back()
    assert with_return > 0.6
    monkeypatch.setattr(lib.inference.tracking, "_MAX_FRAMES_LOST", 2)
    assert share_back() < with_return - 0.2


def test_levels_nest_and_have_track_ids_of_their_own():
    frames = moving_frames(4, 2)
    tracked = track(frames, 3 * [uniform_flow(0, -2)], levels=(40, 12))
    for frame in tracked:
        coarse, fine = (each.labels for each in frame.levels)
        assert len(np.unique(coarse)) == 12
        assert len(np.unique(np.stack([fine, coarse]).reshape(2, -1), axis=1).T) == 40
    shares = [share_that_stays(*pair, 2) for level in (0, 1) for pair in pairwise(labels_of(tracked, level))]
    assert min(shares) > 0.6


def identify(tracks, row, means):
    """Return the track IDs of two superpixels in a frame of one row, from their mean features."""
    labels = np.array([row], np.int32)
    sizes = np.bincount(row).astype(float)
    graph = RegionGraph(labels, sizes, np.array(means, float), np.array([[0], [1]]))
    image_rgb = np.zeros((*labels.shape, 3), np.uint8)
    return tracks.identify(Superpixels(labels, image_rgb, 2), graph).tolist()


def motion_of_row(origins, stays):
    """Return the motion of a row to the right by one pixel, with the origins in the last frame."""
    return _Motion(torch.tensor([origins]), torch.tensor([stays]), np.full((1, len(origins), 2), (0, 1)))


@pytest.mark.parametrize(
    ("origins", "stays", "after", "ids"),
    [
        # Of superpixel 0, one of five pixels is found: the others are hidden.
        ([-1, -1, -1, -1, 4, 5, 6, 7], 8 * [True], [0, 0, 0, 0, 0, 1, 1, 1], [2, 1]),
        # The others leave.
        ([4, 5, 6, 7, -1, -1, -1, -1], 4 * [False] + 4 * [True], [0, 1, 1, 1, 1, 1, 1, 1], [0, 1]),
    ],
)
def test_hidden_pixels_break_a_link_but_not_those_that_leave(origins, stays, after, ids):
    tracks = _Tracks(2, slice(1, 2), torch.device("cpu"))
    assert identify(tracks, [0, 0, 0, 0, 0, 1, 1, 1], [[10, 1], [20, 4]]) == [0, 1]
    tracks.follow(motion_of_row(origins, stays))
    assert identify(tracks, after, [[10, 1], [20, 4]]) == ids


def test_features_that_are_remembered_by_hand():
    """One row of six pixels: two superpixels, then three regions; the flow moves all by a pixel."""
    tracks = _Tracks(2, slice(1, 2), torch.device("cpu"))
    identify(tracks, [0, 0, 0, 1, 1, 1], [[10, 1], [20, 4]])
    tracks.follow(motion_of_row([-1, 0, 1, 2, 3, 4], 5 * [True] + [False]))
    regions = np.array([[0, 0, 1, 1, 2, 2]], np.int32)
    means = np.array([[7.0, 0.5], [11.0, 2.5], [21.0, 4.5]])  # a feature, and the position
    graph = RegionGraph(regions, np.array([2.0, 2.0, 2.0]), means, np.array([[0, 1], [1, 2]]))
    # The first superpixel now lies in half of region 0 and in region 1, at (0.5 + 2 * 2.5) / 3 in the mean.
    expected = [[(7 + 10) / 2, (0.5 + 5.5 / 3) / 2], [10, 5.5 / 3], [20, 4.5]]
    np.testing.assert_allclose(tracks.remember(graph), expected)


def test_masks_are_refused():
    image = SEGMENTER.preprocess(make_scene(), mask=np.eye(60, 90, dtype=bool))
    with pytest.raises(InputError, match="mask"):
        Tracker(SEGMENTER, [N_SPIXELS]).segment(image, None)


def test_tracks_need_merging():
    segmenter = Segmenter(SSNPix(), SCALES, fine_factor=1)
    with pytest.raises(InputError, match="`fine_factor` of 1 merges nothing"):
        Tracker(segmenter, [24]).segment(segmenter.preprocess(make_quadrants()[0]), None)
