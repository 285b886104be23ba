"""Fixtures: small images, datasets and models."""

import threading

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import TMonitor

from helpers import make_quadrants, write_annotations
from lib.weights import file_sha256, load_model, save_checkpoint
from model import CompositeSSNModel, SSNModel

torch.set_num_threads(1)  # for images this small, more threads are slower

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ),
]


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz",
        type=int,
        metavar="N",
        help="number of damaged files of each kind and of killed runs in tests/fuzz; default: a few",
    )


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def pyav():
    """PyAV, which reads and writes video files; tests that need it are skipped where it is missing."""
    return pytest.importorskip("av", reason="needs PyAV")


@pytest.fixture
def no_thread_is_left():
    """Check that all threads that a test starts have ended, but for the one that progress bars share."""
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert [thread for thread in left if not isinstance(thread, TMonitor)] == []


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_drawing(request, monkeypatch):
    """Save figures as a single pixel, for a drawing takes a second; `draws` marks tests of their content."""

    def save(figure, path, **settings):
        Image.new("RGB", (1, 1)).save(path, "PNG")

    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)


@pytest.fixture
def few_trials(monkeypatch):
    """Choose settings for 24 superpixels only, among two values each, for a search takes seconds."""
    for name, values in {
        "COUNTS": (24,),
        "_POS_SCALE_FACTORS": (0.3, 1.0),
        "_N_ITERS": (2, 4),
        "_FINE_FACTORS": (2.0, 4.0),
        "_MERGE_POS_SCALES": (0.2, 1.0),
    }.items():
        monkeypatch.setattr(f"lib.evaluation.settings_choice.{name}", values)


@pytest.fixture
def bsds_root(tmp_path):
    """A miniature BSDS500: 4, 3 and 2 images a split, two annotations each, and a stray file."""
    root = tmp_path / "BSR"
    for split_idx, split in enumerate(("train", "val", "test")):
        image_dir = root / "BSDS500/data/images" / split
        annotation_dir = root / "BSDS500/data/groundTruth" / split
        image_dir.mkdir(parents=True)
        annotation_dir.mkdir(parents=True)
        (image_dir / "Thumbs.db").write_bytes(b"stray")
        for idx in range(4 - split_idx):
            image_rgb, labels = make_quadrants(seed=10 * split_idx + idx)
            Image.fromarray(image_rgb).save(image_dir / f"{100 + idx}.jpg", quality=95)
            write_annotations(annotation_dir / f"{100 + idx}.mat", [labels + 1, labels // 2 + 1])
    return root


@pytest.fixture
def davis_root(tmp_path, monkeypatch):
    """A miniature DAVIS of two videos with two frames; `car` has a 0/255 mask, `dogs` labels 0 to 2.

    Its frames are 92x60, in place of the 854x480 of DAVIS.
    """
    monkeypatch.setattr("lib.datasets.davis.FRAME_SHAPE", (60, 92))
    root = tmp_path / "DAVIS2017"
    for video in ("car", "dogs"):
        frame_dir = root / "DAVIS/JPEGImages/480p" / video
        mask_dir = root / "DAVIS/Annotations/480p" / video
        frame_dir.mkdir(parents=True)
        mask_dir.mkdir(parents=True)
        for idx in range(2):
            image_rgb, labels = make_quadrants(seed=idx)
            Image.fromarray(image_rgb).save(frame_dir / f"{idx:05}.jpg", quality=95)
            mask = np.minimum(labels, 1) * 255 if video == "car" else labels % 3
            mask_image = Image.fromarray(mask.astype(np.uint8))
            if video == "dogs":
                mask_image = mask_image.convert("P")
                mask_image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            mask_image.save(mask_dir / f"{idx:05}.png")
    (root / "both.txt").write_text("car\ndogs\n")
    return root


@pytest.fixture
def base_weights(tmp_path):
    """A checkpoint of an untrained base model with 4 learned features and 3 iterations."""
    model_args = {"n_learned_features": 4, "n_iter": 3, "distance": "euclidean"}
    path = tmp_path / "base.pth"
    save_checkpoint(
        {
            "weights": SSNModel(**model_args).state_dict(),
            "model_args": model_args,
            "input_args": {"color_scale": 0.3, "pos_scale": 7.0},
        },
        path,
    )
    return path


@pytest.fixture
def optflow_folder(tmp_path):
    """Flow archives of the miniature DAVIS: its right half moves to the right, by 5 pixels a frame."""
    folder = tmp_path / "optflow"
    folder.mkdir()
    flow = np.zeros((1, 60, 92, 2), dtype=np.float16)
    flow[:, :, 46:, 1] = 5
    for video in ("car", "dogs"):
        with h5py.File(folder / f"optflow_gma_{video}.h5", "w") as file:
            file.create_dataset("flows", data=flow, compression="gzip")
            file.create_dataset("inv_flows", data=-flow, compression="gzip")
    return folder


@pytest.fixture
def composite_weights(tmp_path, base_weights):
    """A checkpoint of an untrained composite on top of `base_weights`, with 3 features of the flow."""
    model = CompositeSSNModel.on_top_of(load_model(base_weights).model, 3, n_extra_channels=4)
    path = tmp_path / "composite.pth"
    save_checkpoint(
        {
            "weights": model.state_dict(),
            "model_args": model.config(),
            "input_args": {"color_scale": 0.3, "pos_scale": 7.0, "extra_scale": 2.0},
            "base_sha256": file_sha256(base_weights),
        },
        path,
    )
    return path
