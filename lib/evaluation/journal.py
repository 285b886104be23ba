"""The scores of an evaluation on disk, row by row, so that an interrupted one can go on."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib.errors import InputError
from lib.evaluation.loop import ImageScores, Run
from lib.evaluation.scoring import PAIR_METRICS, SPIXEL_METRICS, Scores
from lib.files import atomic_path, name_failed_write

SCORES, SECONDS = "scores.csv", "seconds.csv"

_RUN_COLUMNS = ["method", "requested", "pos_scale"]
_PAIR_NAMES = {metric.name for metric in PAIR_METRICS}


class Journal:
    """Two tables that grow by an image at a time: `scores.csv`, and `seconds.csv`.

    A row of `scores.csv` is a run, an image and one of its annotations, with the metrics of the superpixels
    repeated for every annotation; a row of `seconds.csv` is a run and an image. Times are apart, since the
    scores of a repeated evaluation are the same to the last digit. Numbers are written in full.

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
        self._scores, self._seconds = folder / SCORES, folder / SECONDS
        self._metrics = [
            metric.name
            for metric in (*SPIXEL_METRICS, *PAIR_METRICS)
            if metric.name in metrics or metric.name == "n_spixels"
        ]
        self._done: dict[str, list[dict[Run, ImageScores]]] = {}
        try:
            self._read_tables(runs)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{self._scores} or {self._seconds} is damaged ({error}); use --overwrite"
            ) from error

    def done(self, dataset: str) -> list[dict[Run, ImageScores]]:
        """The scores of the images of a data set that were there at the start, in order."""
        return self._done.get(dataset, [])

    def add(self, dataset: str, image: Mapping[Run, ImageScores]) -> None:
        """Write the scores of an image.

        Raises
        ------
        RunError
            If writing fails, say because the disk is full.
        """
        score_rows, second_rows = [], []
        for run, scored in image.items():
            cells = dict(zip(_RUN_COLUMNS, _run_cells(run), strict=True))
            start = {"dataset": dataset, "image": scored.image, **cells}
            second_rows.append({**start, "seconds": repr(scored.seconds)})
            n_annotations = len(scored.scores.pairs)
            for idx, pair in enumerate(scored.scores.pairs):
                values = {name: repr(value) for name, value in (scored.scores.spixels | pair).items()}
                score_rows.append(
                    {**start, "annotation": str(idx), "annotations": str(n_annotations), **values}
                )
        _append(self._seconds, self._second_columns, second_rows)
        _append(self._scores, self._score_columns, score_rows)

    @property
    def _score_columns(self) -> list[str]:
        return ["dataset", "image", *_RUN_COLUMNS, "annotation", "annotations", *self._metrics]

    @property
    def _second_columns(self) -> list[str]:
        return ["dataset", "image", *_RUN_COLUMNS, "seconds"]

    def _read_tables(self, runs: Mapping[str, Sequence[Run]]) -> None:
        score_rows, second_rows = self._read(self._scores), self._read(self._seconds)
        seconds = {_key(row): row for row in second_rows}
        by_key: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in score_rows:
            by_key.setdefault(_key(row), []).append(row)
        kept_scores, kept_seconds = [], []
        for dataset, expected in runs.items():
            self._done[dataset] = []
            images = dict.fromkeys(row["image"] for row in score_rows if row["dataset"] == dataset)
            for image in images:
                keys = [(dataset, image, *_run_cells(run)) for run in expected]
                if not all(_is_complete(by_key.get(key), seconds.get(key)) for key in keys):
                    break
                self._done[dataset].append(
                    {
                        run: self._parse(image, by_key[key], seconds[key])
                        for run, key in zip(expected, keys, strict=True)
                    }
                )
                kept_scores += [row for key in keys for row in by_key[key]]
                kept_seconds += [seconds[key] for key in keys]
        self._write_all(kept_scores, kept_seconds)

    def _write_all(self, score_rows: list[dict[str, str]], second_rows: list[dict[str, str]]) -> None:
        for path, columns, rows in (
            (self._seconds, self._second_columns, second_rows),
            (self._scores, self._score_columns, score_rows),
        ):
            with atomic_path(path) as temporary:
                temporary.write_text(_format([dict(zip(columns, columns, strict=True)), *rows], columns))

    def _read(self, path: Path) -> list[dict[str, str]]:
        """The rows that are whole; a crash may have cut the last one short."""
        if not path.exists():
            return []
        whole_lines = path.read_text().rpartition("\n")[0]
        return [row for row in csv.DictReader(io.StringIO(whole_lines)) if None not in row.values()]

    def _parse(
        self, image: str, score_rows: Sequence[Mapping[str, str]], second_row: Mapping[str, str]
    ) -> ImageScores:
        spixels = {name: _number(score_rows[0][name]) for name in self._metrics if name not in _PAIR_NAMES}
        pairs = [
            {name: _number(row[name]) for name in self._metrics if name in _PAIR_NAMES} for row in score_rows
        ]
        return ImageScores(image, Scores(spixels, pairs), float(second_row["seconds"]))


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in ("dataset", "image", *_RUN_COLUMNS))


def _run_cells(run: Run) -> tuple[str, str, str]:
    return run.method, str(run.n_spixels), "" if run.pos_scale is None else repr(run.pos_scale)


def _is_complete(
    score_rows: Sequence[Mapping[str, str]] | None, second_row: Mapping[str, str] | None
) -> bool:
    return (
        bool(score_rows) and second_row is not None and len(score_rows) == int(score_rows[0]["annotations"])
    )


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _append(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with name_failed_write(path), path.open("a") as file:
        file.write(_format(rows, columns))


def _format(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.DictWriter(buffer, columns, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
