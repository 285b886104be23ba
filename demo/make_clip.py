"""Make the demo clip: a horse of gravel that walks over gravel.

Horse and ground come from the same photograph, so only motion separates them. Frames go to `clip/`, the mask
of the horse in the middle frame to `clip_mask.png`. `estimate_optflow.py` then estimates the flow:

    python demo/make_clip.py
    python estimate_optflow.py --frames demo/clip --out_dir demo
"""

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from skimage.transform import rescale

DEMO_DIR = Path(__file__).parent

HEIGHT, WIDTH = 320, 480
N_FRAMES = 3
HORSE_STEP, GROUND_STEP = 6, -2  # pixels to the right between two frames
HORSE_TOP, HORSE_LEFT = 30, 70  # position in the first frame
TINT = np.array([1.0, 0.93, 0.82])  # from grey to sand


def main() -> None:
    gravel = data.gravel()  # (512, 512), uint8
    horse = rescale(~data.horse(), 0.8)  # the silhouette is black
    horse = horse[:, horse.any(axis=0)][horse.any(axis=1)]
    height, width = horse.shape
    coat = gravel.T[-height:, -width:]
    clip_dir = DEMO_DIR / "clip"
    clip_dir.mkdir(exist_ok=True)
    for frame_idx in range(N_FRAMES):
        ground_left = 16 - GROUND_STEP * frame_idx
        frame = gravel[100 : 100 + HEIGHT, ground_left : ground_left + WIDTH].copy()
        left = HORSE_LEFT + HORSE_STEP * frame_idx
        frame[HORSE_TOP : HORSE_TOP + height, left : left + width][horse] = coat[horse]
        tinted = (frame[..., None] * TINT).round().astype(np.uint8)
        Image.fromarray(tinted).save(clip_dir / f"{frame_idx:05}.jpg", quality=92)
        if frame_idx == N_FRAMES // 2:
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            mask[HORSE_TOP : HORSE_TOP + height, left : left + width][horse] = 255
            Image.fromarray(mask).save(DEMO_DIR / "clip_mask.png")


if __name__ == "__main__":
    main()
