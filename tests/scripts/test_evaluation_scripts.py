"""Whole evaluations: log, files, and resuming after an interruption."""

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval_base_model
from helpers import fails_with, in_thread, make_quadrants
from lib.datasets.base import SegmentedImage
from lib.evaluation.figures import SheetImage, draw_curves, draw_sheet, save_figure
from lib.evaluation.loop import ImageScores, Run
from lib.evaluation.methods import GridMethod, NetworkMethod
from lib.evaluation.protocol import PROTOCOL, EvaluationSet
from lib.evaluation.run import run_evaluation
from lib.evaluation.summary import summarize
from lib.evaluation.tables import MAIN_METRICS
from lib.inference import Segmenter
from lib.metrics.registry import DEFAULT_METRICS, METRICS, Scores
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError, RunError
from lib.weights import file_sha256
from model import SSNModel, SSNPix

REPO_ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class Frames(list):
    """Quadrants in two videos of two frames each, with two annotations."""

    def __init__(self):
        for idx in range(4):
            image_rgb, labels = make_quadrants(seed=idx)
            annotations = [labels + 1, np.minimum(labels, idx % 2)]
            self.append(SegmentedImage(f"video{idx // 2}/{idx}", image_rgb, annotations))


def run_grids(out_dir, dataset=None, **changes):
    """Run a small sweep of two methods."""
    torch.manual_seed(0)
    settings = {
        "n_spixels": [6, 24, 40],
        "metrics": ["asa", "compactness"],
        "device": CPU,
        "n_workers": 0,
        "out_dir": out_dir,
        **changes,
    }
    methods = [NetworkMethod("pix", Segmenter(SSNPix(n_iter=2), InputScales(0.3, 4.0))), GridMethod()]
    dataset = Frames() if dataset is None else dataset
    sets = [EvaluationSet("Quadrants", "quadrants", dataset)]
    return run_evaluation(methods, sets, **settings)


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def read_lines(path):
    return path.read_text().splitlines()


def eval_argv(bsds_root, *more):
    return [f"--bsds_root={bsds_root}", "--base_model_weights=none", "--nworkers=0", "--device=cpu", *more]


@pytest.mark.slow
@pytest.mark.draws
def test_evaluation_writes_scores_summaries_and_pictures(tmp_path, caplog):
    caplog.set_level("INFO")
    out_dir = tmp_path / "results"
    metrics = ["asa", "ue_np", "compactness"]
    results = run_grids(out_dir, metrics=metrics, options={"nspix": "[6, 24, 40]"})
    (by_run,) = results.values()

    rows = read_rows(out_dir / "scores.csv")
    assert len(rows) == 4 * 2 * 2 * 3  # images, annotations, methods, counts
    assert rows[0]["image"] == "video0/0"
    for run, summary in by_run.items():
        own = [row for row in rows if (row["method"], row["requested"]) == (run.method, str(run.n_spixels))]
        assert np.mean([float(row["asa"]) for row in own]) == pytest.approx(summary.mean["asa"], abs=1e-12)
        worst = [
            max(float(row["ue_np"]) for row in own if row["image"] == name)
            for name in {r["image"] for r in own}
        ]
        assert np.mean(worst) == pytest.approx(summary.worst["ue_np"], abs=1e-12)

    summary_rows = read_rows(out_dir / "summary.csv")
    assert [row["video"] for row in summary_rows] == 6 * [""] + 6 * ["video0"] + 6 * ["video1"]
    assert float(summary_rows[0]["asa"]) == by_run[Run("pix", 6, 4.0)].mean["asa"]
    assert float(summary_rows[0]["asa_worst"]) == by_run[Run("pix", 6, 4.0)].worst["asa"]

    content = json.loads((out_dir / "results.json").read_text())
    assert content["methods"]["pix"] == {
        "n_iter": 2,
        "color_scale": 0.3,
        "extra_scale": None,
        "pos_scale_dist": 1.0,
        "fine_factor": {"100": 5.0, "200": 3.0, "1000": 2.0},
        "merge_pos_scale": {"100": 0.6, "400": 0.5, "1000": 1.0},
        "precision": "fp32",
        "pos_scales": [4.0],
    }
    assert content["data"]["Quadrants"]["images"] == 4
    assert torch.__version__.startswith(content["versions"]["torch"])
    assert content["options"] == {"nspix": "[6, 24, 40]"}
    assert content["protocol"] == PROTOCOL
    assert content["summaries"][3]["method"] == "grid"
    assert content["summaries"][0]["asa"] == float(summary_rows[0]["asa"])

    page = (out_dir / "summary.md").read_text()
    for heading in ("# Quadrants", "## Means", "## Worst annotation of each image", "## Videos"):
        assert f"\n{heading}\n" in f"\n{page}"
    asa = by_run[Run("grid", 40, None)].mean["asa"]
    assert re.search(rf"\| grid +\| +\| +40 \| .* {asa:.4f} \|", page)
    for metric in metrics:
        for suffix in ("png", "svg"):
            assert (out_dir / "pictures" / f"quadrants_{metric}.{suffix}").is_file()
    for name in ("curves", "extremes_pix", "extremes_grid"):
        with Image.open(out_dir / "pictures" / f"quadrants_{name}.png") as picture:
            assert min(picture.size) > 300
    assert "video1" in caplog.text
    assert caplog.messages[-1] == f"tables and pictures in {out_dir}"


