"""Segmenting a video into an overlay video and labels."""

import os
import re
import signal
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2hsv
from skimage.segmentation import find_boundaries

import inference_base_model
import inference_optflow_composite_model
import lib.inference.video
import lib.inference.video_files
from helpers import fails_with, full_disk, in_thread, make_quadrants
from lib.files.frames import VideoFile
from lib.inference.outputs import OverlayStyle
from lib.inference.segmenter import Segmenter
from lib.inference.video import VideoFiles, segment_video
from lib.inference.video_frames import VideoFrame
from lib.network.inputs import InputScales
from lib.optflow.archive import write_flow_archive
from lib.runtime.errors import InputError, RunError
from lib.runtime.signals import Stop, stop_flag
from model import SSNPix

av = pytest.importorskip("av", reason="needs PyAV")

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

SCALES = InputScales(0.26, 2.5)
SEGMENTER = Segmenter(SSNPix(), SCALES)

N_AHEAD = 2
SECONDS = 20  # that a test waits at most for what should happen at once


@pytest.mark.parametrize("name", ["12:30.mp4", "-a.mp4", "a\nb.mp4", "x" * 251 + ".mp4"])
def test_odd_names(clip, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--base_model_weights=none", "--nspix=24"]
    inference_base_model.main([*argv, "--video=clip", f"--out={name}"])
    summary = inference_base_model.main([*argv, f"--video={name}", f"--out=o{name[1:]}"])
    assert summary.n_frames == len(VideoFile("clip", Path(f"o{name[1:]}"))) == 4


def test_name_that_is_not_utf_8_can_be_read(clip, tmp_path):
    inference_base_model.main(
        ["--base_model_weights=none", "--nspix=24", f"--video={clip}", f"--out={tmp_path / 'o.mp4'}"]
    )
    path = (tmp_path / "o.mp4").rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    assert len(list(VideoFile("cafe", path).read())) == 4


@pytest.fixture
def clip(tmp_path):
    """Make a folder with four frames of 61x92; the odd number of rows tests the codec."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for idx in range(4):
        Image.fromarray(np.roll(make_quadrants(61, 92)[0], idx, axis=1)).save(folder / f"{idx}.png")
    return folder


def read_labels(path):
    with h5py.File(path) as file:
        assert file["labels"].compression == "gzip"
        return file["labels"][:]


def frames_of(clip):
    return [np.asarray(Image.open(file)) for file in sorted(clip.iterdir())]


def change_writer(monkeypatch, name, change):
    """Replace the function that appends frames to a file: `write_video`'s or `write_labels`'s."""

    @contextmanager
    def write(*args, **settings):
        with original(*args, **settings) as append:
            yield change(append)

    original = getattr(lib.inference.video, name)
    monkeypatch.setattr(lib.inference.video, name, write)


def test_folder_of_frames(clip, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    summary = inference_base_model.main(
        ["--base_model_weights=none", "--video=clip", "--nspix=24", "--save_labels=labels.h5"]
    )
    assert (summary.n_frames, summary.n_measured, summary.n_tracks) == (4, 24, None)
    labels = read_labels("labels.h5")
    segmenter = Segmenter(SSNPix(), InputScales(0.26, 10.0))
    for frame, frame_labels in zip(frames_of(clip), labels, strict=True):
        np.testing.assert_array_equal(frame_labels, segmenter(frame, 24).labels)
    overlays = list(VideoFile("results", tmp_path / "results.mp4").read())
    assert [overlay.shape for overlay in overlays] == 4 * [(60, 92, 3)]
    assert np.abs(overlays[0].astype(int) - frames_of(clip)[0][:60]).mean() < 60
    assert "clip: 4 frames, 24 superpixels requested" in caplog.text


def test_video_file_with_tracking(clip, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    argv = ["--base_model_weights=none", "--nspix=24", "--temporal"]
    inference_base_model.main([*argv, "--video=clip", "--out=clip.mp4"])
    summary = inference_base_model.main([*argv, "--video=clip.mp4", "--save_labels=labels.h5"])
    assert (summary.n_frames, summary.n_measured) == (4, 24)
    labels = read_labels("labels.h5")
    assert len(np.intersect1d(labels[0], labels[-1])) > 12
    assert f"{summary.n_tracks} tracks of {summary.mean_life:.1f} frames in the mean" in caplog.text
    check_table("labels.h5", "labels", "tracks", list(VideoFile("clip", Path("clip.mp4")).read()))
    with h5py.File("labels.h5") as file:
        assert len(file["tracks"]) == summary.n_tracks
        assert file["tracks"]["n_frames"].mean() == pytest.approx(summary.mean_life)


def check_table(path, labels_name, tracks_name, frames):
    """Compare the table of tracks with the labels, which are numbered without gaps."""
    with h5py.File(path) as file:
        labels, rows = file[labels_name][:], file[tracks_name][:]
    np.testing.assert_array_equal(np.unique(labels), np.arange(len(rows)))
    for track_id, row in enumerate(rows):
        where = np.flatnonzero((labels == track_id).any(axis=(1, 2)))
        assert (row["first_frame"], row["last_frame"], row["n_frames"]) == (where[0], where[-1], len(where))
        assert row["mean_size"] == pytest.approx((labels == track_id).sum() / len(where))
        pixels = np.concatenate([frames[idx][labels[idx] == track_id] for idx in where])
        np.testing.assert_allclose(row["mean_rgb"], pixels.mean(axis=0), atol=0.01)


@pytest.mark.parametrize("more", [[], ["--temporal", "--save_lifetimes=life.png"]])
def test_levels_of_a_video(clip, tmp_path, monkeypatch, caplog, more):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    argv = ["--base_model_weights=none", "--video=clip", "--levels", "24", "8", "--save_labels=l.h5"]
    inference_base_model.main([*argv, *more])
    assert "clip: 4 frames, levels of 8, 24 superpixels" in caplog.text
    with h5py.File("l.h5") as file:
        coarse, fine = file["level_8"][:], file["level_24"][:]
        assert set(file) == {"level_8", "level_24"} | ({"tracks_8", "tracks_24"} if more else set())
    for of_coarse, of_fine in zip(coarse, fine, strict=True):
        assert (len(np.unique(of_coarse)), len(np.unique(of_fine))) == (8, 24)
        assert np.unique(np.stack([of_coarse, of_fine]).reshape(2, -1), axis=1).shape[1] == 24
    if more:
        check_table("l.h5", "level_8", "tracks_8", frames_of(clip))
        assert len(np.intersect1d(coarse[0], coarse[-1])) > 4
        assert Image.open("life.png").format == "PNG"


def test_label_colours_last(clip, tmp_path, monkeypatch):
    """A tint depends on the track ID alone: pixels of a track in two frames have one hue."""
    monkeypatch.chdir(tmp_path)
    drawn = []
    change_writer(monkeypatch, "write_video", lambda append: drawn.append)
    argv = ["--base_model_weights=none", "--video=clip", "--nspix=12", "--temporal", "--save_labels=l.h5"]
    inference_base_model.main([*argv, "--overlay=label_colors"])
    labels, hues = read_labels("l.h5"), []
    for picture, label_map in zip(drawn, labels, strict=True):
        is_inside = ~find_boundaries(label_map, mode="thick")
        hue = rgb2hsv(picture)[..., 0]
        hues.append({each: np.median(hue[is_inside & (label_map == each)]) for each in np.unique(label_map)})
    lasting = hues[0].keys() & hues[-1].keys()
    assert len(lasting) > 6
    assert max(abs(hues[0][each] - hues[-1][each]) for each in lasting) < 0.03
    assert np.ptp([hues[0][each] for each in lasting]) > 0.5


@pytest.mark.parametrize("name", ["clip", "clip.mp4"])
def test_every_second_frame(clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    argv = ["--base_model_weights=none", "--nspix=24"]
    inference_base_model.main([*argv, "--video=clip", "--out=clip.mp4"])
    inference_base_model.main([*argv, f"--video={name}", "--save_labels=all.h5"])
    summary = inference_base_model.main([*argv, f"--video={name}", "--save_labels=some.h5", "--every=2"])
    assert summary.n_frames == 2
    np.testing.assert_array_equal(read_labels("some.h5"), read_labels("all.h5")[::2])
    rate = VideoFile("clip", Path("clip.mp4")).frame_rate
    assert VideoFile("results", Path("results.mp4")).frame_rate == pytest.approx(rate / 2)


def test_cut_is_found_and_reported(clip, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, 23, 3), dtype=np.uint8)
    for idx in (2, 3):
        Image.fromarray(noise).resize((92, 61), Image.Resampling.BICUBIC).save(clip / f"{idx}.png")
    summary = inference_base_model.main(
        ["--base_model_weights=none", "--video=clip", "--nspix=24", "--temporal", "--save_labels=l.h5"]
    )
    assert summary.cuts == [2]
    assert "frame 2 starts a new scene" in caplog.text
    labels = read_labels("l.h5")
    assert labels[2].min() == labels[:2].max() + 1
    assert (labels[2] == labels[3]).mean() > 0.9  # the frame is repeated


def test_video_of_one_frame(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for idx in (1, 2, 3):
        (clip / f"{idx}.png").unlink()
    summary = inference_base_model.main(
        ["--base_model_weights=none", "--video=clip", "--nspix=24", "--temporal", "--save_labels=l.h5"]
    )
    assert (summary.n_frames, summary.n_tracks, summary.mean_life, summary.cuts) == (1, 24, 1, [])
    check_table("l.h5", "labels", "tracks", frames_of(clip))


def test_missing_frames_are_reported(clip, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (clip / "1.png").unlink()
    argv = ["--base_model_weights=none", "--video=clip", "--nspix=24"]
    assert inference_base_model.main(argv).n_frames == 3
    assert "frames are missing between clip/0.png and 2.png; they are taken as neighbours" in caplog.text
    caplog.clear()
    for name, new in (("0", "000"), ("2", "033"), ("3", "067")):  # milliseconds
        (clip / f"{name}.png").rename(clip / f"{new}.png")
    assert inference_base_model.main(argv).n_frames == 3
    assert "missing" not in caplog.text


def test_composite_estimates_or_reads_its_flow(clip, composite_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = [f"--comp_model_weights={composite_weights}", "--video=clip", "--nspix=24", "--device=cpu"]
    main = inference_optflow_composite_model.main
    main([*argv, "--save_labels=estimated.h5"])
    main([*argv, "--optflow_data=auto", "--save_labels=auto.h5"])
    with write_flow_archive(tmp_path / "flow.h5", (61, 92), {}) as archive:
        for _ in range(3):
            flow = np.zeros((61, 92, 2), dtype=np.float32)
            flow[..., 1] = 30
            archive.append(flow, -flow)
    main([*argv, "--optflow_data=flow.h5", "--save_labels=read.h5"])
    estimated, auto, read = (read_labels(f"{name}.h5") for name in ("estimated", "auto", "read"))
    np.testing.assert_array_equal(estimated, auto)
    assert not np.array_equal(estimated, read)

    (clip / "4.png").write_bytes((clip / "3.png").read_bytes())
    error = fails_with(main, [*argv, "--optflow_data=flow.h5", "--out=other.mp4"], capsys)
    assert re.search("flow.h5 .*4 frames.* clip .*5", error)
    assert not (tmp_path / "other.mp4").exists()


@pytest.mark.parametrize("more", [[], ["--temporal"]])
def test_frames_before_a_broken_one_are_kept(n_ahead, clip, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    (clip / "2.png").write_bytes(b"broken")
    argv = ["--base_model_weights=none", "--video=clip", "--nspix=24", "--save_labels=labels.h5", *more]
    with pytest.raises(RunError, match=r"2\.png .*2 frames are in results\.mp4"):
        inference_base_model.main(argv)
    assert len(read_labels("labels.h5")) == 2
    assert len(list(VideoFile("results", tmp_path / "results.mp4").read())) == 2


def test_frames_of_another_size_with_tracking(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_quadrants()[0]).save(clip / "2.png")
    argv = ["--base_model_weights=none", "--video=clip", "--nspix=24", "--temporal", "--save_labels=l.h5"]
    with pytest.raises(RunError, match=r"frame 2 is 92x60, the last was 92x61; 2 frames are in results.mp4"):
        inference_base_model.main(argv)
    with h5py.File("l.h5") as file:
        assert file["tracks"]["last_frame"].max() == 1  # the table is complete for the frames that are kept


def test_frames_of_another_size(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_quadrants()[0]).save(clip / "1.png")
    with pytest.raises(RunError, match=r"frame 1 .*\(60, 92\).*\(61, 92\); 1 frames are"):
        inference_base_model.main(["--base_model_weights=none", "--video=clip", "--nspix=24"])


@pytest.fixture(params=[0, N_AHEAD])
def n_ahead(request, monkeypatch):
    """Let one thread do all, or three threads work as beside a GPU."""
    monkeypatch.setattr(lib.inference.video, "count_ahead", lambda device: request.param)
    return request.param


class WatchedSegmenter(Segmenter):
    """Segmenter that calls `on_start` with the name of each frame before it segments the frame."""

    def __init__(self, on_start):
        super().__init__(SSNPix(), SCALES)
        self.on_start = on_start

    def preprocess(self, *args, name, **options):
        self.on_start(name)
        return super().preprocess(*args, name=name, **options)


def test_reading_network_and_writing_overlap(tmp_path, monkeypatch):
    """The first frame is written after the second one is in the network, and that after the third is read."""

    def frames():
        for is_read in are_read:
            is_read.set()
            yield VideoFrame(make_quadrants()[0], None)

    def start(name):
        if name == "frame 1":
            assert are_read[2].wait(SECONDS)
            second_started.set()

    def write_late(append):
        def append_late(picture):
            assert second_started.wait(SECONDS)
            append(picture)

        return append_late

    are_read = [threading.Event() for _ in range(4)]
    second_started = threading.Event()
    monkeypatch.setattr(lib.inference.video, "count_ahead", lambda device: N_AHEAD)
    change_writer(monkeypatch, "write_video", write_late)
    summary = segment_video(WatchedSegmenter(start), frames(), 24, files=VideoFiles(tmp_path / "o.mp4"))
    assert summary.n_frames == 4


def test_ctrl_c_keeps_the_frames_before(n_ahead, tmp_path, caplog):
    def press_ctrl_c(name):
        started.append(name)
        if name == "frame 3":
            os.kill(os.getpid(), signal.SIGINT)
            with suppress(Stop):  # the main thread sets the flag
                while True:
                    stop_flag.raise_if_set()
                    time.sleep(0.001)

    started = []
    frames = repeat(VideoFrame(make_quadrants()[0], None), 10)
    files = VideoFiles(tmp_path / "o.mp4", tmp_path / "labels.h5")
    with pytest.raises(KeyboardInterrupt), stop_flag.set_by_signals():
        segment_video(WatchedSegmenter(press_ctrl_c), frames, 24, files=files)
    assert started == [f"frame {idx}" for idx in range(4)]
    assert len(read_labels(files.labels)) == 4  # the current frame is finished
    assert len(list(VideoFile("o", files.overlay).read())) == 4
    assert f"stopped; 4 frames are in {files.overlay}, 4 frames are in" in caplog.text


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_keeps_the_frames_before(n_ahead, tmp_path, error):
    def frames():
        for _ in range(3):
            yield VideoFrame(make_quadrants()[0], None)
        raise error

    files = VideoFiles(tmp_path / "o.mp4", tmp_path / "labels.h5")
    with pytest.raises(RunError, match=r"^out of memory at frame 3; 3 frames are in .*, 3 frames are in"):
        segment_video(SEGMENTER, frames(), 24, files=files)
    assert len(read_labels(files.labels)) == 3


def test_frames_that_the_codec_does_not_take(tmp_path):
    frames = (VideoFrame(np.zeros((4, 20_000, 3), np.uint8), None) for _ in range(2))
    files = VideoFiles(tmp_path / "o.mp4", tmp_path / "labels.h5")
    with pytest.raises(RunError, match="20000x4"):
        segment_video(SEGMENTER, frames, 24, files=files)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_files_are_closed_is_ignored(tmp_path, monkeypatch):
    @contextmanager
    def write(*args):
        with original(*args) as append:
            yield append
            os.kill(os.getpid(), signal.SIGINT)

    original = lib.inference.video_files.write_video
    monkeypatch.setattr(lib.inference.video, "write_video", write)
    frames = (VideoFrame(make_quadrants()[0], None) for _ in range(3))
    with stop_flag.set_by_signals():
        summary = segment_video(SEGMENTER, frames, 24, files=VideoFiles(tmp_path / "o.mp4"))
    assert summary.n_frames == len(list(VideoFile("o", tmp_path / "o.mp4").read())) == 3


def test_video_in_a_thread(tmp_path):
    frames = (VideoFrame(make_quadrants()[0], None) for _ in range(2))
    summary = in_thread(segment_video, SEGMENTER, frames, 24, files=VideoFiles(tmp_path / "o.mp4"))
    assert summary.n_frames == 2


def test_frame_rate_stays(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = (VideoFrame(frame, None) for frame in frames_of(clip))
    segment_video(SEGMENTER, frames, 24, files=VideoFiles(tmp_path / "fast.mp4"), frame_rate=50)
    inference_base_model.main(["--base_model_weights=none", "--video=fast.mp4", "--nspix=24"])
    assert VideoFile("results", tmp_path / "results.mp4").frame_rate == pytest.approx(50)


@pytest.mark.parametrize(
    ("frame_rate", "expected"),
    [(1000, 1000), (1 / 60, Fraction(1, 60)), (1e-12, Fraction(1, 10**4)), (29.97003, Fraction(30000, 1001))],
)
def test_unusual_frame_rates_are_written(tmp_path, frame_rate, expected):
    frames = (VideoFrame(make_quadrants()[0], None) for _ in range(3))
    segment_video(SEGMENTER, frames, 24, files=VideoFiles(tmp_path / "o.mp4"), frame_rate=frame_rate)
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.video[0].average_rate == expected


@pytest.mark.parametrize(
    ("shape", "code", "red_and_blue"),
    [((720, 1280), 1, (0.2126, 0.0722)), ((480, 640), 6, (0.299, 0.114))],
)
def test_overlay_videos_are_tagged_with_their_colours(tmp_path, shape, code, red_and_blue):
    """Colours are computed from the stored planes, as a player does."""
    picture = np.broadcast_to(np.uint8((30, 200, 60)), (*shape, 3))
    with lib.inference.video_files.write_video(tmp_path / "o.mp4", shape, 24.0) as append:
        append(picture)
    with av.open(str(tmp_path / "o.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (code, 1)
    y, u, v = (float(np.frombuffer(bytes(plane), np.uint8)[0]) for plane in frame.planes)
    red_share, blue_share = red_and_blue
    y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = y + 2 * (1 - red_share) * v, y + 2 * (1 - blue_share) * u
    green = (y - red_share * red - blue_share * blue) / (1 - red_share - blue_share)
    np.testing.assert_allclose([255 * red, 255 * green, 255 * blue], (30, 200, 60), atol=4)


def test_relative_names_with_a_colon(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--base_model_weights=none", "--nspix=24"]
    inference_base_model.main([*argv, "--video=clip", "--out=take:1.mp4"])
    assert inference_base_model.main([*argv, "--video=take:1.mp4", "--out=take:2.mp4"]).n_frames == 4
    assert (tmp_path / "take:2.mp4").is_file()


def test_failed_write_leaves_no_file(n_ahead, tmp_path, monkeypatch):
    def full(picture):
        raise OSError(28, "No space left on device")

    change_writer(monkeypatch, "write_video", lambda append: full)
    started = []
    segmenter = WatchedSegmenter(started.append)
    frames = repeat(VideoFrame(make_quadrants()[0], None), 10)
    files = VideoFiles(tmp_path / "o.mp4", tmp_path / "labels.h5")
    with pytest.raises(RunError, match="No space left on device"):
        segment_video(segmenter, frames, 24, files=files)
    assert list(tmp_path.iterdir()) == []
    assert len(started) <= 1 + n_ahead


@pytest.mark.parametrize(
    ("full", "kept", "n_kept"), [("write_video", "labels.h5", 2), ("write_labels", "o.mp4", 3)]
)
def test_failed_write_of_one_file_keeps_the_other(n_ahead, tmp_path, monkeypatch, full, kept, n_kept):
    def fill_disk(append):
        def append_two(pixels):
            if len(seen) == 2:
                raise OSError(28, "No space left on device")
            seen.append(pixels)
            append(pixels)

        return append_two

    seen = []
    change_writer(monkeypatch, full, fill_disk)
    frames = (VideoFrame(make_quadrants()[0], None) for _ in range(4))
    files = VideoFiles(tmp_path / "o.mp4", tmp_path / "labels.h5")
    message = rf"No space left on device.*; {n_kept} frames are in .*{kept}$"
    with pytest.raises(RunError, match=message):
        segment_video(SEGMENTER, frames, 24, files=files)
    assert [file.name for file in tmp_path.iterdir()] == [kept]
    frames_kept = (
        read_labels(tmp_path / kept) if kept == "labels.h5" else VideoFile("o", tmp_path / kept).read()
    )
    assert len(list(frames_kept)) == n_kept


def test_failed_close_of_labels_keeps_the_overlay(tmp_path, monkeypatch):
    change_writer(monkeypatch, "write_labels", lambda append: lambda labels: None)
    monkeypatch.setattr("lib.files.hdf5._EnduringFile._error", OSError(28, "No space left on device"))
    frames = (VideoFrame(make_quadrants()[0], None) for _ in range(4))
    files = VideoFiles(tmp_path / "o.mp4", tmp_path / "labels.h5")
    with pytest.raises(RunError, match=r"labels.h5 \(No space left on device\); 4 frames are in .*o.mp4$"):
        segment_video(SEGMENTER, frames, 24, files=files)
    assert [file.name for file in tmp_path.iterdir()] == ["o.mp4"]


def test_unexpected_error_leaves_no_file(n_ahead, tmp_path, monkeypatch):
    def frames():
        yield VideoFrame(make_quadrants()[0], None)
        raise ZeroDivisionError

    files = VideoFiles(tmp_path / "o.mp4", tmp_path / "labels.h5")
    with pytest.raises(ZeroDivisionError):
        segment_video(SEGMENTER, frames(), 24, files=files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_full_disk_leaves_no_file(tmp_path):
    rng = np.random.default_rng(0)
    frames = (VideoFrame(rng.integers(0, 256, (60, 92, 3), dtype=np.uint8), None) for _ in range(100))
    with full_disk(100_000), pytest.raises(RunError, match=r"o\.mp4"):
        segment_video(SEGMENTER, frames, 24, files=VideoFiles(tmp_path / "o.mp4"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    image_rgb = make_quadrants(120, 180)[0]
    flow = np.full((120, 180, 4), 30, np.float32)  # fast: most superpixels are new in every frame
    style = OverlayStyle("mean_colors")

    def peak(n_frames):
        frames = (VideoFrame(image_rgb.copy(), flow.copy()) for _ in range(n_frames))
        tracemalloc.start()
        segment_video(SEGMENTER, frames, 12, files=VideoFiles(tmp_path / "o.mp4"), tracked=True, style=style)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(2)  # fills the caches
    assert peak(200) < 1.2 * peak(20)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--video=no.mp4"], "no.mp4"),
        (["--video=empty"], "empty"),
        (["--video=text.mp4"], "text.mp4"),
        (["--video=clip", "--out=o.png"], "--out o.png: "),
        (["--video=clip", "--save_labels=l.npy"], "--save_labels l.npy: "),
        (["--video=clip", "--nspix=10000"], "--nspix 10000 "),
        (["--video=clip", "--nspix=10000", "--temporal"], "--nspix 10000 "),
        (["--video=clip", "--mask=m.png"], "--mask "),
        (["--video=text.mp4", "--out=./text.mp4"], "--video and --out "),
        (["--temporal"], "--temporal needs a --video"),
        (["--every=2"], "--every needs a --video"),
        (["--save_lifetimes=l.png"], "--save_lifetimes needs a --video"),
        (["--video=clip", "--save_lifetimes=l.png"], "--save_lifetimes needs --temporal"),
        (["--video=clip", "--temporal", "--save_lifetimes=l.svg"], "--save_lifetimes l.svg: "),
        (["--video=clip", "--temporal", "--save_lifetimes=clip"], "--save_lifetimes clip"),
        (
            ["--video=clip", "--temporal", "--save_lifetimes=clip/0.png"],
            "clip/0.png: .* frame",
        ),
        (["--video=clip", "--temporal", "--fine_factor=1"], "--temporal .*--fine_factor 1"),
        (["--video=clip", "--image=a.png"], "argument --image: not allowed with argument --video"),
        (["--video=clip", "--exact_nspix"], "--exact_nspix "),
    ],
)
def test_bad_options(clip, tmp_path, argv, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    assert re.search(
        message, fails_with(inference_base_model.main, ["--base_model_weights=none", *argv], capsys)
    )
    assert not (tmp_path / "results.mp4").exists()


def test_video_without_pyav_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # cannot be imported
    frames = iter([VideoFrame(np.zeros((20, 30, 3), np.uint8), None)])
    with pytest.raises(InputError, match="pip install av"):
        segment_video(Segmenter(SSNPix(), InputScales()), frames, 4, files=VideoFiles(tmp_path / "o.mp4"))
