"""Scripts of the base model, end to end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.measure import label

import eval_base_model
import inference_base_model
import model
import train_base_model
from helpers import (
    SHORT_TRAINING,
    check_recipe,
    ctrl_c_in_second_step,
    fails_with,
    make_quadrants,
    write_annotations,
)
from lib import cli
from lib.datasets.bsds import BSDSDataset
from lib.inference import Segmenter
from lib.losses import compute_loss_terms
from lib.network.inputs import InputScales, model_input
from lib.runtime.errors import InputError
from lib.superpixels.merge_settings import MergeSettings
from lib.training import CountRange, Recipe, RunSettings, run_training
from lib.training import run as training_run
from lib.training.narrowing import copy_strongest_channels
from lib.training.trainer import learning_rate_share
from lib.weights import load_model, read_checkpoint, save_checkpoint

REPO_ROOT = Path(__file__).parents[2]


def only_summary(results):
    """Return the only summary of an evaluation of one method on one dataset."""
    ((summary,),) = (by_run.values() for by_run in results.values())
    return summary


def segment(argv, folder):
    """Run the inference script and return the labels."""
    inference_base_model.main(
        [*argv, f"--out={folder / 'overlay.png'}", f"--save_labels={folder / 'labels.npy'}"]
    )
    return np.load(folder / "labels.npy")


def train_argv(bsds_root, out_dir, *more):
    return [
        f"--bsds_root={bsds_root}",
        f"--out_dir={out_dir}",
        *SHORT_TRAINING,
        "--deepfdim=3",
        "--niter=2",
        "--val_niter=3",
        *more,
    ]


@pytest.mark.slow
def test_training_and_validation_have_their_own_iterations(bsds_root, tmp_path, monkeypatch):
    def recording(name, original):
        def record(*args, n_iter, **settings):
            calls.append((name, n_iter))
            return original(*args, n_iter=n_iter, **settings)

        return record

    calls = []
    monkeypatch.setattr("model.cluster", recording("train", model.cluster))
    monkeypatch.setattr("lib.inference.segmenter.cluster_labels", recording("validate", model.cluster_labels))
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    assert set(calls) == {("train", 2), ("validate", 3)}


@pytest.mark.slow
def test_train_evaluate_and_segment(bsds_root, davis_root, tmp_path, device, caplog):
    caplog.set_level("INFO")
    on_device = f"--device={device}"
    davis = [f"--davis2017_root={davis_root}", f"--davis_split={davis_root / 'both.txt'}"]
    argv = train_argv(bsds_root, tmp_path / "run", *davis, "--eval_on_davis", on_device)
    state = train_base_model.main(argv)
    assert state.step == 2
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 2]
    assert "4 images in train, 3 images in bsds_val, 4 images in davis" in caplog.text
    assert log[-1]["score"] == log[-1]["bsds_val_asa"]
    assert 0 < log[-1]["davis_mean_iou"] <= 1

    weights = tmp_path / "run" / "best_model.pth"
    loaded = load_model(weights)
    assert loaded.model.n_iter == 3
    common = [f"--base_model_weights={weights}", "--nspix=24", on_device]
    results = eval_base_model.main(
        [*common, f"--bsds_root={bsds_root}", "--bsds_split=val", "--nworkers=0", *davis]
    )
    assert list(results) == ["BSDS500 val", "DAVIS both.txt"]
    (summary,) = results["BSDS500 val"].values()
    assert (summary.n_images, summary.n_pairs) == (3, 6)
    assert summary.mean["asa"] == pytest.approx(log[-1]["bsds_val_asa"], abs=1e-3)
    assert summary.mean["boundary_recall"] == pytest.approx(log[-1]["bsds_val_boundary_recall"], abs=1e-3)
    last_line = caplog.messages[-1]
    assert re.fullmatch(
        r"DAVIS .*both\.txt: ASA 0\.\d{4} mIoU 0\.\d{4} superpixels [\d.]+ \(4 images, 4 pairs\)", last_line
    )

    image_file = tmp_path / "image.png"
    Image.fromarray(make_quadrants()[0]).save(image_file)
    labels = segment([*common, f"--image={image_file}"], tmp_path)
    assert (tmp_path / "overlay.png").is_file()
    assert re.search(
        rf"24 superpixels requested, {labels.max() + 1} measured, \d+\.\d\d s on {device}",
        caplog.messages[-1],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["--color_jitter=0.2", "--patch_jitter=0.5", "--padding_mode=replicate"]]
)
def test_resumed_run_equals_uninterrupted(bsds_root, tmp_path, monkeypatch, more):
    whole = train_base_model.main(train_argv(bsds_root, tmp_path / "whole", "--train_iter=4", *more))

    with ctrl_c_in_second_step(monkeypatch):
        train_base_model.main(train_argv(bsds_root, tmp_path / "parts", "--train_iter=4", *more))
    last_model = tmp_path / "parts" / "last_model.pth"
    assert read_checkpoint(last_model)["step"] == 2
    resumed = train_base_model.main([f"--resume={last_model}", "--nworkers=2"])

    for name, value in whole.model.state_dict().items():
        assert value.equal(resumed.model.state_dict()[name]), name
    assert resumed.best_score == whole.best_score
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_checkpoint_from_before_jitter_and_padding_is_resumed_without_them(bsds_root, tmp_path):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    last_model = tmp_path / "run" / "last_model.pth"
    checkpoint = read_checkpoint(last_model)
    for entry, names in (
        ("options", ("color_jitter", "patch_jitter", "padding_mode")),
        ("recipe", ("color_jitter", "patch_jitter")),
        ("model_args", ("padding_mode",)),
    ):
        for name in names:
            del checkpoint[entry][name]
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    save_checkpoint(checkpoint, tmp_path / "older" / "last_model.pth")
    for run in ("run", "older"):
        train_base_model.main([f"--resume={tmp_path / run / 'last_model.pth'}", "--train_iter=4"])
    assert training_losses(tmp_path / "older") == training_losses(tmp_path / "run")
    assert load_model(tmp_path / "older" / "last_model.pth").model.padding_mode == "zeros"


def test_padding_is_stored_for_use(bsds_root, tmp_path):
    state = train_base_model.main(train_argv(bsds_root, tmp_path / "run", "--padding_mode=replicate"))
    loaded = load_model(tmp_path / "run" / "best_model.pth").model
    assert loaded.padding_mode == "replicate"
    x = torch.randn(1, 5, 20, 31)
    assert loaded.pixel_features(x).equal(state.average.model.eval().pixel_features(x))


def training_losses(out_dir):
    entries = map(json.loads, (out_dir / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.slow
def test_training_on_the_device_has_the_samples_of_the_loader(bsds_root, tmp_path, monkeypatch, caplog):
    labels_of_steps = {}

    def record(assignment, labels, gt_labels, n_labels, **settings):
        assert n_labels == gt_labels.max() + 1
        labels_of_steps[run].append(gt_labels)
        return compute_loss_terms(assignment, labels, gt_labels, n_labels, **settings)

    monkeypatch.setattr(training_run, "compute_loss_terms", record)
    for run in ("True", "False"):
        labels_of_steps[run] = []
        with caplog.at_level("INFO"):
            argv = train_argv(bsds_root, tmp_path / run, f"--data_on_device={run}", "--nannotations=2")
            train_base_model.main(argv)
        assert ("training data on cpu: 4 images, 0.00 GB" in caplog.messages) == (run == "True")
        caplog.clear()
    assert len(labels_of_steps["True"]) == 2
    assert torch.stack(labels_of_steps["True"]).equal(torch.stack(labels_of_steps["False"]))


@pytest.mark.slow
def test_training_on_the_device_is_resumed_with_or_without_it(bsds_root, tmp_path, monkeypatch):
    argv = ("--train_iter=4", "--data_on_device")
    train_base_model.main(train_argv(bsds_root, tmp_path / "whole", *argv))
    with ctrl_c_in_second_step(monkeypatch):
        train_base_model.main(train_argv(bsds_root, tmp_path / "parts", *argv))
    shutil.copytree(tmp_path / "parts", tmp_path / "changed")
    train_base_model.main([f"--resume={tmp_path / 'parts' / 'last_model.pth'}"])
    assert training_losses(tmp_path / "parts") == training_losses(tmp_path / "whole")
    train_base_model.main([f"--resume={tmp_path / 'changed' / 'last_model.pth'}", "--data_on_device=False"])
    assert training_losses(tmp_path / "changed")[:2] == training_losses(tmp_path / "whole")[:2]
    assert training_losses(tmp_path / "changed")[2:] != training_losses(tmp_path / "whole")[2:]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_all_processes_saves_and_exits_quietly(bsds_root, tmp_path, number):
    argv = train_argv(
        bsds_root, tmp_path / "run", "--train_iter=100000", "--test_interval=100000", "--nworkers=2"
    )
    run = subprocess.Popen(
        [sys.executable, REPO_ROOT / "train_base_model.py", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in run.stdout:
        if line.startswith("step 3/"):
            break
    os.killpg(run.pid, number)  # as a terminal or a cluster does
    output, errors = run.communicate(timeout=60)
    assert run.returncode == (130 if number == signal.SIGINT else 0)
    assert errors == ""
    last_model = tmp_path / "run" / "last_model.pth"
    assert "stopped at step " in output
    assert read_checkpoint(last_model)["step"] >= 3


@pytest.mark.slow
def test_same_seed_reproduces_a_run(bsds_root, tmp_path):
    runs = [
        train_base_model.main(train_argv(bsds_root, tmp_path / f"run{idx}", f"--seed={seed}"))
        for idx, seed in enumerate((0, 0, 1))
    ]
    first, same, other = (run.model.state_dict()["feature_extract.output_conv.0.weight"] for run in runs)
    assert first.equal(same)
    assert not first.equal(other)


@pytest.mark.slow
def test_resume_refuses_contradicting_options(bsds_root, tmp_path, capsys):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    last_model = tmp_path / "run" / "last_model.pth"
    capsys.readouterr()
    error = fails_with(train_base_model.main, [f"--resume={last_model}", "--lr=0.5"], capsys)
    assert f"--lr 0.5 contradicts 0.01 of --resume {last_model}" in error


@pytest.mark.slow
def test_resumed_run_may_change_its_length(bsds_root, tmp_path, capsys):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run", "--train_iter=3"))
    argv = [f"--resume={tmp_path / 'run' / 'last_model.pth'}"]
    state = train_base_model.main([*argv, "--train_iter=5"])
    assert state.is_finished
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in log if "lr" in line}
    assert list(rates) == [1, 2, 3, 4, 5]
    for step in (4, 5):  # the first step after resuming is already on the new curve
        assert rates[step] == pytest.approx(0.01 * learning_rate_share(step - 1, 5, 0.1))
    capsys.readouterr()
    error = fails_with(train_base_model.main, [*argv, "--train_iter=4"], capsys)
    assert "--train_iter 4 is below the 5 steps of --resume" in error


def test_resume_after_the_data_moved(bsds_root, tmp_path):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    moved = bsds_root.rename(tmp_path / "moved")
    state = train_base_model.main(
        [f"--resume={tmp_path / 'run' / 'last_model.pth'}", "--bsds_root", str(moved)]
    )
    assert state.step == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "--precision=bf16",
        "--optimizer=adamw",
        "--loss=cross_entropy",
        "--loss=cross_entropy_logsoftmax",
        "--loss=soft_iou",
        "--compactness=0.1",
        "--color_scale=0.5",
        "--pos_scale=2",
        "--nspix=60",
        "--nspix=10-60",
        "--nannotations=1",
        "--vertical_flips",
        "--quarter_turns",
        "--color_jitter=0.3",
        "--patch_jitter=1",
        "--padding_mode=replicate",
        "--distance=squared",
        "--sees_position=False",
        "--max_grad_norm=0.001",
        "--warmup_share=0.9",
        "--seed=5",
    ],
)
def test_training_options_have_an_effect(bsds_root, tmp_path, option):
    losses = []
    for run, more in (("plain", []), ("changed", [option])):
        state = train_base_model.main(train_argv(bsds_root, tmp_path / run, *more))
        assert all(value.isfinite().all() for value in state.model.state_dict().values())
        lines = (tmp_path / run / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("loss") for line in lines])
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_weights_are_averaged_unless_disabled(bsds_root, tmp_path):
    for run, more, are_averages in (("plain", [], True), ("changed", ["--ema_decay=0"], False)):
        train_base_model.main(train_argv(bsds_root, tmp_path / run, *more))
        checkpoint = read_checkpoint(tmp_path / run / "last_model.pth")
        name = "feature_extract.output_conv.0.weight"
        assert checkpoint["weights"][name].equal(checkpoint["last_weights"][name]) != are_averages


def test_checkpoints_store_the_input_scales(bsds_root, tmp_path):
    argv = train_argv(bsds_root, tmp_path / "run", "--color_scale=0.5", "--pos_scale=2")
    train_base_model.main(argv)
    for name in ("best_model.pth", "last_model.pth"):
        assert load_model(tmp_path / "run" / name).scales == InputScales(0.5, 2)


def test_second_run_in_one_folder_is_refused(bsds_root, tmp_path, capsys):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    log = (tmp_path / "run" / "log.jsonl").read_text()
    error = fails_with(train_base_model.main, train_argv(bsds_root, tmp_path / "run"), capsys)
    assert f"--out_dir {tmp_path / 'run'} " in error
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


@pytest.mark.slow
def test_resumed_run_continues_in_the_folder_of_its_checkpoint(bsds_root, tmp_path, capsys):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    moved = (tmp_path / "run").rename(tmp_path / "moved_run")
    train_base_model.main([f"--resume={moved / 'last_model.pth'}"])
    assert not (tmp_path / "run").exists()
    argv = [f"--resume={moved / 'last_model.pth'}", f"--out_dir={tmp_path / 'other'}"]
    assert f"--out_dir {tmp_path / 'other'} contradicts" in fails_with(train_base_model.main, argv, capsys)
    assert not (tmp_path / "other").exists()


def test_resume_refuses_a_checkpoint_of_another_version(bsds_root, tmp_path, capsys):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    path = tmp_path / "run" / "last_model.pth"
    checkpoint = read_checkpoint(path)
    checkpoint["options"]["momentum"] = "0.9"
    save_checkpoint(checkpoint, path)
    error = fails_with(train_base_model.main, [f"--resume={path}"], capsys)
    assert f"--resume {path}" in error
    assert "--momentum=0.9" in error


@pytest.mark.slow
def test_resume_from_an_earlier_step_replaces_a_later_best_model(bsds_root, tmp_path):
    folder = tmp_path / "run"
    train_base_model.main(train_argv(bsds_root, folder, "--train_iter=4", "--save_interval=2"))
    best = read_checkpoint(folder / "best_model.pth")
    save_checkpoint({**best, "step": 4, "score": 2.0}, folder / "best_model.pth")
    resumed = train_base_model.main([f"--resume={folder / 'checkpoint_00000002.pth'}"])
    best = read_checkpoint(folder / "best_model.pth")
    assert (best["step"], best["score"]) == (4, resumed.best_score)
    assert best["score"] < 1


def test_resume_refuses_other_validation_data(tmp_path, capsys):
    folder = tmp_path / "own"
    folder.mkdir()
    for idx in range(4):
        image_rgb, labels = make_quadrants(seed=idx)
        Image.fromarray(image_rgb).save(folder / f"{idx}.jpg")
        np.save(folder / f"{idx}.npy", labels)
    train_base_model.main([f"--data_root={folder}", *train_argv(None, tmp_path / "run")[1:]])
    last_model = tmp_path / "run" / "last_model.pth"
    argv = [f"--resume={last_model}", f"--val_data_root={folder}"]
    error = fails_with(train_base_model.main, argv, capsys)
    assert f"--val_data_root {folder} contradicts the default of --resume {last_model}" in error


@pytest.mark.slow
def test_resume_auto_starts_and_continues(bsds_root, tmp_path, monkeypatch, capsys):
    argv = train_argv(bsds_root, tmp_path / "run", "--train_iter=4", "--resume=auto")
    with ctrl_c_in_second_step(monkeypatch):
        train_base_model.main(argv)
    (tmp_path / "run" / "last_model.pth").rename(tmp_path / "kept.pth")
    state = train_base_model.main(argv)  # no checkpoint: starts a new run in the same folder
    assert state.is_finished
    (tmp_path / "kept.pth").rename(tmp_path / "run" / "last_model.pth")
    resumed = train_base_model.main(argv)
    assert resumed.is_finished
    for name, value in state.weights().items():
        assert value.equal(resumed.weights()[name]), name
    error = fails_with(train_base_model.main, [*argv, "--lr=0.5"], capsys)
    assert "--lr 0.5 contradicts 0.01 of --resume" in error


def test_checkpoint_without_recipe_resumes(bsds_root, tmp_path, capsys):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    path = tmp_path / "run" / "last_model.pth"
    checkpoint = read_checkpoint(path)
    assert checkpoint["recipe"]["n_spixels"] == (24, 24)
    del checkpoint["recipe"]  # as in checkpoints of older versions
    save_checkpoint(checkpoint, path)
    error = fails_with(train_base_model.main, [f"--resume={path}", "--nspix=25"], capsys)
    assert f"--nspix 25 contradicts 24 of --resume {path}" in error
    assert train_base_model.main([f"--resume={path}", "--train_iter=3"]).step == 3


def test_recipe_must_equal_the_checkpoints(bsds_root, tmp_path):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    path = tmp_path / "run" / "last_model.pth"
    loaded = load_model(path)
    sets = {"val": BSDSDataset(bsds_root, "val")}
    with pytest.raises(InputError, match=r"`n_spixels` 50-500 contradicts 24 of `resume`"):
        run_training(
            loaded.model,
            loaded.scales,
            Recipe(),
            RunSettings(out_dir=tmp_path / "run", n_workers=0, val_n_spixels=24),
            train_set=BSDSDataset(bsds_root, "train"),
            validation_sets=sets,
            score="val_asa",
            device=torch.device("cpu"),
            resume=path,
        )


@pytest.mark.slow
def test_killed_run_leaves_checkpoints_that_load(bsds_root, tmp_path):
    argv = train_argv(
        bsds_root, tmp_path / "run", "--train_iter=100000", "--test_interval=100000", "--save_interval=2"
    )
    run = subprocess.Popen(
        [sys.executable, REPO_ROOT / "train_base_model.py", *argv], stdout=subprocess.PIPE, text=True
    )
    for line in run.stdout:
        if line.startswith("step 5/"):
            break
    run.kill()
    run.communicate()
    checkpoints = list((tmp_path / "run").glob("[!.]*.pth"))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        assert read_checkpoint(checkpoint)["step"] >= 2


def test_training_on_a_folder_of_images(tmp_path, base_weights):
    folder = tmp_path / "own"
    folder.mkdir()
    for idx in range(5):
        image_rgb, labels = make_quadrants(seed=idx)
        Image.fromarray(image_rgb).save(folder / f"photo{idx}.jpg", quality=95)
        np.save(folder / f"photo{idx}.0.npy", labels - 7)
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"photo{idx}.1.png")
    argv = [
        f"--data_root={folder}",
        *train_argv(None, tmp_path / "run")[1:],
        f"--init_weights={base_weights}",
        "--deepfdim=4",
        "--lr=1e-9",
    ]
    state = train_base_model.main(argv)
    assert state.is_finished
    start = load_model(base_weights).model.feature_extract.output_conv[0].weight
    torch.testing.assert_close(state.model.feature_extract.output_conv[0].weight, start, atol=1e-6, rtol=0)
    scales = load_model(tmp_path / "run" / "best_model.pth").scales
    assert scales == load_model(base_weights).scales == InputScales(0.3, 7.0)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert json.loads(log.splitlines()[-1])["val_asa"] > 0.5

    results = eval_base_model.main(
        [f"--data_root={folder}", f"--base_model_weights={base_weights}", "--nspix=24", "--nworkers=0"]
    )
    summary = only_summary(results)
    assert (summary.n_images, summary.n_pairs) == (5, 10)


def test_training_and_evaluation_on_chosen_bands(tmp_path, base_weights, capsys):
    """A folder with colours in bands 4, 3 and 2 of five scores and trains as one of the same 8-bit RGB."""
    scores = {}
    for name in ("bands", "plain"):
        folder = tmp_path / name
        folder.mkdir()
        for idx in range(2):
            image_rgb, labels = make_quadrants(seed=idx)
            values = np.dstack([labels * 60, image_rgb[..., ::-1], labels * 60]).astype(np.uint16) * 5
            if name == "bands":
                options = {"photometric": "minisblack", "planarconfig": "contig"}
                tifffile.imwrite(folder / f"{idx}.tif", values, **options)
            else:
                Image.fromarray(image_rgb).save(folder / f"{idx}.bmp")
            np.save(folder / f"{idx}.npy", labels)
        reading = ["--bands", "4", "3", "2", "--value_range", "0", "1275"] if name == "bands" else []
        argv = [f"--data_root={folder}", "--base_model_weights=none", "--nspix=24", "--nworkers=0"]
        scores[name] = only_summary(eval_base_model.main([*argv, *reading])).mean
        argv = [f"--data_root={folder}", *train_argv(None, tmp_path / f"run_{name}")[1:], "--deepfdim=4"]
        train_base_model.main([*argv, f"--init_weights={base_weights}", *reading])
    assert scores["bands"] == scores["plain"]
    logs = [
        [json.loads(line) for line in (tmp_path / f"run_{name}" / "log.jsonl").read_text().splitlines()]
        for name in ("bands", "plain")
    ]
    assert logs[0][0]["reconstruction"] == logs[1][0]["reconstruction"]
    assert logs[0][-1]["val_asa"] == logs[1][-1]["val_asa"]
    resume = f"--resume={tmp_path / 'run_bands' / 'last_model.pth'}"
    assert train_base_model.main([resume, "--train_iter=3", "--bands", "4", "3", "2"]).step == 3
    error = fails_with(train_base_model.main, [resume, "--bands", "1", "2", "3"], capsys)
    assert "--bands [1, 2, 3] contradicts [4, 3, 2]" in error


def test_ignored_label_is_neither_scored_nor_trained_on(tmp_path, base_weights, capsys):
    folder = tmp_path / "own"
    folder.mkdir()
    for idx in range(2):
        image_rgb, labels = make_quadrants(seed=idx)
        labels.ravel()[::3] = 255
        Image.fromarray(image_rgb).save(folder / f"photo{idx}.jpg", quality=95)
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"photo{idx}.png")
    argv = [f"--data_root={folder}", "--base_model_weights=none", "--nspix=24", "--nworkers=0"]
    ignored, scored = (
        only_summary(eval_base_model.main([*argv, *more])).mean for more in (["--ignore_label=255"], [])
    )
    assert ignored["asa"] > 0.98
    assert scored["asa"] == pytest.approx(2 / 3, abs=0.02)

    argv = [f"--data_root={folder}", *train_argv(None, tmp_path / "run")[1:], "--val_nspix=24"]
    argv += [f"--init_weights={base_weights}", "--deepfdim=4", "--ignore_label=255"]
    assert train_base_model.main(argv).is_finished
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[0]["reconstruction"] < 0.3
    assert log[-1]["val_asa"] > 0.9
    resume = tmp_path / "run" / "last_model.pth"
    error = fails_with(train_base_model.main, [f"--resume={resume}", "--ignore_label=0"], capsys)
    assert "--ignore_label 0 contradicts 255" in error


def test_training_keeps_the_merge_settings_of_its_start(bsds_root, tmp_path, base_weights):
    merge_args = {"fine_factor": {10: 4.0}, "merge_pos_scale": {10: 0.7}}
    save_checkpoint({**read_checkpoint(base_weights), "merge_args": merge_args}, base_weights)
    argv = train_argv(bsds_root, tmp_path / "run", f"--init_weights={base_weights}", "--deepfdim=4")
    train_base_model.main([*argv, "--merge_pos_scale=0.3", "--val_nspix=20"])
    train_base_model.main([f"--resume={tmp_path / 'run' / 'last_model.pth'}", "--train_iter=3"])
    for name in ("best_model.pth", "last_model.pth"):
        assert load_model(tmp_path / "run" / name).merging == MergeSettings({10: 4.0}, {1: 0.3})
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["bsds_val_n_spixels"] for line in log if "score" in line] == [20, 20]


def test_training_for_one_level(bsds_root, tmp_path):
    train_base_model.main([*train_argv(bsds_root, tmp_path / "run"), "--fine_factor=1", "--val_nspix=20"])
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["bsds_val_n_spixels"] != 20
    segmenter = Segmenter.from_checkpoint(tmp_path / "run" / "best_model.pth")
    mask = np.eye(60, 92, dtype=bool)  # in 60 parts, too many to merge to 20
    assert segmenter(make_quadrants()[0], 20, mask=mask).tree is None


def test_empty_data_folder(tmp_path, capsys):
    (tmp_path / "own").mkdir()
    argv = [f"--data_root={tmp_path / 'own'}", f"--out_dir={tmp_path / 'run'}"]
    assert f"--data_root {tmp_path / 'own'} holds no image" in fails_with(train_base_model.main, argv, capsys)


@pytest.mark.slow
def test_synthetic_data_needs_no_loader(tmp_path):
    argv = ["--synthetic_data", *train_argv(None, tmp_path / "run")[1:], "--batchsize=1", "--val_nspix=24"]
    assert train_base_model.main(argv).is_finished
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["loader_share"] < 0.01
    assert train_base_model.main([*argv, "--resume=auto"]).is_finished  # no steps left


def test_resume_refuses_a_run_of_the_other_model(bsds_root, tmp_path, composite_weights, capsys):
    checkpoint = read_checkpoint(composite_weights)
    path = tmp_path / "last_model.pth"
    save_checkpoint({**checkpoint, "last_weights": {}, "options": {"optflow_deepfdim": "3"}}, path)
    error = fails_with(train_base_model.main, [f"--resume={path}"], capsys)
    assert f"--resume {path}" in error
    assert "--optflow_deepfdim=3" in error


def test_diverging_run_reports_its_terms_with_status_1(bsds_root, tmp_path, monkeypatch, capsys):
    def diverging(assignment, *args, **kwargs):
        return {"reconstruction": assignment.affinity.sum() / 0, "position": torch.tensor(0.25)}

    monkeypatch.setattr(training_run, "compute_loss_terms", diverging)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: train_base_model.main(train_argv(bsds_root, tmp_path / "run")))
    assert caught.value.code == 1
    assert "loss inf, reconstruction inf, position 0.25" in capsys.readouterr().err


def test_evaluation_on_bsds_or_davis_only(bsds_root, davis_root, base_weights, caplog):
    caplog.set_level("INFO")
    common = [f"--base_model_weights={base_weights}", "--nspix=24", "--nworkers=0", "--device=cpu"]
    davis = [f"--davis2017_root={davis_root}", f"--davis_split={davis_root / 'both.txt'}"]
    bsds = [f"--bsds_root={bsds_root}"]
    assert list(eval_base_model.main(common + bsds)) == ["BSDS500 test"]
    assert list(eval_base_model.main([*common, *bsds, *davis, "--eval_on_davis", "False"])) == [
        "BSDS500 test"
    ]
    whole = only_summary(eval_base_model.main(common + davis))
    assert f"mIoU {whole.mean['mean_iou']:.4f} superpixels" in caplog.messages[-1]
    objects = only_summary(eval_base_model.main([*common, *davis, "--eval_iou_ignore_background"]))
    assert objects.mean == whole.mean
    assert whole.mean["mean_iou_foreground"] != whole.mean["mean_iou"]
    assert f"mIoU {whole.mean['mean_iou_foreground']:.4f} superpixels" in caplog.messages[-1]


def test_evaluation_options_have_an_effect(bsds_root, base_weights):
    argv = [f"--bsds_root={bsds_root}", f"--base_model_weights={base_weights}", "--nworkers=0"]
    plain = only_summary(eval_base_model.main([*argv, "--nspix=24"]))
    for more in (["--nspix=60"], ["--nspix=24", "--pos_scale=2"], ["--nspix=24", "--bsds_split=val"]):
        assert only_summary(eval_base_model.main([*argv, *more])).mean != plain.mean


def test_evaluation_without_network(bsds_root):
    results = eval_base_model.main(
        [f"--bsds_root={bsds_root}", "--base_model_weights=none", "--nspix=24", "--nworkers=0"]
    )
    assert only_summary(results).mean["asa"] > 0.97  # flat quadrants are easy


@pytest.mark.slow
def test_segmenting_the_demo_image_needs_no_option(tmp_path):
    done = subprocess.run(
        [sys.executable, REPO_ROOT / "inference_base_model.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "200 superpixels requested" in done.stdout
    assert (tmp_path / "results.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "--enforce_connectivity=False",
        "--pos_scale=3",
        "--color_scale=0.1",
        "--nspix=150",
        "--pos_scale_dist=2",
        "--fine_factor=8",
        "--fine_factor=1",
        "--merge_pos_scale=2",
    ],
)
def test_inference_options_have_an_effect(base_weights, tmp_path, option):
    argv = [f"--base_model_weights={base_weights}", "--device=cpu"]
    plain = segment(argv, tmp_path)
    assert plain.max() + 1 == 200
    np.testing.assert_array_equal(plain, segment(argv, tmp_path))
    assert not np.array_equal(plain, segment([*argv, option], tmp_path))


@pytest.mark.slow
def test_exact_count_of_one_level(base_weights, tmp_path):
    argv = [f"--base_model_weights={base_weights}", "--device=cpu", "--fine_factor=1"]
    assert segment(argv, tmp_path).max() + 1 != 200
    assert segment([*argv, "--exact_nspix"], tmp_path).max() + 1 == 200


def test_profile_logs_every_stage(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_quadrants()[0]).save("a.png")
    stages = r"reading .*conversion .*network .*clustering .*connectivity .*writing \d+ % \(0\.\d\d s\)"
    for image in ("a.png", "."):
        caplog.clear()
        inference_base_model.main([f"--image={image}", "--nspix=24", "--profile", "--out=o/{name}.png"])
        assert re.search(stages, caplog.text)
    assert re.search(r"\d+ % of the time waiting for reading and writing", caplog.text)


@pytest.mark.slow
@pytest.mark.parametrize("is_full", [True, False])
def test_closed_or_full_output_ends_the_script_quietly(tmp_path, is_full):
    if is_full:
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    command = [sys.executable, inference_base_model.__file__, "--base_model_weights=none"]
    run = subprocess.run(
        [*command, f"--out={tmp_path / 'o.png'}"], stdout=output, stderr=subprocess.PIPE, text=True
    )
    os.close(output)
    assert (run.returncode, run.stderr) == (1, "")


@pytest.mark.slow
def test_compiled_inference_makes_the_same_superpixels(base_weights, tmp_path, monkeypatch):
    argv = [f"--base_model_weights={base_weights}", "--device=cpu"]
    plain = segment(argv, tmp_path)
    compile_model, compiled = torch.compile, []
    monkeypatch.setattr(
        torch, "compile", lambda model, **kwargs: compiled.append(1) or compile_model(model, backend="eager")
    )
    np.testing.assert_array_equal(plain, segment([*argv, "--compile"], tmp_path))
    assert compiled


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_error_line(base_weights, tmp_path):
    environment = os.environ | {"CXX": "/none/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    options = ["--compile", "--device=cpu", f"--base_model_weights={base_weights}", "--nspix=24"]
    done = subprocess.run(
        [sys.executable, cli.REPO_ROOT / "inference_base_model.py", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("inference_base_model.py: error: --compile ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results.png").exists()


def test_compiling_without_network_is_an_error(tmp_path):
    with pytest.raises(InputError, match="--compile"):
        segment(["--base_model_weights=none", "--compile"], tmp_path)


@pytest.mark.slow
def test_inference_in_bfloat16(base_weights, tmp_path):
    argv = [
        f"--base_model_weights={base_weights}",
        "--nspix=150",
        "--device=cpu",
        "--enforce_connectivity=False",
    ]
    plain, narrow = (segment([*argv, f"--precision={name}"], tmp_path) for name in ("fp32", "bf16"))
    assert 0.9 < np.mean(plain == narrow) < 1


def test_segmenting_without_network(tmp_path):
    connected, raw = (
        segment(["--base_model_weights=none", f"--enforce_connectivity={value}"], tmp_path)
        for value in (True, False)
    )
    assert label(connected + 1, background=0, connectivity=1).max() == connected.max() + 1
    assert label(raw + 1, background=0, connectivity=1).max() > raw.max() + 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--image=no.jpg"], "no.jpg"),
        (["--base_model_weights=no.pth"], "no.pth"),
        (["--nspix=0"], "argument --nspix"),
        (["--nspix=-5"], "argument --nspix"),
        (["--nspix=100000000"], "--nspix 100000000 .*135300 pixels"),
        (["--niter=0"], "argument --niter"),
        (
            ["--save_outlines=o.svg", "--enforce_connectivity=False"],
            "--save_outlines .*--enforce_connectivity",
        ),
        (["--simplify=1"], "--simplify needs --save_outlines"),
        (["--simplify=-1", "--save_outlines=o.svg"], "argument --simplify"),
        (["--annotation_format=coco"], "--annotation_format needs --save_annotations"),
        (["--save_annotations=a.xml"], r"--save_annotations a\.xml: .* \.json, \.zip"),
        (["--save_annotations=a.json", "--annotation_format=cvat"], r"--save_annotations a\.json: .* \.zip"),
        (
            ["--save_annotations=a.zip", "--nspix=300", "--niter=1"],
            "--save_annotations .*at most 255 .* has 300; .*COCO",
        ),
        (["--exact_nspix", "--enforce_connectivity=False"], "--exact_nspix .*--enforce_connectivity"),
        (["--out=results.xyz"], "--out results.xyz"),
        (["--out=/no/such/folder/o.png"], "--out /no/such/folder/o.png"),
        (["--save_labels=labels.txt"], "--save_labels labels.txt"),
        (["--out=a.png", "--save_labels=./a.png"], "cat.jpg .*a.png"),
        (["--deepfdim=99"], "--deepfdim 99"),
        (["--device=tpu"], "--device tpu"),
        (["--enforce_connectivity=perhaps"], "argument --enforce_connectivity"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_bad_inference_options(argv, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--base_model_weights=none", *argv]
    assert re.search(expected, fails_with(inference_base_model.main, argv, capsys))
    assert list(tmp_path.iterdir()) == []


def test_cuda_without_cuda(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    error = fails_with(inference_base_model.main, ["--device=cuda", "--base_model_weights=none"], capsys)
    assert "--device cuda" in error


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "--bsds_root, --data_root or --davis2017_root"),
        (["--ignore_label=255"], "--ignore_label needs --data_root"),
        (["--bands", "1"], "--value_range and --bands need --data_root"),
        (["--bsds_root=/no/such/folder"], "argument --bsds_root: .*/no/such/folder"),
        (["--bsds_root={tmp}"], "{tmp}/BSDS500/data/images/test"),
        (["--davis2017_root={tmp}"], "{tmp}/DAVIS/JPEGImages/480p"),
        (["--eval_on_davis"], "--eval_on_davis .*--davis2017_root"),
        (["--bsds_root={bsds}", "--bsds_split=all"], "argument --bsds_split"),
        (["--bsds_root={bsds}", "--nspix=6000", "--nworkers=0"], "--nspix 6000 .*5520 pixels of 100"),
    ],
)
def test_bad_evaluation_options(argv, expected, tmp_path, bsds_root, capsys):
    argv = [option.format(tmp=tmp_path, bsds=bsds_root) for option in argv]
    error = fails_with(eval_base_model.main, ["--base_model_weights=none", *argv], capsys)
    assert re.search(expected.format(tmp=tmp_path), error)


@pytest.mark.slow
def test_network_trains_on_crops_of_the_crop_size(bsds_root, tmp_path, monkeypatch):
    sizes = set()

    def spy(model, image_lab, *args, **kwargs):
        sizes.add(image_lab.shape[2:])
        return model_input(model, image_lab, *args, **kwargs)

    monkeypatch.setattr("lib.training.run.model_input", spy)
    train_base_model.main(train_argv(bsds_root, tmp_path / "run", "--crop_size=40"))
    assert sizes == {(40, 40)}


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_broken_image_in_evaluation_is_one_error_line(bsds_root, n_workers, capsys):
    image_dir, annotation_dir = (
        bsds_root / "BSDS500/data" / kind / "test" for kind in ("images", "groundTruth")
    )
    for idx in range(200, 208):  # the first images are read earlier, to measure time
        shutil.copy(image_dir / "100.jpg", image_dir / f"{idx}.jpg")
        shutil.copy(annotation_dir / "100.mat", annotation_dir / f"{idx}.mat")
    file = image_dir / "207.jpg"
    file.write_bytes(file.read_bytes()[:200])
    argv = ["--base_model_weights=none", f"--bsds_root={bsds_root}", f"--nworkers={n_workers}", "--nspix=24"]
    assert f"error: {file} " in fails_with(eval_base_model.main, argv, capsys)


@pytest.mark.slow
def test_batch_may_be_larger_than_the_dataset(bsds_root, tmp_path):
    state = train_base_model.main(train_argv(bsds_root, tmp_path / "run", "--batchsize=5"))
    assert state.n_samples == 10  # of 4 images


def test_data_that_do_not_fit_end_a_run_before_it_starts(bsds_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lib.datasets.resident.free_memory", lambda device: 1000)
    argv = train_argv(bsds_root, tmp_path / "run", "--data_on_device=True")
    error = fails_with(train_base_model.main, argv, capsys)
    assert "error: --data_on_device True: needs 0.00 GB, 0.00 GB are free on cpu" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--nspix=4097"], "--nspix 4097 .*4096 pixels"),
        (["--nspix=4-65", "--crop_size=8"], "--nspix 65 .*64 pixels"),
        (["--eval_on_davis"], "--eval_on_davis .*--davis2017_root"),
        (["--lr=0"], "argument --lr"),
        (
            [f"--seed={2**63}"],
            "argument --seed: .*92233",
        ),
        (["--loss=mse"], "argument --loss"),
        (["--out_dir={file}/run"], "--out_dir {file}/run"),
        (["--resume={file}"], "{file} "),
        (["--resume={base}"], "--resume {base} .*last_model.pth"),
        (["--resume"], "argument --resume"),
        (["--nspix=20-10"], "argument --nspix: .*'20-10'"),
        (["--nspix=10-"], "argument --nspix: .*''"),
        (["--precision=fp8"], "argument --precision"),
        (["--ema_decay=1"], "argument --ema_decay: .*1"),
        (["--data_on_device=gpu"], "argument --data_on_device: expected auto, True or False, got 'gpu'"),
        (["--synthetic_data"], "--bsds_root, --data_root and --synthetic_data"),
        (["--val_data_root={tmp}"], "--val_data_root .*--data_root"),
        (["--bsds_root={tmp}", "--ignore_label=255"], "--ignore_label needs --data_root"),
        (["--bsds_root={tmp}", "--bands", "1"], "--value_range and --bands need --data_root"),
        (["--data_root={tmp}", "--ignore_label=all"], "--ignore_label: expected an integer, got 'all'"),
        (["--val_nspix=6000"], "--val_nspix 6000 .*5520 pixels of 100"),
        (["--init_weights={base}"], "--deepfdim 3 .*{base}.* 4"),
        (
            ["--init_weights={base}", "--deepfdim=4", "--distance=squared"],
            "--distance squared .*euclidean of --init_weights {base}",
        ),
        (
            ["--init_weights={base}", "--deepfdim=4", "--padding_mode=replicate"],
            "--padding_mode replicate .*zeros of --init_weights {base}",
        ),
        (
            ["--init_weights={base}", "--deepfdim=4", "--n_mid_channels=32"],
            "--n_mid_channels 32 contradicts 64 of --init_weights {base}",
        ),
        (
            ["--teacher={base}", "--deepfdim=4", "--sees_position=False"],
            "--sees_position False contradicts True of --teacher {base}",
        ),
        (["--n_mid_channels=0"], "argument --n_mid_channels"),
        (["--teacher={base}"], "--deepfdim 3 contradicts {base}, made with 4"),
        (["--teacher=none"], "--teacher none: expected a weight file"),
        (["--teacher={composite}"], "{composite} holds a composite model; expected a base model"),
        (["--teacher={tmp}/no.pth"], "no weight file {tmp}/no.pth"),
        (["--bsds_splits", "train", "train"], "--bsds_splits train train names a split twice"),
        (["--bsds_splits", "train", "test"], "argument --bsds_splits: invalid choice: 'test'"),
        (["--recipe=fast"], "argument --recipe: invalid choice: 'fast'"),
        (
            ["--color_jitter=1.5"],
            "--color_jitter: expected .* at least 0 and of at most 1, got .1.5",
        ),
    ],
)
def test_bad_training_options(more, expected, bsds_root, base_weights, composite_weights, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("in the way")
    names = {"file": file, "base": base_weights, "composite": composite_weights, "tmp": tmp_path}
    more = [option.format(**names) for option in more]
    error = fails_with(train_base_model.main, train_argv(bsds_root, tmp_path / "run", *more), capsys)
    assert re.search(expected.format(**names), error)
    assert not (tmp_path / "run").exists()


def test_small_validation_image_is_found_before_training(bsds_root, tmp_path, capsys):
    data = bsds_root / "BSDS500/data"
    Image.new("RGB", (5, 4)).save(data / "images/val/101.jpg")
    write_annotations(data / "groundTruth/val/101.mat", [np.ones((4, 5))])
    error = fails_with(train_base_model.main, train_argv(bsds_root, tmp_path / "run"), capsys)
    assert "--val_nspix 24 " in error
    assert "20 pixels of 101" in error
    assert not (tmp_path / "run").exists()


def test_annotation_of_another_size_is_found_before_training(bsds_root, tmp_path, capsys):
    data = bsds_root / "BSDS500/data"
    write_annotations(data / "groundTruth/train/103.mat", [np.ones((59, 92))])
    error = fails_with(train_base_model.main, train_argv(bsds_root, tmp_path / "run"), capsys)
    assert "103.mat " in error
    assert "(59, 92)" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_resume_warns_about_changed_images(bsds_root, tmp_path, caplog):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    argv = train_argv(bsds_root, tmp_path / "run", "--resume=auto", "--train_iter=3")
    unchanged = train_base_model.main(argv)
    last_model = tmp_path / "run" / "last_model.pth"
    checkpoint = read_checkpoint(last_model)
    names_alone = {"train": "0" * 64, "bsds_val": "0" * 64}  # as in checkpoints of older versions
    save_checkpoint(checkpoint | {"image_names_sha256": names_alone}, last_model)
    unchanged = train_base_model.main(argv)
    assert not any(record.levelname == "WARNING" for record in caplog.records)

    data = bsds_root / "BSDS500/data"
    for folder in ("images", "groundTruth"):
        next((data / folder / "val").glob("100.*")).unlink()
    checkpoint = read_checkpoint(last_model)
    save_checkpoint({**checkpoint, "best_score": 2.0}, last_model)  # above any validation score
    changed = train_base_model.main([*argv, "--train_iter=4"])
    assert f"`resume` {last_model}: bsds_val" in caplog.text
    assert unchanged.best_score < 2
    assert changed.best_score < 2
    assert read_checkpoint(tmp_path / "run" / "best_model.pth")["step"] == 4


def test_init_weights_refuses_none(bsds_root, tmp_path, capsys):
    argv = train_argv(bsds_root, tmp_path / "run", "--init_weights=none")
    assert "--init_weights none" in fails_with(train_base_model.main, argv, capsys)


@pytest.mark.slow
def test_only_training_may_round_to_tf32(bsds_root, tmp_path, monkeypatch):
    seen = set()
    encode = model.SSNModel.encode
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark

    def record(self, *args, **options):
        seen.add((self.training, cudnn.allow_tf32, cudnn.benchmark))
        return encode(self, *args, **options)

    monkeypatch.setattr("model.SSNModel.encode", record)
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    assert seen == {(True, True, True), (False, False, False)}
    assert (cudnn.allow_tf32, cudnn.benchmark) == before


def test_unwritable_out_dir_is_found_before_training(bsds_root, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"`out_dir` .*run .*Permission denied"):
        train_base_model.main(train_argv(bsds_root, tmp_path / "run"))


def test_every_option_has_help(capsys):
    for script in (train_base_model, eval_base_model, inference_base_model):
        for action in script.build_parser()._actions:
            assert action.help, action.dest
        with pytest.raises(SystemExit):
            script.main(["--help"])
        assert "(default: None)" not in capsys.readouterr().out


@pytest.fixture
def both_splits(bsds_root):
    """The miniature BSDS500 with 13 images in train and val, whose names differ, as those of BSDS500 do."""
    data = bsds_root / "BSDS500/data"
    for kind in ("images", "groundTruth"):
        for file in (data / kind / "val").glob("1*"):
            file.rename(file.with_stem(f"2{file.stem[1:]}"))
        (last,) = (data / kind / "val").glob("202.*")
        for idx in range(203, 209):
            shutil.copy(last, last.with_stem(str(idx)))
    return bsds_root


def logged_lines(out_dir):
    return [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]


def test_training_on_both_splits_validates_on_every_tenth_image(both_splits, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    argv = train_argv(both_splits, tmp_path / "run", "--bsds_splits", "train", "val", "--train_iter=3")
    with ctrl_c_in_second_step(monkeypatch):
        train_base_model.main(argv)
    assert "11 images in train, 2 images in bsds_held_out" in caplog.text
    last_model = tmp_path / "run" / "last_model.pth"
    assert read_checkpoint(last_model)["options"]["bsds_splits"] == "['train', 'val']"
    caplog.clear()
    assert train_base_model.main([f"--resume={last_model}"]).is_finished
    assert "11 images in train, 2 images in bsds_held_out" in caplog.text
    assert not any(record.levelname == "WARNING" for record in caplog.records)  # of other images
    last_line = logged_lines(tmp_path / "run")[-1]
    assert last_line["score"] == last_line["bsds_held_out_asa"]
    assert train_base_model.main([*argv, "--resume=auto"]).is_finished
    with pytest.raises(InputError, match=r"\['train'\] contradicts \['train', 'val'\] of `resume`"):
        train_base_model.main([f"--resume={last_model}", "--bsds_splits", "train"])


@pytest.mark.parametrize(
    ("splits", "names_of_val", "n_train"),
    [
        (["train"], [f"20{idx}" for idx in range(9)], 4),
        (["val"], ["200"], 8),
        (["train", "val"], ["100", "206"], 11),
        (["val", "train"], ["200", "101"], 11),
    ],
)
def test_validation_images_of_splits_are_not_trained_on(both_splits, splits, names_of_val, n_train):
    train_set, sets = train_base_model.open_bsds(both_splits, splits)
    ((name, validation_set),) = sets.items()
    assert name == ("bsds_val" if splits == ["train"] else "bsds_held_out")
    assert [image.name for image in validation_set] == names_of_val
    assert len(train_set) == n_train
    assert not set(train_set.image_files) & set(validation_set.image_files)


def test_narrow_network_is_trained_resumed_and_used(bsds_root, tmp_path, capsys):
    state = train_base_model.main(train_argv(bsds_root, tmp_path / "run", "--n_mid_channels=8"))
    assert state.model.n_mid_channels == 8
    weights = tmp_path / "run" / "best_model.pth"
    assert load_model(weights).model.n_mid_channels == 8
    resume = f"--resume={tmp_path / 'run' / 'last_model.pth'}"
    assert train_base_model.main([resume, "--train_iter=3"]).step == 3
    error = fails_with(train_base_model.main, [resume, "--n_mid_channels=16"], capsys)
    assert "--n_mid_channels 16 contradicts 8 of --resume" in error
    argv = train_argv(bsds_root, tmp_path / "next", f"--init_weights={weights}", "--n_mid_channels=8")
    start = train_base_model.main([*argv, "--lr=1e-9"]).model.feature_extract.output_conv[0].weight
    expected = load_model(weights).model.feature_extract.output_conv[0].weight
    torch.testing.assert_close(start, expected, atol=1e-6, rtol=0)


@pytest.fixture
def teacher(tmp_path):
    """A trained model with 3 learned features, and scales and merges of its own."""
    network = model.SSNModel(3, n_mid_channels=6, padding_mode="replicate")
    checkpoint = {
        "weights": network.state_dict(),
        "model_args": network.config(),
        "input_args": {"color_scale": 0.3, "pos_scale": 7.0},
        "merge_args": {"fine_factor": {10: 4.0}, "merge_pos_scale": {10: 0.7}},
    }
    path = tmp_path / "teacher.pth"
    save_checkpoint(checkpoint, path)
    return path


@pytest.mark.slow
def test_teacher_adds_a_term_and_gives_the_scales(bsds_root, tmp_path, teacher):
    for run, more in (("plain", []), ("taught", [f"--teacher={teacher}"])):
        scales = [] if more else ["--color_scale=0.3", "--pos_scale=7"]
        state = train_base_model.main(train_argv(bsds_root, tmp_path / run, *scales, *more))
        assert (state.model.n_mid_channels, state.model.padding_mode) == (64, "zeros")
    plain, taught = (logged_lines(tmp_path / run)[0] for run in ("plain", "taught"))
    assert "imitation" not in plain
    # The first step is the same but for the new term, so it has the same weights and the same input.
    for name in ("reconstruction", "position"):
        assert taught[name] == plain[name]
    assert taught["imitation"] > 0.1
    assert taught["loss"] == pytest.approx(plain["loss"] + taught["imitation"])
    stored = load_model(tmp_path / "taught" / "best_model.pth")
    assert stored.scales == InputScales(0.3, 7.0)
    assert stored.merging == load_model(teacher).merging

    given = [f"--teacher={teacher}", "--pos_scale=4", "--merge_pos_scale=0.2"]
    train_base_model.main(train_argv(bsds_root, tmp_path / "given", *given))
    stored = load_model(tmp_path / "given" / "best_model.pth")
    assert stored.scales == InputScales(0.3, 4.0)
    assert stored.merging == MergeSettings({10: 4.0}, {1: 0.2})


@pytest.mark.parametrize(("n_mid_channels", "is_copied"), [(4, True), (6, True), (8, False)])
def test_student_that_is_not_wider_starts_from_the_teacher(
    bsds_root, tmp_path, teacher, n_mid_channels, is_copied
):
    def start(*more):
        options = [f"--n_mid_channels={n_mid_channels}", *more]
        args = train_base_model.build_parser().parse_args(train_argv(bsds_root, tmp_path / "run", *options))
        torch.manual_seed(1)  # the teacher was made with seed 0
        return train_base_model.build_model(args)[0].model

    expected = start()
    student = start(f"--teacher={teacher}")
    if is_copied:
        copy_strongest_channels(expected.feature_extract, load_model(teacher).model.feature_extract)
    for name, value in expected.state_dict().items():
        assert value.equal(student.state_dict()[name]), name


def test_teacher_is_only_read(bsds_root, tmp_path):
    teacher = model.SSNModel(3, n_mid_channels=6).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run_training(
        model.SSNModel(3, n_mid_channels=6),
        InputScales(0.3, 7.0),
        Recipe(n_spixels=CountRange(24, 24), crop_size=40, batch_size=2, n_steps=1),
        RunSettings(out_dir=tmp_path / "run", n_workers=0, val_n_spixels=24),
        train_set=BSDSDataset(bsds_root, "train"),
        validation_sets={"val": BSDSDataset(bsds_root, "val")},
        score="val_asa",
        device=torch.device("cpu"),
        teacher=teacher,
    )
    assert "imitation" in logged_lines(tmp_path / "run")[0]
    for name, value in teacher.state_dict().items():
        assert value.equal(before[name]), name


@pytest.mark.slow
def test_resumed_run_with_a_teacher_equals_uninterrupted(bsds_root, tmp_path, monkeypatch, teacher, capsys):
    more = [f"--teacher={teacher}", "--train_iter=4"]
    whole = train_base_model.main(train_argv(bsds_root, tmp_path / "whole", *more))
    with ctrl_c_in_second_step(monkeypatch):
        train_base_model.main(train_argv(bsds_root, tmp_path / "parts", *more))
    shutil.copytree(tmp_path / "parts", tmp_path / "moved")
    runs = {"parts": [], "moved": [f"--teacher={tmp_path / 'elsewhere.pth'}"]}
    for run, moved in runs.items():
        if moved:
            teacher.rename(tmp_path / "elsewhere.pth")
            error = fails_with(train_base_model.main, [f"--resume={tmp_path / run}/last_model.pth"], capsys)
            assert f"no weight file {teacher}" in error
        resumed = train_base_model.main([f"--resume={tmp_path / run / 'last_model.pth'}", *moved])
        for name, value in whole.model.state_dict().items():
            assert value.equal(resumed.model.state_dict()[name]), name
        assert training_losses(tmp_path / run) == training_losses(tmp_path / "whole")


def test_resume_refuses_a_teacher_that_the_run_had_not(bsds_root, tmp_path, teacher, capsys):
    train_base_model.main(train_argv(bsds_root, tmp_path / "run"))
    argv = [f"--resume={tmp_path / 'run' / 'last_model.pth'}", f"--teacher={teacher}"]
    error = fails_with(train_base_model.main, argv, capsys)
    assert f"--teacher {teacher} contradicts the default of --resume" in error


@pytest.mark.parametrize("name", train_base_model.RECIPES)
def test_recipe_is_a_valid_command_line(name):
    check_recipe(train_base_model, name)


def test_small_recipe_imitates_the_shipped_model():
    recipe = train_base_model.RECIPES["small"]
    parser = train_base_model.build_parser()
    taught = load_model(recipe["teacher"]).model
    assert taught.n_learned_features == parser.get_default("deepfdim")
    assert recipe["n_mid_channels"] < taught.n_mid_channels


TINY_RECIPE = {"lr": 0.02, "bsds_splits": ["train", "val"], "train_iter": 3, "pos_scale": 10.0}
WITHOUT_LR = [option for option in SHORT_TRAINING if not option.startswith(("--lr", "--train_iter"))]


@pytest.mark.slow
def test_recipe_fills_the_options_that_are_not_given(bsds_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_base_model, "RECIPES", {"tiny": TINY_RECIPE, "other": {}})

    def argv(run, *more):
        data = [f"--bsds_root={bsds_root}", f"--out_dir={tmp_path / run}", "--deepfdim=3"]
        return [*data, *WITHOUT_LR, *more]

    by_hand = ["--lr=0.02", "--bsds_splits", "train", "val", "--train_iter=3", "--pos_scale=10"]
    train_base_model.main(argv("by_hand", *by_hand))
    train_base_model.main(argv("recipe", "--recipe=tiny"))
    assert training_losses(tmp_path / "recipe") == training_losses(tmp_path / "by_hand")
    assert len(training_losses(tmp_path / "recipe")) == 3
    stored = read_checkpoint(tmp_path / "recipe" / "last_model.pth")["options"]
    assert {name: stored[name] for name in TINY_RECIPE} == {
        name: str(value) for name, value in TINY_RECIPE.items()
    }
    assert stored["recipe"] == "tiny"

    more = ["--recipe=tiny", "--pos_scale=3", "--train_iter=2"]
    for _ in range(2):  # the second command finds the finished run
        assert train_base_model.main(argv("given", *more, "--resume=auto")).step == 2
    stored = read_checkpoint(tmp_path / "given" / "last_model.pth")["options"]
    assert (stored["pos_scale"], stored["train_iter"], stored["lr"]) == ("3.0", "2", "0.02")
    last_model = tmp_path / "given" / "last_model.pth"
    assert train_base_model.main([f"--resume={last_model}"]).step == 2  # not the 3 steps of the recipe
    error = fails_with(train_base_model.main, argv("given", "--recipe=other", "--resume=auto"), capsys)
    assert f"--recipe other contradicts tiny of --resume {last_model}" in error
    by_hand = f"--resume={tmp_path / 'by_hand' / 'last_model.pth'}"
    error = fails_with(train_base_model.main, [by_hand, "--recipe=tiny"], capsys)
    assert "--recipe tiny contradicts the default of --resume" in error


@pytest.mark.slow
def test_settings_chosen_after_training_are_those_of_inference(bsds_root, tmp_path, few_trials):
    train_base_model.main(train_argv(bsds_root, tmp_path / "plain", "--pos_scale=7"))
    argv = train_argv(bsds_root, tmp_path / "run", "--pos_scale=7", "--choose_settings")
    train_base_model.main(argv)
    best, last = (load_model(tmp_path / "run" / name) for name in ("best_model.pth", "last_model.pth"))
    plain = load_model(tmp_path / "plain" / "best_model.pth")
    for name, value in plain.model.state_dict().items():
        assert value.equal(best.model.state_dict()[name]), name
    assert best.scales.pos_scale in (2.1, 7.0)
    assert best.scales.color_scale == plain.scales.color_scale
    assert best.model.n_iter in (2, 4)
    assert (set(best.merging.fine_factor), set(best.merging.merge_pos_scale)) == ({24}, {24})
    assert (last.scales, last.model.n_iter, last.merging) == (plain.scales, 3, MergeSettings())

    image_rgb = make_quadrants()[0]
    Image.fromarray(image_rgb).save(tmp_path / "image.png")
    used = [f"--base_model_weights={tmp_path / 'run' / 'best_model.pth'}", "--nspix=24", "--device=cpu"]
    labels = segment([*used, f"--image={tmp_path / 'image.png'}"], tmp_path)
    segmenter = Segmenter(
        plain.model,
        best.scales,
        n_iter=best.model.n_iter,
        fine_factor=best.merging.fine_factor[24],
        merge_pos_scale=best.merging.merge_pos_scale[24],
    )
    np.testing.assert_array_equal(labels, segmenter(image_rgb, 24).labels)


@pytest.mark.slow
def test_run_resumed_after_its_last_step_chooses_the_same_settings(
    bsds_root, tmp_path, monkeypatch, few_trials
):
    """The choice starts from the settings of training, although the best model holds those chosen before."""
    argv = train_argv(bsds_root, tmp_path / "run", "--pos_scale=7", "--resume=auto")
    train_base_model.main(argv)
    monkeypatch.setattr("lib.evaluation.settings_choice._POS_SCALE_FACTORS", (0.3,))  # one that changes it
    weights, chosen = tmp_path / "run" / "best_model.pth", []
    for _ in range(2):
        train_base_model.main([*argv, "--choose_settings"])
        loaded = load_model(weights)
        chosen.append((loaded.scales, loaded.model.n_iter, loaded.merging))
    assert chosen[0][0].pos_scale == 2.1
    assert chosen[0] == chosen[1]
