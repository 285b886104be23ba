"""Draw an evaluation: metrics against the measured count, and a sheet of the worst and best images."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.data import Dataset

from lib.datasets.base import SegmentedImage
from lib.datasets.loaders import EvaluationImages
from lib.evaluation.loop import ImageScores, Run
from lib.evaluation.methods import Method, Setting
from lib.evaluation.summary import DatasetResults, Summary, group_curves, summarize
from lib.files.atomic import atomic_path
from lib.metrics.definitions import ContingencyTable
from lib.metrics.label_map import VOID, check_label_map
from lib.metrics.registry import METRICS, PAIR_METRICS
from lib.superpixels.drawing import draw_boundaries

# Lines differ in marker and dashes, so that they can be read in black and white. Colours differ in lightness
# too. Eight markers and seven dashes give 56 different lines.
_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#999999", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (8, 3)), (0, (3, 1, 1, 1)))
_N_STYLES = len(_COLORS) * len(_DASHES)
_USUAL_NAMES = ("base", "composite", "slic", "grid")
_LEAK_COLOR = np.array([255, 0, 0])  # RGB
_N_COLUMNS = 4  # of panels
_N_SHEET_IMAGES = 4  # worst images, and at most as many best images
_DPI = 110


class SheetImage(NamedTuple):
    """Image of the sheet with its superpixels and one annotation."""

    title: str
    image_rgb: np.ndarray  # (H, W, 3), uint8
    labels: np.ndarray  # (H, W), superpixels numbered from 0 without gaps
    gt_labels: np.ndarray  # (H, W), segments of the annotation


def write_curves(folder: Path, file_name: str, result: DatasetResults, shown: Sequence[str]) -> None:
    """Draw each metric against the measured count, and the metrics of the table in one picture.

    Writes `<file_name>_<metric>` and `<file_name>_curves`, as .png and .svg. With a single requested count,
    nothing is written.
    """
    if len({summary.run.n_spixels for summary in result.summaries}) == 1:
        return
    metrics = [name for name in METRICS if name in result.summaries[0].mean and name != "n_spixels"]
    pictures = {"curves": shown} if shown else {}
    for name, panels in (pictures | {name: [name] for name in metrics}).items():
        figure = draw_curves(result.summaries, panels, result.name)
        for suffix in ("png", "svg"):
            save_figure(figure, folder / f"{file_name}_{name}.{suffix}")


def write_sheet(
    folder: Path,
    file_name: str,
    dataset: Dataset[SegmentedImage],
    method: Method,
    scored: Mapping[Run, Sequence[ImageScores]],
) -> None:
    """Draw the worst and best images of a method, at its run with the median requested count.

    Images are ranked by the first metric that needs annotations, usually ASA, averaged over the annotations.
    Each is shown with its worst annotation. Writes `<file_name>_extremes_<method>.png`. If no metric needs
    annotations, or all values are NaN, nothing is written.
    """
    runs = sorted((run for run in scored if run.method == method.name), key=lambda run: run.n_spixels)
    run = runs[len(runs) // 2]
    images = scored[run]
    metric = next((metric for metric in PAIR_METRICS if metric.name in images[0].scores.pairs[0]), None)
    if metric is None:
        return
    sign = 1 if metric.higher_is_better else -1
    values = np.array([summarize(run, [image]).mean[metric.name] for image in images])
    n_valid = np.count_nonzero(~np.isnan(values))  # NaN is last
    from_worst = np.argsort(sign * values, kind="stable")[:n_valid]
    worst = from_worst[:_N_SHEET_IMAGES]
    best = from_worst[len(worst) :][::-1][:_N_SHEET_IMAGES]

    def sheet_image(idx: int) -> SheetImage:
        image = EvaluationImages(dataset)[idx]
        (labels,) = method.segment(image, [Setting(run.n_spixels, run.pos_scale)])
        quality = [sign * pair[metric.name] for pair in images[idx].scores.pairs]
        worst_pair = int(np.argmin(np.nan_to_num(quality, nan=np.inf)))
        title = f"{image.name}: {metric.symbol} {values[idx]:.3f}"
        return SheetImage(title, image.image_rgb, labels, image.annotations[worst_pair])

    scale = "" if run.pos_scale is None else f", pos_scale {run.pos_scale:g}"
    title = (
        f"{method.name}, {run.n_spixels} superpixels requested{scale}: "
        f"worst {metric.symbol} above, best below\n"
        "red: pixels outside the segment that their superpixel overlaps most, for the worst annotation"
    )
    rows = [[sheet_image(int(idx)) for idx in extremes] for extremes in (worst, best) if len(extremes)]
    if rows:
        save_figure(draw_sheet(rows, title), folder / f"{file_name}_extremes_{method.name}.png")


def draw_curves(summaries: Sequence[Summary], metrics: Sequence[str], title: str) -> Figure:
    """Draw one panel per metric, at least one, with one line per method, against the measured count."""
    n_columns = min(_N_COLUMNS, len(metrics))
    n_rows = -(-len(metrics) // n_columns)
    figure = Figure(figsize=(3.8 * n_columns, 3.2 * n_rows + 0.7), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, name in zip(panels, metrics, strict=False):
        _draw_panel(panel, summaries, name)
    lines, names = panels[0].get_legend_handles_labels()
    spare = panels[len(metrics) :]
    for panel in spare:
        panel.axis("off")
    if len(spare) > 0:
        spare[0].legend(lines, names, loc="center", handlelength=4, frameon=False)
    else:
        n_names = min(len(names), 2 * n_columns)
        figure.legend(lines, names, loc="outside lower center", ncols=n_names, handlelength=4, frameon=False)
    figure.suptitle(title)
    return figure


def choose_styles(names: Iterable[str]) -> dict[str, int]:
    """Return the number of the line style of each curve, so that a name has the same one in most pictures.

    Usual names have fixed styles. Another name has one by its checksum, or the next one whose colour is free,
    or which is free itself.
    """
    styles: dict[str, int] = {}
    for name in sorted(set(names), key=lambda name: (name not in _USUAL_NAMES, name)):
        n_free = _N_STYLES - len(_USUAL_NAMES)
        first = len(_USUAL_NAMES) + crc32(name.encode()) % n_free
        if name in _USUAL_NAMES:
            first = _USUAL_NAMES.index(name)
        order = [(first + step) % _N_STYLES for step in range(_N_STYLES)]
        colors = {idx % len(_COLORS) for idx in styles.values()}
        free = [idx for idx in order if idx % len(_COLORS) not in colors]
        free += [idx for idx in order if idx not in styles.values()]
        styles[name] = (free or order)[0]
    return styles


def draw_sheet(rows: Sequence[Sequence[SheetImage]], title: str) -> Figure:
    """Draw rows of images with their superpixels; leaking pixels are red.

    A pixel leaks if it lies outside the segment that its superpixel overlaps most. ASA counts these pixels.
    """
    n_columns = max(len(row) for row in rows)
    # The highest image of a row sets the height of the row.
    heights = [max(image.labels.shape[0] / image.labels.shape[1] for image in row) for row in rows]
    figure = Figure(figsize=(4 * n_columns, 4 * sum(heights) + 1), layout="constrained")
    panels = figure.subplots(len(rows), n_columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for panel in panels.ravel():
        panel.axis("off")
    for row, row_panels in zip(rows, panels, strict=True):
        for image, panel in zip(row, row_panels, strict=False):
            panel.imshow(_draw_leaks(image), interpolation="nearest")
            panel.set_anchor("N")
            panel.set_title(image.title, fontsize=9)
    figure.suptitle(title)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's suffix. Equal figures give equal files."""
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with mpl.rc_context({"svg.hashsalt": "superpixels"}), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, metadata=metadata)


