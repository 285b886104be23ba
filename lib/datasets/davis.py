"""DAVIS 2017 at 480p: the frames of videos, with a mask each."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from lib.datasets.segmented_image import SegmentedImage
from lib.errors import InputError
from lib.images import read_image

FRAME_SHAPE = (480, 854)  # rows, columns in pixels; the few frames that differ are resized

SPLIT_LIST_DIR = Path(__file__).parent / "davis_splits"
SPLITS = tuple(sorted(file.stem for file in SPLIT_LIST_DIR.glob("*.txt")))


class DAVISDataset(Dataset):
    """The frames of a list of videos, read lazily, video by video.

    Expects this tree; frames and masks are paired by name::

        <davis2017_root>/DAVIS/JPEGImages/480p/<video>/00000.jpg
        <davis2017_root>/DAVIS/Annotations/480p/<video>/00000.png

    Parameters
    ----------
    davis2017_root : Path
        Folder that holds `DAVIS`.
    split : str
        "train" (45 videos) or "val" (15), which divide the official training list, "test" (the 30 of the
        official validation list), or the path of a text file that names one video a line.

    Raises
    ------
    InputError
        If the tree is another one, a video is missing, or a frame lacks its mask.

    References
    ----------
    .. [1] Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation", arXiv 1704.00675.
    """

    def __init__(self, davis2017_root: Path, split: str) -> None:
        frame_root = Path(davis2017_root, "DAVIS", "JPEGImages", "480p")
        mask_root = Path(davis2017_root, "DAVIS", "Annotations", "480p")
        for folder in (frame_root, mask_root):
            if not folder.is_dir():
                raise InputError(
                    f"--davis2017_root {davis2017_root}: no folder {folder}; --davis2017_root must be "
                    "the folder that holds DAVIS/JPEGImages/480p and DAVIS/Annotations/480p"
                )
        videos = read_split(split)
        missing = [video for video in videos if not (frame_root / video).is_dir()]
        if missing:
            raise InputError(
                f"--davis_split {split} names videos that are not in {frame_root}: {', '.join(missing)}"
            )
        self.frame_files = []
        for video in videos:
            frames = sorted((frame_root / video).glob("*.jpg"))
            if not frames:
                raise InputError(f"no *.jpg in {frame_root / video}")
            self.frame_files += frames
        self.mask_files = [mask_root / frame.parent.name / f"{frame.stem}.png" for frame in self.frame_files]
        unannotated = [file for file in self.mask_files if not file.is_file()]
        if unannotated:
            raise InputError(
                f"--davis2017_root {davis2017_root}: {len(unannotated)} frames have no mask, the first "
                f"lacks {unannotated[0]}"
            )

    def __len__(self) -> int:
        return len(self.frame_files)

    def __getitem__(self, idx: int) -> SegmentedImage:
        frame_file = self.frame_files[idx]
        image_rgb = read_image(frame_file)
        if image_rgb.shape[:2] != FRAME_SHAPE:
            image_rgb = np.asarray(
                Image.fromarray(image_rgb).resize(FRAME_SHAPE[::-1], Image.Resampling.BILINEAR)
            )
        name = f"{frame_file.parent.name}/{frame_file.stem}"
        return SegmentedImage(name, image_rgb, [_read_mask(self.mask_files[idx])])


def read_split(split: str) -> list[str]:
    """Names of the videos of a built-in split or of a text file with one name a line.

    Raises
    ------
    InputError
        If `split` is neither, or names no video.
    """
    file = SPLIT_LIST_DIR / f"{split}.txt" if split in SPLITS else Path(split)
    try:
        videos = list(dict.fromkeys(file.read_text(encoding="utf-8-sig").split()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--davis_split {split} is neither {', '.join(SPLITS)} nor a readable text file"
        ) from error
    if not videos:
        raise InputError(f"--davis_split {split} names no video")
    return videos


def _read_mask(file: Path) -> np.ndarray:
    """Object labels (H, W), int32: palette or grey values 0 to n, or 0 and 255 for two labels."""
    try:
        with Image.open(file) as image:
            mask = image if image.mode in ("P", "L") else image.convert("L")
            if mask.size != FRAME_SHAPE[::-1]:
                mask = mask.resize(FRAME_SHAPE[::-1], Image.Resampling.NEAREST)
            labels = np.asarray(mask).astype(np.int32)
    except Exception as error:  # Pillow raises whatever the broken bytes led it to
        raise InputError(f"{file} is not a readable mask ({error})") from error
    if labels.max() == 255 and np.isin(labels, (0, 255)).all():
        return labels // 255
    return labels
