"""Optical flow of images that are video frames."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import INSIDE, translated_frames, write_frames
from lib.files.frames import FrameFolder
from lib.files.images import ImageReader, read_image
from lib.optflow.archive import write_flow_archive
from lib.optflow.lookup import AUTO, flows_of_images
from lib.runtime.errors import InputError

MOTION = 1, -1  # (dy, dx) from a frame to the next


def make_archive(path, n_frames, frame_shape=(60, 92)):
    """Write an archive whose forward flow is the frame's index, and the backward flow 0.5 more."""
    with write_flow_archive(path, frame_shape, {}) as writer:
        for idx in range(n_frames - 1):
            writer.append(np.full((*frame_shape, 2), idx), np.full((*frame_shape, 2), idx + 1.5))
    return path


@pytest.fixture
def clip(tmp_path):
    """Folder with twelve frames, 0.png to 11.png, and a file of another kind."""
    frames = write_frames(tmp_path / "clip", translated_frames(12, *MOTION))
    shutil.copy(frames[0], tmp_path / "clip" / "poster.bmp")
    return frames


def test_estimated_flow_leads_to_both_neighbors(clip):
    images = [clip[1], clip[11], clip[0]]  # 1.png lies before 2.png, not before 10.png
    flows = [
        flow.read(read_image(image))
        for image, flow in zip(images, flows_of_images(images, Path(AUTO)), strict=True)
    ]
    for flow, (has_next, has_previous) in zip(
        flows, [(True, True), (False, True), (True, False)], strict=True
    ):
        assert flow.shape == (*read_image(clip[0]).shape[:2], 4)
        assert flow.dtype == np.float32
        expected = np.array([*(has_next * np.array(MOTION)), *(-has_previous * np.array(MOTION))])
        assert np.abs(flow[INSIDE] - expected).max() < 0.5


def test_value_range_is_of_all_frames(clip):
    video = FrameFolder("clip", clip[:3], reader=ImageReader((0, 510)))
    (expected,) = flows_of_images([clip[1]], Path(AUTO))
    expected, frames_rgb = expected.read(read_image(clip[1])), [read_image(frame) for frame in clip[:3]]
    for idx, frame in enumerate(clip[:3]):  # by default, they are read as 0 to 1023
        values = frames_rgb[idx][..., 0].astype(np.uint16) * 2
        Image.fromarray(values).save(frame)
    for image_rgb, expected_rgb in zip(video.read(), frames_rgb, strict=True):
        np.testing.assert_array_equal(image_rgb, expected_rgb)
    (flow,) = flows_of_images([clip[1]], Path(AUTO), reader=ImageReader((0, 510)))
    np.testing.assert_array_equal(flow.read(frames_rgb[1]), expected)


def test_files_of_an_estimate(clip):
    middle, last = flows_of_images([clip[1], clip[11]], Path(AUTO))
    assert middle.files == [clip[0], clip[2]]
    assert last.files == [clip[10]]
    assert str(middle) == f"{clip[1]}, estimated: flow to the next and to the previous frame"
    assert str(last).endswith("flow to the previous frame only, as this is the last frame")


def test_archive_frames_are_sorted_by_number(clip, tmp_path):
    path = make_archive(tmp_path / "flow.h5", 12)
    flows = flows_of_images([clip[10], clip[2]], path)
    image_rgb = np.zeros((60, 92, 3), np.uint8)
    assert [flow.read(image_rgb)[0, 0].tolist() for flow in flows] == [[10, 10, 10.5, 10.5], [2, 2, 2.5, 2.5]]
    assert flows[0].files == [path]
    assert str(flows[1]) == f"{path}, frame 2: flow to the next and to the previous frame"


def test_given_frame_idx_ignores_the_folder(clip, tmp_path):
    path = make_archive(tmp_path / "flow.h5", 3)
    (flow,) = flows_of_images([clip[7]], path, frame_idx=1)
    assert flow.read(np.zeros((60, 92, 3), np.uint8))[0, 0].tolist() == [1, 1, 1.5, 1.5]


def test_archives_are_found_by_folder_name(clip, tmp_path, monkeypatch):
    shutil.copytree(clip[0].parent, tmp_path / "other")
    for name in ("optflow_dis_clip.h5", "optflow_raft_clip.h5", "optflow_dis_other.h5"):
        make_archive(tmp_path / name, 12)
    monkeypatch.chdir(clip[0].parent)
    images = [Path("3.png"), Path("../other/4.png"), Path("5.png")]
    flows = flows_of_images(images, tmp_path, method="dis")
    assert [(flow.archive.path.name, flow.frame_idx) for flow in flows] == [
        ("optflow_dis_clip.h5", 3),
        ("optflow_dis_other.h5", 4),
        ("optflow_dis_clip.h5", 5),
    ]
    with pytest.raises(InputError, match=r"flow of clip by several methods.*`optflow_method` dis or raft"):
        flows_of_images(images, tmp_path)
    with pytest.raises(InputError, match=r"^`optflow_data` .* lacks optflow_raft_other.h5"):
        flows_of_images(images, tmp_path, method="raft")


def test_image_of_another_size(clip, tmp_path):
    (flow,) = flows_of_images([clip[0]], make_archive(tmp_path / "flow.h5", 12))
    with pytest.raises(InputError, match=r"the flow in .*flow.h5 is 92x60, but the image is 6x5"):
        flow.read(np.zeros((5, 6, 3), np.uint8))


def test_unavailable_flow_is_reported(clip, tmp_path):
    archive = make_archive(tmp_path / "flow.h5", 3)
    with pytest.raises(
        InputError, match=r"flow.h5 covers 3 frames, .*clip holds 12 .png files; .*`frame_idx`"
    ):
        flows_of_images(clip[:1], archive)
    with pytest.raises(InputError, match=r"`frame_idx` is for a single image"):
        flows_of_images(clip[:2], archive, frame_idx=0)
    with pytest.raises(InputError, match=r"`frame_idx` needs a flow archive"):
        flows_of_images(clip[:1], Path(AUTO), frame_idx=0)
    with pytest.raises(InputError, match=r"poster.bmp is the only .bmp file in its folder"):
        flows_of_images([clip[0].with_name("poster.bmp")], Path(AUTO))
    for place in ("a", "b"):
        shutil.copytree(clip[0].parent, tmp_path / place / "clip")
    images = [tmp_path / "a/clip/0.png", tmp_path / "b/clip/0.png"]
    with pytest.raises(InputError, match=r"flow.h5 .* 2 folders"):
        flows_of_images(images, archive)
    with pytest.raises(InputError, match=r"`optflow_data` .*clip"):
        flows_of_images(images, tmp_path)


def test_damaged_neighbor_is_named(clip):
    clip[2].write_bytes(b"no picture")
    (flow,) = flows_of_images([clip[1]], Path(AUTO))
    with pytest.raises(InputError, match=r"2.png is not a readable image"):
        flow.read(read_image(clip[1]))


def test_hidden_image_is_not_a_frame(clip):
    hidden = clip[1].with_name(".hidden.png")
    shutil.copy(clip[1], hidden)
    with pytest.raises(InputError, match=r"\.hidden\.png is hidden"):
        flows_of_images([hidden], Path(AUTO))


def test_neighbor_of_another_size_is_named(clip):
    Image.new("RGB", (40, 30)).save(clip[2])
    (flow,) = flows_of_images([clip[1]], Path(AUTO))
    with pytest.raises(InputError, match=rf"{clip[1]} is \d+x\d+, .*{clip[2]} is 40x30"):
        flow.read(read_image(clip[1]))
