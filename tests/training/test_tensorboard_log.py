"""The log for TensorBoard, read back as TensorBoard reads it."""

import io
import math
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import make_quadrants
from lib.runtime.errors import InputError, RunError
from lib.training.tensorboard_log import TensorBoardLog


def read_events(folder):
    return EventAccumulator(str(folder)).Reload()


def scalars_of(folder, tag):
    return [(event.step, event.value) for event in read_events(folder).Scalars(tag)]


def test_figures_are_grouped_and_on_the_disk_at_once(tmp_path):
    with TensorBoardLog(tmp_path / "new", first_step=0) as log:
        log.scalars(10, {"loss": 0.5, "lr": 0.25}, group="train")
        log.scalars(10, {"near_asa": math.nan}, group="validation")
        events = read_events(tmp_path / "new")
        assert events.Tags()["scalars"] == ["train/loss", "train/lr", "validation/near_asa"]
        assert scalars_of(tmp_path / "new", "train/lr") == [(10, 0.25)]
        assert math.isnan(events.Scalars("validation/near_asa")[0].value)


def test_picture_is_kept_without_loss(tmp_path):
    image_rgb, _ = make_quadrants(20, 31)
    with TensorBoardLog(tmp_path, first_step=0) as log:
        log.picture(7, "near/100", image_rgb)
        (event,) = read_events(tmp_path).Images("near/100")
    assert event.step == 7
    np.testing.assert_array_equal(Image.open(io.BytesIO(event.encoded_image_string)), image_rgb)


def test_resumed_run_hides_what_a_crash_left_beyond_its_first_step(tmp_path):
    with TensorBoardLog(tmp_path, first_step=0) as log:
        for step in (2, 4, 6, 8):
            log.scalars(step, {"loss": 1.0, "gone": 1.0}, group="train")
    with TensorBoardLog(tmp_path, first_step=4) as log:
        log.scalars(7, {"loss": 2.0}, group="train")
    assert scalars_of(tmp_path, "train/loss") == [(2, 1.0), (4, 1.0), (7, 2.0)]
    assert scalars_of(tmp_path, "train/gone") == [(2, 1.0), (4, 1.0)]


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file"):
        TensorBoardLog(tmp_path / "file", first_step=0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the writer's thread
@pytest.mark.parametrize(
    "write",
    [
        lambda log: log.scalars(1, {"loss": 1.0}, group="train"),
        lambda log: log.picture(1, "picture", np.zeros((20, 31, 3), np.uint8)),
    ],
    ids=["scalars", "picture"],
)
def test_folder_that_vanishes_is_named(tmp_path, write):
    folder = tmp_path / "tensorboard"
    others = threading.enumerate()
    log = TensorBoardLog(folder, first_step=0)
    (worker,) = set(threading.enumerate()).difference(others)
    shutil.rmtree(folder)
    with pytest.raises(RunError, match=r"cannot write .*tensorboard \(No such file or directory\)"):
        write(log)
    worker.join()  # its traceback belongs to this test


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # cannot be imported
    with pytest.raises(InputError, match="pip install tensorboard"):
        TensorBoardLog(tmp_path, first_step=0)


def test_package_is_imported_by_an_instance_only():
    code = "import sys, lib.training.tensorboard_log; assert 'tensorboard' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
