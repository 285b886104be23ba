"""The examples of the READMEs run as they are, and checksums are those of the files."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from lib.weights import file_sha256, load_model

REPO_ROOT = Path(__file__).parent.parent
README = (REPO_ROOT / "README.md").read_text()
MODEL_CARD = (REPO_ROOT / "trained_models" / "README.md").read_text()


def find_examples(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


EXAMPLES = find_examples(README)


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


def documented_checksums():
    """Checksum of each file of weights in the text of the model card and in the table of README."""
    checksums = dict(re.findall(r"`(\w+\.pth)` \(SHA-256 `(\w+)`", MODEL_CARD))
    (names,) = re.findall(r"^\| \|(.*best_model\.pth.*)\|$", README, re.MULTILINE)
    (row,) = re.findall(r"^\| SHA-256 \|(.*)\|$", README, re.MULTILINE)
    names, row = re.findall(r"`(\w+\.pth)`", names), re.findall(r"`(\w+)`", row)
    return checksums | dict(zip(names, row, strict=True))


@pytest.mark.parametrize("name", re.findall(r"^\| `(\w+\.pth)` \|", MODEL_CARD, re.MULTILINE))
def test_checksum_of_weights(name):
    assert documented_checksums()[name] == file_sha256(Path("trained_models", name))


def test_base_weights_are_the_mean_in_the_model_card():
    Path("trained_models").unlink()
    shutil.copytree(REPO_ROOT / "trained_models", "trained_models")
    shipped = torch.load("trained_models/best_model.pth", weights_only=True)
    Path("trained_models/best_model.pth").unlink()
    (example,) = (example for example in find_examples(MODEL_CARD) if "mean =" in example)
    exec(example, {})
    remade = torch.load("trained_models/best_model.pth", weights_only=True)
    assert remade["model_args"] == shipped["model_args"]
    assert remade["input_args"] == shipped["input_args"]
    assert remade["merge_args"] == shipped["merge_args"]
    torch.testing.assert_close(remade["weights"], shipped["weights"])


def test_composite_contains_the_base_weights():
    base = REPO_ROOT / "trained_models" / "best_model.pth"
    composite = torch.load("trained_models/best_composite_model.pth", weights_only=True)
    assert composite["base_sha256"] == file_sha256(base)
    for name, value in torch.load(base, weights_only=True)["weights"].items():
        copied = composite["weights"][name.replace("feature_extract", "feature_extract_color")]
        torch.testing.assert_close(copied, value, rtol=0, atol=0)
