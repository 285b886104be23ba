"""Checkpoints and logs that can be read, but hold values that no run wrote, and flipped bits."""

import copy
import functools
import math
import operator
import re

import pytest
import torch

import train_base_model
from helpers import SHORT_TRAINING, LineFit, fails_with
from lib.runtime.errors import DamagedFileError, InputError
from lib.training.recipe import CountRange, Recipe
from lib.training.run_folder import find_resumable, has_best_model, read_log
from lib.training.trainer import TrainingState
from lib.weights import read_checkpoint, save_checkpoint

NAN, HUGE = math.nan, 10**400
SPARSE, META = torch.ones(3).to_sparse(), torch.ones(3, device="meta")
RATIO = torch.tensor([1, 2, 1e39], dtype=torch.float64)  # its last value is no float32

# Field of a checkpoint, with the keys below it; odd value; message. The field is in the message too.
ODD_STATES = [
    *(
        ("step", value, "an integer of at least 0")
        for value in ("7", 7.0, True, None, -1, HUGE, torch.ones(()))
    ),
    *(("n_samples", value, "an integer of at least 0") for value in ([], -1)),
    *(("validated_step", value, "an integer") for value in (None, 3, -1)),
    *(("best_score", value, "a number") for value in ("0.9", NAN, math.inf, None, 1j, False)),
    *(("optimizers", value, "a list") for value in (None, {}, "x")),
    ("optimizers", [], "of another recipe"),
    *(("optimizers.0", value, "the state of each weight") for value in (None, {}, {"state": []})),
    ("optimizers.0.state", {}, "it lacks 0.average"),
    ("optimizers.0.state", {0: {"average": torch.ones(3, 2)}, 9: {"x": 1}}, "it holds '9.x'"),
    ("optimizers.0.state.0", None, "the state of each weight"),
    ("optimizers.0.state.0.average", torch.ones(2, 3), r"is \(2, 3\), not \(3, 2\)"),
    ("optimizers.0.state.0.average", [0.0], "a dense tensor of real numbers"),
    ("optimizers.0.state.0.average", torch.full((3, 2), NAN), "not finite"),
    ("optimizers.1.state.0.step", 2.0, "a dense tensor of real numbers"),
    ("optimizers.1.state.0.step", torch.tensor(-1.0), "negative"),
    ("optimizers.1.state.0.exp_avg_sq", torch.full((3,), -1.0), "negative"),
    *(("last_weights", value, "tensors by name") for value in (None, [1])),
    ("last_weights", {}, "it lacks weight"),
    ("last_weights.extra", torch.ones(3), "it holds 'extra'"),
    ("last_weights.weight", torch.ones(4), r"is \(4,\), not \(3,\)"),
    ("last_weights.weight", torch.ones(0), r"is \(0,\), not \(3,\)"),
    *(
        ("last_weights.weight", value, "a dense tensor of real numbers")
        for value in (torch.ones(3) + 1j, SPARSE, META, None, 3)
    ),
    ("last_weights.weight", torch.ones(3, dtype=torch.int64), "torch.int64; expected torch.float32"),
    ("last_weights.weight", torch.ones(3, dtype=torch.bool), "torch.bool; expected torch.float32"),
    *(("last_weights.weight", value, "not finite") for value in (torch.tensor([1, NAN, 2]), RATIO)),
    ("weights.weight", torch.ones(4), r"is \(4,\), not \(3,\)"),
]


def change(content, field, value):
    """Set a value below the keys of a field, which are numbers in lists and in the state of optimizers."""
    *parents, last = (int(key) if key.isdigit() else key for key in field.split("."))
    functools.reduce(operator.getitem, parents, content)[last] = value


@pytest.fixture(scope="module")
def state_and_checkpoint():
    state = TrainingState(LineFit(), Recipe())
    for _ in range(2):
        state.model(torch.ones(4, 3)).square().mean().backward()
        for optimizer in state.optimizers:
            optimizer.step()
    state.step, state.n_samples = 2, 8
    return state, copy.deepcopy({"weights": state.weights(), **state.progress()})


