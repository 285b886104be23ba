"""Table of the tracks of a video, and a picture of their lifetimes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lib.files.atomic import atomic_path
from lib.superpixels.drawing import label_colors
from lib.superpixels.regions import Superpixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A row of the table: frames from 0, number of frames in which the track occurs, pixels per such frame, RGB.
TRACK = np.dtype(
    [
        ("first_frame", np.int32),
        ("last_frame", np.int32),
        ("n_frames", np.int32),
        ("mean_size", np.float32),
        ("mean_rgb", np.float32, (3,)),
    ]
)

_SUMS = np.dtype([*TRACK.descr[:3], ("size", np.float64), ("rgb", np.float64, (3,))])

_DPI = 110


class TrackedSuperpixels(NamedTuple):
    """Superpixels of a frame with their track IDs."""

    superpixels: Superpixels  # numbered from 0 without gaps
    track_ids: np.ndarray  # (S,), int32: track of each superpixel

    @property
    def labels(self) -> np.ndarray:
        """Track ID of each pixel, (H, W) int32."""
        return self.track_ids[self.superpixels.labels]


class TrackTable:
    """Tracks of a video, from frames that are added in order.

    A track takes at most 88 bytes of memory; pixels take none.
    """

    def __init__(self) -> None:
        self.n_frames = 0
        self.n_tracks = 0
        self._sums = np.zeros(0, _SUMS)  # with room for more tracks

    def add(self, tracked: TrackedSuperpixels) -> None:
        """Add the next frame. New tracks must have the next IDs."""
        superpixels, ids = tracked
        n_tracks = max(self.n_tracks, int(ids.max()) + 1)
        if n_tracks > len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros(max(n_tracks, len(self._sums)), _SUMS)])
        self._sums["first_frame"][self.n_tracks : n_tracks] = self.n_frames
        self._sums["last_frame"][ids] = self.n_frames
        self._sums["n_frames"][ids] += 1
        self._sums["size"][ids] += superpixels.sizes
        self._sums["rgb"][ids] += superpixels.sizes[:, None] * superpixels.colors
        self.n_tracks = n_tracks
        self.n_frames += 1

    @property
    def rows(self) -> np.ndarray:
        """A row for each track, in the order of their IDs, (n_tracks,) of dtype `TRACK`."""
        sums = self._sums[: self.n_tracks]
        rows = np.empty(self.n_tracks, TRACK)
        for name in ("first_frame", "last_frame", "n_frames"):
            rows[name] = sums[name]
        rows["mean_size"] = sums["size"] / sums["n_frames"]
        rows["mean_rgb"] = sums["rgb"] / sums["size"][:, None]
        return rows

    @property
    def mean_life(self) -> float:
        """Mean number of frames in which a track occurs."""
        return float(self._sums["n_frames"][: self.n_tracks].mean())


def draw_lifetimes(tables: Sequence[TrackTable], path: Path) -> None:
    """Draw a bar from the first to the last frame of each track, in its colour in overlays, as a PNG.

    Each table has a panel, with the tracks from top to bottom in the order of their IDs. Raises `RunError` if
    the file cannot be written.
    """
    from matplotlib.figure import Figure  # only this picture needs it

    figure = Figure(figsize=(6.5 * len(tables), 5), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
        _draw_panel(axes, table)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")


def _draw_panel(axes: "Axes", table: TrackTable) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    rows, ids = table.rows, np.arange(table.n_tracks)
    left, right, top, bottom = rows["first_frame"] - 0.5, rows["last_frame"] + 0.5, ids - 0.5, ids + 0.5
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    bars = np.array(corners).transpose(2, 0, 1)  # (n_tracks, 4 corners, x and y)
    axes.add_collection(PolyCollection(bars, facecolors=label_colors(ids) / 255))
    axes.set(
        xlim=(-0.5, table.n_frames - 0.5),
        ylim=(table.n_tracks - 0.5, -0.5),
        xlabel="frame",
        ylabel="track ID",
        title=f"{table.n_tracks} tracks, {table.mean_life:.1f} of {table.n_frames} frames in the mean",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
