"""Plots of a training run: losses, learning rate and validations against the step."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
from scipy.ndimage import median_filter

from lib.files.atomic import atomic_path
from lib.metrics.registry import METRICS, PAIR_METRICS, SPIXEL_METRICS

# Curves differ in colour and dashes, so that they stay readable in black and white: 20 combinations.
_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
_DASHES = ("-", "--", "-.", ":")
_N_COLUMNS = 4
_DPI = 110
_FEW_POINTS = 50  # a curve with at most this many points marks each of them
_N_MEDIANS = 30  # the window of a running median is 1/30 of the points; fewer means smoother curves
_NO_LOSS_TERMS = ("step", "grad_norm", "lr", "images_per_s", "loader_share")  # in a training line


def draw_training_curves(log: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the log of a training run as a PNG: losses, gradient norm, learning rate and validations.

    `log` has the lines of `log.jsonl`. Values that are not finite are left blank.

    Raises
    ------
    RunError
        If the file cannot be written; an earlier picture stays.
    """
    with atomic_path(path) as temporary:
        training_figure(log).savefig(temporary, dpi=_DPI)


def training_figure(log: Sequence[Mapping[str, float]]) -> Figure:
    """Plot the log of a training run, with a panel for each quantity that has finite values.

    The first row shows training. Further rows show validation and mark the step of the best score. Losses and
    gradient norm are noisy: they are drawn pale, under their running median.
    """
    validations = [line for line in log if "score" in line]
    training_row = _non_empty(_training_panels([line for line in log if "loss" in line]))
    validation_panels = _non_empty(_validation_panels(validations))
    starts = range(0, len(validation_panels), _N_COLUMNS)
    rows = [training_row] if training_row else []
    rows += [validation_panels[start : start + _N_COLUMNS] for start in starts]
    if not rows:
        figure = Figure(figsize=(4, 1))
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center")
        return figure
    n_columns = max(sum(panel.n_columns for panel in row) for row in rows)
    figure = Figure(figsize=(3.8 * n_columns, 2.9 * len(rows) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(rows), n_columns)
    legend = {}
    for row_idx, row in enumerate(rows):
        first_column = 0
        for panel in row:
            axes = figure.add_subplot(grid[row_idx, first_column : first_column + panel.n_columns])
            first_column += panel.n_columns
            axes.set_xlim(0, 1.03 * max(1, *(line["step"] for line in log)))
            _draw_panel(axes, panel)
            if row is not training_row:
                _mark_best(axes, panel, validations)
                legend |= {curve.get_label(): curve for curve in axes.get_legend_handles_labels()[0]}
    if legend:
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=5, frameon=False)
    return figure


class _Panel(NamedTuple):
    """Curves against the step; each curve has one value per step, NaN where it is missing."""

    title: str
    steps: np.ndarray  # (N,)
    curves: dict[str, np.ndarray]  # (N,), by label
    is_noisy: bool = False
    n_columns: int = 1


def _non_empty(panels: Sequence[_Panel]) -> list[_Panel]:
    return [panel for panel in panels if any(np.isfinite(y).any() for y in panel.curves.values())]


def _training_panels(lines: Sequence[Mapping[str, float]]) -> list[_Panel]:
    terms = dict.fromkeys(key for line in lines for key in line if key not in _NO_LOSS_TERMS)
    steps = np.array([line["step"] for line in lines])
    losses = {name: _values(lines, name, above=0) for name in terms}
    grad_norm = {"grad_norm": _values(lines, "grad_norm", above=0)}
    return [
        _Panel("Loss and its terms", steps, losses, is_noisy=True, n_columns=2),
        _Panel("Gradient norm", steps, grad_norm, is_noisy=True),
        _Panel("Learning rate", steps, {"lr": _values(lines, "lr")}),
    ]


def _validation_panels(lines: Sequence[Mapping[str, float]]) -> list[_Panel]:
    """Return a panel per metric, with a curve per validation set; annotation metrics come first."""
    steps = np.array([line["step"] for line in lines])
    curves: dict[str, dict[str, np.ndarray]] = {}  # by metric, then by set
    for key in dict.fromkeys(key for line in lines for key in line if key not in ("step", "score")):
        set_name, metric = _set_and_metric(key)
        curves.setdefault(metric, {})[set_name or "validation"] = _values(lines, key)
    known = [metric.name for metric in (*PAIR_METRICS, *SPIXEL_METRICS) if metric.name in curves]
    return [_Panel(_title(name), steps, curves[name]) for name in dict.fromkeys([*known, *curves])]


def _set_and_metric(key: str) -> tuple[str, str]:
    """Split "bsds_val_asa" into "bsds_val" and "asa"; an unknown metric has an empty set name."""
    metric = max((name for name in METRICS if f"_{key}".endswith(f"_{name}")), key=len, default=key)
    return key.removesuffix(metric).removesuffix("_"), metric


def _title(metric: str) -> str:
    if metric not in METRICS:
        return metric
    arrow = {True: " ↑", False: " ↓", None: ""}[METRICS[metric].higher_is_better]
    return METRICS[metric].title + arrow


def _values(lines: Sequence[Mapping[str, float]], name: str, *, above: float = -math.inf) -> np.ndarray:
    """Return a value per line; NaN where it is missing, not finite or not above the bound."""
    values = np.array([line.get(name, math.nan) for line in lines], dtype=float)
    return np.where(np.isfinite(values) & (values > above), values, math.nan)


def _draw_panel(axes: Axes, panel: _Panel) -> None:
    marker = "." if len(panel.steps) <= _FEW_POINTS else ""
    for idx, (label, values) in enumerate(panel.curves.items()):
        if np.isnan(values).all():
            continue
        style = {"color": _COLORS[idx % len(_COLORS)], "linestyle": _DASHES[idx % len(_DASHES)]}
        if panel.is_noisy:
            axes.plot(panel.steps, values, color=style["color"], linewidth=0.5, alpha=0.35)
            values = _running_median(values)
        axes.plot(panel.steps, values, label=label, linewidth=1.4, marker=marker, zorder=3, **style)
    if panel.is_noisy:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        if len(panel.curves) > 1:
            axes.legend(frameon=False, fontsize=9)
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _mark_best(axes: Axes, panel: _Panel, validations: Sequence[Mapping[str, float]]) -> None:
    """Mark the step of the best score; among equal scores the first, which is the best model."""
    scores = _values(validations, "score")
    if np.isnan(scores).all():
        return
    best = np.nanargmax(scores)
    step = panel.steps[best]
    marked = [values[best] for values in panel.curves.values()]
    label = f"best score: {scores[best]:.4f} at step {step:,}"
    axes.axvline(step, color="0.7", linewidth=1, zorder=2)
    axes.plot([step] * len(marked), marked, "o", color="0.3", markerfacecolor="none", label=label, zorder=4)


def _running_median(values: np.ndarray) -> np.ndarray:
    """Return the running median of the finite values; NaN stays NaN."""
    medians = values.copy()
    is_finite = np.isfinite(values)
    window = len(values) // _N_MEDIANS | 1  # odd
    medians[is_finite] = median_filter(values[is_finite], size=window, mode="reflect")
    return medians
