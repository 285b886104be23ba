"""Journals that can be read, but hold values that no evaluation wrote."""

import json
import math

import pytest

from lib.evaluation.journal import Journal
from lib.evaluation.loop import ImageScores, Run
from lib.metrics.registry import Scores
from lib.runtime.errors import InputError

RUN = Run("base", 24, 10.0)


def open_journal(folder):
    return Journal(folder, ("asa", "compactness"), ["val"], [RUN])


def test_journal_is_restored(tmp_path):
    journal = open_journal(tmp_path)
    journal.set_seconds("val", {RUN: 0.5})
    scores = Scores({"n_spixels": 24, "compactness": math.nan}, [{"asa": 0.25}, {"asa": math.nan}])
    journal.add("val", {RUN: ImageScores("a", scores)})
    restored = open_journal(tmp_path)
    assert restored.seconds == {"val": {RUN: 0.5}}
    (image,) = restored.images["val"]
    assert image[RUN].image == "a"
    assert image[RUN].scores.pairs[0] == {"asa": 0.25}
    assert math.isnan(image[RUN].scores.pairs[1]["asa"])
    assert math.isnan(image[RUN].scores.spixels["compactness"])


def image_line(*, name="a", run=(*RUN,), spixels=None, pairs=({"asa": 0.5},), **more):
    scores = {"run": run, "spixels": spixels or {"n_spixels": 24, "compactness": 0.5}, "pairs": pairs}
    return {"dataset": "val", "image": name, "scores": [scores], **more}


@pytest.mark.parametrize(
    "line",
    [
        3,
        [],
        {"dataset": "test", "seconds": [1]},
        {"dataset": ["val"], "seconds": [1]},
        *({"dataset": "val", "seconds": value} for value in (1, [], [1, 2], "1")),
        *({"dataset": "val", "seconds": [value]} for value in ("1", -1, True, None, 10**400, math.nan)),
        {"dataset": "val", "image": "a"},
        *(image_line(name=value) for value in (3, None, ["a"])),
        *(image_line(run=value) for value in (["base", 24], ["base", 25, 10.0], None)),
        *(image_line(pairs=value) for value in ([], "", {}, None, ["a"], [{}], [{"asa": "0.5"}])),
        *(image_line(pairs=[{"asa": value}]) for value in (True, [0.5], 10**400, math.inf)),
        *(
            image_line(spixels=value)
            for value in ([1], {"n_spixels": 24}, {"n_spixels": 1, "compactness": ""})
        ),
        *(image_line(scores=value) for value in (None, 3, [], {}, [1])),
    ],
)
def test_odd_line_is_named_and_nothing_is_written(line, tmp_path):
    check_refused(tmp_path, json.dumps(line).encode())


@pytest.mark.parametrize("line", [b"\xff", b"[" * 100_000, b"", b"\0\0"])
def test_line_that_is_no_json_is_named(line, tmp_path):
    check_refused(tmp_path, line)


def check_refused(folder, line):
    path = folder / "scores.jsonl"
    content = b"\n".join([json.dumps(image_line()).encode(), line, b""])
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"`overwrite` must be set .* line 2 of {path} is damaged"):
        open_journal(folder)
    assert path.read_bytes() == content
