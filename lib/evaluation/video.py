"""Score whole videos against object masks: supervoxel metrics for each video, and their means."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lib.datasets.base import SegmentedImage
from lib.datasets.davis import DAVISDataset
from lib.datasets.loaders import evaluation_loader
from lib.evaluation.loop import Run, check_first_image
from lib.evaluation.protocol import EvaluationSet, describe, make_record
from lib.evaluation.tables import curve_cells, markdown_table, without_nan, write_csv, write_text
from lib.evaluation.video_methods import VideoMethod
from lib.files.atomic import prepare_out_dir
from lib.metrics.video import VIDEO_METRICS, VideoMetrics
from lib.optflow.sources import DEFAULT_PRESET, DISEstimator, FlowPair
from lib.runtime.errors import InputError
from lib.runtime.notices import RESULT, hides_progress
from lib.runtime.signals import stop_flag

logger = logging.getLogger(__name__)

VIDEO_PROTOCOL = """\
Labels: a supervoxel is all pixels of a label in a video. Models label every frame alone, so that each label
ends with its frame, or, as "tracked", keep labels along the optical flow. Labels of other software are taken
as they are.

Samples: metrics are computed for each video, and their means are over the videos, whatever their length. Per
video, ASA, BR and the measured number of superpixels are means over its frames. Void pixels of a mask, and
boundaries beside them, count in no metric that compares with it.