def _draw_panel(panel: Axes, summaries: Sequence[Summary], name: str) -> None:
    curves = group_curves(summaries)
    has_pos_scales = len({method for method, _ in curves}) < len(curves)
    names = {
        (method, pos_scale): f"{method}, pos_scale {pos_scale:g}"
        if has_pos_scales and pos_scale is not None
        else method
        for method, pos_scale in curves
    }
    styles = choose_styles(names.values())
    for curve, points in curves.items():
        idx = styles[names[curve]]
        panel.plot(
            [point.mean["n_spixels"] for point in points],
            [point.mean[name] for point in points],
            label=names[curve],
            markersize=5,
            linewidth=1.4,
            markerfacecolor="white",
            color=_COLORS[idx % len(_COLORS)],
            marker=_MARKERS[idx % len(_MARKERS)],
            linestyle=_DASHES[idx % len(_DASHES)],
        )
    metric = METRICS[name]
    arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
    panel.set_title(metric.title + arrow, fontsize=10)
    panel.set_xlabel("measured superpixels")
    panel.grid(color="0.9")


def _draw_leaks(image: SheetImage) -> np.ndarray:
    gt_labels = check_label_map(image.gt_labels, with_void=True)
    is_scored = gt_labels != VOID
    leaks = np.zeros(gt_labels.shape, dtype=bool)
    if is_scored.any():
        table = ContingencyTable(image.labels, gt_labels)
        majority = np.full(image.labels.max() + 1, VOID)
        majority[table.spixels] = table.majority()
        leaks = is_scored & (majority[image.labels] != gt_labels)
    picture = image.image_rgb.copy()
    picture[leaks] = (0.3 * picture[leaks] + 0.7 * _LEAK_COLOR).astype(np.uint8)
    return draw_boundaries(picture, image.labels)
