"""The command of the page does what the page shows."""

import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import inference_base_model
import inference_optflow_composite_model
from helpers import make_quadrants, translated_frames
from lib.cli.options import DEFAULT_BASE_WEIGHTS, DEFAULT_COMPOSITE_WEIGHTS, REPO_ROOT
from lib.cli.page_command import command_of
from lib.files.sessions import SessionFiles
from lib.inference.outputs import DEFAULT_STYLE, OverlayStyle
from lib.inference.page import Page
from lib.inference.page_settings import DOWNLOADS, Drawing, Inputs, Segmentation, View

SCRIPTS = {
    f"{script.__name__}.py": script for script in (inference_base_model, inference_optflow_composite_model)
}
CAT = REPO_ROOT / "demo" / "cat.jpg"
CLIP = REPO_ROOT / "demo" / "clip"
OVERLAY, GEOJSON = DOWNLOADS.values["Overlay (.png)"], DOWNLOADS.values["Outlines (.geojson)"]
LABELME = DOWNLOADS.values["Annotations, labelme (.json)"]
FILES = "--out superpixels.png --save_labels"


def view_of(
    image=CAT,
    next_frame=None,
    weights=DEFAULT_BASE_WEIGHTS,
    *,
    level=200,
    style=DEFAULT_STYLE,
    download=OVERLAY,
):
    return View(Segmentation(image, next_frame, Path(weights), 200, 1, None), level, style, download)


@pytest.mark.parametrize(
    ("view", "command"),
    [
        (view_of(), f"python inference_base_model.py --image demo/cat.jpg --nspix 200 {FILES} labels.npy"),
        (
            view_of(Path("/uploads/my cat.png"), weights="/uploads/own.pth", download=LABELME),
            "python inference_base_model.py --base_model_weights own.pth --image 'my cat.png' --nspix 200 "
            f"{FILES} labels.npy --save_annotations labelme.json --annotation_format labelme",
        ),
        (
            view_of(style=OverlayStyle(color=(255, 0, 0), width=3), download=GEOJSON),
            "python inference_base_model.py --image demo/cat.jpg --nspix 200 --boundary_color '#ff0000' "
            f"--boundary_width 3 {FILES} labels.npy --save_outlines outlines.geojson",
        ),
        (
            view_of(
                CLIP / "00000.jpg",
                CLIP / "00001.jpg",
                DEFAULT_COMPOSITE_WEIGHTS,
                style=OverlayStyle("mean_colors"),
            ),
            "python inference_optflow_composite_model.py --image demo/clip/00000.jpg --optflow_data auto "
            f"--nspix 200 --overlay mean_colors {FILES} labels.npy",
        ),
        (
            view_of(level=50, download=GEOJSON),
            "# labels.h5 has the labels of the page as level_50; the picture shows both levels\n"
            f"python inference_base_model.py --image demo/cat.jpg --levels 50 200 {FILES} labels.h5",
        ),
        (
            view_of(level=50, style=OverlayStyle("mean_colors")),
            "# labels.h5 has the labels of the page as level_50; the picture shows 200 superpixels\n"
            "python inference_base_model.py --image demo/cat.jpg --levels 50 200 --overlay mean_colors "
            f"{FILES} labels.h5",
        ),
        (
            view_of(Path("/uploads/b.JPG"), Path("/uploads/a.png"), DEFAULT_COMPOSITE_WEIGHTS),
            "mkdir frames && cp b.JPG frames/0.jpg && cp a.png frames/1.jpg\n"
            "python inference_optflow_composite_model.py --image frames/0.jpg --optflow_data auto "
            f"--nspix 200 {FILES} labels.npy",
        ),
    ],
    ids=["default", "own file", "style", "composite", "level", "level in colours", "uploaded frames"],
)
def test_command(view, command):
    assert command_of(view) == command


@pytest.fixture
def page(base_weights, composite_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restores it
    folder = tmp_path / "uploads"
    folder.mkdir()
    return Page(base_weights, composite_weights, SessionFiles(folder), max_megapixels=1)


@pytest.fixture
def uploads(page, base_weights, composite_weights, tmp_path, monkeypatch):
    """Files for the page, and copies where the command runs."""
    moving = translated_frames(2, 0, 3)
    Image.fromarray(make_quadrants()[0]).save(tmp_path / "image.png")
    for name, frame in zip(("b.png", "a.png"), moving, strict=True):
        Image.fromarray(frame[:60, :92]).save(tmp_path / name)
    names = ("image.png", "b.png", "a.png", base_weights.name, composite_weights.name)
    paths = {name: Path(shutil.copy(tmp_path / name, tmp_path / "uploads")) for name in names}
    monkeypatch.chdir(tmp_path)
    return paths


def run(command):
    """Run the lines of a command that copy files and start a script."""
    for line in command.splitlines():
        words = shlex.split(line)
        if words[0] == "python":
            SCRIPTS[words[1]].main([*words[2:], "--device", "cpu"])
        elif words[0] == "mkdir":
            Path(words[1]).mkdir()
            for copying in line.split(" && ")[1:]:
                shutil.copy(*shlex.split(copying)[1:])


def test_base_command_gives_the_labels_of_the_page(page, uploads):
    inputs = Inputs(uploads["image.png"], 30, 2.5, 4, "Own file", weights=uploads["base.pth"])
    result = page.segment(inputs, Drawing(color="red", download="Labels (.npy)"), session="one")
    expected = np.load(result.download)
    picture = np.asarray(Image.open(result.pictures[1]))
    run(command_of(result.view))
    np.testing.assert_array_equal(np.load("labels.npy"), expected)
    np.testing.assert_array_equal(np.asarray(Image.open("superpixels.png")), picture)


def test_command_of_a_level_gives_its_labels(page, uploads):
    page.segment(
        Inputs(uploads["image.png"], 30, 1, 4, "Own file", weights=uploads["base.pth"]),
        Drawing(),
        session="one",
    )
    result = page.redraw(9, Drawing(download="Labels (.npy)"), session="one")
    run(command_of(result.view))
    with h5py.File("labels.h5") as file:
        np.testing.assert_array_equal(file["level_9"], np.load(result.download))


def test_composite_command_gives_the_labels_of_the_page(page, uploads):
    inputs = Inputs(
        uploads["b.png"], 30, 1, 3, "Own file", next_frame=uploads["a.png"], weights=uploads["composite.pth"]
    )
    result = page.segment(inputs, Drawing(download="Labels (.npy)"), session="one")
    run(command_of(result.view))
    np.testing.assert_array_equal(np.load("labels.npy"), np.load(result.download))
