"""Animated pictures as videos."""

import numpy as np
import pytest
from PIL import Image

import estimate_optflow
import inference_base_model
from helpers import make_quadrants, translated_frames
from lib.files.animation import AnimatedImage
from lib.files.frames import VideoFile, open_video_file
from lib.runtime.errors import InputError

FRAMES = [np.roll(make_quadrants()[0], 10 * idx, axis=1) for idx in range(4)]
FORMATS = [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})]


def save(path, frames=FRAMES, *, durations=100, **options):
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=durations, **options)
    return path


@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_frames_and_frame_rate(tmp_path, name, options):
    video = open_video_file(save(tmp_path / name, durations=[100, 40, 60, 200], **options))
    assert (video.name, len(video)) == ("a", 4)
    assert video.frame_rate == pytest.approx(10)
    for frame, expected in zip(video.read(), FRAMES, strict=True):
        assert frame.shape == (60, 92, 3)
        atol = 60 if name == "a.gif" else 0  # a GIF has 256 colours
        np.testing.assert_allclose(frame.astype(int), expected, atol=atol)


def test_content_counts_not_the_suffix(tmp_path):
    save(tmp_path / "a.webp", lossless=True).rename(tmp_path / "a.mp4")
    assert len(open_video_file(tmp_path / "a.mp4")) == 4


@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_transparency_is_white_and_frames_add_up(tmp_path, name, options):
    frames = []
    for left in (5, 20):
        frame = np.zeros((40, 60, 4), np.uint8)
        frame[:] = (255, 0, 0, 255)
        frame[10:30, left : left + 10] = 0
        frames.append(frame)
    path = save(tmp_path / name, frames, disposal=1 if name == "a.png" else 2, **options)
    for frame, left in zip(AnimatedImage("a", path).read(), (5, 20), strict=True):
        expected = np.full((40, 60, 3), (255, 0, 0))
        expected[10:30, left : left + 10] = 255
        np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_parts_of_a_frame_keep_the_rest(tmp_path, name, options):
    """Encoders store the part of a frame that changed."""
    frames = [np.full((40, 60, 3), 200, np.uint8) for _ in range(3)]
    frames[1][5:9, 10:20] = 0
    frames[2][:] = frames[1]
    frames[2][30:, 50:] = 90
    video = AnimatedImage("a", save(tmp_path / name, frames, **options))
    for frame, expected in zip(video.read(), frames, strict=True):
        np.testing.assert_allclose(frame.astype(int), expected, atol=2)


def test_default_image_of_an_apng_is_no_frame(tmp_path):
    path = save(tmp_path / "a.png", durations=[50, 100, 150], default_image=True)
    video = AnimatedImage("a", path)
    assert len(video) == 3
    assert video.frame_rate == pytest.approx(10)
    np.testing.assert_array_equal(next(video.read()), FRAMES[1])


@pytest.mark.parametrize(
    ("name", "duration", "rate"), [("a.gif", 0, 10), ("a.gif", 10, 10), ("a.gif", 20, 50), ("a.png", 10, 100)]
)
def test_short_delays_of_a_gif_play_slowly(tmp_path, name, duration, rate):
    assert AnimatedImage("a", save(tmp_path / name, durations=duration)).frame_rate == pytest.approx(rate)


@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_still_picture_has_one_frame(tmp_path, name, options):
    Image.fromarray(FRAMES[0]).save(tmp_path / name, **options)
    video = open_video_file(tmp_path / name)
    assert (len(video), video.frame_rate, len(list(video.read()))) == (1, 24, 1)


@pytest.mark.parametrize(("name", "options"), FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.99])
def test_truncated_files_are_named(tmp_path, name, options, share):
    path = save(tmp_path / name, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=str(path)):
        list(open_video_file(path).read())


def test_gif_that_ends_between_frames_is_named(tmp_path):
    path = save(tmp_path / "a.gif")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{path} is truncated after 4 frames"):
        open_video_file(path)


@pytest.mark.usefixtures("pyav")
def test_other_files_are_no_pictures(tmp_path):
    for name, content in (("a.avi", b"RIFF\0\0\0\0AVI "), ("a.gif", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} is not a video"):
            open_video_file(tmp_path / name)
    with pytest.raises(InputError, match="no video file"):
        open_video_file(tmp_path / "none.gif")


@pytest.mark.usefixtures("pyav")
@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_scripts_take_animations(tmp_path, name, options):
    frames = translated_frames(3, dy=0, dx=2)
    path = save(tmp_path / name, frames, durations=120, **options)
    argv = ["--base_model_weights=none", f"--video={path}", "--nspix=24", f"--out={tmp_path / 'o.mp4'}"]
    assert inference_base_model.main(argv).n_frames == 3
    assert VideoFile("o", tmp_path / "o.mp4").frame_rate == pytest.approx(25 / 3)
    (report,) = estimate_optflow.main([f"--video={path}", f"--out_dir={tmp_path}", "--nworkers=0"])
    assert (report.path.name, report.n_frames) == ("optflow_dis_a.h5", 3)
