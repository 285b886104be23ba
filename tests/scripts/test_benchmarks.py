"""The benchmark of one device runs on a CPU, and the baseline of tracking links labels."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import benchmark_gpu
from benchmarks.benchmark_video import Linked
from lib.datasets.base import SegmentedImage
from lib.evaluation.methods import Setting


@pytest.mark.slow
def test_benchmark_of_one_device_prints_all_figures(bsds_root, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.benchmark_gpu.in_process", lambda figure, *arguments: figure(*arguments))
    argv = ["benchmark_gpu", f"--bsds_root={bsds_root}", "--device=cpu", "--quick", "--n_images=3"]
    monkeypatch.setattr("sys.argv", argv)
    assert benchmark_gpu.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert re.search(r"merged: [\d.]+ ms; stages.* network [\d.]+, clustering [\d.]+, merging", lines[1])
    assert re.search(r"one level: [\d.]+ ms; .*connectivity [\d.]+$", lines[2])
    assert re.search(r"batch of 2: [\d.]+ frames/s", lines[3])
    assert re.search(r"^3 JPEGs .* [\d.]+ times reading and writing alone", lines[4])
    assert re.search(r"[\d.]+ ms a step, \d+ crops/s, loader_share \d\.\d+", lines[5])


def test_figure_that_fails_is_reported_and_the_others_follow(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.benchmark_gpu.in_process", lambda figure, *arguments: figure.__name__)
    monkeypatch.setattr("sys.argv", ["benchmark_gpu", f"--bsds_root={tmp_path}", "--device=cpu"])
    assert benchmark_gpu.main() == 0

    def fail_in_folder(figure, *arguments):
        if figure is benchmark_gpu.folder_time:
            raise RuntimeError("no space")
        return figure.__name__

    monkeypatch.setattr("benchmarks.benchmark_gpu.in_process", fail_in_folder)
    capsys.readouterr()
    assert benchmark_gpu.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "image_time",
        "batch_time",
        "folder_time failed: RuntimeError('no space')",
        "training_time",
    ]


def test_baseline_of_tracking_by_hand():
    frames = [[[0, 0, 1, 1, 2]], [[1, 1, 1, 0, 0]], [[0, 0, 0, 0, 1]]]
    images = [SegmentedImage(f"v/{idx}", np.array(labels), []) for idx, labels in enumerate(frames)]
    alone = SimpleNamespace(
        name="alone",
        pos_scales=(None,),
        description={},
        segment=lambda image, settings: [image.image_rgb for _ in settings],
    )
    label = Linked(alone).start("v", [Setting(3), Setting(3)])
    first, second, third = ([labels.tolist() for labels in label(image, None)] for image in images)
    assert first == 2 * [[[0, 0, 1, 1, 2]]]
    # Label 1 shares two pixels with 0, the most. Label 0 shares one with 1 and one with 2; 1 comes first.
    assert second == 2 * [[[0, 0, 0, 1, 1]]]
    assert third == 2 * [[[0, 0, 0, 0, 1]]]
