"""Make the flow archives that the composite model reads.

OpenCV's DIS estimates the flow of DAVIS videos, folders of frames or video files. Flow of another program is
read from .flo or KITTI .png files. Existing archives are kept: repeat an interrupted command to continue.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lib import cli
from lib.cli.types import existing_dir, non_negative_int
from lib.datasets import davis
from lib.files.folder_lock import own_folder
from lib.files.frames import FRAME_SUFFIXES, FrameFolder, Video, list_in_order, open_video_file
from lib.files.images import DEFAULT_READER, ImageReader
from lib.files.listing import list_folders
from lib.optflow.archive import archive_name
from lib.optflow.production import ArchiveJob, ArchiveReport, make_archives
from lib.optflow.sources import DEFAULT_PRESET, DIS_PRESETS, FLOW_SUFFIXES, DISFlow, FlowFiles, FlowSource
from lib.runtime.errors import InputError
from lib.runtime.notices import RESULT, hides_progress

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument(
        "--davis2017_root",
        type=existing_dir,
        help="read videos from the folder that holds DAVIS/; resize frames to 854x480",
    )
    sources.add_argument(
        "--frames",
        type=existing_dir,
        nargs="+",
        metavar="FOLDER",
        help="read folders of frames, one per video",
    )
    sources.add_argument("--video", type=Path, nargs="+", metavar="FILE", help="read video files")
    sources.add_argument(
        "--flow_files",
        type=existing_dir,
        nargs=2,
        metavar=("FORWARD", "BACKWARD"),
        help="read flow to the next frame and back from .flo or KITTI .png files, in two folders with the "
        "files of one video, or with a subfolder per video",
    )
    parser.add_argument(
        "--davis_split",
        help="process train, val, test, or the DAVIS videos of a text file, one a line; default: all",
    )
    parser.add_argument(
        "--video_name",
        type=_file_name_part,
        help="name a single video; default: the name of its folder or file",
    )
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("optflow"),
        help="write optflow_<method>_<video>.h5 to this folder",
    )
    parser.add_argument(
        "--method",
        type=_method,
        help="name the method in file names, without underscores; default: dis",
    )
    parser.add_argument(
        "--preset",
        choices=DIS_PRESETS,
        help=f"set the accuracy of DIS, fastest first; default: {DEFAULT_PRESET}",
    )
    cli.add_reading_args(parser, of="--frames")
    cli.add_bool(
        parser,
        "--consistency_check",
        help="log the mean error in pixels of following the flow forward and back to the start",
    )
    parser.add_argument(
        "--nworkers",
        type=non_negative_int,
        help="process this many videos at a time; default: the number of CPU cores",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> list[ArchiveReport]:
    args = build_parser().parse_args(argv)
    if args.davis_split is not None and args.davis2017_root is None:
        raise InputError("--davis_split needs --davis2017_root")
    reader = cli.image_reader(args)
    reader.check()
    if reader != DEFAULT_READER and args.frames is None:
        raise InputError("--value_range and --bands need --frames")
    if args.flow_files:
        if args.preset is not None:
            raise InputError("--preset is for DIS flow, not for --flow_files")
        if args.method is None:
            raise InputError("--flow_files needs --method, the name of the flow method, such as gma")
        sources, attributes = _find_flow_files(*args.flow_files, args.video_name), {}
    else:
        videos = _find_videos(args.davis2017_root, args.davis_split, args.frames, args.video, reader)
        preset = args.preset or DEFAULT_PRESET
        sources = [DISFlow(video, preset) for video in videos]
        attributes = {"preset": preset, **reader.described()}
    if args.video_name is not None:
        if len(sources) != 1:
            raise InputError(f"--video_name {args.video_name} needs a single video, got {len(sources)}")
        sources[0].name = args.video_name
    paths = [args.out_dir / archive_name(args.method or "dis", source.name) for source in sources]
    twice = sorted({path.name for path in paths if paths.count(path) > 1})
    if twice:
        raise InputError(f"several videos would write {', '.join(twice)}; give them in separate runs")
    jobs = [ArchiveJob(source, path, attributes) for source, path in zip(sources, paths, strict=True)]

    reports, level = [], RESULT if args.consistency_check else logging.INFO
    progress = tqdm(
        total=sum(map(len, sources)) or None, desc="estimating flow", unit="pair", disable=hides_progress()
    )
    with own_folder(args.out_dir), progress, logging_redirect_tqdm():
        for report in make_archives(
            jobs,
            n_workers=os.cpu_count() if args.nworkers is None else args.nworkers,
            with_consistency=args.consistency_check,
            on_progress=progress.update,
        ):
            # A single failure ends the script with its message.
            is_error = report.problem is not None and len(jobs) > 1
            logger.log(logging.ERROR if is_error else level, "%s", _describe(report))
            reports.append(report)
    problems = [report.problem for report in reports if report.problem]
    if len(problems) > 1:
        raise InputError(f"{len(problems)} of {len(jobs)} archives could not be made, see above")
    if problems:
        raise InputError(problems[0])
    return reports


def _find_videos(
    davis2017_root: Path | None,
    split: str | None,
    folders: list[Path] | None,
    files: list[Path] | None,
    reader: ImageReader,
) -> list[Video]:
    if davis2017_root:
        names = None if split is None else davis.read_split(split)
        videos = davis.find_frames(davis2017_root, names, named_in=f"--davis_split {split}")
        return [FrameFolder(name, frames, davis.FRAME_SHAPE) for name, frames in videos.items()]
    if folders:
        return [
            FrameFolder(folder.resolve().name, list_in_order(folder, FRAME_SUFFIXES), reader=reader)
            for folder in folders
        ]
    return [open_video_file(file) for file in files]


def _find_flow_files(forward_root: Path, backward_root: Path, video_name: str | None) -> list[FlowSource]:
    videos, backward_videos = (
        [folder.name for folder in list_folders(root)] for root in (forward_root, backward_root)
    )
    if videos != backward_videos:
        odd = sorted(set(videos) ^ set(backward_videos))
        raise InputError(f"--flow_files: only one of the two folders has {', '.join(odd)}")
    folders = {video: (forward_root / video, backward_root / video) for video in videos}
    if not folders:
        if video_name is None:
            raise InputError("--flow_files of a single video needs --video_name")
        folders = {video_name: (forward_root, backward_root)}
    return [
        FlowFiles(name, *(list_in_order(folder, FLOW_SUFFIXES) for folder in both))
        for name, both in folders.items()
    ]


def _file_name_part(text: str) -> str:
    if not text or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"expected a part of a file name, got {text!r}")
    return text


def _method(text: str) -> str:
    if "_" in text:
        raise argparse.ArgumentTypeError(f"expected a name without underscores, got {text!r}")
    return _file_name_part(text)


def _describe(report: ArchiveReport) -> str:
    if report.problem:
        return f"{report.path}: failed, {report.problem}"
    outcome = "kept" if report.existed else "made"
    error = report.consistency_error
    consistency = "" if error is None else f", forward-backward error {error:.2f} pixels"
    return f"{report.path}: {outcome}, {report.n_frames} frames{consistency}"


if __name__ == "__main__":
    cli.run(main)