@pytest.mark.parametrize(("field", "value", "message"), ODD_STATES)
def test_odd_state_of_a_run_is_refused(state_and_checkpoint, field, value, message, tmp_path):
    state, checkpoint = state_and_checkpoint
    before = copy.deepcopy(state.progress())
    odd = copy.deepcopy(checkpoint)
    change(odd, field, value)
    name = re.escape(field.split(".")[0])
    with pytest.raises(InputError, match=rf"^`resume` {tmp_path}/a.pth: {name}.*{message}") as caught:
        state.restore(odd, tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert state.step == before["step"]
    assert state.model.weight.equal(before["last_weights"]["weight"])
    state.restore(checkpoint, tmp_path / "a.pth")


def test_settings_of_optimizers_are_of_this_version(state_and_checkpoint, tmp_path):
    state, checkpoint = state_and_checkpoint
    odd = copy.deepcopy(checkpoint)
    for optimizer in odd["optimizers"]:
        optimizer["param_groups"] = "odd"
    state.restore(odd, tmp_path / "a.pth")
    assert state.optimizers[0].param_groups[0]["momentum"] == 0.95


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        *(
            ("n_spixels", value, "two integers of at least 1")
            for value in (24, (0, 3), (5, 4), (1, 2.0), "ab", ())
        ),
        *(("crop_size", value, "an integer of at least 1") for value in (0, 64.0, "64", True, HUGE)),
        *(("learning_rate", value, "a finite number above 0") for value in (0, NAN, math.inf, "1", HUGE, 1j)),
        ("ema_decay", 1, "a finite number of at least 0 and below 1"),
        ("vertical_flips", 1, "True or False"),
        ("loss", "mse", "one of expected_error, "),
        ("optimizer", ["muon"], "one of muon, adamw"),
        ("seed", 2**63, "an integer of at least 0 and below 9223372036854775808"),
        ("momentum", 0.9, "does not know the setting 'momentum'"),
        (3, 0.9, "does not know the setting 3"),
    ],
)
def test_odd_recipe_is_refused(setting, value, message):
    with pytest.raises(InputError, match=rf"^a\.pth: recipe.* {message}") as caught:
        Recipe.from_plain(Recipe().to_plain() | {setting: value}, "a.pth: recipe")
    assert str(setting) in str(caught.value)


def test_recipe_of_an_older_version_has_defaults():
    plain = Recipe(crop_size=64, learning_rate=1, n_spixels=CountRange(3, 4)).to_plain()
    del plain["quarter_turns"]
    assert Recipe.from_plain(plain) == Recipe(crop_size=64, learning_rate=1, n_spixels=CountRange(3, 4))
    with pytest.raises(InputError, match="recipe must be settings by name, got 3"):
        Recipe.from_plain(3)


