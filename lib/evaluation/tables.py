"""Tables of an evaluation: Markdown to read, CSV and JSON for programs."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.evaluation.loop import Run
from lib.evaluation.summary import COUNT_RANGE, CurveMean, DatasetResults, Summary
from lib.files.atomic import atomic_path
from lib.metrics.registry import DEFAULT_METRICS, METRICS, PAIR_METRICS

TABLES = ("results.json", "summary.md", "summary.csv", "curve_means.csv")
RESULTS, SUMMARY_MARKDOWN, SUMMARY_CSV, CURVE_MEANS_CSV = TABLES

# Columns of the printed table, unless metrics are chosen.
MAIN_METRICS = (
    "asa",
    "ue_np",
    "boundary_recall",
    "boundary_precision",
    "compactness",
    "explained_variation",
    "mean_iou",
)


def table_metrics(metrics: Sequence[str], *, ignore_background: bool) -> list[str]:
    """Return the metrics of the printed table: all chosen metrics, or `MAIN_METRICS` if none were chosen."""
    main = [name for name in MAIN_METRICS if name in metrics]
    if set(metrics) != set(DEFAULT_METRICS):
        main = [name for name in metrics if name != "n_spixels"]
    if ignore_background and "mean_iou_foreground" in metrics:
        main = ["mean_iou_foreground" if name == "mean_iou" else name for name in main]
    return list(dict.fromkeys(main))


def summary_table(summaries: Sequence[Summary], metrics: Sequence[str]) -> str:
    """Return a Markdown table with a row per run: requested, measured, means of `metrics`, seconds."""
    rows = [_row(each, each.mean, metrics) | {"s/image": _format_seconds(each.seconds)} for each in summaries]
    return markdown_table(rows)


def group_table(groups: Mapping[str, Sequence[Summary]], metrics: Sequence[str]) -> str:
    """Return a Markdown table with a row per video and run."""
    rows = [
        {"video": group, **_row(summary, summary.mean, metrics)}
        for group, summaries in groups.items()
        for summary in summaries
    ]
    return markdown_table(rows)


def write_results(
    out_dir: Path, results: Sequence[DatasetResults], record: Mapping[str, Any], metrics: Sequence[str]
) -> None:
    """Write the summary as Markdown and CSV, the means of curves as CSV, and all of it as JSON."""
    write_text(out_dir / SUMMARY_MARKDOWN, _markdown_page(results, metrics))
    rows = [row for result in results for row in _summary_rows(result)]
    write_csv(out_dir / SUMMARY_CSV, rows)
    curve_rows = [row for result in results for row in _curve_rows(result)]
    if curve_rows:
        write_csv(out_dir / CURVE_MEANS_CSV, curve_rows)
    content = {**record, "summaries": rows, "curve_means": curve_rows}
    write_text(out_dir / RESULTS, json.dumps(without_nan(content), indent=2) + "\n")


def _markdown_page(results: Sequence[DatasetResults], metrics: Sequence[str]) -> str:
    shown = [name for name in METRICS if name in metrics and name != "n_spixels"]
    pair_metrics = [metric.name for metric in PAIR_METRICS if metric.name in metrics]
    parts = []
    for result in results:
        first, means = result.summaries[0], result.curve_means
        parts += [f"# {result.name}", f"{first.n_images} images, {first.n_pairs} pairs"]
        parts += ["## Means", summary_table(result.summaries, shown)]
        if pair_metrics:
            worst = [_row(summary, summary.worst, pair_metrics) for summary in result.summaries]
            parts += ["## Worst annotation of each image", markdown_table(worst)]
        if means.common:
            parts += ["## Means over the counts that all curves cover", _curve_table(means.common, shown)]
        if means.own:
            title = "## Means over each curve's own part of {} to {}".format(*COUNT_RANGE)
            parts += [title, _curve_table(means.own, shown)]
        if result.groups:
            parts += ["## Videos", group_table(result.groups, shown)]
    abbreviations = ", ".join(f"{METRICS[name].symbol}: {METRICS[name].title}" for name in shown)
    return "\n\n".join([*parts, abbreviations]) + "\n"


def _row(summary: Summary, values: Mapping[str, float], metrics: Sequence[str]) -> dict[str, str]:
    return {
        **curve_cells(summary.run),
        "requested": str(summary.run.n_spixels),
        "measured": f"{summary.mean['n_spixels']:.1f}",
        **_metric_cells(values, metrics),
    }


def _curve_table(curves: Sequence[CurveMean], metrics: Sequence[str]) -> str:
    """Return a Markdown table with a row per curve: range of measured counts, means of `metrics`."""
    rows = [
        {
            **curve_cells(curve),
            "from": f"{curve.low:.1f}",
            "to": f"{curve.high:.1f}",
            **_metric_cells(curve.means, metrics),
        }
        for curve in curves
    ]
    return markdown_table(rows)


def curve_cells(curve: Run | CurveMean) -> dict[str, str]:
    """Return the cells of a table that name a curve: method and `pos_scale`."""
    return {"method": curve.method, "pos_scale": "" if curve.pos_scale is None else f"{curve.pos_scale:g}"}


def _metric_cells(values: Mapping[str, float], metrics: Sequence[str]) -> dict[str, str]:
    return {METRICS[name].symbol: f"{values[name]:.4f}" for name in metrics}


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.3f}" if seconds >= 0.0005 else "<0.001"


def _summary_rows(result: DatasetResults) -> list[dict[str, Any]]:
    """Return a row of full precision per run, then per video and run."""
    groups = [("", result.summaries), *result.groups.items()]
    return [
        {
            "dataset": result.name,
            "video": group,
            "method": summary.run.method,
            "requested": summary.run.n_spixels,
            "pos_scale": summary.run.pos_scale,
            "images": summary.n_images,
            "pairs": summary.n_pairs,
            "seconds": summary.seconds,
            **summary.mean,
            **{f"{name}_worst": value for name, value in summary.worst.items()},
        }
        for group, summaries in groups
        for summary in summaries
    ]


def _curve_rows(result: DatasetResults) -> list[dict[str, Any]]:
    return [
        {
            "dataset": result.name,
            "range": kind,
            "method": curve.method,
            "pos_scale": curve.pos_scale,
            "from": curve.low,
            "to": curve.high,
            **curve.means,
        }
        for kind, curves in result.curve_means._asdict().items()
        for curve in curves
    ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows with the same columns as a Markdown table: text left, numbers right."""
    columns = []
    for name in rows[0]:
        cells = [name, *(row[name] for row in rows)]
        width = max(3, *map(len, cells))
        is_text = name in ("method", "video")
        rule = "-" * width if is_text else "-" * (width - 1) + ":"
        cells = [cell.ljust(width) if is_text else cell.rjust(width) for cell in cells]
        columns.append([cells[0], rule, *cells[1:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same columns: numbers in full precision, None as an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def without_nan(value: Any) -> Any:
    """Replace NaN by None in nested mappings and lists, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
