"""The examples of the READMEs and of docs/ run as they are, and checksums are those of the files."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import write_geotiff
from lib.weights import file_sha256, load_model

REPO_ROOT = Path(__file__).parent.parent
README = (REPO_ROOT / "README.md").read_text()
RESULTS = (REPO_ROOT / "docs" / "results.md").read_text()
MODEL_CARD = (REPO_ROOT / "trained_models" / "README.md").read_text()


def find_examples(page):
    return re.findall(r"```python\n(.*?)```", (REPO_ROOT / page).read_text(), re.DOTALL)


def run_example(page, word):
    """Run the only example of a page that contains a word."""
    (example,) = (example for example in find_examples(page) if word in example)
    namespace = {"__name__": "example"}
    exec(example, namespace)
    return namespace


@pytest.fixture(autouse=True)
def _in_a_copy_of_the_repo(tmp_path, monkeypatch):
    for folder in ("trained_models", "demo"):
        (tmp_path / folder).symlink_to(REPO_ROOT / folder)
    monkeypatch.chdir(tmp_path)


def test_examples_below_are_all():
    # docs/experiments.md has one more, which needs files that are no longer there.
    pages = ["README.md", *(f"docs/{page.name}" for page in (REPO_ROOT / "docs").glob("*.md"))]
    counts = {page: len(find_examples(page)) for page in pages}
    assert {page: n for page, n in counts.items() if n} == {
        "README.md": 1,
        "docs/library.md": 6,
        "docs/experiments.md": 1,
    }


@pytest.mark.slow
def test_first_example_prints_what_it_says(capsys):
    run_example("README.md", "Segmenter")
    said = re.findall(r"^print.*  # ([^:\n]*)", README, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said == ["(512, 512) 200", "50"]


@pytest.mark.slow
def test_features_and_edges(capsys):
    run_example("docs/library.md", "superpixels.edges")
    assert re.fullmatch(r"\(200, 15\) \(\d+, 2\)\n", capsys.readouterr().out)


@pytest.mark.slow
def test_graph(capsys):
    run_example("docs/library.md", "to_graph")
    assert re.fullmatch(r"torch.Size\(\[200, 14\]\) torch.Size\(\[2, \d+\]\)\n", capsys.readouterr().out)


@pytest.mark.slow
def test_in_place_of_slic():
    labels = run_example("docs/library.md", "import superpixels")["labels"]
    assert (labels.shape, labels.min(), labels.max()) == ((512, 512), 1, 100)


@pytest.mark.slow
def test_georeferenced_image():
    pytest.importorskip("pyogrio")
    values = np.random.default_rng(0).integers(1, 3000, (60, 92, 6), dtype=np.uint16)
    values[:9] = 0
    write_geotiff("field.tif", values, crs="EPSG:32633", transform=(10, 0, 5e5, 0, -10, 4.6e6), nodata=0)
    superpixels = run_example("docs/library.md", "read_geotiff")["superpixels"]
    assert superpixels.n_measured == 200
    np.testing.assert_array_equal(superpixels.labels < 0, values[..., 0] == 0)
    assert Path("labels.tif").stat().st_size > 0
    assert Path("superpixels.gpkg").read_bytes().startswith(b"SQLite format 3")


def test_scores_of_label_maps():
    pairs = run_example("docs/library.md", "score_label_maps")["scores"].pairs
    # The annotation changes below row 150, the first of a row of superpixels: one of 300 rows is wrong.
    assert [pair["asa"] for pair in pairs] == [pytest.approx(299 / 300)]


@pytest.mark.slow
def test_depth_in_place_of_flow():
    run_example("docs/library.md", "depth")
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


# By the README's name of a method: its row in docs/results.md, without the number of superpixels.
METHODS = {
    "`best_model.pth`": "ours | merged",
    "`small_model.pth`": "small | merged",
    "published SSN weights, one level of superpixels": "published | one level",
    "OpenCV SEEDS": "SEEDS | one level",
    "scikit-image SLIC": "SLIC | one level",
}


@pytest.mark.parametrize("method", METHODS)
def test_results_of_the_readme_are_those_of_the_results(method):
    (scores,) = re.findall(rf"^\| {re.escape(method)} \| (0\.[\d.| ]*) \|$", README, re.MULTILINE)
    assert f"\n| 200 | {METHODS[method]} | {scores} |\n" in RESULTS


def test_first_numbers_of_the_readme_are_its_results():
    row = r"^\| {} \| ([\d.]+) \| ([\d.]+) \|"
    methods = ("`best_model.pth`", "published SSN weights, one level of superpixels", "scikit-image SLIC")
    results = [re.findall(row.format(method), README, re.MULTILINE)[0] for method in methods]
    said = re.findall(r"^- \*\*([\d.]+)\*\*.*have ([\d.]+), SLIC ([\d.]+)\.$", README, re.MULTILINE)
    assert said == [tuple(f"{float(score):.3f}" for score in scores) for scores in zip(*results, strict=True)]


def test_scores_of_the_models_are_those_of_the_results():
    scores = re.findall(r"BSDS500 test: ASA ([\d.]+), mean IoU ([\d.]+)", README)
    for name, (asa, iou) in zip(("ours", "small"), scores, strict=True):
        row = rf"^\| 200 \| {name} \| merged \| {asa} .*\| {iou} \|$"
        assert re.search(row, RESULTS, re.MULTILINE), name
    (iou,) = re.findall(r"DAVIS: mean IoU without background ([\d.]+)", README)
    assert re.search(rf"^\| composite \| 200 \| [\d.]+ \| {iou} \|", RESULTS, re.MULTILINE)


def test_composite_contains_the_base_weights():
    base = REPO_ROOT / "trained_models" / "best_model.pth"
    composite = torch.load("trained_models/best_composite_model.pth", weights_only=True)
    assert composite["base_sha256"] == file_sha256(base)
    for name, value in torch.load(base, weights_only=True)["weights"].items():
        copied = composite["weights"][name.replace("feature_extract", "feature_extract_color")]
        torch.testing.assert_close(copied, value, rtol=0, atol=0)