Chance: no random number is drawn."""

VIDEO_TABLES = ("video_results.json", "video_summary.md", "video_summary.csv")
VIDEO_RESULTS, VIDEO_MARKDOWN, VIDEO_CSV = VIDEO_TABLES

# In the extra channels of a frame: the flow to the next one, and to the last one.
_FORWARD, _BACKWARD = np.s_[..., :2], np.s_[..., 2:]
_COUNTS = ("n_spixels", "n_labels")  # metrics that are counts

VideoScores = dict[str, float]  # by the names in `VIDEO_METRICS`


class VideoSummary(NamedTuple):
    """Scores of a run on videos."""

    run: Run
    n_frames: int
    by_video: dict[str, VideoScores]

    @property
    def mean(self) -> VideoScores:
        """Means over the videos; NaN values are left out."""
        means = {}
        for name in VIDEO_METRICS:
            kept = [value for scores in self.by_video.values() if not np.isnan(value := scores[name])]
            means[name] = float(np.mean(kept)) if kept else float("nan")
        return means

    def line(self) -> str:
        """Return the last line of an evaluation, in a stable format."""
        values = [
            f"{metric.symbol} {self.mean[name]:.4f}"
            for name, metric in VIDEO_METRICS.items()
            if name not in _COUNTS
        ]
        counts = f"superpixels {self.mean['n_spixels']:.1f} labels {self.mean['n_labels']:.1f}"
        return f"{' '.join(values)} {counts} ({len(self.by_video)} videos, {self.n_frames} frames)"


def run_video_evaluation(
    methods: Sequence[VideoMethod],
    each: EvaluationSet,
    *,
    n_spixels: Sequence[int],
    device: torch.device,
    n_workers: int = 4,
    out_dir: Path | None = None,
    overwrite: bool = False,
    with_protocol: bool = False,
    options: Mapping[str, str] | None = None,
) -> dict[str, dict[Run, VideoSummary]]:
    """Score methods on whole videos, log the results, and write them to a folder.

    Returns the summary of every run, by name of the dataset.

    Parameters
    ----------
    methods, each
        Methods with different names, and the videos, a `DAVISDataset`, to evaluate them on.
    n_spixels : sequence of int
        Requested numbers of superpixels per frame.
    device, options
        Device of the networks and options of the script, for the record.
    n_workers : int
        Number of processes that read frames; 0 uses this process.
    out_dir : Path, optional
        Folder for the results, `VIDEO_TABLES`.
    overwrite : bool
        Replace such results in `out_dir`, once all videos are scored.
    with_protocol : bool
        Log the protocol of the evaluation.

    Raises
    ------
    InputError
        If a file or setting cannot be used, or `out_dir` holds results and `overwrite` is not set.
    RunError
        If a worker process crashed, or a file cannot be written.
    Stop
        If the stop flag is set; no results are written.
    """
    check_first_image(each.dataset, n_spixels)
    record = make_record(
        methods,
        [each],
        n_spixels=n_spixels,
        metrics=list(VIDEO_METRICS),
        device=device,
        options=options or {},
    )
    record["protocol"] = VIDEO_PROTOCOL
    if out_dir:
        _prepare_results(out_dir, overwrite=overwrite)
    scores = score_videos(methods, each.dataset, n_spixels, n_workers=n_workers, title=each.name)
    summaries = [
        VideoSummary(run, len(each.dataset), {video: by_run[run] for video, by_run in scores.items()})
        for run in _list_runs(methods, n_spixels)
    ]
    tables = _tables(summaries)
    logger.log(RESULT, "\n%s\n\n%s\n", each.name, "\n\n".join(tables.values()))
    if with_protocol:
        logger.log(RESULT, "\n%s", describe(record))
    if out_dir:
        _write_results(out_dir, each.name, summaries, tables, record)
        logger.info("tables in %s", out_dir)
    for summary in summaries:
        method, count = summary.run.method, summary.run.n_spixels
        requested = "" if count is None else f", {count} superpixels"
        scale = "" if len(_scales(summaries, method)) < 2 else f", position scale {summary.run.pos_scale:g}"
        logger.log(RESULT, "%s, %s%s%s: %s", each.name, method, requested, scale, summary.line())
    return {each.name: {summary.run: summary for summary in summaries}}


def score_videos(
    methods: Sequence[VideoMethod],
    dataset: DAVISDataset,
    n_spixels: Sequence[int],
    *,
    n_workers: int = 0,
    title: str = "evaluating",
) -> dict[str, dict[Run, VideoScores]]:
    """Score whole videos; return the scores of every run by video.

    Tracking takes the flow of the dataset. If it has none, DIS estimates it. For parameters and errors see
    `run_video_evaluation`; `title` is of the progress bar.
    """
    loader = evaluation_loader(dataset, n_workers=n_workers)
    progress = tqdm(loader, total=len(dataset), desc=title, unit="frame", disable=hides_progress())
    return {
        video: _score_video(methods, video, frames, n_spixels)
        for video, frames in groupby(progress, key=lambda image: image.name.rpartition("/")[0])
    }


def _score_video(
    methods: Sequence[VideoMethod], video: str, frames: Iterable[SegmentedImage], n_spixels: Sequence[int]
) -> dict[Run, VideoScores]:
    labellers = [method.start(video, method.settings(n_spixels)) for method in methods]
    metrics = [VideoMetrics() for _ in _list_runs(methods, n_spixels)]
    with_flow = any(method.needs_flow for method in methods)
    for image, flow in _with_flow(frames, video, is_needed=with_flow):
        stop_flag.raise_if_set()
        label_maps = [labels for label in labellers for labels in label(image, flow)]
        (mask,) = image.annotations
        for of_run, labels in zip(metrics, label_maps, strict=True):
            of_run.add(labels, mask, image.image_rgb)
    return {run: of_run.result() for run, of_run in zip(_list_runs(methods, n_spixels), metrics, strict=True)}


def _with_flow(
    frames: Iterable[SegmentedImage], video: str, *, is_needed: bool
) -> Iterator[tuple[SegmentedImage, FlowPair | None]]:
    """Yield frames with the flow from the last one, and back; None if it does not exist, or is not needed."""
    estimator = DISEstimator(video, DEFAULT_PRESET)
    forward = None
    for image in frames:
        flow = None
        if is_needed and image.extra is None:
            flow = estimator.flow_from_last(image.image_rgb)
        elif is_needed:
            flow = None if forward is None else (forward, image.extra[_BACKWARD])
            forward = image.extra[_FORWARD]
        yield image, flow


def _list_runs(methods: Sequence[VideoMethod], n_spixels: Sequence[int]) -> list[Run]:
    return [Run(method.name, *setting) for method in methods for setting in method.settings(n_spixels)]


def _scales(summaries: Sequence[VideoSummary], method: str) -> set[float | None]:
    return {summary.run.pos_scale for summary in summaries if summary.run.method == method}


def _prepare_results(out_dir: Path, *, overwrite: bool) -> None:
    prepare_out_dir(out_dir)
    if not overwrite and any((out_dir / name).exists() for name in VIDEO_TABLES):
        raise InputError(f"{out_dir} holds results already: `overwrite` replaces them", parameter="out_dir")


def _tables(summaries: Sequence[VideoSummary]) -> dict[str, str]:
    """Return Markdown tables by title: a row per video and run, and the means."""
    videos = [
        {"video": video, **_row(summary.run, summary.by_video[video])}
        for video in summaries[0].by_video
        for summary in summaries
    ]
    means = [_row(summary.run, summary.mean) for summary in summaries]
    return {"Videos": markdown_table(videos), "Means": markdown_table(means)}


def _row(run: Run, scores: VideoScores) -> dict[str, str]:
    cells = {
        metric.symbol: f"{scores[name]:.1f}" if name in _COUNTS else f"{scores[name]:.4f}"
        for name, metric in VIDEO_METRICS.items()
    }
    requested = "" if run.n_spixels is None else str(run.n_spixels)
    return {**curve_cells(run), "requested": requested, **cells}


def _write_results(
    out_dir: Path,
    name: str,
    summaries: Sequence[VideoSummary],
    tables: Mapping[str, str],
    record: Mapping[str, Any],
) -> None:
    first = summaries[0]
    size = f"{len(first.by_video)} videos, {first.n_frames} frames"
    titles = ", ".join(f"{metric.symbol}: {metric.title}" for metric in VIDEO_METRICS.values())
    parts = [f"# {name}", size, *(f"## {title}\n\n{table}" for title, table in tables.items()), titles]
    write_text(out_dir / VIDEO_MARKDOWN, "\n\n".join(parts) + "\n")
    rows = [
        {
            "dataset": name,
            "video": video,
            "method": summary.run.method,
            "requested": summary.run.n_spixels,
            "pos_scale": summary.run.pos_scale,
            **scores,
        }
        for summary in summaries
        for video, scores in {"": summary.mean, **summary.by_video}.items()
    ]
    write_csv(out_dir / VIDEO_CSV, rows)
    content = without_nan({**record, "summaries": rows})
    write_text(out_dir / VIDEO_RESULTS, json.dumps(content, indent=2) + "\n")
