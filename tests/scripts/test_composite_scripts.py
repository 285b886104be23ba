"""Scripts of the composite model and of optical flow, end to end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import estimate_optflow
import eval_base_model
import eval_optflow_composite_model
import inference_base_model
import inference_optflow_composite_model
import train_optflow_composite_model
from helpers import (
    INSIDE,
    SHORT_TRAINING,
    check_recipe,
    ctrl_c_in_second_step,
    fails_with,
    translated_frames,
    write_flo,
    write_frames,
)
from lib.datasets.davis import DAVISDataset
from lib.evaluation.settings_choice import choose_and_store
from lib.files.images import ImageReader
from lib.metrics.definitions import ContingencyTable, mean_iou
from lib.optflow.archive import FlowArchive
from lib.optflow.lookup import AUTO, flows_of_images
from lib.runtime.errors import InputError, RunError
from lib.weights import file_sha256, load_model, read_checkpoint
from model import SSNModel

REPO_ROOT = Path(__file__).parents[2]


@pytest.fixture
def data_argv(davis_root, optflow_folder):
    return [f"--davis2017_root={davis_root}", f"--davis_optflow_folder={optflow_folder}"]


@pytest.fixture
def train_argv(data_argv, davis_root, base_weights, tmp_path):
    """Return the options of a training run of two steps, in the folder `run`."""
    return [
        *data_argv,
        f"--davis_train_split={davis_root / 'both.txt'}",
        f"--davis_val_split={davis_root / 'both.txt'}",
        f"--base_model_weights={base_weights}",
        f"--out_dir={tmp_path / 'run'}",
        *SHORT_TRAINING,
        "--optflow_deepfdim=3",
        "--optflow_scale=2",
    ]


@pytest.mark.slow
def test_train_evaluate_and_segment(
    train_argv, data_argv, davis_root, optflow_folder, base_weights, tmp_path, device, caplog
):
    caplog.set_level("INFO")
    on_device = f"--device={device}"
    state = train_optflow_composite_model.main([*train_argv, on_device])
    assert state.step == 2
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 2]
    assert log[-1]["score"] == log[-1]["davis_val_mean_iou"]
    assert "4 images in train, 4 images in davis_val" in caplog.text

    weights = tmp_path / "run" / "best_model.pth"
    loaded = load_model(weights)
    assert loaded.base_sha256 == file_sha256(base_weights)
    assert loaded.scales == (0.3, 7.0, 2.0)  # the first two come from the base model
    assert loaded.model.config()["n_extra_features"] == 3
    base = load_model(base_weights).model.feature_extract.state_dict()
    for name, value in loaded.model.feature_extract_color.state_dict().items():
        assert value.equal(base[name]), name

    common = [f"--base_model_weights={base_weights}", "--nspix=24", on_device]
    split = f"--davis_split={davis_root / 'both.txt'}"
    composite = f"--comp_model_weights={weights}"
    (by_run,) = eval_optflow_composite_model.main(
        [*data_argv, *common, split, composite, "--nworkers=0"]
    ).values()
    results = {run.method: summary for run, summary in by_run.items()}
    assert list(results) == ["base", "composite"]
    assert results["composite"].mean["mean_iou"] == pytest.approx(log[-1]["davis_val_mean_iou"], abs=1e-3)
    assert results["base"].mean != results["composite"].mean
    for name, line in zip(results, caplog.messages[-2:], strict=True):
        assert re.fullmatch(
            rf"DAVIS .*both\.txt, {name}: ASA 0\.\d{{4}} mIoU 0\.\d{{4}} superpixels [\d.]+ "
            r"\(4 images, 4 pairs\)",
            line,
        )
    assert re.search(r"^\| car +\| composite", caplog.text, re.M)
    davis_root_argv = [f"--davis2017_root={davis_root}", split]
    (alone,) = eval_base_model.main([*common, *davis_root_argv, "--nworkers=0"]).values()
    assert [summary.mean for summary in alone.values()] == [results["base"].mean]

    inference_optflow_composite_model.main(
        [
            composite,
            on_device,
            "--nspix=24",
            f"--image={davis_root / 'DAVIS/JPEGImages/480p/car/00001.jpg'}",
            f"--optflow_data={optflow_folder / 'optflow_gma_car.h5'}",
            "--optflow_data_fr_idx=1",
            f"--out={tmp_path / 'overlay.png'}",
            f"--save_labels={tmp_path / 'labels.npy'}",
            f"--save_flow={tmp_path / 'flow.png'}",
            f"--save_features={tmp_path / 'features.npz'}",
            "--profile",
        ]
    )
    labels = np.load(tmp_path / "labels.npy")
    assert labels.shape == (60, 92)
    n_measured = labels.max() + 1
    assert Image.open(tmp_path / "overlay.png").size == (92, 60)
    flow_picture = np.asarray(Image.open(tmp_path / "flow.png"))
    assert flow_picture.shape == (60, 2 * 92, 3)
    assert (flow_picture[40, 92 + 46 :] == (0, 255, 255)).all()  # back to the left
    assert (flow_picture[40, : 92 + 46] == 255).all()
    with np.load(tmp_path / "features.npz") as features:
        assert features["pixel_features"].shape == (7, 60, 92)
        assert features["spixel_features"].shape == (n_measured, 7)
        assert features["n_base_features"] == 4
    assert "frame 1: flow to the previous frame only, as this is the last frame" in caplog.messages[-3]
    assert f"24 superpixels requested, {n_measured} measured" in caplog.messages[-2]
    assert re.match("reading .*network .*writing", caplog.messages[-1])


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted(train_argv, base_weights, tmp_path, monkeypatch):
    argv = [*train_argv, "--train_iter=4"]
    whole = train_optflow_composite_model.main([*argv, f"--out_dir={tmp_path / 'whole'}"])
    with ctrl_c_in_second_step(monkeypatch):
        train_optflow_composite_model.main(argv)
    last_model = tmp_path / "run" / "last_model.pth"
    base_sha256 = file_sha256(base_weights)
    base_weights.unlink()  # the checkpoint holds the base weights too
    resumed = train_optflow_composite_model.main([f"--resume={last_model}"])
    assert read_checkpoint(last_model)["base_sha256"] == base_sha256
    for name, value in whole.model.state_dict().items():
        assert value.equal(resumed.model.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--niter=9", "--pos_scale=2", "--optflow_scale=9"])
def test_resume_refuses_contradicting_options(train_argv, option, tmp_path, capsys):
    train_optflow_composite_model.main(train_argv)
    last_model = tmp_path / "run" / "last_model.pth"
    error = fails_with(train_optflow_composite_model.main, [f"--resume={last_model}", option], capsys)
    assert re.search(rf"{option.replace('=', ' ')}(\.0)? contradicts .* of --resume {last_model}", error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    ["--optflow_scale=9", "--pos_scale=2", "--color_scale=0.5", "--precision=bf16", "--patch_jitter=1"],
)
def test_training_options_have_an_effect(train_argv, tmp_path, option):
    losses = []
    for run, more in (("plain", []), ("changed", [option])):
        train_optflow_composite_model.main([*train_argv, f"--out_dir={tmp_path / run}", *more])
        losses.append(json.loads((tmp_path / run / "log.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            ["--davis_train_split=val"],
            "--davis_train_split or --davis_val_split ",
        ),
        (["--davis_train_split=trian"], "--davis_train_split trian "),
        (["--optflow_method=dis"], "optflow_dis_car.h5, optflow_dis_dogs.h5"),
        (["--davis_optflow_folder={tmp}/no"], "argument --davis_optflow_folder: .*{tmp}/no"),
        (["--base_model_weights=none"], "--base_model_weights none"),
        (["--base_model_weights={composite}"], "{composite} .*composite .*base"),
        (["--deepfdim=15"], "--deepfdim 15 .*{base}.* 4"),
        (["--resume={base}"], "--resume {base} "),
        (["--optflow_deepfdim=0"], "argument --optflow_deepfdim"),
        (["--nspix=4097"], "--nspix 4097 .*4096 pixels"),
        (["--data_on_device"], "--data_on_device True: .*extra channels"),
    ],
)
def test_bad_training_options(train_argv, more, expected, base_weights, composite_weights, tmp_path, capsys):
    paths = {"tmp": tmp_path, "base": base_weights, "composite": composite_weights}
    more = [option.format(**paths) for option in more]
    error = fails_with(train_optflow_composite_model.main, [*train_argv, *more], capsys)
    assert re.search(expected.format(**paths), error)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_composites_side_by_side(data_argv, davis_root, base_weights, composite_weights, tmp_path):
    (by_run,) = eval_optflow_composite_model.main(
        [
            *data_argv,
            f"--davis_split={davis_root / 'both.txt'}",
            f"--base_model_weights={base_weights}",
            f"--comp_model_weights={composite_weights}",
            f"--out_dir={tmp_path / 'results'}",
            "--nspix=24",
            "--optflow_scale=0",
            "--niter=2",
            "--nworkers=0",
            "--metrics=mean_iou",
            "--compare",
            f"again={composite_weights}",
            f"base_again={base_weights}",
            "slic",
        ]
    ).values()
    means = {run.method: summary.mean for run, summary in by_run.items()}
    assert list(means) == ["base", "composite", "again", "base_again", "slic"]
    assert means["composite"] == means["again"]
    assert means["base"] == means["base_again"]
    record = json.loads((tmp_path / "results" / "run.json").read_text())
    assert [record["methods"][name]["n_iter"] for name in list(means)[:4]] == 4 * [2]  # files say 3
    assert record["methods"]["composite"]["extra_scale"] == 0
    assert record["methods"]["base"]["extra_scale"] is None
    assert (tmp_path / "results" / "pictures" / "davis_both_extremes_composite.png").is_file()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "--davis_split test "),
        (["--base_model_weights={composite}"], "{composite} .*composite .*base"),
        (["--comp_model_weights={base}"], "{base} .*base .*composite"),
        (["--base_model_weights=none", "{both}"], "--base_model_weights none .*{composite}"),
        (["--optflow_deepfdim=5"], "--optflow_deepfdim 5 .*{composite}.* 3"),
    ],
)
def test_bad_evaluation_options(
    data_argv, davis_root, more, expected, base_weights, composite_weights, capsys
):
    paths = {"base": base_weights, "composite": composite_weights}
    both = f"--davis_split={davis_root / 'both.txt'}"
    argv = [*data_argv, f"--base_model_weights={base_weights}", f"--comp_model_weights={composite_weights}"]
    argv += [option.format(both=both, **paths) for option in more]
    if more:
        argv.append(both)
    error = fails_with(eval_optflow_composite_model.main, argv, capsys)
    assert re.search(expected.format(**paths), error)


def test_mask_of_a_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inference_optflow_composite_model.main(
        [f"--mask={REPO_ROOT / 'demo' / 'clip_mask.png'}", "--nspix=24", "--save_labels=labels.npy"]
    )
    mask = np.asarray(Image.open(REPO_ROOT / "demo/clip_mask.png")) > 0
    np.testing.assert_array_equal(np.load("labels.npy") >= 0, mask)


def test_levels_of_frames(davis_root, optflow_folder, composite_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = davis_root / "DAVIS/JPEGImages/480p/car"
    argv = [f"--comp_model_weights={composite_weights}", f"--optflow_data={optflow_folder}", "--device=cpu"]
    argv += [f"--image={frames}", "--save_labels=l", "--levels", "20", "5"]
    inference_optflow_composite_model.main(argv)
    for name in ("00000.h5", "00001.h5"):
        with h5py.File(tmp_path / "l" / name) as file:
            assert [file[f"level_{n_spixels}"][:].max() + 1 for n_spixels in (5, 20)] == [5, 20]


def test_frames_of_several_videos(davis_root, optflow_folder, composite_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = davis_root / "DAVIS/JPEGImages/480p"
    common = [f"--comp_model_weights={composite_weights}", "--nspix=24", "--device=cpu"]
    flow = f"--optflow_data={optflow_folder}"

    def segment(*argv):
        return inference_optflow_composite_model.main([*common, *argv])

    files = ["--out=o", "--save_labels=l", "--save_flow=f"]
    summary = segment(f"--image={frames}", flow, *files, "--batchsize=2")
    assert summary.n_done == 4
    names = {f"{video}/0000{idx}" for video in ("car", "dogs") for idx in range(2)}
    for folder in ("o", "l", "f"):
        assert {str(path.relative_to(folder).with_suffix("")) for path in Path(folder).rglob("*.*")} == names
    flow_picture = np.asarray(Image.open("f/dogs/00000.png"))  # to the next frame alone
    assert (flow_picture[40, 46:92] == (255, 0, 0)).all()
    assert (flow_picture[40, 92 : 92 + 46] == 255).all()
    for name in names:
        video, idx = name.split("/")
        archive = f"--optflow_data={optflow_folder / f'optflow_gma_{video}.h5'}"
        segment(
            f"--image={frames / name}.jpg",
            archive,
            f"--optflow_data_fr_idx={int(idx)}",
            "--save_labels=one.npy",
        )
        np.testing.assert_array_equal(np.load("one.npy"), np.load(f"l/{name}.npy"))

    Path("l/car/00001.npy").unlink()
    summary = segment(f"--image={frames}", flow, *files, "--skip_existing")
    assert (summary.n_done, summary.n_skipped) == (1, 3)


def test_frame_without_flow_does_not_stop_the_others(
    davis_root, optflow_folder, composite_weights, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    with h5py.File(optflow_folder / "optflow_gma_car.h5", "r+") as file:
        file["inv_flows"][0, 3, 4, 0] = np.nan
    with pytest.raises(RunError, match="1 of the images failed"):
        inference_optflow_composite_model.main(
            [
                f"--comp_model_weights={composite_weights}",
                "--nspix=24",
                f"--image={davis_root / 'DAVIS/JPEGImages/480p'}",
                f"--optflow_data={optflow_folder}",
            ]
        )
    assert "optflow_gma_car.h5: the flow of frame 1 is NaN, infinite or above" in caplog.text
    assert len(list(Path("results").rglob("*.png"))) == 3


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_broken_flow_in_evaluation_is_one_error_line(
    data_argv, davis_root, optflow_folder, base_weights, composite_weights, n_workers, capsys
):
    path = optflow_folder / "optflow_gma_dogs.h5"
    with h5py.File(path, "r+") as file:
        file["flows"][0, 3, 4, 0] = np.nan
    argv = [
        *data_argv,
        f"--davis_split={davis_root / 'both.txt'}",
        f"--base_model_weights={base_weights}",
        f"--comp_model_weights={composite_weights}",
        f"--nworkers={n_workers}",
        "--nspix=24",
    ]
    error = fails_with(eval_optflow_composite_model.main, argv, capsys)
    assert f"error: {path}: the flow of frame 0 is NaN, infinite or above" in error


@pytest.mark.slow
def test_segmenting_the_demo_frame_needs_no_option_and_flow_helps(tmp_path):
    done = subprocess.run(
        [sys.executable, REPO_ROOT / "inference_optflow_composite_model.py", "--save_labels=labels.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "frame 1: flow to the next and to the previous frame" in done.stdout
    assert (tmp_path / "results.png").is_file()
    horse = np.asarray(Image.open(REPO_ROOT / "demo/clip_mask.png")) // 255
    frame = REPO_ROOT / "demo/clip/00001.jpg"
    files = [f"--out={tmp_path / 'base.png'}", f"--save_labels={tmp_path / 'base.npy'}"]
    inference_base_model.main([f"--image={frame}", *files])
    alone = np.load(tmp_path / "base.npy")
    iou_alone, iou_with_flow = (
        mean_iou(ContingencyTable(labels, horse), ignore_background=True)
        for labels in (alone, np.load(tmp_path / "labels.npy"))
    )
    assert iou_with_flow > iou_alone + 0.05


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--image={frame}"], "--optflow_data "),
        (["--optflow_data_fr_idx=0"], "--optflow_data "),
        (["--image={frame}", "--optflow_data={flow}", "--temporal"], "--temporal .*--video"),
        (
            ["--image={frame}", "--optflow_data={flow}", "--out={flow}"],
            "--out {flow}: .*.png",
        ),
        (
            ["--image={frame}", "--optflow_data={flow}", "--save_labels={flow}"],
            "{frame} .*{flow}",
        ),
        (
            ["--image={frame}", "--optflow_data=auto", "--out={next}"],
            "{frame} .*{next}",
        ),
        (["--video=v.mp4", "--optflow_method=dis"], "--optflow_method .*--video"),
        (["--video=v.mp4", "--temporal", "--fine_factor=1"], "--temporal .*--fine_factor 1"),
        (["--video=v.mp4", "--optflow_data={flow}", "--every=2"], "--every 2.*--optflow_data auto"),
        (["--fine_factor=1", "--merge_pos_scale=3"], "--merge_pos_scale .*--fine_factor 1"),
        (
            ["--image={frame}", "--optflow_data={flow}", "--optflow_data_fr_idx=2"],
            "{flow} .*0 to 1.* 2",
        ),
        (
            ["--image={frame}", "--optflow_data={flow}", "--optflow_data_fr_idx=-1"],
            "{flow} .*0 to 1.* -1",
        ),
        (
            ["--optflow_data={flow}", "--optflow_data_fr_idx=0"],
            "{flow} .*92x60.* 480x320",
        ),
        (["--image={frame}", "--optflow_data=no.h5", "--optflow_data_fr_idx=0"], "no.h5"),
        (["--comp_model_weights={base}"], "{base} .*base .*composite"),
        (["--save_flow=flow.txt"], "--save_flow flow.txt"),
        (["--save_features=features.npy"], "--save_features features.npy: .*.npz"),
        (["--save_flow=results.png"], "results.png"),
    ],
)
def test_bad_inference_options(
    argv, expected, davis_root, optflow_folder, base_weights, composite_weights, tmp_path, monkeypatch, capsys
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    paths = {
        "frame": davis_root / "DAVIS/JPEGImages/480p/car/00000.jpg",
        "next": davis_root / "DAVIS/JPEGImages/480p/car/00001.jpg",
        "flow": optflow_folder / "optflow_gma_car.h5",
        "base": base_weights,
    }
    argv = [f"--comp_model_weights={composite_weights}", *(option.format(**paths) for option in argv)]
    error = fails_with(inference_optflow_composite_model.main, argv, capsys)
    assert re.search(expected.format(**paths), error)
    assert list((tmp_path / "here").iterdir()) == []


def test_base_scripts_refuse_composite_weights(composite_weights, capsys):
    error = fails_with(inference_base_model.main, [f"--base_model_weights={composite_weights}"], capsys)
    assert f"{composite_weights} holds a composite model; expected a base model" in error


def test_features_need_a_network(tmp_path, capsys):
    argv = ["--base_model_weights=none", f"--save_features={tmp_path / 'features.npz'}"]
    error = fails_with(inference_base_model.main, argv, capsys)
    assert f"--save_features {tmp_path / 'features.npz'}" in error


def test_bands_and_range_of_frames(tmp_path, caplog):
    """Flow of a clip whose colours are bands 4, 3 and 2 of 10 bits, next to the flow of its 8 bits."""
    frames = translated_frames(3, dy=2, dx=-3)
    write_frames(tmp_path / "plain", frames)
    (tmp_path / "bands").mkdir()
    for idx, frame in enumerate(frames):
        values = np.dstack([255 - frame[..., 0], frame[..., ::-1], frame[..., 1]]).astype(np.uint16) * 3
        path = tmp_path / "bands" / f"{idx}.tif"
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    argv = [f"--out_dir={tmp_path / 'flow'}", "--nworkers=0", "--frames"]
    reading = ["--bands", "4", "3", "2", "--value_range", "0", "765"]
    estimate_optflow.main([*argv, str(tmp_path / "plain")])
    estimate_optflow.main([*argv, str(tmp_path / "bands"), *reading])
    plain, bands = (
        FlowArchive(tmp_path / "flow" / f"optflow_dis_{name}.h5").read_frame(1) for name in ("plain", "bands")
    )
    np.testing.assert_array_equal(bands, plain)
    for others in ([], ["--bands", "1"], reading[:4]):
        with pytest.raises(InputError, match=r"optflow_dis_bands\.h5 exists, made with (bands|value_range) "):
            estimate_optflow.main([*argv, str(tmp_path / "bands"), *others])
    assert estimate_optflow.main([*argv, str(tmp_path / "bands"), *reading])[0].existed
    reader = ImageReader((0, 765), (4, 3, 2))
    (flow,) = flows_of_images([tmp_path / "bands" / "1.tif"], Path(AUTO), reader=reader)
    np.testing.assert_allclose(flow.read(frames[1]), plain, atol=0.02)  # archives hold 16 bits


@pytest.mark.slow
@pytest.mark.parametrize("source", ["frames", "video", "davis"])
def test_estimated_archives_hold_the_flow(source, tmp_path, davis_root, caplog):
    caplog.set_level("INFO")
    argv = [f"--out_dir={tmp_path / 'flow'}", "--nworkers=2"]
    if source == "davis":
        reports = estimate_optflow.main([*argv, f"--davis2017_root={davis_root}", "--preset=ultrafast"])
        assert sorted(report.path.name for report in reports) == ["optflow_dis_car.h5", "optflow_dis_dogs.h5"]
        dataset = DAVISDataset(davis_root, str(davis_root / "both.txt"), optflow_folder=tmp_path / "flow")
        assert dataset[3].extra.shape == (60, 92, 4)
        return
    frames = translated_frames(3, dy=2, dx=-3)
    if source == "frames":
        for name in ("a", "b"):
            write_frames(tmp_path / name, frames)
        argv += ["--frames", str(tmp_path / "a"), str(tmp_path / "b"), "--consistency_check"]
    else:
        pytest.importorskip("av", reason="needs PyAV")
        for name in ("a", "b"):
            writer = cv2.VideoWriter(
                str(tmp_path / f"{name}.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, frames[0].shape[1::-1]
            )
            for frame in frames:
                writer.write(frame)
            writer.release()
        argv += ["--video", str(tmp_path / "a.avi"), str(tmp_path / "b.avi")]
    estimate_optflow.main(argv)
    for name in ("a", "b"):
        archive = FlowArchive(tmp_path / "flow" / f"optflow_dis_{name}.h5")
        flow = archive.read_frame(1)
        assert np.abs(flow[INSIDE] - (2, -3, -2, 3)).max() < 0.5
        assert f"{archive.path}: made, 3 frames" in caplog.text
    assert ("forward-backward error 0.0" in caplog.text) == (source == "frames")
    caplog.clear()
    estimate_optflow.main(argv)
    assert caplog.text.count("kept, 3 frames") == 2


@pytest.mark.slow
def test_flow_files_are_converted(tmp_path):
    flow = np.random.default_rng(0).integers(-50, 50, (2, 2, 3, 20, 31, 2)) / 8
    for video_idx, video in enumerate(("car", "dogs")):
        for direction_idx, direction in enumerate(("forward", "backward")):
            folder = tmp_path / direction / video
            folder.mkdir(parents=True)
            for idx in range(3):
                write_flo(folder / f"{idx}.flo", flow[video_idx, direction_idx, idx])
    folders = [str(tmp_path / "forward"), str(tmp_path / "backward")]
    estimate_optflow.main(["--flow_files", *folders, "--method=gma", f"--out_dir={tmp_path / 'flow'}"])
    for video_idx, video in enumerate(("car", "dogs")):
        frame_flow = FlowArchive(tmp_path / f"flow/optflow_gma_{video}.h5").read_frame(2)
        np.testing.assert_array_equal(frame_flow[..., :2], flow[video_idx, 0, 2])
        np.testing.assert_array_equal(frame_flow[..., 2:], flow[video_idx, 1, 1])
    folders = [str(tmp_path / direction / "car") for direction in ("forward", "backward")]
    reports = estimate_optflow.main(
        ["--flow_files", *folders, "--method=gma", "--video_name=one", f"--out_dir={tmp_path / 'flow'}"]
    )
    assert [report.path.name for report in reports] == ["optflow_gma_one.h5"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_all_processes_leaves_no_partial_archive(tmp_path, number):
    for name in ("a", "b"):
        files = write_frames(tmp_path / name, translated_frames(2, dy=2, dx=-3))
        for idx in range(2, 2000):
            (tmp_path / name / f"{idx}.png").symlink_to(files[idx % 2])
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    argv = ["--frames", *folders, f"--out_dir={tmp_path / 'flow'}", "--nworkers=2"]
    run = subprocess.Popen(
        [sys.executable, REPO_ROOT / "estimate_optflow.py", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((tmp_path / "flow").glob(".*.partial-*")):
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert errors == ""
    assert not (tmp_path / "flow").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "one of the arguments --davis2017_root --frames --video --flow_files is required"),
        (["--frames", "{tmp}/empty"], "{tmp}/empty .*.jpg"),
        (["--frames", "{tmp}/one"], "one .*1 frame"),
        (["--frames", "{tmp}/one", "{tmp}/one"], "optflow_dis_one.h5"),
        (["--frames", "{tmp}/one", "{tmp}/two", "--video_name=x"], "--video_name x .*2"),
        (["--frames", "{tmp}/one", "--davis_split=val"], "--davis_split .*--davis2017_root"),
        (["--video", "{tmp}/no.mp4"], "{tmp}/no.mp4"),
        (["--davis2017_root", "{tmp}"], "{tmp}/DAVIS/JPEGImages/480p"),
        (["--flow_files", "{tmp}/one", "{tmp}/two"], "--flow_files .*--method"),
        (
            ["--flow_files", "{tmp}/empty", "{tmp}/empty", "--method=gma", "--video_name=car"],
            "{tmp}/empty .*.flo, .png",
        ),
        (
            ["--flow_files", "{tmp}/empty", "{tmp}/empty", "--method=gma"],
            "--flow_files .*--video_name",
        ),
        (
            ["--flow_files", "{tmp}/one", "{tmp}/two", "--davis_split=val"],
            "--davis_split .*--davis2017_root",
        ),
        (["--flow_files", "{tmp}/one", "{tmp}/two", "--preset=fast"], "--preset "),
        (["--video", "{tmp}/no.mp4", "--bands", "1"], "--value_range and --bands need --frames"),
        (["--frames", "{tmp}/two", "--value_range", "9", "9"], "--value_range 9 9: "),
        (["--frames", "{tmp}/two", "--bands", "1", "2"], "--bands 1 2: expected three"),
        (["--frames", "{tmp}/two", "--method=a/b"], "argument --method.*a/b"),
        (["--frames", "{tmp}/two", "--method=a_b"], "argument --method.*a_b"),
        (["--frames", "{tmp}/two", "--video_name=../x"], "argument --video_name.*../x"),
        (
            ["--flow_files", "{tmp}", "{tmp}/empty", "--method=gma"],
            "--flow_files.*empty, one, two",
        ),
        (["--frames", "{tmp}/two", "--out_dir={tmp}/file"], "--out_dir {tmp}/file"),
    ],
)
def test_bad_estimation_options(argv, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, n_frames in (("one", 1), ("two", 2)):
        write_frames(tmp_path / name, translated_frames(n_frames, dy=0, dx=0))
    (tmp_path / "file").write_text("in the way")
    argv = [option.format(tmp=tmp_path) for option in argv]
    assert re.search(expected.format(tmp=tmp_path), fails_with(estimate_optflow.main, argv, capsys))
    assert not list(tmp_path.glob("optflow/*"))


@pytest.mark.usefixtures("pyav")
@pytest.mark.slow
def test_broken_video_is_one_error_line(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(bytes(1000))
    argv = [sys.executable, REPO_ROOT / "estimate_optflow.py", "--video", "clip.mp4"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("estimate_optflow.py: error: clip.mp4 ")


def test_error_names_all_bad_videos(tmp_path, caplog):
    caplog.set_level("INFO")
    for name, n_frames in (("one", 1), ("uno", 1), ("two", 2)):
        write_frames(tmp_path / name, translated_frames(n_frames, dy=0, dx=0))
    folders = [str(tmp_path / name) for name in ("one", "uno", "two")]
    with pytest.raises(InputError, match="2 of 3 "):
        estimate_optflow.main(["--frames", *folders, f"--out_dir={tmp_path / 'flow'}", "--nworkers=0"])
    assert "one has 1 frame" in caplog.text
    assert "uno has 1 frame" in caplog.text
    assert [path.name for path in (tmp_path / "flow").iterdir()] == ["optflow_dis_two.h5"]


def test_every_option_has_help(capsys):
    for script in (
        estimate_optflow,
        train_optflow_composite_model,
        eval_optflow_composite_model,
        inference_optflow_composite_model,
    ):
        for action in script.build_parser()._actions:
            assert action.help, action.dest
        with pytest.raises(SystemExit):
            script.main(["--help"])
        assert "(default: None)" not in capsys.readouterr().out


@pytest.mark.parametrize("name", train_optflow_composite_model.RECIPES)
def test_recipe_is_a_valid_command_line(name):
    check_recipe(train_optflow_composite_model, name)


@pytest.mark.slow
def test_recipe_fills_the_options_that_are_not_given(train_argv, tmp_path, monkeypatch):
    recipe = {"optflow_deepfdim": 5, "optflow_scale": 4.0}
    monkeypatch.setattr(train_optflow_composite_model, "RECIPES", {"tiny": recipe})
    argv = [option for option in train_argv if not option.startswith("--optflow_deepfdim")]
    train_optflow_composite_model.main([*argv, "--recipe=tiny"])
    trained = load_model(tmp_path / "run" / "best_model.pth")
    assert trained.model.n_extra_features == 5
    assert trained.scales.extra_scale == 2.0  # as given
    state = train_optflow_composite_model.main([*argv, "--recipe=tiny", "--resume=auto", "--train_iter=3"])
    assert state.step == 3


def test_composite_on_top_of_a_narrow_base(train_argv, tmp_path):
    base = SSNModel(4, n_mid_channels=8)
    torch.save(base.state_dict(), tmp_path / "narrow.pth")
    argv = [*train_argv, f"--base_model_weights={tmp_path / 'narrow.pth'}"]
    train_optflow_composite_model.main(argv)
    state = train_optflow_composite_model.main([*argv, "--resume=auto", "--train_iter=3"])
    for trained in (state.model, load_model(tmp_path / "run" / "best_model.pth").model):
        assert trained.config()["n_mid_channels"] == 8
        for name, value in base.feature_extract.state_dict().items():
            assert trained.feature_extract_color.state_dict()[name].equal(value), name


@pytest.mark.slow
def test_settings_chosen_after_training_are_stored(train_argv, tmp_path, monkeypatch, few_trials):
    figures = []

    def record(*args, figure):
        figures.append(figure)
        return choose_and_store(*args, figure=figure)

    monkeypatch.setattr("lib.training.run.choose_and_store", record)
    train_optflow_composite_model.main([*train_argv, "--choose_settings"])
    assert figures == ["mean_iou"]
    best, last = (load_model(tmp_path / "run" / name) for name in ("best_model.pth", "last_model.pth"))
    assert best.scales in ((0.3, 2.1, 2.0), (0.3, 7.0, 2.0))
    assert best.model.n_iter in (2, 4)
    assert (set(best.merging.fine_factor), set(best.merging.merge_pos_scale)) == ({24}, {24})
    assert best.base_sha256 == last.base_sha256
    assert last.scales == (0.3, 7.0, 2.0)