def test_means_over_counts_are_written(tmp_path):
    run_grids(tmp_path, n_spixels=[90, 200, 800])
    rows = read_rows(tmp_path / "curve_means.csv")
    assert [(row["range"], row["method"]) for row in rows] == [
        ("own", "pix"),
        ("own", "grid"),
        ("common", "pix"),
        ("common", "grid"),
    ]
    assert rows[2]["from"] == rows[3]["from"] == max(rows[0]["from"], rows[1]["from"], key=float)
    assert 100 <= float(rows[3]["from"]) < float(rows[3]["to"]) < 1000
    assert all(0 < float(row["asa"]) <= 1 for row in rows)
    page = (tmp_path / "summary.md").read_text()
    assert "## Means over the counts that all curves cover" in page
    assert "## Means over each curve's own part of 100 to 1000" in page


def test_single_count_has_no_means_over_counts(tmp_path):
    run_grids(tmp_path, n_spixels=[90])
    assert not (tmp_path / "curve_means.csv").exists()


class StopsAt(Frames):
    """Images that raise KeyboardInterrupt at one index, after the first few reads."""

    def __init__(self, stop_at):
        super().__init__()
        self.stop_at = stop_at
        self.n_asked = 0

    def __getitem__(self, idx):
        self.n_asked += 1
        if idx == self.stop_at and self.n_asked > 5:  # the first reads check the data and measure time
            raise KeyboardInterrupt
        return super().__getitem__(idx)


