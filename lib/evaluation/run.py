"""Run a whole evaluation: score methods on datasets, and write the results."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lib.evaluation.figures import write_curves, write_sheet
from lib.evaluation.journal import JOURNAL_FILES, Journal
from lib.evaluation.loop import ImageScores, Run, check_first_image, evaluate, list_runs
from lib.evaluation.methods import Method
from lib.evaluation.protocol import (
    RECORD,
    EvaluationSet,
    check_same_run,
    describe,
    make_record,
    recorded_picture_names,
    write_record,
)
from lib.evaluation.summary import DatasetResults, Summary, summarize_dataset
from lib.evaluation.tables import TABLES, group_table, summary_table, table_metrics, write_results
from lib.evaluation.timing import seconds_per_image
from lib.files.atomic import prepare_out_dir
from lib.metrics.registry import DEFAULT_METRICS, check_metrics
from lib.runtime.errors import InputError
from lib.runtime.notices import RESULT
from lib.runtime.ranks import is_first_rank, on_first_rank, together

logger = logging.getLogger(__name__)

PICTURES = "pictures"  # subfolder of the results

_FILES = (RECORD, *JOURNAL_FILES, *TABLES)


def run_evaluation(
    methods: Sequence[Method],
    sets: Sequence[EvaluationSet],
    *,
    n_spixels: Sequence[int],
    metrics: Sequence[str] = DEFAULT_METRICS,
    device: torch.device,
    n_workers: int = 4,
    ignore_background: bool = False,
    out_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    with_protocol: bool = False,
    options: Mapping[str, str] | None = None,
) -> dict[str, dict[Run, Summary]]:
    """Evaluate methods on datasets, log the results, and write them to a folder.

    Returns the summary of every run, by name of the dataset.

    Parameters
    ----------
    methods, sets
        Methods with different names, and the datasets to evaluate them on.
    n_spixels, metrics, n_workers
        See `lib.evaluation.loop.evaluate`.
    device, options
        Device of the networks and options of the script, for the record.
    ignore_background : bool
        Show the mean IoU without segment 0 instead of the mean IoU of all segments.
    out_dir : Path, optional
        Folder for the results.
    resume, overwrite : bool
        Continue with the results in `out_dir`, or replace them.
    with_protocol : bool
        Log the protocol of the evaluation.

    Raises
    ------
    InputError
        If a file or setting cannot be used. If `out_dir` holds results, and neither `resume` nor `overwrite`
        is set. If `resume` is set, and the results belong to another run.
    RunError
        If a worker process crashed, or a file cannot be written.
    Stop
        If the stop flag is set; `out_dir` keeps the images that are done.
    """
    check_metrics(metrics)
    for each in sets:
        check_first_image(each.dataset, n_spixels)
    runs = list_runs(methods, n_spixels)
    settings = {"n_spixels": n_spixels, "metrics": metrics}
    record = make_record(methods, sets, **settings, device=device, options=options or {})
    journal = None
    if out_dir:
        on_first_rank(lambda: _prepare_results(out_dir, record, resume=resume, overwrite=overwrite))
        names = [each.name for each in sets]
        journal = together(lambda: Journal(out_dir, metrics, names, runs) if is_first_rank() else None)
    results, scored = [], []
    for each in sets:
        seconds = on_first_rank(partial(_time_set, each, methods, journal, n_spixels))
        images = _score_set(each, methods, journal, **settings, n_workers=n_workers)
        scored.append({run: [image[run] for image in images] for run in runs})
        results.append(summarize_dataset(each.name, scored[-1], seconds))
    shown = table_metrics(metrics, ignore_background=ignore_background)
    for result in results:
        _log_tables(result, shown)
    if with_protocol:
        logger.log(RESULT, "\n%s", describe(record))
    if out_dir and is_first_rank():
        journal.write_tables()
        write_results(out_dir, results, record, metrics)
        for each, result, of_set in zip(sets, results, scored, strict=True):
            write_curves(out_dir / PICTURES, each.file_name, result, shown)
            for method in methods:
                write_sheet(out_dir / PICTURES, each.file_name, each.dataset, method, of_set)
        logger.info("tables and pictures in %s", out_dir)
    for result in results:
        _log_lines(result, ignore_background=ignore_background)
    return {result.name: {summary.run: summary for summary in result.summaries} for result in results}


def _prepare_results(out_dir: Path, record: Mapping[str, object], *, resume: bool, overwrite: bool) -> None:
    prepare_out_dir(out_dir)
    present = [out_dir / name for name in _FILES if (out_dir / name).exists()]
    if present and resume:
        check_same_run(record, out_dir)
    elif present and not overwrite:
        raise InputError(
            f"{out_dir} holds results already: `resume` continues them, `overwrite` replaces them",
            parameter="out_dir",
        )
    prepare_out_dir(out_dir / PICTURES)
    if present and resume:
        return
    starts = tuple(f"{name}_" for name in recorded_picture_names(out_dir))
    pictures = [path for path in (out_dir / PICTURES).iterdir() if path.name.startswith(starts)]
    for path in (*present, *pictures):
        path.unlink()
    write_record(record, out_dir)


def _time_set(
    each: EvaluationSet, methods: Sequence[Method], journal: Journal | None, n_spixels: Sequence[int]
) -> dict[Run, float]:
    """Return the seconds per image of all runs: from the journal, or measured now."""
    if journal and each.name in journal.seconds:
        return journal.seconds[each.name]
    seconds = seconds_per_image(methods, each.dataset, n_spixels)
    if journal:
        journal.set_seconds(each.name, seconds)
    return seconds


def _score_set(
    each: EvaluationSet, methods: Sequence[Method], journal: Journal | None, **settings: Any
) -> list[dict[Run, ImageScores]]:
    """Return the scores of all images; those in the journal are not computed again."""
    images = on_first_rank(lambda: list(journal.images[each.name]) if journal else [])
    try:
        for image in evaluate(methods, each.dataset, **settings, first_idx=len(images), title=each.name):
            if journal:
                journal.add(each.name, image)
            images.append(image)
    except KeyboardInterrupt:
        done = f"{len(images)} of {len(each.dataset)} images of {each.name}"
        logger.info("stopped after %s%s", done, "; continue with `resume`" if journal else "")
        raise
    return images


def _log_tables(result: DatasetResults, shown: Sequence[str]) -> None:
    if result.groups:
        logger.log(RESULT, "\n%s\n\n%s", result.name, group_table(result.groups, shown))
    logger.log(RESULT, "\n%s\n\n%s\n", result.name, summary_table(result.summaries, shown))


def _log_lines(result: DatasetResults, *, ignore_background: bool) -> None:
    """Log one line per method, in a stable format; a sweep over settings gets none."""
    methods = [summary.run.method for summary in result.summaries]
    if len(set(methods)) == len(methods):
        for summary in result.summaries:
            name = f"{result.name}, {summary.run.method}" if len(methods) > 1 else result.name
            logger.log(RESULT, "%s: %s", name, summary.line(ignore_background=ignore_background))
