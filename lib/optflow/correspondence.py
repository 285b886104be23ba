"""Pixels of two frames that show the same point, by optical flow in both directions."""

import torch
from torch import Tensor

NO_ORIGIN = -1

# Squared pixels: the squared error that is accepted, and its part of the squared lengths of both flows [1].
_ACCEPTED, _ACCEPTED_PER_LENGTH = 0.5, 0.01


def find_origins(forward: Tensor, backward: Tensor) -> Tensor:
    """Return the pixel of the last frame that each pixel of this frame comes from.

    A pixel follows the backward flow to the nearest pixel of the last frame. It has no origin if that lies
    outside the frame, or if the forward flow does not lead back: the point was hidden, or the flow is wrong.

    Parameters
    ----------
    forward : Tensor, shape (H, W, 2), float32
        Flow (dy, dx) in pixels from the last frame to this one.
    backward : Tensor, shape (H, W, 2), float32
        Flow from this frame to the last one, on the same device.

    Returns
    -------
    Tensor, shape (H, W), int64
        Index of the pixel in the flattened last frame; `NO_ORIGIN` for none.

    References
    ----------
    .. [1] Sundaram et al., "Dense Point Trajectories by GPU-accelerated Large Displacement Optical Flow",
       ECCV 2010.
    """
    y, x, is_inside = _follow(backward)
    y, x = (torch.where(is_inside, each, 0).long() for each in (y, x))
    origins = y * backward.shape[1] + x
    dy, dx = backward.unbind(dim=-1)
    dy_back, dx_back = forward.flatten(0, 1)[origins].unbind(dim=-1)
    error = (dy + dy_back).square_() + (dx + dx_back).square_()
    length = dy.square() + dx.square() + dy_back.square() + dx_back.square()
    is_consistent = error < _ACCEPTED_PER_LENGTH * length + _ACCEPTED
    return torch.where(is_inside & is_consistent, origins, NO_ORIGIN)


def stay_inside(flow: Tensor) -> Tensor:
    """Return where the flow (H, W, 2) of pixels leads to a pixel of the other frame, (H, W) bool."""
    return _follow(flow)[2]


def _follow(flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nearest row and column that each pixel moves to, and if they are inside the frame."""
    height, width = flow.shape[:2]
    dy, dx = flow.unbind(dim=-1)
    y = (torch.arange(height, device=flow.device)[:, None] + dy).round_()
    x = (torch.arange(width, device=flow.device) + dx).round_()
    return y, x, (y >= 0) & (y < height) & (x >= 0) & (x < width)