LOG = b'{"step": 1, "loss": 0.5}\n{"step": 2, "score": null}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 1, "name": "caf\u00e9"}'.encode("latin-1"), "is damaged"),
        (b'{"step": 1, "lo', "is damaged"),
        (b"", "is damaged"),
        (b"\0" * 20, "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"3", "numbers by name"),
        (b'{"loss": 1.5}', "numbers by name"),
        *(
            (f'{{"step": {value}}}'.encode(), "numbers by name")
            for value in ('"1"', "1.5", "null", "true", "-1")
        ),
        *(
            (f'{{"step": 1, "loss": {value}}}'.encode(), "numbers by name")
            for value in ('"0.5"', "true", "[1]", "NaN", 10**400)
        ),
    ],
)
def test_odd_line_of_a_log_is_named(line, message, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(LOG + line + b"\n" + LOG)
    with pytest.raises(DamagedFileError, match=f"^line 3 of {path} .*{message}"):
        read_log(tmp_path)


@pytest.mark.parametrize("end", [b"", b'{"step": 3, "lo', b"\0" * 20])
def test_last_line_that_a_crash_cut_short_is_left_out(end, tmp_path):
    assert read_log(tmp_path) == []
    (tmp_path / "log.jsonl").write_bytes(LOG + end)
    assert read_log(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "score": None}]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_odd_run_is_refused_before_anything_is_written(bsds_root, tmp_path, capsys):
    folder = tmp_path / "run"
    last_model, log = folder / "last_model.pth", folder / "log.jsonl"
    train_base_model.main([*SHORT_TRAINING, f"--bsds_root={bsds_root}", f"--out_dir={folder}"])
    good = contents(folder)
    checkpoint = read_checkpoint(last_model)
    for field, value, message in (
        ("step", "2", f"--resume {last_model}: step must be an integer"),
        ("options", [], f"{last_model}: options must be texts by name"),
        ("options", {3: "x"}, f"{last_model}: options must be texts by name"),
        ("options.nspix", "many", f"{last_model}: argument --nspix: expected an integer"),
        ("options.nspix", "", f"{last_model}: the value of an option is empty"),
        ("recipe.crop_size", 0, f"{last_model}: recipe: crop_size must be an integer of at least 1, got 0"),
        ("recipe", None, f"{last_model}: recipe must be settings by name"),
        ("image_names_sha256", {"train": 3}, f"{last_model}: image_names_sha256 must be texts by name"),
        ("merge_args", {"fine_factor": "3"}, f"{last_model}: fine_factor must be numbers"),
        ("model_args.n_iter", HUGE, f"{last_model}: n_iter must be an integer"),
        ("weights.feature_extract.output_conv.0.bias", torch.ones(15) + 1j, "a dense tensor of real numbers"),
    ):
        odd = copy.deepcopy(checkpoint)
        if field.startswith("weights."):
            odd["weights"][field.removeprefix("weights.")] = value
        else:
            change(odd, field, value)
        save_checkpoint(odd, last_model)
        before = contents(folder)
        assert message in fails_with(train_base_model.main, [f"--resume={last_model}"], capsys)
        assert contents(folder) == before, field
    last_model.write_bytes(good["last_model.pth"])
    best = read_checkpoint(folder / "best_model.pth")
    save_checkpoint(best | {"step": None}, folder / "best_model.pth")
    error = fails_with(train_base_model.main, [f"--resume={last_model}"], capsys)
    assert f"{folder / 'best_model.pth'}: step must be an integer" in error
    (folder / "best_model.pth").write_bytes(good["best_model.pth"])
    log.write_bytes(b"\xff\n" + good["log.jsonl"])
    before = contents(folder)
    error = fails_with(train_base_model.main, [f"--resume={last_model}", "--train_iter=3"], capsys)
    assert f"line 1 of {log} is damaged" in error
    assert contents(folder) == before
    log.write_bytes(good["log.jsonl"])
    assert train_base_model.main([f"--resume={last_model}", "--train_iter=3"]).step == 3


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_flipped_bit_in_any_record_makes_resume_take_the_checkpoint_before(tmp_path):
    last_model, older = tmp_path / "last_model.pth", tmp_path / "checkpoint_00000002.pth"
    values = {name: torch.randn(50) for name in ("weights", "last_weights", "average")}
    checkpoint = {
        "weights": {"a": values["weights"]},
        "model_args": {},
        "last_weights": {"a": values["last_weights"]},
        "optimizers": [{"state": {0: {"average": values["average"]}}}],
    }
    for path in (older, last_model):
        save_checkpoint(checkpoint, path)
    content = last_model.read_bytes()
    places = {name: content.index(value.numpy().tobytes()) for name, value in values.items()}
    places |= {"pickle": content.index(b"optimizers"), "first byte": 0, "end": len(content) - 22}
    for name, place in places.items():
        flip(last_model, place)
        with pytest.raises(
            DamagedFileError, match=f"{last_model} is (damaged: |not a readable weight file: damaged)"
        ):
            read_checkpoint(last_model)
        assert find_resumable(tmp_path) == older, name
        last_model.write_bytes(content)
    assert find_resumable(tmp_path) == last_model
    flip(older, places["average"])
    older.rename(tmp_path / "best_model.pth")
    assert not has_best_model(tmp_path, validated_step=9)


def test_weight_files_of_old_formats_are_read(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "a.pth")["weights"]["a"].tolist() == [0, 1, 2]
