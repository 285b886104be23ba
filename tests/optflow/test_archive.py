"""Flow archives: reading, writing, finding."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pytest

from helpers import full_disk
from lib.optflow.archive import FlowArchive, find_archives, write_flow_archive
from lib.runtime.errors import InputError, RunError

SHAPE = (20, 31)


def make_flow(n_pairs=3, shape=SHAPE, seed=0):
    """Return forward and backward flow that float16 represents exactly, each (n_pairs, H, W, 2)."""
    return np.random.default_rng(seed).integers(-80, 80, (2, n_pairs, *shape, 2)) / 8


def write_plain_archive(path, flow, dtype=np.float16, **settings):
    """Write the published layout with h5py alone."""
    with h5py.File(path, "w") as file:
        for name, values in zip(("flows", "inv_flows"), flow, strict=True):
            file.create_dataset(name, data=values.astype(dtype), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # contiguous
        {"chunks": (2, 7, 9, 1), "compression": "gzip"},
        {"chunks": (3, *SHAPE, 2), "compression": "lzf", "shuffle": True},
    ],
    ids=["contiguous", "small chunks", "one chunk"],
)
def test_published_layout_is_read_whatever_its_chunks(tmp_path, settings):
    flow = make_flow()
    write_plain_archive(tmp_path / "flow.h5", flow, **settings)
    archive = FlowArchive(tmp_path / "flow.h5")
    assert archive.n_frames == 4
    assert archive.frame_shape == SHAPE
    nothing = np.zeros((*SHAPE, 2))
    forward, backward = [*flow[0], nothing], [nothing, *flow[1]]
    for idx in range(4):
        frame_flow = archive.read_frame(idx)
        assert frame_flow.dtype == np.float32
        np.testing.assert_array_equal(frame_flow[..., :2], forward[idx])
        np.testing.assert_array_equal(frame_flow[..., 2:], backward[idx])


def test_written_archive_has_the_published_layout(tmp_path):
    flow = make_flow()
    with write_flow_archive(tmp_path / "flow.h5", SHAPE, {"preset": "fast"}) as writer:
        for forward, backward in zip(*flow, strict=True):
            writer.append(forward, backward)
        assert not (tmp_path / "flow.h5").exists()
    with h5py.File(tmp_path / "flow.h5") as file:
        assert sorted(file) == ["flows", "inv_flows"]
        for name, values in zip(("flows", "inv_flows"), flow, strict=True):
            assert file[name].dtype == np.float16
            assert file[name].chunks == (1, *SHAPE, 2)
            assert file[name].compression == "lzf"
            assert file[name].shuffle
            np.testing.assert_array_equal(file[name][:], values)
    assert FlowArchive(tmp_path / "flow.h5").read_attributes() == {"preset": "fast"}
    assert [file.name for file in tmp_path.iterdir()] == ["flow.h5"]


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_archive_is_read_in_worker_processes(tmp_path, start_method):
    flow = make_flow()
    write_plain_archive(tmp_path / "flow.h5", flow)
    archive = FlowArchive(tmp_path / "flow.h5")
    expected = [archive.read_frame(idx) for idx in range(4)]
    with ProcessPoolExecutor(2, get_context(start_method)) as pool:
        for frame_flow, values in zip(pool.map(archive.read_frame, range(4)), expected, strict=True):
            np.testing.assert_array_equal(frame_flow, values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 70000])
def test_non_finite_flow_is_not_written(tmp_path, bad):
    flow = np.zeros((*SHAPE, 2))
    with (  # noqa: PT012, the second pair is the one that must fail
        pytest.raises(InputError, match=r"flow\.h5: the flow between frames 1 and 2 is NaN, infinite or"),
        write_flow_archive(tmp_path / "flow.h5", SHAPE, {}) as writer,
    ):
        writer.append(flow, flow)
        flow[3, 4, 0] = bad
        writer.append(flow, flow)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_no_archive(tmp_path):
    flow = np.random.default_rng(0).normal(size=(300, 300, 2))
    with (
        full_disk(100_000),
        pytest.raises(RunError, match=r"cannot write .*flow\.h5"),
        write_flow_archive(tmp_path / "flow.h5", (300, 300), {}) as writer,
    ):
        writer.append(flow, flow)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frame_idx", [-1, 4, 100])
def test_frame_out_of_range(tmp_path, frame_idx):
    write_plain_archive(tmp_path / "flow.h5", make_flow())
    with pytest.raises(InputError, match=rf"flow\.h5 covers frames 0 to 3, .* frame {frame_idx}$"):
        FlowArchive(tmp_path / "flow.h5").read_frame(frame_idx)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e5])
def test_frame_with_non_finite_flow_is_named(tmp_path, bad):
    flow = make_flow()
    flow[1, 1, 2, 3, 0] = bad  # backward flow of frame 2
    write_plain_archive(tmp_path / "flow.h5", flow, dtype=np.float32)
    archive = FlowArchive(tmp_path / "flow.h5")
    archive.read_frame(1)
    with pytest.raises(InputError, match="the flow of frame 2 is NaN, infinite or above 65504 pixels"):
        archive.read_frame(2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("missing", "no flow archive"),
        ("text", "is not a readable HDF5 file"),
        ("truncated", "is not a readable HDF5 file"),
        ("other names", "lacks .* flows and inv_flows .* forward"),
        ("group", "lacks .* inv_flows"),
        ("other rank", r"flows of .* is \(3, 20, 31\) float16, but must be"),
        ("other last axis", r"flows of .* is \(3, 20, 31, 3\) float16, but must be"),
        ("integers", r"flows of .* is \(3, 20, 31, 2\) int16, but must be"),
        ("different counts", "flows are .*, but inv_flows are"),
        ("one frame", "holds no flow: a video with one frame has none"),
    ],
)
def test_unusable_archive_is_named(tmp_path, content, message):
    path = tmp_path / "optflow_dis_car.h5"
    flow = make_flow()
    write_plain_archive(path, flow)
    if content == "missing":
        path.unlink()
    elif content == "text":
        path.write_text("flow")
    elif content == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif content == "one frame":
        write_plain_archive(path, flow[:, :0])
    else:
        with h5py.File(path, "w") as file:
            if content == "other names":
                file["forward"] = flow[0]
            elif content == "group":
                file["flows"] = flow[0]
                file.create_group("inv_flows")
            elif content == "different counts":
                file["flows"], file["inv_flows"] = flow[0], flow[1, :2]
            else:
                values = flow.astype(np.float16)
                if content == "other rank":
                    values = values[..., 0]
                elif content == "other last axis":
                    values = np.concatenate([values, values[..., :1]], axis=-1)
                else:
                    values = values.astype(np.int16)
                file["flows"], file["inv_flows"] = values
    with pytest.raises(InputError, match=message) as caught:
        FlowArchive(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_frame_is_reported_on_read(tmp_path):
    path = tmp_path / "flow.h5"
    write_plain_archive(path, make_flow(), chunks=(1, *SHAPE, 2), compression="gzip")
    archive = FlowArchive(path)
    with h5py.File(path) as file:
        chunk = file["inv_flows"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    archive.read_frame(1)
    with pytest.raises(InputError, match=r"flow\.h5 is not a readable HDF5 file"):
        archive.read_frame(2)


def test_archives_of_any_method_are_found(tmp_path):
    write_plain_archive(tmp_path / "optflow_gma_car.h5", make_flow())
    write_plain_archive(tmp_path / "optflow_raft-small_dogs.h5", make_flow())
    for video in ("sports-car", "sports_car"):
        write_plain_archive(tmp_path / f"optflow_dis_{video}.h5", make_flow())
    archives = find_archives(tmp_path, ["dogs", "car"])
    assert [archive.path.name for archive in archives] == [
        "optflow_raft-small_dogs.h5",
        "optflow_gma_car.h5",
    ]


def test_method_with_an_underscore_must_be_given(tmp_path):
    write_plain_archive(tmp_path / "optflow_raft_small_car.h5", make_flow())
    with pytest.raises(InputError, match=r"lacks optflow_<method>_car\.h5"):
        find_archives(tmp_path, ["car"])
    assert find_archives(tmp_path, ["car"], "raft_small")[0].n_frames == 4


def test_several_methods_of_a_video_need_a_choice(tmp_path):
    for method in ("gma", "dis"):
        write_plain_archive(tmp_path / f"optflow_{method}_car.h5", make_flow())
    with pytest.raises(InputError, match=r"flow of car by several methods.*`optflow_method` dis or gma"):
        find_archives(tmp_path, ["car"])
    assert find_archives(tmp_path, ["car"], "gma")[0].path.name == "optflow_gma_car.h5"


def test_all_missing_archives_are_named(tmp_path):
    write_plain_archive(tmp_path / "optflow_gma_car.h5", make_flow())
    with pytest.raises(InputError, match=r"lacks optflow_<method>_dogs\.h5, optflow_<method>_cat\.h5"):
        find_archives(tmp_path, ["dogs", "car", "cat"])
    with pytest.raises(InputError, match=r"lacks optflow_dis_car\.h5; estimate_optflow.py makes them"):
        find_archives(tmp_path, ["car"], "dis")


@pytest.mark.parametrize(("frame_idx", "place"), [(0, 0.3), (1, 0.8)])
def test_checksum_detects_damaged_flow(tmp_path, frame_idx, place):
    path = tmp_path / "flow.h5"
    flow = np.random.default_rng(0).normal(size=(60, 92, 2))
    with write_flow_archive(path, flow.shape[:2], {}) as writer:
        writer.append(flow, flow)
    content = bytearray(path.read_bytes())
    start = int(place * len(content))
    content[start : start + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"flow\.h5 is not a readable HDF5 file"):
        FlowArchive(path).read_frame(frame_idx)
