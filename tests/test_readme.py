"""The examples of the READMEs and of docs/ run as they are, and checksums are those of the files."""

import re
from pathlib import Path

import pytest
import torch

from lib.weights import file_sha256, load_model

REPO_ROOT = Path(__file__).parent.parent
README = (REPO_ROOT / "README.md").read_text()
MODEL_CARD = (REPO_ROOT / "trained_models" / "README.md").read_text()


def find_examples(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


EXAMPLES = [
    example for page in (REPO_ROOT / "docs").glob("*.md") for example in find_examples(page.read_text())
]


@pytest.fixture(autouse=True)
def _in_a_copy_of_the_repo(tmp_path, monkeypatch):
    for folder in ("trained_models", "demo"):
        (tmp_path / folder).symlink_to(REPO_ROOT / folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_library_call(capsys):
    (example,) = (example for example in EXAMPLES if "Segmenter" in example)
    exec(example, {})
    n_spixels, n_features = re.search(r"\((\d+), (\d+)\) \(\d+, 2\)", capsys.readouterr().out).groups()
    assert 150 < int(n_spixels) < 300
    assert int(n_features) == 15


@pytest.mark.slow
def test_depth_in_place_of_flow():
    (example,) = (example for example in EXAMPLES if "depth" in example)
    exec(example, {"__name__": "example"})
    model, scales, *_ = load_model("log_depth/best_model.pth")
    assert model.n_extra_channels == 1
    assert scales.extra_scale == 1.0


CHECKSUMS = dict(re.findall(r"^\| `(\w+\.pth)` \|.*\| `(\w{64})` \|$", MODEL_CARD, re.MULTILINE))


def test_every_file_of_weights_is_in_the_model_card():
    assert set(CHECKSUMS) == {path.name for path in Path("trained_models").glob("*.pth")}


@pytest.mark.parametrize("name", CHECKSUMS)
def test_checksum_of_weights(name):
    assert CHECKSUMS[name] == file_sha256(Path("trained_models", name))


@pytest.mark.parametrize("name", CHECKSUMS)
def test_settings_in_the_model_card_are_those_of_the_file(name):
    model, scales, *_ = load_model(Path("trained_models", name))
    (section,) = re.findall(rf"^## `{name}`$(.*?)(?:^## |\Z)", MODEL_CARD, re.MULTILINE | re.DOTALL)
    assert re.findall(r"(\d+) iterations", section) == [str(model.n_iter)]
    assert re.findall(r"`--pos_scale` ([\d.]+)", section) == [f"{scales.pos_scale:g}"]


def test_scores_of_the_readme_are_those_of_the_results():
    results = (REPO_ROOT / "docs" / "results.md").read_text()
    scores = re.findall(r"BSDS500 test: ASA ([\d.]+), mean IoU ([\d.]+)", README)
    for name, (asa, iou) in zip(("ours", "small"), scores, strict=True):
        row = rf"^\| 200 \| {name} \| merged \| {asa} .*\| {iou} \|$"
        assert re.search(row, results, re.MULTILINE), name
    (iou,) = re.findall(r"DAVIS: mean IoU without background ([\d.]+)", README)
    assert re.search(rf"^\| composite \| 200 \| [\d.]+ \| {iou} \|", results, re.MULTILINE)


def test_composite_contains_the_base_weights():
    base = REPO_ROOT / "trained_models" / "best_model.pth"
    composite = torch.load("trained_models/best_composite_model.pth", weights_only=True)
    assert composite["base_sha256"] == file_sha256(base)
    for name, value in torch.load(base, weights_only=True)["weights"].items():
        copied = composite["weights"][name.replace("feature_extract", "feature_extract_color")]
        torch.testing.assert_close(copied, value, rtol=0, atol=0)
