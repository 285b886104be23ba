"""DAVIS 2017 at 480p: frames of videos, with one mask each."""

from pathlib import Path

from lib.datasets.base import FileDataset, SegmentedImage
from lib.datasets.masks import read_mask
from lib.files.images import read_image, resize_image
from lib.files.listing import list_folders, list_visible
from lib.files.sizes import size_text
from lib.optflow.archive import FlowArchive, find_archives
from lib.runtime.errors import InputError
from model import N_FLOW_CHANNELS

FRAME_SHAPE = (480, 854)  # rows, columns in pixels; the few frames that differ are resized

_TREE = "`davis2017_root` must be the folder that holds DAVIS/JPEGImages/480p and DAVIS/Annotations/480p"

SPLIT_LIST_DIR = Path(__file__).parent / "davis_splits"
SPLITS = tuple(file.stem for file in list_visible(SPLIT_LIST_DIR, "*.txt"))


class DAVISDataset(FileDataset):
    """Frames of a list of videos, read lazily, video by video.

    Expects this tree; frames and masks are paired by name, and hidden files are ignored. For the
    labels of masks see `read_mask`::

        <davis2017_root>/DAVIS/JPEGImages/480p/<video>/00000.jpg
        <davis2017_root>/DAVIS/Annotations/480p/<video>/00000.png

    Parameters
    ----------
    davis2017_root : Path
        Folder that holds `DAVIS`.
    split : str
        "train" (45 videos), "val" (15), "test" (30), or a text file that names one video a line. "train" and
        "val" divide the official training list; "test" is the official validation list. Error messages call
        it `parameter`.
    optflow_folder, optflow_method : optional
        Choice of flow archives; see `find_archives`. With a folder, images carry the flow of their frame as
        extra channels [fwd_dy, fwd_dx, bwd_dy, bwd_dx].
    max_frames : int, optional
        Number of frames of each video to use, from its first one; default: all.

    Attributes
    ----------
    video_lengths : dict of str to int
        Number of frames of each video in the folder, used or not.

    Raises
    ------
    InputError
        If the folder has another layout, a video is missing, a frame lacks its mask, or a flow archive
        is missing or does not fit its video.

    References
    ----------
    .. [1] Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation", arXiv 1704.00675.
    """

    per_image = ("image_files", "mask_files")

    def __init__(
        self,
        davis2017_root: Path,
        split: str,
        *,
        optflow_folder: Path | None = None,
        optflow_method: str | None = None,
        max_frames: int | None = None,
        parameter: str = "davis_split",
    ) -> None:
        videos = read_split(split, parameter=parameter)
        frames_of_videos = find_frames(davis2017_root, videos, named_in=f"`{parameter}` {split}")
        mask_root = Path(davis2017_root, "DAVIS", "Annotations", "480p")
        if not mask_root.is_dir():
            raise InputError(f"{davis2017_root}: no folder {mask_root}; {_TREE}", parameter="davis2017_root")
        self.max_frames = max_frames
        self.video_lengths = {video: len(frames) for video, frames in frames_of_videos.items()}
        self.image_files = [frame for frames in frames_of_videos.values() for frame in frames[:max_frames]]
        self.mask_files = [mask_root / f"{_frame_name(frame)}.png" for frame in self.image_files]
        unannotated = [file for file in self.mask_files if not file.is_file()]
        if unannotated:
            raise InputError(
                f"{davis2017_root}: {len(unannotated)} frames have no mask, the first lacks {unannotated[0]}",
                parameter="davis2017_root",
            )
        self.flows = None  # of every frame: its archive, and its index in the archive
        if optflow_folder is not None:
            archives = find_archives(Path(optflow_folder), list(frames_of_videos), optflow_method)
            for archive, frames in zip(archives, frames_of_videos.values(), strict=True):
                _check_archive(archive, frames)
            self.flows = [
                (archive, idx) for archive in archives for idx in range(archive.n_frames)[:max_frames]
            ]
            self.per_image += ("flows",)

    @property
    def sources(self) -> list[str]:
        """Name and size of every frame, mask and flow archive."""
        names = {file: f"{file.parent.name}/{file.name}" for file in self.image_files + self.mask_files}
        names |= {archive.path: archive.path.name for archive, _ in self.flows or ()}
        return [f"{name} {file.stat().st_size}" for file, name in names.items()]

    def image_shapes(self) -> dict[str, tuple[int, int]]:
        """Return `FRAME_SHAPE` for every frame; reading resizes frames and masks of another size."""
        return dict.fromkeys(map(_frame_name, self.image_files), FRAME_SHAPE)

    def n_used(self, video: str) -> int:
        """Return the number of frames of a video that the dataset uses."""
        return len(range(self.video_lengths[video])[: self.max_frames])

    def annotation_counts(self) -> list[int]:
        return [1] * len(self)

    def __getitem__(self, idx: int) -> SegmentedImage:
        frame_file = self.image_files[idx]
        image_rgb = resize_image(read_image(frame_file), FRAME_SHAPE)
        image = SegmentedImage(
            _frame_name(frame_file), image_rgb, [read_mask(self.mask_files[idx], FRAME_SHAPE)]
        )
        if self.flows is None:
            return image
        archive, frame_idx = self.flows[idx]
        return image._replace(extra=archive.read_frame(frame_idx), n_vector_channels=N_FLOW_CHANNELS)


def find_frames(
    davis2017_root: Path, videos: list[str] | None = None, *, named_in: str = ""
) -> dict[str, list[Path]]:
    """Find the frames of some or all videos, in order; `named_in` is the source of `videos` in errors.

    Raises `InputError` if the folder has another layout, or a video is missing or has no frame.
    """
    frame_root = Path(davis2017_root, "DAVIS", "JPEGImages", "480p")
    if not frame_root.is_dir():
        raise InputError(f"{davis2017_root}: no folder {frame_root}; {_TREE}", parameter="davis2017_root")
    if videos is None:
        videos = [folder.name for folder in list_folders(frame_root)]
    missing = [video for video in videos if not (frame_root / video).is_dir()]
    if missing:
        raise InputError(f"{named_in} names videos that are not in {frame_root}: {', '.join(missing)}")
    frames_of_videos = {video: list_visible(frame_root / video, "*.jpg") for video in videos}
    for video, frames in frames_of_videos.items():
        if not frames:
            raise InputError(f"no *.jpg in {frame_root / video}")
    return frames_of_videos


def read_split(split: str, *, parameter: str = "davis_split") -> list[str]:
    """Read the video names of a built-in split, or of a text file with one name a line.

    Raises `InputError` if `split` is neither, or names no video.
    """
    file = SPLIT_LIST_DIR / f"{split}.txt" if split in SPLITS else Path(split)
    try:
        videos = list(dict.fromkeys(file.read_text(encoding="utf-8-sig").split()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{split} is neither {', '.join(SPLITS)} nor a readable text file", parameter=parameter
        ) from error
    if not videos:
        raise InputError(f"{split} names no video", parameter=parameter)
    return videos


def _check_archive(archive: FlowArchive, frames: list[Path]) -> None:
    if archive.frame_shape != FRAME_SHAPE:
        raise InputError(
            f"the flow in {archive.path} is {size_text(archive.frame_shape)}, but DAVIS frames are "
            f"{size_text(FRAME_SHAPE)}"
        )
    if archive.n_frames != len(frames):
        raise InputError(
            f"{archive.path} holds the flow of {archive.n_frames} frames, but {frames[0].parent} has "
            f"{len(frames)}"
        )


def _frame_name(frame_file: Path) -> str:
    return f"{frame_file.parent.name}/{frame_file.stem}"
