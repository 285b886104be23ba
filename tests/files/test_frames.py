"""Frames, their timestamps and colours in video files as people have them."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from lib.files.frames import VideoFile, is_hd
from lib.runtime.errors import InputError

av = pytest.importorskip("av", reason="needs PyAV")

N_FRAMES = 40
GREYS = [6 * idx for idx in range(N_FRAMES)]


def write_video(path, values=GREYS, *, times=None, rate=24, shape=(64, 96), codec="libx264"):
    """Write frames, each of one grey or colour, with times in frames of `rate`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *shape, "yuv420p"
        for time, value in zip(times or range(len(values)), values, strict=True):
            pixels = np.broadcast_to(np.uint8(value), (*shape, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = time, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy_packets(source, path, *, start=0, **options):
    """Copy a video without coding it anew; the frames before `start` stay in the file, but hidden."""
    with av.open(str(source)) as given, av.open(str(path), "w", options=options) as copy:
        stream = given.streams.video[0]
        copied = copy.add_stream_from_template(stream)
        shift = int(start / stream.average_rate / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copied
                copy.mux(packet)
    return path


def box_at(content, name):
    """Return the position after the name of a box of MP4."""
    return content.index(name) + len(name)


def cut_end(path, n_frames):
    """Shorten the last edit of an MP4 file without changing its packets."""
    content = bytearray(path.read_bytes())
    header = box_at(content, b"mvhd")
    (time_scale,) = struct.unpack_from(">I", content, header + 12)
    edits = box_at(content, b"elst")
    (n_edits,) = struct.unpack_from(">I", content, edits + 4)
    duration = int(n_frames / 24 * time_scale)
    struct.pack_into(">I", content, edits + 8 + 12 * (n_edits - 1), duration)
    path.write_bytes(content)


def read_greys(path):
    return [int(frame.mean().round()) for frame in VideoFile("clip", path).read()]


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize(("start", "end"), [(20, 40), (0, 15), (20, 33), (39, 40)])
def test_trimmed_videos_have_the_frames_that_are_shown(tmp_path, caplog, suffix, start, end):
    path = tmp_path / f"trimmed{suffix}"
    copy_packets(write_video(tmp_path / "whole.mp4"), path, start=start, avoid_negative_ts="disabled")
    cut_end(path, end - start)
    video = VideoFile("clip", path)
    assert len(video) == end - start
    assert video.frame_rate == pytest.approx(24)
    np.testing.assert_allclose(read_greys(path), GREYS[start:end], atol=2)
    assert not caplog.records


@pytest.mark.parametrize("start", [0, 10])
def test_truncated_videos_are_named(tmp_path, start):
    whole = write_video(tmp_path / "whole.mp4", np.random.default_rng(0).integers(0, 256, N_FRAMES))
    path = copy_packets(
        whole, tmp_path / "clip.mp4", start=start, movflags="faststart", avoid_negative_ts="disabled"
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    n_shown = N_FRAMES - start
    with pytest.raises(InputError, match=rf"{path}: decoding stopped after \d+ of {n_shown} frames"):
        list(VideoFile("clip", path).read())


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("fast.mkv", 1000),
        ("fast.mp4", 480),
        ("slow.mkv", Fraction(1, 2)),
        ("slow.mp4", Fraction(1, 60)),
        ("ntsc.mkv", Fraction(30000, 1001)),  # timestamps are whole milliseconds
        ("film.ts", Fraction(24000, 1001)),
    ],
)
def test_frame_rates_are_kept(tmp_path, name, rate):
    path = write_video(tmp_path / name, GREYS[:12], rate=rate)
    assert VideoFile("clip", path).frame_rate == pytest.approx(float(rate), rel=1e-6)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_frame_rate_of_skipped_frames_keeps_the_duration(tmp_path, name):
    times = [0, 1, 2, 3, 10, 11, 12, 13, 14, 40]
    path = write_video(tmp_path / name, GREYS[:10], times=times, rate=25)
    video = VideoFile("clip", path)
    assert len(video) == 10
    assert video.frame_rate == pytest.approx(9 / (40 / 25), rel=1e-3)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda pixels: pixels),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),  # a phone held upright
        ((0, -1, 1, 0), np.rot90),
        ((0, 1, 1, 0), lambda pixels: pixels.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1)),
    ],
)
def test_display_matrices_turn_and_mirror(tmp_path, matrix, turn):
    path = tmp_path / "clip.mp4"
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48], picture[:32, 48:], picture[32:, :48] = 240, 160, 80
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", content, box_at(content, b"tkhd") + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    frames = list(VideoFile("clip", path).read())
    assert len(frames) == 3
    for frame in frames:
        assert frame.shape == turn(picture).shape
        assert np.abs(frame.astype(int) - turn(picture)).mean() < 3


@pytest.mark.parametrize("name", ["clip:1.mp4", "file:clip.mp4", "http:clip.mp4", "%d.mp4", "concat:a.mp4"])
def test_names_are_no_protocols(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", GREYS[:3]).rename(name)
    np.testing.assert_allclose(read_greys(type(tmp_path)(name)), GREYS[:3], atol=2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.mp4", "ffconcat version 1.0\nfile clip.mp4\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile clip.mp4\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nclip.ts\n#EXT-X-ENDLIST\n"),
    ],
)
def test_lists_of_files_are_not_followed(tmp_path, name, content):
    write_video(tmp_path / "clip.mp4", GREYS[:3])
    write_video(tmp_path / "clip.ts", GREYS[:3])
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path} is not a video that can be decoded"):
        VideoFile("clip", path)


@pytest.mark.parametrize(("shape", "matrix"), [((720, 1280), "ITU709"), ((480, 640), "ITU601")])
@pytest.mark.parametrize("is_tagged", [False, True])
def test_colours_of_hd_and_sd_videos(tmp_path, shape, matrix, is_tagged):
    path = tmp_path / "clip.mp4"
    picture = np.broadcast_to(np.uint8((20, 200, 40)), (*shape, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = *shape, "yuv420p"
        if is_tagged:
            stream.codec_context.colorspace = 1 if matrix == "ITU709" else 6
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix)))
        container.mux(stream.encode())
    (frame,) = VideoFile("clip", path).read()
    np.testing.assert_allclose(frame[::97, ::97], picture[::97, ::97], atol=4)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((576, 720), False), ((480, 854), False), ((720, 960), True), ((1920, 1080), True), ((544, 1280), True)],
)
def test_hd_by_size(shape, expected):
    assert is_hd(shape) == expected