class Watched(Frames):
    """Images that write the index of each read to a file, in any process."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def __getitem__(self, idx):
        with self.path.open("a") as file:
            file.write(f"{idx}\n")
        return super().__getitem__(idx)


@pytest.mark.parametrize(
    ("stop_at", "n_workers"), [(0, 0), pytest.param(1, 2, marks=pytest.mark.slow), (3, 0)]
)
def test_interrupted_and_resumed_run_writes_the_same_files(tmp_path, stop_at, n_workers, caplog):
    caplog.set_level("INFO")
    whole = run_grids(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_grids(tmp_path / "parts", StopsAt(stop_at))
    assert f"stopped after {stop_at} of 4 images of Quadrants; continue with `resume`" in caplog.text
    watched = Watched(tmp_path / "requested")
    parts = run_grids(tmp_path / "parts", watched, resume=True, n_workers=n_workers)
    requested = [int(idx) for idx in watched.path.read_text().split()]
    if n_workers == 0:
        assert requested[: 5 - stop_at] == [0, *range(stop_at, 4)]  # the first read is a check
    else:
        assert set(range(stop_at, 4)) <= set(requested)
    assert (tmp_path / "parts/scores.csv").read_bytes() == (tmp_path / "whole/scores.csv").read_bytes()
    (ours,), (theirs,) = parts.values(), whole.values()
    for run, summary in ours.items():
        assert summary._replace(seconds=None) == theirs[run]._replace(seconds=None)
    curves = "pictures/quadrants_curves.svg"
    assert (tmp_path / "parts" / curves).read_bytes() == (tmp_path / "whole" / curves).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("n_bytes_left", [0, 20, 150, 1500, -700, -1])
def test_resume_with_a_truncated_journal(tmp_path, n_bytes_left):
    run_grids(tmp_path)
    whole, journal = ((tmp_path / name).read_bytes() for name in ("scores.csv", "scores.jsonl"))
    assert journal.count(b"\n") == 1 + 4  # seconds, images
    (tmp_path / "scores.jsonl").write_bytes(journal[:n_bytes_left])
    (tmp_path / "scores.csv").unlink()
    run_grids(tmp_path, resume=True)
    assert (tmp_path / "scores.csv").read_bytes() == whole
    assert (tmp_path / "scores.jsonl").read_bytes().splitlines()[1:] == journal.splitlines()[1:]
    assert len((tmp_path / "seconds.csv").read_text().splitlines()) == 1 + 2 * 3


def test_resuming_a_finished_run_only_reports(tmp_path):
    first = run_grids(tmp_path)
    (tmp_path / "summary.md").unlink()

    watched = Watched(tmp_path / "requested")
    assert run_grids(tmp_path, watched, resume=True) == first
    # One read to check the first image, and four for each method's sheet.
    assert sorted(watched.path.read_text().split()) == sorted("0" + 2 * "0123")
    assert (tmp_path / "summary.md").is_file()


def test_resume_without_results_starts(tmp_path):
    in_thread(run_grids, tmp_path / "new", resume=True, n_spixels=[6])  # as in a notebook or server
    assert (tmp_path / "new" / "results.json").is_file()


def test_two_sets_and_two_weights_of_the_position_resumed(tmp_path):
    methods = [
        NetworkMethod("pix", Segmenter(SSNPix(n_iter=2), InputScales(0.3, 4.0)), pos_scales=[2.0, 8.0])
    ]

    def run(out_dir, stop_at=None, **changes):
        second = Frames() if stop_at is None else StopsAt(stop_at)
        sets = [EvaluationSet("One", "one", Frames()), EvaluationSet("Two", "two", second)]
        settings = {
            "n_spixels": [6, 24],
            "metrics": ["asa"],
            "device": CPU,
            "n_workers": 0,
            "out_dir": out_dir,
        }
        return run_evaluation(methods, sets, **settings, **changes)

    whole = run(tmp_path / "whole")
    assert [list(by_run) for by_run in whole.values()] == 2 * [
        [Run("pix", count, pos_scale) for pos_scale in (2.0, 8.0) for count in (6, 24)]
    ]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_at=2)
    run(tmp_path / "parts", resume=True)
    assert (tmp_path / "parts/scores.csv").read_bytes() == (tmp_path / "whole/scores.csv").read_bytes()


def test_unrelated_pictures_are_kept(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "holiday.png").write_bytes(b"sea")
    for overwrite in (False, True):
        run_grids(tmp_path, n_spixels=[6], overwrite=overwrite)
    assert (tmp_path / "pictures" / "holiday.png").read_bytes() == b"sea"


def test_overwriting_removes_pictures_of_other_sets(tmp_path, bsds_root):
    for split, more in (("val", []), ("test", ["--overwrite"])):
        argv = eval_argv(
            bsds_root, f"--bsds_split={split}", f"--out_dir={tmp_path / 'o'}", "--nspix=24", *more
        )
        eval_base_model.main(argv)
    assert [path.name for path in (tmp_path / "o/pictures").iterdir()] == [
        "bsds500_test_extremes_ssn_pix.png"
    ]


def test_unwritable_pictures_folder_is_found_first(tmp_path):
    (tmp_path / "pictures").write_text("in the way")
    with pytest.raises(InputError, match="pictures"):
        run_grids(tmp_path)


def test_resume_refuses_other_files_of_the_same_names(bsds_root, tmp_path, capsys):
    argv = eval_argv(bsds_root, f"--out_dir={tmp_path / 'o'}", "--nspix=24", "--metrics=asa")
    eval_base_model.main(argv)
    eval_base_model.main([*argv, "--resume"])
    file = bsds_root / "BSDS500/data/images/test/101.jpg"
    Image.fromarray(make_quadrants()[0][::-1]).save(file, quality=50)
    error = fails_with(eval_base_model.main, [*argv, "--resume"], capsys)
    assert "data.BSDS500 test.sources_sha256" in error


def test_limit_scores_the_first_images_of_each_dataset(bsds_root, davis_root, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    argv = eval_argv(bsds_root, f"--davis2017_root={davis_root}", f"--davis_split={davis_root / 'both.txt'}")
    argv += [f"--out_dir={tmp_path / 'o'}", "--nspix=24", "--metrics=asa"]
    eval_base_model.main([*argv, "--limit=1"])
    last_lines = [line.partition("(")[2] for line in caplog.messages[-2:]]
    assert last_lines == ["1 images, 2 pairs)", "1 images, 1 pairs)"]
    rows = read_rows(tmp_path / "o" / "scores.csv")
    assert [(row["dataset"], row["image"]) for row in rows] == [
        ("BSDS500 test", "100"),
        ("BSDS500 test", "100"),
        ("DAVIS both.txt", "car/00000"),
    ]
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    assert record["options"]["limit"] == "1"
    assert [data["images"] for data in record["data"].values()] == [1, 1]
    error = fails_with(eval_base_model.main, [*argv, "--limit=2", "--resume"], capsys)
    assert "data.BSDS500 test.images is 1, not 2" in error


def test_limit_above_the_number_of_images_scores_all(bsds_root, caplog):
    caplog.set_level(logging.INFO)
    eval_base_model.main(eval_argv(bsds_root, "--nspix=24", "--metrics=asa", "--limit=9"))
    assert caplog.messages[-1].endswith("(2 images, 4 pairs)")


@pytest.mark.parametrize("metrics", [["n_spixels"], ["mean_iou_foreground", "size_spread"]])
def test_metrics_without_extremes_draw_no_sheets(tmp_path, metrics):
    images = [image._replace(annotations=[0 * image.annotations[0]]) for image in Frames()]  # only background
    run_grids(tmp_path, images, metrics=metrics)
    assert not list((tmp_path / "pictures").glob("*extremes*"))
    assert (tmp_path / "summary.md").is_file()


def test_failed_start_leaves_no_folder(tmp_path):
    for changes in ({"dataset": []}, {"n_spixels": [6, 9999]}):
        with pytest.raises(InputError):
            run_grids(tmp_path / "results", **changes)
    assert not (tmp_path / "results").exists()


def test_results_are_overwritten_only_with_overwrite(tmp_path):
    run_grids(tmp_path)
    before = (tmp_path / "scores.csv").read_bytes()
    with pytest.raises(InputError, match=rf"{tmp_path} .*resume.*overwrite"):
        run_grids(tmp_path, n_spixels=[6])
    assert (tmp_path / "scores.csv").read_bytes() == before
    run_grids(tmp_path, n_spixels=[6], overwrite=True)
    assert {row["requested"] for row in read_rows(tmp_path / "scores.csv")} == {"6"}
    assert not list((tmp_path / "pictures").glob("*.svg"))  # a single count has no curves


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_spixels": [6]}, r"requested .*\[6, 24, 40\], .*\[6\]"),
        ({"metrics": ["asa"]}, r"metrics .*\['asa', 'compactness'\], .*\['asa'\]"),
        ({"dataset": Frames()[:3]}, "data.Quadrants.images .*4.* 3"),
        ({"options": {"optflow_method": "gma"}}, "options.optflow_method .*gma"),
        ({"device": torch.device("cuda")}, "device .*cpu.* cuda"),
    ],
)
def test_resume_refuses_another_run(tmp_path, changes, expected):
    run_grids(tmp_path, options={"nworkers": "3"})
    before = (tmp_path / "scores.csv").read_bytes()
    with pytest.raises(InputError, match=f"`out_dir` {tmp_path} .*{expected}"):
        run_grids(tmp_path, resume=True, **changes)
    assert (tmp_path / "scores.csv").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{", "\0"])
def test_resume_with_a_damaged_record(tmp_path, content):
    run_grids(tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"`overwrite` .*run.json|`out_dir` .*`overwrite`"):
        run_grids(tmp_path, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        (1, '"seconds": [', '"seconds": ["x", '),
        (2, '": 0.', '": "zero'),
        (3, '{"asa": 0', '{"asa": "0", "was": 0'),
        (3, "Quadrants", "Others"),
        (4, '"pix", 6', '"pix", 7'),
        (4, '"scores"', '"score"'),
        (5, "{", "\0"),
        (5, "}", "\xff"),
    ],
)
def test_resume_with_a_damaged_journal(tmp_path, line, old, new):
    run_grids(tmp_path)
    journal = tmp_path / "scores.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    journal.write_text("".join(lines), encoding="latin-1")
    with pytest.raises(InputError, match=rf"`overwrite` .*line {line} of {journal}"):
        run_grids(tmp_path, resume=True)
    run_grids(tmp_path, overwrite=True)


def test_nan_is_null_in_the_journal(tmp_path):
    images = [image._replace(annotations=[0 * image.annotations[0]]) for image in Frames()]
    run_grids(tmp_path, images, metrics=["mean_iou_foreground"])
    text = (tmp_path / "scores.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text.splitlines()[1])["scores"][0]["pairs"] == [{"mean_iou_foreground": None}]
    whole = (tmp_path / "scores.csv").read_bytes()
    assert b",nan\n" in whole
    run_grids(tmp_path, images, metrics=["mean_iou_foreground"], resume=True)
    assert (tmp_path / "scores.csv").read_bytes() == whole


def test_full_disk_keeps_finished_images(tmp_path, monkeypatch):
    original = Path.open
    n_appended = []

    def open_until_full(path, mode="r", *args, **kwargs):
        if mode == "a":
            n_appended.append(path)
            if len(n_appended) > 3:  # seconds, two images
                raise OSError(28, "No space left on device")
        return original(path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_until_full)
        with pytest.raises(RunError, match=r"scores.jsonl .*No space left on device"):
            run_grids(tmp_path / "parts")
    lines = (tmp_path / "parts/scores.jsonl").read_text().splitlines()
    assert [json.loads(line).get("image") for line in lines] == [None, "video0/0", "video0/1"]
    run_grids(tmp_path / "parts", resume=True)
    run_grids(tmp_path / "whole")
    assert (tmp_path / "parts/scores.csv").read_bytes() == (tmp_path / "whole/scores.csv").read_bytes()


# The script


def test_side_by_side(bsds_root, base_weights, tmp_path, caplog):
    caplog.set_level("INFO")
    other = tmp_path / "other.pth"
    other.write_bytes(base_weights.read_bytes())
    results = eval_base_model.main(
        [
            f"--bsds_root={bsds_root}",
            f"--base_model_weights={base_weights}",
            "--nspix=24",
            "--niter=2",
            "--nworkers=0",
            "--device=cpu",
            f"--out_dir={tmp_path / 'results'}",
            "--compare",
            "slic",
            "ssn_pix",
            "grid",
            str(other),
            f"anchor={other}",
        ]
    )
    by_run = results["BSDS500 test"]
    assert [run.method for run in by_run] == ["base", "slic", "ssn_pix", "grid", "other", "anchor"]
    means = {run.method: summary.mean for run, summary in by_run.items()}
    assert means["base"] == means["other"] == means["anchor"]
    assert means["grid"] != means["ssn_pix"] != means["slic"]
    header = re.search(r"^\| method .*$", caplog.text, re.M)[0]
    columns = [
        "method",
        "pos_scale",
        "requested",
        "measured",
        "ASA",
        "UE",
        "BR",
        "BP",
        "CO",
        "EV",
        "mIoU",
        "s/image",
    ]
    assert re.findall(r"[\w/]+", header) == columns
    assert re.fullmatch(
        r"BSDS500 test, anchor: ASA 0\.\d{4} mIoU 0\.\d{4} superpixels [\d.]+ \(2 images, 4 pairs\)",
        caplog.messages[-1],
    )
    assert set(DEFAULT_METRICS) < set(read_rows(tmp_path / "results" / "scores.csv")[0])
    record = json.loads((tmp_path / "results" / "run.json").read_text())
    assert record["methods"]["anchor"]["sha256"] == file_sha256(other)
    assert record["methods"]["base"]["pos_scales"] == [7.0]
    assert record["methods"]["base"]["n_iter"] == record["methods"]["anchor"]["n_iter"] == 2  # files say 3


def test_sweep_over_counts_and_weights_of_position(bsds_root, caplog):
    caplog.set_level("INFO")
    results = eval_base_model.main(
        eval_argv(bsds_root, "--nspix", "12", "24", "12", "--pos_scale", "2", "8", "--compare", "grid")
    )
    (by_run,) = results.values()
    assert list(by_run) == [
        *(Run("ssn_pix", count, pos_scale) for pos_scale in (2, 8) for count in (12, 24)),
        Run("grid", 12, None),
        Run("grid", 24, None),
    ]
    loose, compact = (by_run[Run("ssn_pix", 24, pos_scale)].mean["compactness"] for pos_scale in (2.0, 8.0))
    assert compact > loose
    assert " images, " not in caplog.text  # a sweep ends in its table


def test_chosen_iou_without_background(bsds_root, caplog):
    caplog.set_level("INFO")
    argv = eval_argv(bsds_root, "--nspix=24", "--metrics", "mean_iou", "--eval_iou_ignore_background")
    ((summary,),) = (by_run.values() for by_run in eval_base_model.main(argv).values())
    assert f"mIoU {summary.mean['mean_iou_foreground']:.4f} superpixels" in caplog.messages[-1]
    assert re.search(r"\| +measured \| +mIoU fg \| +s/image \|", caplog.text)


def test_protocol_is_logged(bsds_root, caplog):
    caplog.set_level("INFO")
    merging = ["--fine_factor=2", "--merge_pos_scale=0.5"]
    eval_base_model.main(eval_argv(bsds_root, "--nspix=24", "--protocol", *merging))
    assert "Chance: no random number is drawn." in caplog.text
    assert "Data: BSDS500 test, 2 images." in caplog.text
    assert (
        "- ssn_pix: n_iter 5, color_scale 0.26, pos_scale_dist 1.0, fine_factor 2.0, merge_pos_scale 0.5, "
        "precision fp32, pos_scales [10.0]" in caplog.text
    )


def test_chosen_metrics_are_the_columns(bsds_root, tmp_path, caplog):
    caplog.set_level("INFO")
    argv = eval_argv(bsds_root, "--nspix=24", f"--out_dir={tmp_path}", "--metrics", "contour_density", "asa")
    eval_base_model.main(argv)
    assert re.search(r"\| +measured \| +CD \| +ASA \| +s/image \|", caplog.text)
    row = read_rows(tmp_path / "scores.csv")[0]
    assert list(row)[-3:] == ["n_spixels", "contour_density", "asa"]


def test_regularity_is_scored_if_chosen(bsds_root, tmp_path, caplog):
    caplog.set_level("INFO")
    argv = eval_argv(bsds_root, "--nspix=24", f"--out_dir={tmp_path}", "--metrics", "asa", "src", "smf", "gr")
    ((summary,),) = (by_run.values() for by_run in eval_base_model.main(argv).values())
    assert re.search(r"\| +measured \| +ASA \| +SRC \| +SMF \| +GR \| +s/image \|", caplog.text)
    for row in read_rows(tmp_path / "scores.csv"):
        src, smf, gr = (float(row[name]) for name in ("src", "smf", "gr"))
        assert 0 < gr < min(src, smf) < 1
        assert gr == pytest.approx(src * smf)
    assert f"{summary.mean['gr']:.4f}" in (tmp_path / "summary.md").read_text()


def test_default_metrics_are_computed_but_only_the_main_ones_shown(bsds_root, caplog):
    caplog.set_level("INFO")
    ((summary,),) = (
        by_run.values() for by_run in eval_base_model.main(eval_argv(bsds_root, "--nspix=24")).values()
    )
    assert set(summary.mean) == set(DEFAULT_METRICS)
    columns = r" \| +".join(METRICS[name].symbol for name in MAIN_METRICS)
    assert re.search(rf"\| +measured \| +{columns} \| +s/image \|", caplog.text)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--metrics", "accuracy"], "accuracy.*n_spixels"),
        (
            ["--compare", "seeds"],
            "--compare seeds: .*slic, ssn_pix, grid",
        ),
        (["--compare", "no.pth"], "no.pth"),
        (["--compare", "grid", "grid"], "--compare.* grid"),
        (["--compare", "ssn_pix"], "--compare.* ssn_pix"),
        (["--compare", "grid={weights}"], ""),
        (["--compare", "{tmp}/a=b/odd=name.pth"], "--compare {tmp}/a=b/odd=name.pth: "),
        (
            ["--compare", "a|b={weights}"],
            r"--compare a\|b={weights}: ",
        ),
        (["--resume"], "--resume .*--out_dir"),
        (["--overwrite"], "--overwrite .*--out_dir"),
        (["--out_dir={tmp}/o", "--overwrite", "--resume"], "not allowed with argument"),
        (["--out_dir={weights}/o"], "--out_dir {weights}/o"),
        (["--nspix", "24", "0"], "argument --nspix: .*'0'"),
        (["--nspix"], "argument --nspix"),
        (["--limit=0"], "argument --limit: .*'0'"),
        (["--nspix", "24", "9999"], "--nspix 9999 .*5520 pixels of 100"),
        (["--pos_scale", "-1"], "argument --pos_scale"),
        (["--compare", "composite={composite}"], "{composite} .*composite .*base"),
    ],
)
def test_bad_options(bsds_root, base_weights, composite_weights, tmp_path, capsys, argv, expected):
    names = {"weights": base_weights, "composite": composite_weights, "tmp": tmp_path}
    argv = [option.format(**names) for option in argv]
    (tmp_path / "a=b").mkdir()
    (tmp_path / "a=b" / "odd=name.pth").write_bytes(base_weights.read_bytes())
    if not expected:  # a weight file may have any unused name
        assert eval_base_model.main(eval_argv(bsds_root, *argv, "--nspix=24"))
        return
    error = fails_with(eval_base_model.main, eval_argv(bsds_root, *argv), capsys)
    assert re.search(expected.format(**names), error)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_script_leaves_no_process_and_resumes(bsds_root, tmp_path, number):
    out_dir = tmp_path / "results"
    image_dir, annotation_dir = (
        bsds_root / "BSDS500/data" / kind / "test" for kind in ("images", "groundTruth")
    )
    for idx in range(100):
        (image_dir / f"{200 + idx}.jpg").symlink_to(image_dir / "100.jpg")
        (annotation_dir / f"{200 + idx}.mat").symlink_to(annotation_dir / "100.mat")
    argv = eval_argv(bsds_root, "--nspix=24", "--metrics=asa", f"--out_dir={out_dir}", "--nworkers=2")
    run = subprocess.Popen(
        [sys.executable, REPO_ROOT / "eval_base_model.py", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: (out_dir / "scores.jsonl").exists() and len(read_lines(out_dir / "scores.jsonl")) > 10)
    children = child_processes(run.pid)
    assert len(children) >= 2
    os.killpg(run.pid, number)  # as a terminal or a cluster does
    output, errors = run.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert run.returncode == 128 + number
        assert errors == ""
        assert re.search(r"stopped after \d+ of 102 images of BSDS500 test; continue with --resume", output)
    wait_for(lambda: not any(is_running(pid) for pid in children))

    n_images = len(list(bsds_root.glob("BSDS500/data/images/test/*.jpg")))
    done = subprocess.run(
        [sys.executable, REPO_ROOT / "eval_base_model.py", *argv, "--resume"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(out_dir / "scores.csv")
    assert len(rows) == n_images * 2
    assert len({(row["image"], row["annotation"]) for row in rows}) == len(rows)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def child_processes(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Pictures


def summary_at(method, count, asa, pos_scale=None):
    run = Run(method, count, pos_scale)
    return summarize(run, [ImageScores("a", Scores({"n_spixels": count}, [{"asa": asa}]))])


def test_curves_have_a_line_and_a_name_for_each_method():
    summaries = [summary_at("slic", 400, 0.8), summary_at("slic", 100, 0.7), summary_at("grid", 100, 0.5)]
    figure = draw_curves(summaries, ["asa"], "Quadrants")
    (panel,) = figure.axes
    lines = [line.get_xydata().tolist() for line in panel.lines]
    assert lines == [[[100, 0.7], [400, 0.8]], [[100, 0.5]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["slic", "grid"]


def test_legend_uses_a_free_panel():
    summaries = [summary_at("slic", 400, 0.8), summary_at("grid", 100, 0.5)]
    figure = draw_curves(summaries, ["asa"] * 7, "Quadrants")
    assert len(figure.axes) == 8
    assert not figure.legends
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["slic", "grid"]


def test_legend_shows_pos_scale_if_it_differs():
    summaries = [
        summary_at("base", 100, 0.7, 5.0),
        summary_at("base", 100, 0.8, 10.0),
        summary_at("grid", 90, 0.1),
    ]
    names = [text.get_text() for text in draw_curves(summaries, ["asa"], "x").legends[0].get_texts()]
    assert names == ["base, pos_scale 5", "base, pos_scale 10", "grid"]


@pytest.mark.draws
@pytest.mark.parametrize("factor", [1, 100_000])
def test_sheet_shows_leaks_in_red(tmp_path, factor):
    image_rgb, gt_labels = make_quadrants()
    gt_labels = factor * gt_labels + factor - 1
    labels = np.zeros_like(gt_labels)  # takes segment 0: all else leaks
    figure = draw_sheet([[SheetImage("worst", image_rgb, labels, gt_labels)]], "title")
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown[:20, :20], image_rgb[:20, :20])
    assert (shown[40:, :40, 0] > shown[40:, :40, 1:].max(axis=-1)).all()
    save_figure(figure, tmp_path / "sheet.png")
    save_figure(figure, tmp_path / "sheet.svg")
    assert (tmp_path / "sheet.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("first_scored_row", [40, 60])
def test_void_does_not_leak_in_the_sheet(first_scored_row):
    image_rgb, labels = make_quadrants()
    gt_labels = np.arange(92)[None].repeat(60, axis=0)
    gt_labels[:first_scored_row] = -1  # superpixels 0 and 1 are void
    figure = draw_sheet([[SheetImage("worst", image_rgb, labels // 2 + 4, gt_labels)]], "title")
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown[:25], image_rgb[:25])
    is_red = shown[45:, ..., 0] > shown[45:, ..., 1:].max(axis=-1)
    assert is_red[:, 50:].all() == (first_scored_row == 40)


def test_many_methods_differ_without_colour():
    summaries = [summary_at(f"method{idx}", 100, 0.1 * idx) for idx in range(20)]
    lines = draw_curves(summaries, ["asa"], "many").axes[0].lines
    assert len({(line.get_marker(), str(line._unscaled_dash_pattern)) for line in lines}) == 20


def test_model_stays_on_its_device(device):
    method = NetworkMethod("base", Segmenter(SSNModel(3), InputScales(0.3, 4.0), device=device))
    sets = [EvaluationSet("Quadrants", "quadrants", Frames())]
    (by_run,) = run_evaluation([method], sets, n_spixels=[24], device=device, n_workers=0).values()
    assert by_run[Run("base", 24, 4.0)].n_pairs == 8
