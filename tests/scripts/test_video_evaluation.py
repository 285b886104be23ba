"""Evaluation of whole videos, end to end."""

import csv
import json
import math
import re

import h5py
import numpy as np
import pytest
from PIL import Image

import eval_base_model
import eval_optflow_composite_model
import inference_base_model
import inference_optflow_composite_model
from helpers import fails_with
from lib.datasets.davis import DAVISDataset
from lib.evaluation.loop import Run
from lib.metrics.video import VIDEO_METRICS

VIDEOS = ("car", "dogs")


@pytest.fixture
def moving_root(davis_root):
    """The miniature DAVIS with a third frame in each video: the second one, moved right by 4 pixels."""
    for part, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        for video in VIDEOS:
            folder = davis_root / "DAVIS" / part / "480p" / video
            with Image.open(folder / f"00001.{suffix}") as image:
                moved = Image.fromarray(np.roll(np.array(image), 4, axis=1), image.mode)
                if image.mode == "P":
                    moved.putpalette(image.getpalette())
            moved.save(folder / f"00002.{suffix}")
    return davis_root


@pytest.fixture
def base_argv(moving_root, base_weights):
    return [
        f"--davis2017_root={moving_root}",
        f"--davis_split={moving_root / 'both.txt'}",
        f"--base_model_weights={base_weights}",
        "--video_metrics",
        "--nspix=24",
        "--nworkers=0",
        "--device=cpu",
    ]


@pytest.fixture
def composite_argv(base_argv, composite_weights, optflow_folder):
    """Flow archives of three frames."""
    for path in optflow_folder.iterdir():
        with h5py.File(path, "r") as file:
            flows = {name: np.repeat(file[name][()], 2, axis=0) for name in file}
        with h5py.File(path, "w") as file:
            for name, values in flows.items():
                file.create_dataset(name, data=values)
    return [
        *base_argv,
        f"--comp_model_weights={composite_weights}",
        f"--davis_optflow_folder={optflow_folder}",
    ]


def write_masks(root, folder, *, as_png=False):
    """Write the masks of both videos as label volumes."""
    folder.mkdir()
    dataset = DAVISDataset(root, str(root / "both.txt"))
    for video in VIDEOS:
        frames = [image.annotations[0] for image in dataset if image.name.startswith(video)]
        if as_png:
            (folder / video).mkdir()
            for idx, labels in enumerate(frames):
                Image.fromarray(labels.astype(np.uint16)).save(folder / video / f"{idx:05}.png")
        else:
            with h5py.File(folder / f"{video}.h5", "w") as file:
                file.create_dataset("labels", data=np.stack(frames))
    return folder


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_composite_base_and_labels_of_other_software(composite_argv, moving_root, tmp_path, caplog):
    caplog.set_level("INFO")
    volumes = write_masks(moving_root, tmp_path / "volumes")
    pngs = write_masks(moving_root, tmp_path / "pngs", as_png=True)
    out_dir = tmp_path / "results"
    argv = [*composite_argv, "--nspix", "40", f"--out_dir={out_dir}"]
    argv += ["--compare", f"masks={volumes}", f"pngs={pngs}", "grid"]
    (by_run,) = eval_optflow_composite_model.main(argv).values()

    methods = ["base", "base_tracked", "composite", "composite_tracked"]
    expected = [Run(method, count, 7.0) for method in methods for count in (24, 40)]
    expected += [
        Run("masks", None, None),
        Run("pngs", None, None),
        Run("grid", 24, None),
        Run("grid", 40, None),
    ]
    assert list(by_run) == expected
    mean = {run: summary.mean for run, summary in by_run.items()}
    masks = mean[Run("masks", None, None)]
    perfect = {"sa3d": 1, "ue3d": 0, "br3d": 1, "tex": 1, "asa": 1, "boundary_recall": 1, "n_labels": 2.5}
    assert {name: masks[name] for name in perfect} == perfect
    assert masks == mean[Run("pngs", None, None)]
    for run in expected:
        if run.method in ("base", "composite", "grid"):
            assert mean[run]["tex"] == pytest.approx(1 / 3)  # new labels in every frame
            assert mean[run]["n_labels"] == pytest.approx(3 * mean[run]["n_spixels"])
        if run.method.endswith("_tracked"):
            assert mean[run]["tex"] > 0.5
    for count in (24, 40):  # the models merge to exactly the requested number
        assert mean[Run("composite", count, 7.0)]["n_spixels"] == count

    rows = read_rows(out_dir / "video_summary.csv")
    assert [row["video"] for row in rows] == ["", "car", "dogs"] * len(expected)
    for run, summary in by_run.items():
        own = [
            row
            for row in rows
            if row["method"] == run.method and row["requested"] == str(run.n_spixels or "")
        ]
        for name in VIDEO_METRICS:
            overall, *videos = (float(row[name] or "nan") for row in own)
            assert overall == pytest.approx(np.mean(videos), nan_ok=True)
            assert overall == pytest.approx(summary.mean[name], abs=1e-15, nan_ok=True)
    content = json.loads((out_dir / "video_results.json").read_text())
    assert content["summaries"][0]["sa3d"] == float(rows[0]["sa3d"])
    assert content["summaries"][0]["size_variation"] is None
    assert content["methods"]["composite_tracked"]["tracked"] is True
    assert content["methods"]["masks"] == {"labels": "volumes", "pos_scales": [None]}
    assert content["data"]["DAVIS both.txt"]["images"] == 6
    assert content["options"]["nspix"] == "[24, 40]"
    page = (out_dir / "video_summary.md").read_text()
    assert page.startswith("# DAVIS both.txt\n\n2 videos, 6 frames\n\n## Videos\n\n| video | method ")
    assert "SA3D: 3D segmentation accuracy" in page
    assert "masks: SA3D 1.0000 UE3D 0.0000 BR3D 1.0000 " in caplog.text
    assert re.fullmatch(
        r"DAVIS both.txt, grid, 40 superpixels: SA3D 0\.\d{4} UE3D \d\.\d{4} BR3D \d\.\d{4} EV3D 0\.\d{4} "
        r"TEX 0\.3333 SV nan ASA 0\.\d{4} BR \d\.\d{4} superpixels \d\d\.\d labels \d+\.\d "
        r"\(2 videos, 6 frames\)",
        caplog.messages[-1],
    )


