"""Script that chooses the settings of a weight file, end to end."""

import re

import numpy as np
import pytest
from PIL import Image

import choose_settings
from helpers import fails_with, make_quadrants
from lib.datasets.bsds import BSDSDataset
from lib.datasets.davis import DAVISDataset
from lib.datasets.folder import FolderDataset
from lib.evaluation import settings_choice
from lib.evaluation.settings_choice import ChosenSettings
from lib.inference import Segmenter
from lib.runtime.errors import InputError
from lib.superpixels.merge_settings import MergeSettings
from lib.weights import load_model, read_checkpoint, save_checkpoint


@pytest.fixture
def own_data(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for idx in range(2):
        image_rgb, labels = make_quadrants(seed=idx)
        Image.fromarray(image_rgb).save(folder / f"{idx}.png")
        np.save(folder / f"{idx}.npy", labels)
    return folder


@pytest.fixture
def davis_argv(davis_root, optflow_folder):
    return [
        f"--davis2017_root={davis_root}",
        f"--davis_split={davis_root / 'both.txt'}",
        f"--davis_optflow_folder={optflow_folder}",
        "--device=cpu",
    ]


@pytest.fixture
def known_choice(monkeypatch):
    """Replace the search; return the list of its arguments, and what it chooses."""
    calls = []
    chosen = ChosenSettings(8.4, 9, MergeSettings({24: 3.0}, {24: 0.2}))

    def choose(segmenter, dataset, *, figure):
        calls.append((segmenter, dataset, figure))
        return chosen

    monkeypatch.setattr(settings_choice, "choose_settings", choose)
    return calls, chosen


def check_stored(path, chosen, before):
    """Check that a weight file holds the chosen settings, and otherwise what `before` held."""
    after = read_checkpoint(path)
    assert after.keys() == before.keys() | {"merge_args"}
    for name, value in before["weights"].items():
        assert after["weights"][name].equal(value), name
    assert after["model_args"] == {**before["model_args"], "n_iter": chosen.n_iter}
    assert after["input_args"] == {**before["input_args"], "pos_scale": chosen.pos_scale}
    assert MergeSettings(**after["merge_args"]) == chosen.merging


def test_settings_of_a_base_are_chosen_on_bsds(base_weights, bsds_root, device, few_trials, caplog):
    caplog.set_level("INFO")
    before = read_checkpoint(base_weights)
    segmenter = Segmenter.from_checkpoint(base_weights, device=device)
    expected = settings_choice.choose_settings(segmenter, BSDSDataset(bsds_root, "val"))
    argv = [f"--weights={base_weights}", f"--bsds_root={bsds_root}", f"--device={device}"]
    chosen = choose_settings.main(argv)
    assert chosen == expected
    assert chosen.pos_scale in (2.1, 7.0)
    check_stored(base_weights, chosen, before)
    assert caplog.messages[-1] == f"settings of {base_weights}: {chosen}"


def test_out_leaves_the_original_alone(base_weights, own_data, tmp_path, few_trials):
    content, before = base_weights.read_bytes(), read_checkpoint(base_weights)
    argv = [f"--weights={base_weights}", f"--data_root={own_data}", "--device=cpu"]
    outs = [tmp_path / "out.pth", tmp_path / "again.pth"]
    chosen, again = (choose_settings.main([*argv, f"--out={out}"]) for out in outs)
    assert base_weights.read_bytes() == content
    assert chosen == again
    check_stored(outs[0], chosen, before)


def test_search_starts_from_the_settings_of_the_file(base_weights, own_data, known_choice):
    merge_args = {"fine_factor": {10: 4.0}, "merge_pos_scale": {10: 0.7}}
    before = {**read_checkpoint(base_weights), "merge_args": merge_args}
    save_checkpoint(before, base_weights)
    calls, chosen = known_choice
    argv = [f"--weights={base_weights}", f"--data_root={own_data}", "--device=cpu"]
    assert choose_settings.main(argv) == chosen
    ((segmenter, dataset, figure),) = calls
    assert (segmenter.scales, segmenter.n_iter) == ((0.3, 7.0, None), 3)
    assert segmenter.merging == MergeSettings(**merge_args)
    assert isinstance(dataset, FolderDataset)
    assert figure == "asa"
    check_stored(base_weights, chosen, before)


@pytest.mark.parametrize("kind", ["base", "composite"])
def test_settings_are_chosen_on_davis_by_mean_iou(request, kind, davis_argv, known_choice):
    path = request.getfixturevalue(f"{kind}_weights")
    before, (calls, chosen) = read_checkpoint(path), known_choice
    assert choose_settings.main([f"--weights={path}", *davis_argv]) == chosen
    ((_, dataset, figure),) = calls
    assert isinstance(dataset, DAVISDataset)
    assert len(dataset) == 4
    assert (dataset[0].extra is not None) == (kind == "composite")
    assert figure == "mean_iou"
    check_stored(path, chosen, before)


def test_settings_of_a_composite_are_chosen_with_its_flow(
    composite_weights, davis_argv, few_trials, monkeypatch
):
    seen = []
    preprocess = Segmenter.preprocess

    def record(self, image, extra, **options):
        seen.append(np.abs(extra).max())
        return preprocess(self, image, extra, **options)

    monkeypatch.setattr(Segmenter, "preprocess", record)
    before = read_checkpoint(composite_weights)
    chosen = choose_settings.main([f"--weights={composite_weights}", *davis_argv])
    assert seen == [5.0] * 8  # pixels a frame; 4 frames, for the iterations and for the other settings
    check_stored(composite_weights, chosen, before)
    stored = load_model(composite_weights)
    assert stored.base_sha256 == before["base_sha256"]
    assert stored.scales == (0.3, chosen.pos_scale, 2.0)


def test_images_that_are_all_too_small(base_weights, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((20, 30), np.int32))
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    content = base_weights.read_bytes()
    with pytest.raises(InputError, match="all images have fewer than 800 pixels"):
        choose_settings.main([f"--weights={base_weights}", f"--data_root={tmp_path}"])
    assert base_weights.read_bytes() == content


ONE_SOURCE = "give one of --bsds_root, --data_root and --davis2017_root"
NEEDS_FLOW = "{composite} holds a composite model: give --davis2017_root and --davis_optflow_folder"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--data_root={own}"], "the following arguments are required: --weights"),
        (["--weights={base}"], ONE_SOURCE),
        (["--weights={base}", "--data_root={own}", "--bsds_root={bsds}"], ONE_SOURCE),
        (["--weights=none", "--data_root={own}"], "--weights none: expected a weight file"),
        (["--weights={tmp}/no.pth", "--data_root={own}"], "no weight file {tmp}/no.pth"),
        (["--weights={base}", "--data_root={own}", "--out={tmp}/o.png"], "--out {tmp}/o.png: .*in .pth"),
        (["--weights={base}", "--data_root={own}", "--out={tmp}/no/o.pth"], "--out {tmp}/no/o.pth: cannot"),
        (["--weights={composite}", "--bsds_root={bsds}"], NEEDS_FLOW),
        (["--weights={composite}", "--davis2017_root={davis}"], NEEDS_FLOW),
        (["--weights={base}", "--bsds_root={tmp}"], "--bsds_root .*{tmp}/BSDS500/data/images/val"),
        (["--weights={base}", "--davis2017_root={davis}", "--davis_split=vla"], "--davis_split vla "),
        (["--weights={base}", "--data_root={own}", "--device=tpu"], "--device tpu"),
    ],
)
def test_bad_options(
    argv, expected, base_weights, composite_weights, own_data, bsds_root, davis_root, tmp_path, capsys
):
    paths = {
        "base": base_weights,
        "composite": composite_weights,
        "own": own_data,
        "bsds": bsds_root,
        "davis": davis_root,
        "tmp": tmp_path,
    }
    content = base_weights.read_bytes(), composite_weights.read_bytes()
    error = fails_with(choose_settings.main, [option.format(**paths) for option in argv], capsys)
    assert re.search(expected.format(**paths), error)
    assert (base_weights.read_bytes(), composite_weights.read_bytes()) == content


def test_weights_that_cannot_be_replaced_are_found_before_the_search(
    base_weights, own_data, known_choice, monkeypatch
):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"`weights` .*base\.pth: .*Permission denied"):
        choose_settings.main([f"--weights={base_weights}", f"--data_root={own_data}"])
    assert known_choice[0] == []


def test_every_option_has_help(capsys):
    for action in choose_settings.build_parser()._actions:
        assert action.help, action.dest
    with pytest.raises(SystemExit):
        choose_settings.main(["--help"])
    assert "(default: None)" not in capsys.readouterr().out
