"""The scores of an evaluation on disk, image by image, so that an interrupted one can go on."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib.evaluation.loop import ImageScores, Run
from lib.files.atomic import atomic_path, name_failed_write
from lib.metrics.registry import PAIR_METRICS, SPIXEL_METRICS, Scores
from lib.runtime.errors import InputError

SCORES, SECONDS = "scores.csv", "seconds.csv"

_RUN_COLUMNS = ["method", "requested", "pos_scale"]
_SECONDS_COLUMNS = ["dataset", *_RUN_COLUMNS, "seconds"]


class Journal:
    """Two tables: `scores.csv`, which grows by an image at a time, and `seconds.csv`.

    A row of `scores.csv` is an image, a run and one of the annotations, with the metrics of the superpixels
    repeated for every annotation; a row of `seconds.csv` is a run. Times are apart, since the scores of a
    repeated evaluation are the same to the last digit. Numbers are written in full.

    Parameters
    ----------
    folder : Path
        Where the tables are, or will be. What is there already is kept, but for an image that is not
        complete.
    metrics : sequence of str
        Metrics of the scores.
    runs : mapping of str to sequence of Run
        The runs by data set, in the order in which they are evaluated.

    Raises
    ------
    InputError
        If the tables are there, but damaged.
    RunError
        If they cannot be written.
    """

    def __init__(self, folder: Path, metrics: Sequence[str], runs: Mapping[str, Sequence[Run]]) -> None:
        self._scores_path, self._seconds_path = folder / SCORES, folder / SECONDS
        names = {"n_spixels", *metrics}
        self._spixel_metrics = [metric.name for metric in SPIXEL_METRICS if metric.name in names]
        self._pair_metrics = [metric.name for metric in PAIR_METRICS if metric.name in names]
        metric_columns = [*self._spixel_metrics, *self._pair_metrics]
        self._columns = ["dataset", "image", *_RUN_COLUMNS, "annotation", "annotations", *metric_columns]
        self._done: dict[str, list[dict[Run, ImageScores]]] = {}
        self._seconds: dict[str, dict[Run, float]] = {}
        try:
            self._read_scores(runs)
            self._read_seconds(runs)
        except (KeyError, ValueError, csv.Error) as error:
            raise InputError(
                f"{self._scores_path} or {self._seconds_path} is damaged ({error}); use --overwrite"
            ) from error

    def done(self, dataset: str) -> list[dict[Run, ImageScores]]:
        """The scores of the images of a data set that were there at the start, in order."""
        return self._done[dataset]

    def seconds(self, dataset: str) -> dict[Run, float] | None:
        """Seconds per image of the runs on a data set; None if they have not been measured."""
        return self._seconds.get(dataset)

    def add(self, dataset: str, image: Mapping[Run, ImageScores]) -> None:
        """Write the scores of an image.

        Raises
        ------
        RunError
            If writing fails, say because the disk is full.
        """
        rows = self._rows(dataset, image)
        with (
            name_failed_write(self._scores_path),
            self._scores_path.open("a", encoding="utf-8", newline="") as file,
        ):
            file.write(_format(rows, self._columns))

    def set_seconds(self, dataset: str, seconds: Mapping[Run, float]) -> None:
        """Write the seconds per image of the runs on a data set.

        Raises
        ------
        RunError
            If writing fails.
        """
        self._seconds[dataset] = dict(seconds)
        rows = [
            {"dataset": name, **_run_cells(run), "seconds": repr(value)}
            for name, by_run in self._seconds.items()
            for run, value in by_run.items()
        ]
        _write(self._seconds_path, rows, _SECONDS_COLUMNS)

    def _rows(self, dataset: str, image: Mapping[Run, ImageScores]) -> list[dict[str, str]]:
        rows = []
        for run, scored in image.items():
            start = {"dataset": dataset, "image": scored.image, **_run_cells(run)}
            n_annotations = len(scored.scores.pairs)
            for idx, pair in enumerate(scored.scores.pairs):
                values = {name: repr(value) for name, value in (scored.scores.spixels | pair).items()}
                rows.append({**start, "annotation": str(idx), "annotations": str(n_annotations), **values})
        return rows

    def _read_scores(self, runs: Mapping[str, Sequence[Run]]) -> None:
        """Read the images that are complete, and write the table anew with these alone."""
        by_image: dict[tuple[str, str], list[dict[str, str]]] = {}
        for row in _read(self._scores_path):
            by_image.setdefault((row["dataset"], row["image"]), []).append(row)
        self._done = {dataset: [] for dataset in runs}
        kept = []
        is_cut = set()  # data sets after whose images so far one is not complete
        for (dataset, image), rows in by_image.items():
            scores = self._parse(image, rows, runs[dataset])
            if scores is None or dataset in is_cut:
                is_cut.add(dataset)
                continue
            self._done[dataset].append(scores)
            kept += self._rows(dataset, scores)
        _write(self._scores_path, kept, self._columns)

    def _parse(
        self, image: str, rows: Sequence[Mapping[str, str]], runs: Sequence[Run]
    ) -> dict[Run, ImageScores] | None:
        """The scores of an image from its rows; None if some are missing."""
        by_run: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
        for row in rows:
            by_run.setdefault(tuple(row[column] for column in _RUN_COLUMNS), []).append(row)
        scores = {}
        for run in runs:
            of_run = by_run.get(tuple(_run_cells(run).values()), [])
            if not of_run or len(of_run) != int(of_run[0]["annotations"]):
                return None
            spixels = {name: _number(of_run[0][name]) for name in self._spixel_metrics}
            pairs = [{name: _number(row[name]) for name in self._pair_metrics} for row in of_run]
            scores[run] = ImageScores(image, Scores(spixels, pairs))
        return scores

    def _read_seconds(self, runs: Mapping[str, Sequence[Run]]) -> None:
        rows = _read(self._seconds_path)
        for dataset, expected in runs.items():
            cells = {
                tuple(row[column] for column in _RUN_COLUMNS): row["seconds"]
                for row in rows
                if row["dataset"] == dataset
            }
            values = [cells.get(tuple(_run_cells(run).values())) for run in expected]
            if None not in values:
                self._seconds[dataset] = dict(zip(expected, map(float, values), strict=True))


def _run_cells(run: Run) -> dict[str, str]:
    cells = [run.method, str(run.n_spixels), "" if run.pos_scale is None else repr(run.pos_scale)]
    return dict(zip(_RUN_COLUMNS, cells, strict=True))


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _read(path: Path) -> list[dict[str, str]]:
    """The rows that are whole; a crash may have cut the last one short."""
    if not path.exists():
        return []
    whole_lines = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [row for row in csv.DictReader(io.StringIO(whole_lines)) if None not in row.values()]


def _write(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    header = dict(zip(columns, columns, strict=True))
    with atomic_path(path) as temporary:
        temporary.write_text(_format([header, *rows], columns), encoding="utf-8", newline="")


def _format(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.DictWriter(buffer, columns, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