@pytest.mark.parametrize("name", ["base", "composite"])
def test_tracking_is_that_of_inference(
    name,
    composite_argv,
    base_argv,
    moving_root,
    optflow_folder,
    base_weights,
    composite_weights,
    tmp_path,
    pyav,
):
    """`--temporal` writes labels that score as the tracked model does, with estimated and with read flow."""
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    for video in VIDEOS:
        argv = [
            f"--video={moving_root / 'DAVIS/JPEGImages/480p' / video}",
            "--temporal",
            "--nspix=24",
            f"--out={tmp_path / 'overlay.mp4'}",
            f"--save_labels={volumes / f'{video}.h5'}",
            "--device=cpu",
        ]
        if name == "base":
            inference_base_model.main([*argv, f"--base_model_weights={base_weights}"])
        else:
            argv.append(f"--optflow_data={optflow_folder / f'optflow_gma_{video}.h5'}")
            inference_optflow_composite_model.main([*argv, f"--comp_model_weights={composite_weights}"])
    compared = ["--compare", f"temporal={volumes}"]
    if name == "base":
        (by_run,) = eval_base_model.main([*base_argv, *compared]).values()
    else:
        (by_run,) = eval_optflow_composite_model.main([*composite_argv, *compared]).values()
    expected = by_run[Run(f"{name}_tracked", 24, 7.0)]
    assert by_run[Run("temporal", None, None)].by_video == expected.by_video
    assert expected.mean["n_labels"] < 2 * expected.mean["n_spixels"]


def test_first_frames_only(base_argv, moving_root, tmp_path):
    """Label volumes may hold the frames that are scored, or all."""
    volumes = write_masks(moving_root, tmp_path / "volumes")
    with h5py.File(volumes / "car.h5", "r+") as file:
        first = file["labels"][:2]
        del file["labels"]
        file["labels"] = first
    (by_run,) = eval_base_model.main([*base_argv, "--max_frames=2", "--compare", f"masks={volumes}"]).values()
    assert {summary.n_frames for summary in by_run.values()} == {4}
    assert by_run[Run("masks", None, None)].mean["sa3d"] == 1
    assert by_run[Run("base", 24, 7.0)].mean["tex"] == 1 / 2


def test_single_frames_need_no_flow(base_argv):
    (by_run,) = eval_base_model.main([*base_argv, "--max_frames=1"]).values()
    for run in (Run("base", 24, 7.0), Run("base_tracked", 24, 7.0)):
        assert by_run[run].mean["tex"] == 1
        assert math.isnan(by_run[run].mean["size_variation"])


