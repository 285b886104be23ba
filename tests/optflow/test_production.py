"""Production of archives: in worker processes, only once, and not from bad input."""

import time

import numpy as np
import pytest

from lib.files.images import ImageReader
from lib.optflow.archive import FlowArchive, write_flow_archive
from lib.optflow.production import ArchiveJob, consistency_error, make_archives
from lib.optflow.sources import FlowSource
from lib.runtime.errors import InputError

SHAPE = (24, 40)


class ConstantFlow(FlowSource):
    """Source of the same flow for every pair, with its opposite as backward flow."""

    def __init__(self, name, n_pairs=3, *, shape=SHAPE, fails_at=None, seconds=0.0):
        self.name = name
        self.n_pairs = n_pairs
        self.shape = shape
        self.fails_at = fails_at
        self.seconds = seconds

    def __len__(self):
        return self.n_pairs

    def pairs(self):
        flow = np.full((*self.shape, 2), (1, 3), dtype=np.float32)
        for idx in range(self.n_pairs):
            if idx == self.fails_at:
                raise InputError(f"{self.name}: frame {idx} is broken")
            time.sleep(self.seconds)
            yield flow, -flow


def job_for(tmp_path, source, **attributes):
    return ArchiveJob(source, tmp_path / f"optflow_test_{source.name}.h5", attributes)


def run(jobs, n_workers=0, **options):
    counts = []
    options = {"with_consistency": False, "on_progress": counts.append, **options}
    reports = list(make_archives(jobs, n_workers=n_workers, **options))
    return {report.path.name: report for report in reports}, sum(counts)


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_archives_are_made_only_once(tmp_path, n_workers):
    jobs = [job_for(tmp_path, ConstantFlow(f"video{idx}", 2 + idx)) for idx in range(3)]
    reports, n_pairs = run(jobs, n_workers, with_consistency=True)
    assert sorted(reports) == [f"optflow_test_video{idx}.h5" for idx in range(3)]
    assert n_pairs == 2 + 3 + 4
    for idx, name in enumerate(sorted(reports)):
        report = reports[name]
        assert (report.n_frames, report.existed, report.problem) == (3 + idx, False, None)
        assert report.consistency_error == 0
        assert FlowArchive(tmp_path / name).n_frames == 3 + idx
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    reports, n_pairs = run(jobs, n_workers)
    assert all(report.existed for report in reports.values())
    assert n_pairs == 9
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_input_fails_only_its_own_archive(tmp_path, n_workers):
    jobs = [
        job_for(tmp_path, ConstantFlow("bad", fails_at=1)),
        job_for(tmp_path, ConstantFlow("good")),
    ]
    reports, _ = run(jobs, n_workers)
    assert reports["optflow_test_bad.h5"].problem == "bad: frame 1 is broken"
    assert reports["optflow_test_good.h5"].problem is None
    assert [path.name for path in tmp_path.iterdir()] == ["optflow_test_good.h5"]


@pytest.mark.slow
def test_interruption_ends_workers_and_keeps_finished_archives(tmp_path):
    jobs = [
        job_for(tmp_path, ConstantFlow("short", 1)),
        job_for(tmp_path, ConstantFlow("endless", 10**6, seconds=0.01)),
    ]
    reports = make_archives(jobs, n_workers=2, with_consistency=False, on_progress=lambda n_pairs: None)
    assert next(reports).path.name == "optflow_test_short.h5"
    with pytest.raises(KeyboardInterrupt):
        reports.throw(KeyboardInterrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["optflow_test_short.h5"]


def test_existing_archive_of_other_settings_or_frames_is_reported(tmp_path):
    run([job_for(tmp_path, ConstantFlow("video"), preset="fast")])
    (report,) = run([job_for(tmp_path, ConstantFlow("video"), preset="medium")])[0].values()
    assert "optflow_test_video.h5 exists, made with preset fast" in report.problem
    (report,) = run([job_for(tmp_path, ConstantFlow("video", 5), preset="fast")])[0].values()
    assert "holds the flow of 4 frames, and the video has 6" in report.problem
    (report,) = run([job_for(tmp_path, ConstantFlow("video", shape=(24, 39)), preset="fast")])[0].values()
    assert "holds flow of 40x24, and the video is 39x24" in report.problem


def test_existing_archive_of_other_reading_is_reported(tmp_path):
    readers = {
        "value_range 0 4095": ImageReader((0, 4095)),
        "bands 4 3 2": ImageReader(bands=(4, 3, 2)),
        "value_range default": ImageReader(),
        "bands default": ImageReader(),
    }
    for idx, (made_with, reader) in enumerate(readers.items()):
        source = ConstantFlow(str(idx))
        # Earlier versions did not store these settings.
        stored = reader.described() if reader != ImageReader() or idx == 2 else {}
        run([job_for(tmp_path, source, preset="fast", **stored)])
        other = ImageReader((0, 255)) if "value_range" in made_with else ImageReader(bands=(1,))
        (report,) = run([job_for(tmp_path, source, preset="fast", **reader.described())])[0].values()
        assert report.existed
        (report,) = run([job_for(tmp_path, source, preset="fast", **other.described())])[0].values()
        assert f"{idx}.h5 exists, made with {made_with}: delete it" in report.problem


def test_damaged_existing_archive_is_reported(tmp_path):
    job = job_for(tmp_path, ConstantFlow("video"))
    job.path.write_bytes(b"HDF?")
    (report,) = run([job])[0].values()
    assert f"{job.path} is not a readable HDF5 file" in report.problem


def test_consistency_error_by_hand(tmp_path):
    forward = np.zeros((*SHAPE, 2))
    forward[..., 1] = 10  # leads the right quarter out of the frame
    backward = np.zeros((*SHAPE, 2))
    backward[..., 1] = -10
    backward[:12, :, 0] = 4  # misses by 4 pixels in the upper half
    with write_flow_archive(tmp_path / "flow.h5", SHAPE, {}) as writer:
        writer.append(forward, backward)
        writer.append(forward, -forward)
    assert consistency_error(FlowArchive(tmp_path / "flow.h5")) == pytest.approx(4 / 2 / 2)
