"""Optical flow from frames with known motion, and from the files of other programs."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from helpers import HEIGHT, INSIDE, WIDTH, make_texture, translated_frames, write_flo, write_frames
from lib.datasets.base import SegmentedImage
from lib.datasets.crops import DEFAULT_CROP_SIZE, Crop
from lib.files.frames import FrameFolder, VideoFile, list_in_order
from lib.optflow.sources import DIS_PRESETS, DISFlow, FlowFiles, read_flow_file
from lib.runtime.errors import InputError


def estimate(tmp_path, frames, preset="medium"):
    return list(DISFlow(FrameFolder("clip", write_frames(tmp_path / "clip", frames)), preset).pairs())


@pytest.mark.parametrize("preset", DIS_PRESETS)
def test_translation_is_found(tmp_path, preset):
    pairs = estimate(tmp_path, translated_frames(3, dy=2, dx=-3), preset)
    assert len(pairs) == 2
    for forward, backward in pairs:
        assert forward.shape == (HEIGHT, WIDTH, 2)
        assert np.abs(forward[INSIDE] - (2, -3)).max() < 0.5
        assert np.abs(backward[INSIDE] - (-2, 3)).max() < 0.5


def test_zoom_is_found(tmp_path):
    texture = make_texture()
    y, x = np.mgrid[:HEIGHT, :WIDTH] - np.array([HEIGHT / 2, WIDTH / 2])[:, None, None]
    zoomed = map_coordinates(texture, [y / 1.05 + HEIGHT / 2, x / 1.05 + WIDTH / 2], order=3, mode="nearest")
    frames = [
        np.repeat(np.clip(frame, 0, 255).round().astype(np.uint8)[..., None], 3, axis=2)
        for frame in (texture, zoomed)
    ]
    ((forward, backward),) = estimate(tmp_path, frames)
    expected = np.stack([0.05 * y, 0.05 * x], axis=-1)
    assert np.abs(forward - expected)[INSIDE].max() < 0.5
    assert np.abs(backward + expected / 1.05)[INSIDE].max() < 0.5


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("extent", [160.0, 205.0])
def test_cropped_flow_is_the_flow_of_cropped_frames(tmp_path, is_flipped, extent):
    frames = translated_frames(2, dy=2, dx=-3)
    ((forward, backward),) = estimate(tmp_path, frames)
    crop = Crop(top=3.5, left=20.25, extent=extent, is_flipped=is_flipped)
    no_labels = [np.zeros((HEIGHT, WIDTH), dtype=np.int32)]
    cropped, cropped_next = (
        crop.apply(SegmentedImage("frame", frame, no_labels, flow, n_vector_channels=4))
        for frame, flow in zip(frames, (np.concatenate([forward, backward], axis=-1), None), strict=True)
    )
    ((forward_again, _),) = estimate(tmp_path, [cropped.image_rgb, cropped_next.image_rgb])
    assert np.abs(cropped.extra[..., :2] - forward_again)[INSIDE].max() < 0.5
    factor = DEFAULT_CROP_SIZE / extent
    dy, dx = 2 * factor, (3 if is_flipped else -3) * factor
    assert np.abs(cropped.extra[INSIDE] - (dy, dx, -dy, -dx)).max() < 0.5


def test_scalar_extra_channels_keep_their_values():
    depth = np.random.default_rng(0).random((HEIGHT, WIDTH, 2)).astype(np.float32)
    image = SegmentedImage("room", np.zeros((HEIGHT, WIDTH, 3), np.uint8), [], depth)
    plain, flipped = (
        Crop(0, 0, DEFAULT_CROP_SIZE, is_flipped).apply(image).extra for is_flipped in (False, True)
    )
    np.testing.assert_allclose(plain, depth[:DEFAULT_CROP_SIZE, :DEFAULT_CROP_SIZE], rtol=1e-6)
    np.testing.assert_array_equal(flipped, plain[:, ::-1])


@pytest.mark.parametrize("size", [DEFAULT_CROP_SIZE, 300])
def test_vectors_come_before_other_channels(size):
    extra = np.ones((100, 100, 3), dtype=np.float32)
    image_rgb = np.zeros((*extra.shape[:2], 3), np.uint8)
    image = SegmentedImage("flow and depth", image_rgb, [], extra, n_vector_channels=2)
    crop = Crop(0, 0, 100, is_flipped=True, size=size).apply(image)
    np.testing.assert_allclose(crop.extra[50, 50], [size / 100, -size / 100, 1])


@pytest.mark.usefixtures("pyav")
def test_video_file(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (WIDTH, HEIGHT))
    for frame in translated_frames(4, dy=2, dx=-3):
        writer.write(frame)
    writer.release()
    flow = DISFlow(VideoFile("clip", path), "medium")
    assert len(flow) == 3
    pairs = list(flow.pairs())
    assert len(pairs) == 3
    assert np.abs(pairs[-1][0][INSIDE] - (2, -3)).max() < 0.5


def test_frames_of_another_size_are_resized_on_request(tmp_path):
    files = write_frames(tmp_path / "clip", translated_frames(2, dy=0, dx=4))
    ((forward, _),) = DISFlow(FrameFolder("clip", files, (HEIGHT, WIDTH // 2)), "medium").pairs()
    assert forward.shape == (HEIGHT, WIDTH // 2, 2)
    assert np.abs(forward[INSIDE] - (0, 2)).max() < 0.5


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([np.zeros((40, 50, 3), np.uint8)], "clip has 1 frame; optical flow needs at least two"),
        (
            [np.zeros((40, 50, 3), np.uint8), np.zeros((50, 40, 3), np.uint8)],
            "clip: frame 1 is 40x50, .* 50x40",
        ),
        ([np.zeros((15, 200, 3), np.uint8)] * 2, "clip: frames of 200x15 are too small, .*16"),
        ([np.zeros((200, 15, 3), np.uint8)] * 2, "clip: frames of 15x200 are too small, .*16"),
    ],
)
def test_frames_without_flow(tmp_path, frames, message):
    with pytest.raises(InputError, match=message):
        estimate(tmp_path, frames)


def test_small_frames_have_flow(tmp_path):
    frames = [frame[:16, :60] for frame in translated_frames(2, dy=0, dx=2)]
    ((forward, _),) = estimate(tmp_path, frames)
    assert forward.shape == (16, 60, 2)


@pytest.mark.usefixtures("pyav")
def test_damaged_video_reports_where_decoding_stopped(tmp_path):
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (WIDTH, HEIGHT))
    for frame in translated_frames(20, dy=1, dx=-1):
        writer.write(frame)
    writer.release()
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) * 2 // 3] = bytes(len(content) * 2 // 3 - len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: decoding stopped after \d+ of 20 frames"):
        list(VideoFile("clip", path).read())


def test_video_with_dropped_frames_is_read_to_its_end(tmp_path, caplog, pyav):
    path = tmp_path / "clip.mkv"  # its header has no frame count
    shown = [idx for idx in range(40) if idx % 10 < 5]
    frames = translated_frames(len(shown), dy=0, dx=1)
    with pyav.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for time, pixels in zip(shown, frames, strict=True):
            frame = pyav.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(list(VideoFile("clip", path).read())) == len(shown)
    assert f"{path} holds {len(shown)} frames" in caplog.text


def test_hidden_files_are_not_frames(tmp_path):
    files = write_frames(tmp_path / "clip", translated_frames(2, dy=0, dx=1))
    (tmp_path / "clip" / "._1.png").write_bytes(b"metadata of another system")
    assert list_in_order(tmp_path / "clip", (".png",)) == files


@pytest.mark.usefixtures("pyav")
@pytest.mark.parametrize("content", [None, b"no video"])
def test_file_that_is_not_a_video(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        VideoFile("clip", path)


def write_kitti(path, flow, is_known=None):
    """Write (dy, dx) in the KITTI format: red is dx, green is dy, blue is validity."""
    is_known = np.ones(flow.shape[:2]) if is_known is None else is_known
    dy, dx = (64 * flow[..., axis] + 2**15 for axis in range(2))
    cv2.imwrite(str(path), np.stack([is_known, dy, dx], axis=-1).astype(np.uint16))  # BGR


FLOW = np.random.default_rng(0).integers(-500, 500, (7, 11, 2)) / 64


@pytest.mark.parametrize(("suffix", "write"), [(".flo", write_flo), (".png", write_kitti)])
def test_flow_files_turn_into_row_then_column(tmp_path, suffix, write):
    write(tmp_path / f"flow{suffix}", FLOW)
    flow = read_flow_file(tmp_path / f"flow{suffix}")
    assert flow.flags.c_contiguous
    np.testing.assert_array_equal(flow, FLOW)


def test_missing_flow_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.flo cannot be read \(No such file or directory\)"):
        read_flow_file(tmp_path / "a.flo")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.flo", b"", "is not a Middlebury .flo file"),
        ("a.flo", b"HEIP" + bytes(200), "is not a Middlebury .flo file"),
        ("a.flo", "truncated", "has 600 bytes, which is not the size of 11x7 flow"),
        ("a.flo", "unknown", "lacks the flow of 1 pixels"),
        ("a.flo", "nan", "lacks the flow of 1 pixels"),
        ("a.png", b"", "is not a 16-bit colour PNG"),
        ("a.png", "8 bits", "is not a 16-bit colour PNG"),
        ("a.png", "unknown", "lacks the flow of 1 pixels"),
    ],
)
def test_unusable_flow_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    flow = FLOW.copy()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "8 bits":
        Image.fromarray(np.zeros((7, 11, 3), np.uint8)).save(path)
    elif name == "a.png":
        is_known = np.ones((7, 11))
        is_known[2, 3] = 0
        write_kitti(path, flow, is_known)
    else:
        if content != "truncated":
            flow[2, 3, 1] = {"unknown": 2e9, "nan": np.nan}[content]
        write_flo(path, flow)
        if content == "truncated":
            path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match=message) as caught:
        read_flow_file(path)
    assert str(path) in str(caught.value)


def test_flow_files_of_a_video(tmp_path):
    for idx in (2, 10, 1):
        write_flo(tmp_path / f"forward{idx}.flo", FLOW + idx)
        write_kitti(tmp_path / f"backward{idx}.png", FLOW - idx)
    forward_files, backward_files = (list_in_order(tmp_path, (suffix,)) for suffix in (".flo", ".png"))
    assert [file.name for file in forward_files] == ["forward1.flo", "forward2.flo", "forward10.flo"]
    with pytest.raises(InputError, match=r"holds \.flo and \.png files"):
        list_in_order(tmp_path, (".flo", ".png"))
    source = FlowFiles("clip", forward_files, backward_files)
    assert len(source) == 3
    for (forward, backward), idx in zip(source.pairs(), (1, 2, 10), strict=True):
        np.testing.assert_array_equal(forward, FLOW + idx)
        np.testing.assert_array_equal(backward, FLOW - idx)


def test_flow_files_must_come_in_pairs_of_one_size(tmp_path):
    write_flo(tmp_path / "0.flo", FLOW)
    write_flo(tmp_path / "1.flo", FLOW[:5])
    both = [tmp_path / "0.flo", tmp_path / "1.flo"]
    with pytest.raises(InputError, match="clip has 2 files of forward flow, but 1 of backward flow"):
        FlowFiles("clip", both, both[:1])
    with pytest.raises(InputError, match="clip has no files of forward flow"):
        FlowFiles("clip", [], [])
    with pytest.raises(InputError, match=r"1\.flo is 11x5, .* 11x7"):
        list(FlowFiles("clip", both, both).pairs())
