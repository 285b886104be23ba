"""Make the pictures of the README and of docs/, and print the numbers quoted with them.

python -m docs.make_pictures
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import inference_base_model
import inference_optflow_composite_model
from lib.cli.options import DEFAULT_BASE_WEIGHTS, DEFAULT_COMPOSITE_WEIGHTS, REPO_ROOT
from lib.files.frames import FRAME_SUFFIXES, VideoFile, list_in_order
from lib.files.images import read_image
from lib.inference.segmenter import Segmenter
from lib.metrics.registry import score_label_maps
from lib.optflow.archive import FlowArchive
from lib.optflow.drawing import draw_flow
from lib.superpixels.drawing import draw_boundaries

DOCS_DIR = Path(__file__).parent
DEMO_DIR = REPO_ROOT / "demo"
CLIP_DIR = DEMO_DIR / "clip"
MIDDLE = 1  # index of the frame that has a mask
GAP = 6  # pixels between two pictures
TINT = np.array([255, 60, 60])
COMPACTNESS_OPTIONS = {"pos_scale": (2, 30), "pos_scale_dist": (0.25, 4), "merge_pos_scale": (0, 4)}
FACE = slice(20, 240), slice(100, 340)  # rows and columns of the demo image


def make_superpixels() -> None:
    """Make `superpixels.jpg`: the demo image."""
    inference_base_model.main(["--out", str(DOCS_DIR / "superpixels.jpg")])


def make_compactness() -> None:
    """Make `compactness.jpg`: a column for each option, with its low value above its high one."""
    image_rgb = read_image(DEMO_DIR / "cat.jpg")
    columns = []
    with tempfile.TemporaryDirectory() as folder:
        overlay, labels = (str(Path(folder) / name) for name in ("overlay.png", "labels.npy"))
        for option, values in COMPACTNESS_OPTIONS.items():
            pictures = []
            for value in values:
                options = [f"--{option}={value}", "--boundary_width=1"]
                inference_base_model.main([*options, "--out", overlay, "--save_labels", labels])
                (scores,) = score_label_maps([np.load(labels)], image_rgb, [], ["compactness"])
                print(f"--{option} {value}: compactness {scores.spixels['compactness']:.2f}")
                pictures.append(read_image(overlay)[FACE])
            columns.append(_joined(pictures, axis=0))
    _save_row(columns, "compactness.jpg", quality=75)


def make_composite() -> None:
    """Make `composite.jpg`: base, composite and flow of the middle frame, with the horse tinted."""
    image_rgb = read_image(list_in_order(CLIP_DIR, FRAME_SUFFIXES)[MIDDLE])
    horse = np.asarray(Image.open(DEMO_DIR / "clip_mask.png")) > 0
    flow = FlowArchive(DEMO_DIR / "optflow_dis_clip.h5").read_frame(MIDDLE)
    pictures = []
    for weights, extra in ((DEFAULT_BASE_WEIGHTS, None), (DEFAULT_COMPOSITE_WEIGHTS, flow)):
        superpixels = Segmenter.from_checkpoint(weights)(image_rgb, 200, extra=extra)
        on_horse = (superpixels.mean_of(horse) > 0.5)[superpixels.labels]
        iou = np.sum(on_horse & horse) / np.sum(on_horse | horse)
        print(f"{weights.name}: {superpixels.n_measured} superpixels, IoU with the horse {iou:.3f}")
        pictures.append(draw_boundaries(_tinted(image_rgb, on_horse, TINT), superpixels.labels))
    swapped = np.roll(flow, 2, axis=-1)  # the forward flow on the right, where the wheel is
    pictures.append(draw_flow(swapped)[:, image_rgb.shape[1] :])
    _save_row(pictures, "composite.jpg")


def make_folder() -> None:
    """Make `folder.jpg`: overlays of the photographs in the demo folder."""
    with tempfile.TemporaryDirectory() as folder:
        inference_base_model.main(["--image", str(DEMO_DIR), "--out", folder])
        overlays = [path for path in sorted(Path(folder).rglob("*.png")) if path.stem != "clip_mask"]
        pictures = [Image.open(path).convert("RGB") for path in overlays]
        height = min(picture.height for picture in pictures)
        _save_row([np.asarray(picture)[:height] for picture in pictures], "folder.jpg")


def make_video() -> None:
    """Make `video.jpg`: the frames of the demo clip with `--temporal`, tinted by label."""
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "overlay.mp4"
        options = ["--video", str(CLIP_DIR), "--temporal", "--overlay", "label_colors"]
        inference_optflow_composite_model.main([*options, "--out", str(overlay)])
        _save_row(list(VideoFile("overlay", overlay).read()), "video.jpg")


def _tinted(picture: np.ndarray, mask: np.ndarray, color: np.ndarray) -> np.ndarray:
    mixed = (0.4 * picture + 0.6 * color).astype(np.uint8)
    return np.where(mask[..., None], mixed, picture)


def _save_row(pictures: list[np.ndarray], name: str, *, quality: int = 88) -> None:
    """Save pictures of equal height side by side."""
    Image.fromarray(_joined(pictures, axis=1)).save(DOCS_DIR / name, quality=quality)


def _joined(pictures: list[np.ndarray], *, axis: int) -> np.ndarray:
    """Join pictures of equal size along an axis, with white gaps."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=axis)


if __name__ == "__main__":
    make_superpixels()
    make_compactness()
    make_composite()
    make_folder()
    make_video()
