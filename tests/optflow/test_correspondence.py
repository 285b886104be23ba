"""Pixels that show the same point in two frames."""

import numpy as np
import torch

from lib.optflow.correspondence import NO_ORIGIN, find_origins, stay_inside


def origins_one_by_one(forward, backward):
    height, width = backward.shape[:2]
    origins = np.full((height, width), NO_ORIGIN)
    for (row, col), _ in np.ndenumerate(origins):
        back = backward[row, col].astype(float)
        y, x = round(row + back[0]), round(col + back[1])
        if not (0 <= y < height and 0 <= x < width):
            continue
        there = forward[y, x].astype(float)
        if ((back + there) ** 2).sum() < 0.01 * ((back**2).sum() + (there**2).sum()) + 0.5:
            origins[row, col] = y * width + x
    return origins


def test_motion_of_the_whole_frame(device):
    forward = torch.tensor([1.0, -2.0]).expand(5, 7, 2).to(device)
    origins = find_origins(forward, -forward).cpu().numpy()
    expected = np.arange(35).reshape(5, 7)
    np.testing.assert_array_equal(origins[1:, :5], expected[:4, 2:])
    assert (origins[0] == NO_ORIGIN).all()
    assert (origins[:, 5:] == NO_ORIGIN).all()


def test_flow_that_does_not_lead_back(device):
    zeros = torch.zeros(5, 7, 2, device=device)
    forward = zeros.clone()
    forward[2, 3] = torch.tensor([0.6, 0.0])  # squared error 0.36
    forward[4, 6] = torch.tensor([0.0, 0.8])  # squared error 0.64
    origins = find_origins(forward, zeros).cpu()
    assert (origins[2, 3], origins[4, 6]) == (17, NO_ORIGIN)
    assert (origins == NO_ORIGIN).sum() == 1
    # In a longer flow, the same error of 0.64 is accepted: 0.5 + 0.01 * (3**2 + 3.8**2) = 0.73.
    backward = torch.tensor([0.0, -3.0], device=device).expand(5, 7, 2)
    forward = torch.tensor([0.0, 3.8], device=device).expand(5, 7, 2)
    expected = torch.arange(35).view(5, 7)[:, :4]
    assert find_origins(forward, backward)[:, 3:].cpu().equal(expected)


def test_equals_one_pixel_after_the_other(device):
    rng = np.random.default_rng(0)
    backward = rng.normal(0, 3, (20, 31, 2)).astype(np.float32)
    forward = np.roll(-backward, 1, axis=1) + rng.normal(0, 0.5, backward.shape).astype(np.float32)
    smooth = np.full_like(backward, (1.3, -2.2))
    for pair in ((forward, backward), (-smooth + 0.3 * forward, smooth)):
        origins = find_origins(*(torch.from_numpy(each).to(device) for each in pair))
        np.testing.assert_array_equal(origins.cpu(), origins_one_by_one(*pair))


def test_pixels_that_leave(device):
    flow = torch.zeros(3, 4, 2)
    flow[0, 0, 0], flow[1, 3, 1], flow[2, 0, 0], flow[2, 3, 1] = -0.6, 0.4, 0.6, -3.0
    expected = np.ones((3, 4), bool)
    expected[0, 0] = expected[2, 0] = False
    np.testing.assert_array_equal(stay_inside(flow.to(device)).cpu(), expected)
