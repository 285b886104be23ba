"""Compare tracking with a plain baseline on DAVIS videos: scores, and the time of a frame.

The baseline segments every frame alone, and then links superpixels of neighbouring frames that overlap, the
largest overlap first, without any flow. Both use the composite model. A frame's time includes the estimation
of its flow by DIS, in both directions; tracked and untracked frames are timed in turn.

    python -m benchmarks.benchmark_video --davis2017_root DAVIS2017 --davis_optflow_folder optflow \\
        --davis_split videos.txt --max_frames 24 --nspix 200 600
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import describe
from lib import cli
from lib.cli.options import DEFAULT_COMPOSITE_WEIGHTS
from lib.cli.types import positive_int
from lib.datasets.base import SegmentedImage
from lib.datasets.davis import DAVISDataset
from lib.evaluation.methods import NetworkMethod, Setting
from lib.evaluation.video import VideoSummary, score_videos
from lib.evaluation.video_methods import FrameByFrame, Labeller, Tracked
from lib.inference import Segmenter
from lib.inference.tracking import Tracker
from lib.optflow.sources import DEFAULT_PRESET, DISEstimator, FlowPair
from lib.superpixels.overlap import NO_REGION, count_overlaps, link_regions

SHOWN = ("sa3d", "ue3d", "br3d", "ev3d", "tex", "size_variation", "asa", "boundary_recall", "n_labels")


class Linked(FrameByFrame):
    """Image method on each frame alone, whose labels go on where superpixels overlap most."""

    def __init__(self, method: NetworkMethod) -> None:
        super().__init__(method)
        self.name = f"{method.name}_linked"

    def start(self, video: str, settings: Sequence[Setting]) -> Labeller:
        """Start a video."""
        label_alone = super().start(video, settings)
        last: list[Tensor | None] = [None] * len(settings)  # labels, contiguous in a frame
        ids: list[np.ndarray] = [np.empty(0, np.int64)] * len(settings)  # label in the video of each

        def label(image: SegmentedImage, flow: FlowPair | None) -> list[np.ndarray]:
            linked = []
            for idx, numbered in enumerate(label_alone(image, flow)):
                labels = numbered - numbered.min()
                n_labels = labels.max() + 1
                of_video = np.arange(n_labels) + numbered.min()  # new ones: larger than all before
                on_cpu = torch.from_numpy(labels)
                if last[idx] is not None:
                    links = link_regions(count_overlaps(on_cpu, last[idx], (n_labels, len(ids[idx]))))
                    of_video = np.where(links == NO_REGION, of_video, ids[idx][links])
                last[idx], ids[idx] = on_cpu, of_video
                linked.append(of_video[labels])
            return linked

        return label


def frame_seconds(segmenter: Segmenter, dataset: DAVISDataset, n_spixels: int, n_frames: int) -> np.ndarray:
    """Return the seconds of the frames of the first video, untracked and tracked, (n_frames, 2)."""
    tracker, estimators = (
        Tracker(segmenter, [n_spixels]),
        [DISEstimator("", DEFAULT_PRESET) for _ in range(2)],
    )
    seconds = []
    for idx in range(n_frames):
        image = dataset[idx]

        def untracked(image: SegmentedImage) -> None:
            estimators[0].flow_from_last(image.image_rgb)
            segmenter(image.image_rgb, n_spixels, extra=image.extra)

        def tracked(image: SegmentedImage) -> None:
            flow = estimators[1].flow_from_last(image.image_rgb)
            tracker.segment(segmenter.preprocess(image.image_rgb, image.extra), flow)

        durations = {}
        for step in (untracked, tracked) if idx % 2 else (tracked, untracked):
            start = time.perf_counter()
            step(image)
            durations[step] = time.perf_counter() - start
        seconds.append((durations[untracked], durations[tracked]))
    return np.array(seconds[1:])  # the first frame has no flow


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    cli.add_shared(parser, "davis2017_root", "davis_optflow_folder", required=True)
    cli.add_shared(parser, "davis_split", required=True)
    cli.add_shared(parser, "device", default="cpu")
    parser.add_argument("--max_frames", type=positive_int, default=24)
    parser.add_argument("--nspix", type=positive_int, nargs="+", default=[200, 600])
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    segmenter = Segmenter.from_checkpoint(DEFAULT_COMPOSITE_WEIGHTS, device=device)
    dataset = DAVISDataset(
        args.davis2017_root,
        args.davis_split,
        optflow_folder=args.davis_optflow_folder,
        max_frames=args.max_frames,
    )
    print(f"torch {torch.__version__} on {describe(device)}; {len(dataset.video_lengths)} videos")
    method = NetworkMethod("composite", segmenter)
    by_video = score_videos([Linked(method), Tracked(method)], dataset, args.nspix, title="scoring")
    for run in next(iter(by_video.values())):
        mean = VideoSummary(run, len(dataset), {video: each[run] for video, each in by_video.items()}).mean
        scores = " ".join(f"{name} {mean[name]:.4f}" for name in SHOWN)
        print(f"{run.method}, {run.n_spixels} superpixels: {scores}")
    for n_spixels in args.nspix:
        n_frames = min(args.max_frames, next(iter(dataset.video_lengths.values())))
        untracked, tracked = frame_seconds(segmenter, dataset, n_spixels, n_frames).T
        print(
            f"{n_spixels} superpixels: {tracked.mean():.2f} s a frame tracked, {untracked.mean():.2f} s "
            f"untracked; median ratio of pairs {np.median(tracked / untracked):.3f}"
        )


if __name__ == "__main__":
    main()
