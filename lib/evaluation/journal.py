"""Write the scores of an evaluation image by image, so that an interrupted run can continue."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.evaluation.loop import ImageScores, Run
from lib.evaluation.tables import without_nan, write_csv
from lib.files.atomic import atomic_path, name_failed_write
from lib.files.values import number
from lib.metrics.registry import PAIR_METRICS, SPIXEL_METRICS, Scores
from lib.runtime.errors import InputError

_DURATION, _SCORE = number(float, low=0), number(float)

JOURNAL, SCORES, SECONDS = JOURNAL_FILES = ("scores.jsonl", "scores.csv", "seconds.csv")


class Journal:
    """`scores.jsonl`, which grows by one line per image; the tables are written from it at the end.

    A line holds the scores of an image, or the seconds of the runs on a dataset. Numbers have full
    precision, and NaN is null. Complete lines of a journal that exists in `folder` are kept. `runs` are the
    runs on each dataset, in the order of their evaluation.

    Raises
    ------
    InputError
        If a complete line is damaged, or belongs to other runs.
    RunError
        If a file cannot be written, for example because the disk is full; raised by all methods.
    """

    def __init__(
        self, folder: Path, metrics: Sequence[str], datasets: Sequence[str], runs: Sequence[Run]
    ) -> None:
        self._folder, self._path, self._runs = folder, folder / JOURNAL, runs
        names = {"n_spixels", *metrics}
        self._spixel_metrics = [metric.name for metric in SPIXEL_METRICS if metric.name in names]
        self._pair_metrics = [metric.name for metric in PAIR_METRICS if metric.name in names]
        # By dataset: scores of the images that are done, in order, and seconds per image once measured.
        self.images: dict[str, list[Mapping[Run, ImageScores]]] = {dataset: [] for dataset in datasets}
        self.seconds: dict[str, dict[Run, float]] = {}
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # incomplete after a crash
            lines.pop()
        for idx, line in enumerate(lines, 1):
            try:
                self._restore(json.loads(line))
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise InputError(
                    f"must be set to start again: line {idx} of {self._path} is damaged",
                    parameter="overwrite",
                ) from error
        with atomic_path(self._path) as temporary:
            temporary.write_bytes(b"".join(lines))

    def add(self, dataset: str, image: Mapping[Run, ImageScores]) -> None:
        """Append the scores of an image."""
        name = next(iter(image.values())).image
        scores = [{"run": list(run), **scored.scores._asdict()} for run, scored in image.items()]
        self._append({"dataset": dataset, "image": name, "scores": scores})
        self.images[dataset].append(image)

    def set_seconds(self, dataset: str, seconds: dict[Run, float]) -> None:
        """Append the seconds per image of the runs on a dataset."""
        self._append({"dataset": dataset, "seconds": list(seconds.values())})
        self.seconds[dataset] = seconds

    def write_tables(self) -> None:
        """Write `scores.csv` and `seconds.csv`.

        `scores.csv` has a row for each image, run and annotation; metrics of the superpixels alone are
        repeated for every annotation. `seconds.csv` has a row for each run. Times have a separate file,
        so that `scores.csv` of a repeated evaluation is the same to the last digit.
        """
        write_csv(self._folder / SCORES, list(self._score_rows()))
        rows = [
            {"dataset": dataset, **_run_cells(run), "seconds": value}
            for dataset, by_run in self.seconds.items()
            for run, value in by_run.items()
        ]
        write_csv(self._folder / SECONDS, rows)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with name_failed_write(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(entry)) + "\n")

    def _restore(self, entry: Mapping[str, Any]) -> None:
        """Restore the scores or seconds of one line."""
        images = self.images[entry["dataset"]]
        if "seconds" in entry:
            seconds = dict(zip(self._runs, entry["seconds"], strict=True))
            if not all(map(_DURATION.is_valid, seconds.values())):
                raise TypeError(f"expected {_DURATION.words}, got {seconds}")
            self.seconds[entry["dataset"]] = seconds
            return
        if not isinstance(entry["image"], str):
            raise TypeError("expected the name of an image")
        image = {}
        for run, scored in zip(self._runs, entry["scores"], strict=True):
            if Run(*scored["run"]) != run:
                raise ValueError(f"expected {run}")
            if not (isinstance(scored["pairs"], list) and scored["pairs"]):
                raise TypeError("expected scores of annotations")
            pairs = [_numbers(pair, self._pair_metrics) for pair in scored["pairs"]]
            scores = Scores(_numbers(scored["spixels"], self._spixel_metrics), pairs)
            image[run] = ImageScores(entry["image"], scores)
        images.append(image)

    def _score_rows(self) -> Iterator[dict[str, Any]]:
        for dataset, images in self.images.items():
            for image in images:
                for run, (name, (spixels, pairs)) in image.items():
                    start = {"dataset": dataset, "image": name, **_run_cells(run)}
                    for idx, pair in enumerate(pairs):
                        yield {
                            **start,
                            "annotation": idx,
                            "annotations": len(pairs),
                            **{metric: spixels[metric] for metric in self._spixel_metrics},
                            **{metric: pair[metric] for metric in self._pair_metrics},
                        }


def _run_cells(run: Run) -> dict[str, Any]:
    return {"method": run.method, "requested": run.n_spixels, "pos_scale": run.pos_scale}


def _numbers(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Return the values with these names, with NaN for null."""
    for name in names:
        if values[name] is not None and not _SCORE.is_valid(values[name]):
            raise TypeError(f"{name} must be {_SCORE.words}, got {values[name]}")
    return {name: math.nan if values[name] is None else values[name] for name in names}
