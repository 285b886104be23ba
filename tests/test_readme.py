"""The examples of the README run as they are."""

import re
from pathlib import Path

import pytest

from lib.checkpoint import load_composite_model

REPO_ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (REPO_ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(autouse=True)
def _in_a_copy_of_the_repo(tmp_path, monkeypatch):
    for folder in ("trained_models", "demo"):
        (tmp_path / folder).symlink_to(REPO_ROOT / folder)
    monkeypatch.chdir(tmp_path)


def test_library_call(capsys):
    (example,) = (example for example in EXAMPLES if "Segmenter" in example)
    exec(example, {})
    n_spixels, n_features = re.search(r"\((\d+), (\d+)\) \(\d+, 2\)", capsys.readouterr().out).groups()
    assert 150 < int(n_spixels) < 300
    assert int(n_features) == 15


def test_depth_in_place_of_flow():
    (example,) = (example for example in EXAMPLES if "depth" in example)
    exec(example, {"__name__": "example"})
    model, scales, _ = load_composite_model("log_depth/best_model.pth")
    assert model.n_extra_channels == 1
    assert scales.extra_scale == 1.0
