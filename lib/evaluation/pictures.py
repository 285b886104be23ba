"""Write the pictures of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from lib.datasets.base import SegmentedImage
from lib.datasets.loaders import EvaluationImages
from lib.evaluation.figures import SheetImage, draw_curves, draw_sheet, save_figure
from lib.evaluation.loop import ImageScores, Run, connected_superpixels
from lib.evaluation.methods import Method, Setting
from lib.evaluation.summary import summarize
from lib.evaluation.tables import DatasetResults
from lib.metrics.registry import METRICS, PAIR_METRICS

_N_SHEET_IMAGES = 4  # worst images, and at most as many best images


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
    badness = -sign * values
    from_worst = np.argsort(-badness, kind="stable")[: np.count_nonzero(~np.isnan(badness))]  # NaN is last
    worst = from_worst[:_N_SHEET_IMAGES]
    best = from_worst[len(worst) :][::-1][:_N_SHEET_IMAGES]

    def sheet_image(idx: int) -> SheetImage:
        image = EvaluationImages(dataset)[idx]
        labels = connected_superpixels(method, image, Setting(run.n_spixels, run.pos_scale))
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
