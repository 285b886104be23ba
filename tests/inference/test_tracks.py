"""The table of the tracks of a video, and the picture of their lifetimes."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lib.inference.tracks import TRACK, TrackedSuperpixels, TrackTable, draw_lifetimes
from lib.superpixels.regions import Superpixels


def make_frame(labels, track_ids, brightness):
    labels = np.array(labels, np.int32)
    image_rgb = np.repeat(np.array(brightness, np.uint8)[..., None], 3, axis=-1)
    return TrackedSuperpixels(Superpixels(labels, image_rgb, labels.max() + 1), np.array(track_ids, np.int32))


@pytest.fixture
def table():
    table = TrackTable()
    table.add(make_frame([[0, 0, 1, 1]], [0, 1], [[10, 20, 30, 40]]))
    table.add(make_frame([[0, 1, 1, 1]], [2, 1], [[50, 60, 60, 90]]))
    table.add(make_frame([[0, 0, 1, 2]], [0, 3, 1], [[30, 20, 10, 0]]))
    return table


def test_labels_are_track_ids():
    assert make_frame([[0, 0, 1]], [5, 2], [[0, 0, 0]]).labels.tolist() == [[5, 5, 2]]


def test_rows_by_hand(table):
    expected = [
        (0, 2, 2, 2.0, (20, 20, 20)),
        (0, 2, 3, 2.0, (280 / 6, 280 / 6, 280 / 6)),
        (1, 1, 1, 1.0, (50, 50, 50)),
        (2, 2, 1, 1.0, (10, 10, 10)),
    ]
    rows = table.rows
    assert rows.dtype == TRACK
    for name in TRACK.names:
        np.testing.assert_allclose(rows[name], np.array(expected, TRACK)[name], rtol=1e-6)
    assert (table.n_frames, table.n_tracks, table.mean_life) == (3, 4, 7 / 4)


def test_many_tracks_fit():
    table = TrackTable()
    for frame_idx in range(20):
        table.add(make_frame([[0, 1]], [2 * frame_idx, 2 * frame_idx + 1], [[frame_idx, 0]]))
    np.testing.assert_array_equal(table.rows["first_frame"], np.repeat(np.arange(20), 2))
    np.testing.assert_allclose(table.rows["mean_rgb"][::2, 0], np.arange(20))


@pytest.mark.draws
def test_picture_has_a_bar_for_each_track(table, tmp_path):
    """One panel, of three frames and four tracks."""
    draw_lifetimes([table], tmp_path / "life.png")
    picture = np.asarray(Image.open(tmp_path / "life.png").convert("RGB").convert("HSV"))
    is_colored = picture[..., 1] > 60
    rows, cols = np.nonzero(is_colored)
    bars = is_colored[rows.min() : rows.max(), cols.min() : cols.max()]
    width, height = bars.shape[1], bars.shape[0]
    lengths = [bars[round((idx + 0.5) * height / 4)].mean() for idx in range(4)]
    np.testing.assert_allclose(lengths, [1, 1, 1 / 3, 1 / 3], atol=0.03)
    assert bars[round(2.5 * height / 4), width // 2]  # track 2 lives in the middle frame
    draw_lifetimes([table, table], tmp_path / "two.png")
    two = np.asarray(Image.open(tmp_path / "two.png").convert("RGB").convert("HSV"))[..., 1] > 60
    assert two.sum() == pytest.approx(2 * is_colored.sum(), rel=0.1)


@pytest.mark.slow
def test_only_the_picture_needs_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import lib.inference.video"
    subprocess.run([sys.executable, "-c", code], check=True)
