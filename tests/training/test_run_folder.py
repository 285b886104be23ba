"""Files of a training run: log, curves and TensorBoard events."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import make_quadrants
from lib.runtime.errors import RunError
from lib.training.run_folder import RunFolder, Validation

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")


def open_folder(path, *, step=0):
    return RunFolder(path, {}, {}, {"step": step, "validated_step": step}, n_kept=1)


def read_events(folder):
    return accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()


def scalars_of(folder, tag):
    return [(event.step, event.value) for event in read_events(folder).Scalars(tag)]


def test_log_writes_nan_as_null(tmp_path):
    folder = open_folder(tmp_path)
    folder.add_interval(5, {"loss": 0.5})
    folder.add_validation(5, Validation(math.nan, {"near_asa": math.nan, "far_asa": 0.5}, {}))
    folder.close()

    def refuse(constant):
        raise AssertionError(constant)

    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    assert entries[1] == {"step": 5, "score": None, "near_asa": None, "far_asa": 0.5}
    resumed = open_folder(tmp_path, step=5)
    resumed.add_validation(10, Validation(0.5, {"near_asa": 0.5, "far_asa": 0.5}, {}))
    resumed.close()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_events_are_grouped_and_flushed(tmp_path):
    image_rgb, _ = make_quadrants(20, 31)
    folder = open_folder(tmp_path)
    folder.add_interval(10, {"loss": 0.5, "lr": 0.25})
    folder.add_validation(10, Validation(0.75, {"near_asa": math.nan}, {"near/100": image_rgb}))
    events = read_events(tmp_path)
    assert events.Tags()["scalars"] == [
        "train/loss",
        "train/lr",
        "validation/score",
        "validation/near_asa",
    ]
    assert scalars_of(tmp_path, "train/lr") == [(10, 0.25)]
    assert math.isnan(events.Scalars("validation/near_asa")[0].value)
    (event,) = events.Images("near/100")
    np.testing.assert_array_equal(Image.open(io.BytesIO(event.encoded_image_string)), image_rgb)
    folder.close()


def test_resumed_run_discards_later_events(tmp_path, monkeypatch):
    # Names of event files hold the second and a count, as text: within a second, 10 would come before 9.
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", writer.AtomicCounter(10))
    folder = open_folder(tmp_path)
    for step in (2, 4, 6, 8):
        folder.add_interval(step, {"loss": 1.0, "gone": 1.0})
    folder.close()
    folder = open_folder(tmp_path, step=4)
    folder.add_interval(7, {"loss": 2.0})
    folder.close()
    assert scalars_of(tmp_path, "train/loss") == [(2, 1.0), (4, 1.0), (7, 2.0)]
    assert scalars_of(tmp_path, "train/gone") == [(2, 1.0), (4, 1.0)]


def test_error_names_unwritable_events_folder(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*tensorboard"):
        open_folder(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the writer's thread
def test_error_names_deleted_events_folder(tmp_path):
    others = threading.enumerate()
    folder = open_folder(tmp_path)
    (worker,) = set(threading.enumerate()).difference(others)
    shutil.rmtree(tmp_path / "tensorboard")
    with pytest.raises(RunError, match=r"cannot write .*tensorboard \(No such file or directory\)"):
        folder.add_interval(1, {"loss": 1.0})
    worker.join()  # its traceback belongs to this test


def test_training_works_without_tensorboard(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # cannot be imported
    folder = open_folder(tmp_path)
    folder.add_interval(1, {"loss": 1.0})
    folder.add_validation(1, Validation(0.5, {"near_asa": 0.5}, {"near/1": make_quadrants()[0]}))
    folder.close()
    assert caplog.text.count("pip install tensorboard") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "log.jsonl"]


def test_training_in_a_folder_whose_name_is_not_utf_8_has_no_tensorboard(tmp_path, caplog):
    path = tmp_path / os.fsdecode(b"run\xff")
    path.mkdir()
    caplog.set_level("INFO")
    folder = open_folder(path)
    folder.add_interval(1, {"loss": 0.5})
    folder.close()
    assert sorted(each.name for each in path.iterdir()) == ["log.jsonl"]
    assert caplog.text.count("is not UTF-8") == 1


@pytest.mark.slow
def test_tensorboard_is_imported_lazily():
    code = "import sys, lib.training.run_folder; assert 'tensorboard' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
