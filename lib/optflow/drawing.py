"""Drawing of optical flow."""

import numpy as np
from skimage.color import hsv2rgb


def draw_flow(flow: np.ndarray) -> np.ndarray:
    """Draw the flow (H, W, 4) of a frame as (H, 2 W, 3) uint8: forward flow left, backward flow right.

    Channels of flow are [fwd_dy, fwd_dx, bwd_dy, bwd_dx] in pixels.
    Hue is the direction, and saturation the length of the motion; it is full from the 99th percentile of all
    lengths on. The wheel in the corner is the legend: a pixel that moves to the right has the colour on the
    right of the wheel.
    """
    both = np.concatenate([flow[..., :2], flow[..., 2:]], axis=1)  # (H, 2 W, 2)
    lengths = np.linalg.norm(both, axis=-1)
    longest = np.percentile(lengths[lengths > 0], 99) if lengths.any() else 1.0
    picture = _motion_colors(both / longest)
    radius = min(flow.shape[:2]) // 10
    if radius > 0:
        dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1] / radius
        in_wheel = dy**2 + dx**2 <= 1
        corner = picture[: 2 * radius + 1, -2 * radius - 1 :]
        corner[in_wheel] = _motion_colors(np.stack([dy, dx], axis=-1))[in_wheel]
    return picture


def _motion_colors(motion: np.ndarray) -> np.ndarray:
    """Return the colours of motions (..., 2) of length up to 1; zero motion is white."""
    hue = np.arctan2(-motion[..., 0], motion[..., 1]) / (2 * np.pi) % 1
    saturation = np.minimum(np.linalg.norm(motion, axis=-1), 1)
    hsv = np.stack([hue, saturation, np.ones_like(hue)], axis=-1)
    return (255 * hsv2rgb(hsv)).round().astype(np.uint8)