def test_weights_of_the_position_are_swept(base_argv, caplog):
    caplog.set_level("INFO")
    (by_run,) = eval_base_model.main([*base_argv, "--max_frames=2", "--pos_scale", "2", "20"]).values()
    for method in ("base", "base_tracked"):
        loose, compact = (by_run[Run(method, 24, scale)].mean for scale in (2.0, 20.0))
        assert loose["ev3d"] != compact["ev3d"]
    assert caplog.messages[-1].startswith(
        "DAVIS both.txt, base_tracked, 24 superpixels, position scale 20: SA3D "
    )


def test_results_are_overwritten_only_with_overwrite(base_argv, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    argv = [*base_argv, "--max_frames=1", f"--out_dir={tmp_path / 'results'}", "--protocol"]
    eval_base_model.main(argv)
    assert "Labels: a supervoxel is all pixels of a label in a video." in caplog.text
    assert "- base_tracked: " in caplog.text
    before = (tmp_path / "results" / "video_summary.csv").read_bytes()
    error = fails_with(eval_base_model.main, argv, capsys)
    assert re.search(r"--out_dir .*results holds results already: --overwrite replaces them", error)
    eval_base_model.main([*argv, "--overwrite"])
    assert (tmp_path / "results" / "video_summary.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--video_metrics=False", "--max_frames=2"], "--max_frames needs --video_metrics"),
        (["--max_frames=0"], "argument --max_frames: "),
        (["--bsds_root={tmp}"], "--bsds_root cannot be used with --video_metrics"),
        (["--data_root={tmp}"], "--data_root cannot be used with --video_metrics"),
        (["--metrics=asa"], "--metrics cannot be used with --video_metrics"),
        (["--limit=1"], "--limit cannot be used with --video_metrics"),
        (["--out_dir={tmp}/o", "--resume"], "--resume cannot be used with --video_metrics"),
        (
            ["--eval_iou_ignore_background"],
            "--eval_iou_ignore_background cannot be used with --video_metrics",
        ),
        (["--eval_on_davis=False"], "--video_metrics scores DAVIS: "),
        (["--overwrite"], "--overwrite needs --out_dir"),
        (
            ["--video_metrics=False", "--compare", "a={volumes}"],
            "--compare a={volumes}: .*need --video_metrics",
        ),
        (["--compare", "a={tmp}/none"], "--compare a={tmp}/none: no such method"),
        (["--compare", "a b={volumes}"], "--compare a b={volumes}: a name may hold .* use NAME=FOLDER"),
        (["--compare", "base_tracked={volumes}"], "--compare: two methods are named base_tracked"),
        (["--compare", "a={tmp}/empty"], "{tmp}/empty lacks the labels of car: "),
        (["--compare", "a={short}"], "{short}/dogs.h5 holds the labels of 2 frames, but dogs has 3$"),
        (
            ["--compare", "a={short}", "--max_frames=1"],
            "dogs.h5 .* 2 frames, but dogs has 3, 1 of them scored$",
        ),
        (
            ["--compare", "a={small}"],
            r"labels of {small}/car.h5 are \(30, 92\), but the frames are \(60, 92\)",
        ),
        (["--nspix=9999"], "--nspix 9999 .*5520 pixels of car/00000"),
    ],
)
def test_bad_options(base_argv, moving_root, tmp_path, capsys, more, expected):
    names = {"tmp": tmp_path, **{name: tmp_path / name for name in ("volumes", "short", "small", "empty")}}
    names["empty"].mkdir()
    for name, video, part in (
        ("volumes", "car", ...),
        ("short", "dogs", np.s_[:2]),
        ("small", "car", np.s_[:, :30]),
    ):
        write_masks(moving_root, names[name])
        with h5py.File(names[name] / f"{video}.h5", "r+") as file:
            kept = file["labels"][part]
            del file["labels"]
            file["labels"] = kept
    argv = [*base_argv, *(option.format(**names) for option in more)]
    assert re.search(expected.format(**names), fails_with(eval_base_model.main, argv, capsys))


def test_videos_need_davis(base_weights, tmp_path, capsys):
    argv = ["--video_metrics", f"--base_model_weights={base_weights}"]
    error = fails_with(eval_base_model.main, argv, capsys)
    assert "--video_metrics scores DAVIS: give --davis2017_root" in error


def test_several_ranks_are_refused(base_argv, monkeypatch, capsys):
    monkeypatch.setattr("lib.cli.evaluation.n_ranks", lambda: 2)
    assert "--video_metrics needs a single process" in fails_with(eval_base_model.main, base_argv, capsys)
