"""Tracking superpixels from frame to frame."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.measure import label

from lib.inference.segmenter import Segmenter
from lib.inference.tracking import Tracker, _assign_cells, share_that_follows
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError
from model import SSNPix

SEGMENTER = Segmenter(SSNPix(), InputScales(0.26, 5.0))


def moving_frames(n_frames, speed, height=60, width=90):
    """Move a window to the right over random colours, so that the content moves to the left."""
    rng = np.random.default_rng(0)
    scene = gaussian_filter(rng.normal(size=(height, width + n_frames * speed, 3)), (5, 5, 0))
    scene = np.uint8(255 * (scene - scene.min()) / np.ptp(scene))
    return [scene[:, idx * speed : idx * speed + width] for idx in range(n_frames)]


def track(frames, speed, segmenter=SEGMENTER):
    tracker = Tracker(segmenter, 54)
    flow = np.zeros((*frames[0].shape[:2], 2), dtype=np.float32)
    flow[..., 1] = -speed
    labels = [
        tracker.segment(segmenter.preprocess(frame), flow if idx else None).labels
        for idx, frame in enumerate(frames)
    ]
    return labels, flow


@pytest.mark.parametrize("speed", [0, 1, 4])
def test_labels_follow_the_flow(speed, device):
    frames = moving_frames(15, speed)
    labels, flow = track(frames, speed, Segmenter(SSNPix(), InputScales(0.26, 5.0), device=device))
    shares = [share_that_follows(last, now, flow) for last, now in pairwise(labels)]
    assert min(shares) > 0.7
    assert np.mean(shares) > 0.8
    alone = [SEGMENTER(frame, 54).labels for frame in frames]
    untracked = [share_that_follows(last, now, flow) for last, now in pairwise(alone)]
    assert speed == 0 or np.mean(untracked) < np.mean(shares) - 0.2
    # Some superpixels of the first frame survive to the last one, 14 steps later.
    if speed:
        long_flow = 14 * flow
        assert share_that_follows(labels[0], labels[-1], long_flow) > 0.2


def test_tracking_without_weight_of_the_position():
    labels, flow = track(moving_frames(4, 0), 0, Segmenter(SSNPix(), InputScales(0.26, 0.0)))
    assert share_that_follows(labels[-2], labels[-1], flow) > 0.5


def test_every_label_is_one_connected_component():
    for labels in track(moving_frames(5, 3), 3)[0]:
        assert label(labels + 1, background=0, connectivity=1).max() == len(np.unique(labels))


def test_superpixels_that_leave_end_and_those_that_enter_are_new():
    labels, _ = track(moving_frames(8, 15), 15)
    assert not set(np.unique(labels[0])) & set(np.unique(labels[-1]))  # after 105 pixels everything is new
    assert len(np.unique(np.concatenate([each.ravel() for each in labels]))) > 54


def test_cells_of_moved_superpixels_by_hand():
    # Four cells in a row, 10 pixels wide each.
    position = np.array([[5.0, 5.0, 5.0, 5.0], [16.0, 50.0, 3.0, 35.0]])
    sizes = np.array([100, 100, 100, 0])
    # The second leaves the frame; the fourth has no pixels.
    assert _assign_cells(position, sizes, (10, 40), (1, 4)).tolist() == [2, 0, -1, -1]
    position[1, 0] = 35.0
    assert _assign_cells(position, sizes, (10, 40), (1, 4)).tolist() == [2, -1, -1, 0]
    # Two superpixels reach one cell: the one nearer to its centre gets it, the other a free neighbour.
    position[1] = [15.0, 13.0, 14.0, 35.0]
    assert _assign_cells(position, np.full(4, 100), (10, 40), (1, 4)).tolist() == [0, 1, 2, 3]


def test_share_that_follows_by_hand():
    last = np.array([[0, 0, 1, 1]])
    now = np.array([[2, 0, 0, 1]])
    flow = np.zeros((1, 4, 2))
    flow[..., 1] = 1  # the last pixel leaves the frame
    assert share_that_follows(last, now, flow) == 1
    assert share_that_follows(last, now, 0 * flow) == pytest.approx(0.5)
    assert np.isnan(share_that_follows(last, now, 9 * np.ones((1, 4, 2))))


def test_masks_are_refused():
    image = SEGMENTER.preprocess(moving_frames(1, 0)[0], mask=np.eye(60, 90, dtype=bool))
    with pytest.raises(InputError, match="mask"):
        Tracker(SEGMENTER, 54).segment(image, None)
