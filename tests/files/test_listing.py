"""Hidden files and folders are data nowhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import estimate_optflow
from helpers import make_quadrants, write_flo, write_frames
from lib.datasets.base import fingerprint
from lib.datasets.bsds import BSDSDataset
from lib.datasets.davis import DAVISDataset, find_frames
from lib.datasets.folder import FolderDataset
from lib.files.frames import list_in_order
from lib.files.listing import is_hidden, list_folders, list_visible

HIDDEN_FOLDERS = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git")


def litter(root):
    """Add what macOS, Windows, Jupyter and network drives leave, to a folder and to all below it."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for file in [path for path in folder.iterdir() if path.is_file()]:
            (folder / f"._{file.name}").write_bytes(b"\0\5\x16\7")
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._extra.jpg"):
            (folder / name).write_bytes(b"stray")
        for name in HIDDEN_FOLDERS:
            (folder / name).mkdir()
            (folder / name / "00000.jpg").write_bytes(b"stray")


def test_listings_skip_hidden_entries(tmp_path):
    for name in ("b.jpg", "a.jpg", "c.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "video").mkdir()
    litter(tmp_path)
    assert [path.name for path in list_visible(tmp_path)] == ["a.jpg", "b.jpg", "c.png", "video"]
    assert [path.name for path in list_visible(tmp_path, "*.jpg")] == ["a.jpg", "b.jpg"]
    assert list_folders(tmp_path) == [tmp_path / "video"]
    assert is_hidden(Path(".config", "a.jpg"))
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config" / "a.jpg").touch()
    assert list_visible(tmp_path / ".config") == [tmp_path / ".config" / "a.jpg"]  # chosen by the user


def test_bsds(bsds_root):
    before = [fingerprint(BSDSDataset(bsds_root, split)) for split in ("train", "val", "test")]
    litter(bsds_root)
    datasets = [BSDSDataset(bsds_root, split) for split in ("train", "val", "test")]
    assert [len(dataset) for dataset in datasets] == [4, 3, 2]
    assert [fingerprint(dataset) for dataset in datasets] == before


def test_davis(davis_root):
    split = str(davis_root / "both.txt")
    before = fingerprint(DAVISDataset(davis_root, split))
    litter(davis_root)
    assert {video: len(frames) for video, frames in find_frames(davis_root).items()} == {"car": 2, "dogs": 2}
    assert fingerprint(DAVISDataset(davis_root, split)) == before


def test_own_data(tmp_path):
    write_frames(tmp_path, [make_quadrants()[0]] * 2)
    for name in ("0", "1"):
        np.save(tmp_path / f"{name}.npy", make_quadrants()[1])
    litter(tmp_path)
    dataset = FolderDataset(tmp_path)
    assert [file.name for file in dataset.image_files] == ["0.png", "1.png"]
    assert [[file.name for file in files] for files in dataset.label_files] == [["0.npy"], ["1.npy"]]


def test_frames(tmp_path):
    files = write_frames(tmp_path / "clip", [make_quadrants()[0]] * 3)
    litter(tmp_path / "clip")
    assert list_in_order(tmp_path / "clip", (".png", ".jpg")) == files


@pytest.mark.parametrize("videos", [["bear"], []])
def test_flow_files(tmp_path, videos):
    for direction in ("forward", "backward"):
        for folder in [tmp_path / direction / video for video in videos] or [tmp_path / direction]:
            folder.mkdir(parents=True)
            write_flo(folder / "0.flo", np.ones((20, 30, 2)))
    litter(tmp_path / "forward")
    shutil.rmtree(tmp_path / "forward" / "@eaDir")  # so that the two folders differ
    litter(tmp_path / "backward")
    name = [] if videos else ["--video_name=bear"]
    folders = [str(tmp_path / "forward"), str(tmp_path / "backward")]
    (report,) = estimate_optflow.main(
        ["--flow_files", *folders, "--method=raft", f"--out_dir={tmp_path}", *name]
    )
    assert report.path.name == "optflow_raft_bear.h5"
    assert report.n_frames == 2
