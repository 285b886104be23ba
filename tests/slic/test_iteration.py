"""Compare the clustering with slow implementations and test its properties."""

import warnings

import numpy as np
import pytest
import torch

from helpers import SHAPES_AND_COUNTS
from lib.losses import true_label_share
from lib.slic import fast, iteration, reference, slic, slic_label_rows, slic_labels
from lib.slic.fast import _nearest
from lib.slic.grid import compute_grid_shape
from lib.slic.iteration import DISTANCES, MIN_SQUARED_DISTANCE


def make_features(shape, *, batch=2, channels=4, requires_grad=False, dtype=torch.float64):
    return torch.randn(batch, channels, *shape, dtype=dtype).requires_grad_(requires_grad)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("shape", "n_spixels"), SHAPES_AND_COUNTS)
def test_clustering_equals_reference(shape, n_spixels, distance, device):
    features = make_features(shape, requires_grad=True).to(device)
    weights = torch.randn(2, 4, *shape, dtype=torch.float64, device=device)

    ours = slic(features, n_spixels, distance=distance)
    affinity, candidates, n_cells = reference.gather_slic(features, n_spixels, distance=distance)
    spixel_features = reference.update_centroids(features, affinity, candidates, n_cells)
    dense = reference.dense_affinity(affinity, candidates, n_cells)

    torch.testing.assert_close(ours.spixel_means(features), spixel_features)
    assert ours.labels().equal(reference.labels_of(affinity, candidates))
    torch.testing.assert_close(ours.to_sparse().to_dense(), dense)
    reconstructed = ours.reconstruct(weights)
    torch.testing.assert_close(reconstructed, reference.reconstruct(dense, weights))
    (gradient,) = torch.autograd.grad((reconstructed * weights).sum(), features)
    (expected,) = torch.autograd.grad((reference.reconstruct(dense, weights) * weights).sum(), features)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients(distance):
    features = make_features((7, 5), batch=1, channels=3, requires_grad=True)
    values = torch.randn(1, 2, 7, 5, dtype=torch.float64, requires_grad=True)

    def run(features, values):
        assignment = slic(features, 6, n_iter=2, distance=distance)
        sparse_values = assignment.to_sparse().to_dense()
        return assignment.spixel_means(values), assignment.reconstruct(values), sparse_values

    assert torch.autograd.gradcheck(run, (features, values))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("shape", "n_spixels"), SHAPES_AND_COUNTS)
def test_masked_clustering_equals_loop(shape, n_spixels, distance, device):
    features = make_features(shape, batch=2).to(device)
    mask = torch.rand(2, *shape, device=device) < 0.6
    mask[:, 0, 0] = True
    assignment = slic(features, n_spixels, n_iter=3, distance=distance, mask=mask)
    dense = assignment.to_sparse().to_dense()
    for idx in range(2):
        expected = masked_by_loop(features[idx], mask[idx], n_spixels, n_iter=3, distance=distance)
        torch.testing.assert_close(dense[idx], expected)


def masked_by_loop(features, mask, n_spixels, *, n_iter, distance):
    """Return the affinity (S, H*W) of the pixels in a mask; other pixels have zero."""
    height, width = mask.shape
    n_rows, n_cols = compute_grid_shape(height, width, n_spixels)
    cell_of = {
        (y, x): (y * n_rows // height, x * n_cols // width) for y in range(height) for x in range(width)
    }
    inside = [pixel for pixel in cell_of if mask[pixel]]
    means = {}
    for row, col in {cell_of[pixel] for pixel in inside}:  # windows of adaptive pooling; they may overlap
        rows = slice(row * height // n_rows, -(-(row + 1) * height // n_rows))
        cols = slice(col * width // n_cols, -(-(col + 1) * width // n_cols))
        means[row, col] = features[:, rows, cols][:, mask[rows, cols]].mean(1)
    for _ in range(n_iter):
        affinity = torch.zeros(n_rows * n_cols, height * width, dtype=features.dtype, device=features.device)
        for y, x in inside:
            row, col = cell_of[y, x]
            near = [(row + dy, col + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            near = [cell for cell in near if cell in means]
            squared = torch.stack([(features[:, y, x] - means[cell]).square().sum() for cell in near])
            distances = squared if distance == "squared" else squared.clamp(min=MIN_SQUARED_DISTANCE).sqrt()
            for cell, share in zip(near, torch.softmax(-distances, 0), strict=True):
                affinity[cell[0] * n_cols + cell[1], y * width + x] = share
        flat = features.flatten(1)
        for row, col in means:
            shares = affinity[row * n_cols + col]
            means[row, col] = (flat * shares).sum(1) / shares.sum()
    return affinity


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("shape", "n_spixels"), SHAPES_AND_COUNTS)
def test_labels_equal_assignment(shape, n_spixels, is_masked, distance, device, monkeypatch):
    features = make_features(shape, batch=2).to(device)
    mask = torch.rand(2, *shape, device=device) < 0.6 if is_masked else None
    if is_masked:
        mask[:, 0, 0] = True
    expected = slic(features, n_spixels, distance=distance, mask=mask).labels()
    sizes = (2**30, 2**20, 2**20), (2**30, 1, 5000), (0, 2**20, 2**20), (0, 1, 5000), (0, 1, 1)
    for large, cpu_chunk, gpu_chunk in sizes:
        monkeypatch.setattr("lib.slic.fast.LARGE_BYTES", large)
        monkeypatch.setattr("lib.slic.fast.CPU_CHUNK_BYTES", cpu_chunk)
        monkeypatch.setattr("lib.slic.fast.GPU_CHUNK_BYTES", gpu_chunk)
        labels = slic_labels(features, n_spixels, distance=distance, mask=mask)
        assert labels.dtype == torch.int64
        where = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
        assert labels[where].equal(expected[where])


class RowsOf:
    """Features (1, C, H, W) that are read in rows; see `FeatureRows`."""

    def __init__(self, features):
        self.features = features[0]
        self.shape, self.device = tuple(features.shape[1:]), features.device
        self.n_rows_read = 0

    def read(self, start, stop):
        self.n_rows_read += stop - start
        return self.features[:, start:stop].contiguous()


@pytest.mark.parametrize("window_bytes", [2**20, 1])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("shape", "n_spixels"), SHAPES_AND_COUNTS)
def test_label_rows_are_those_of_the_image(shape, n_spixels, is_masked, window_bytes, device, monkeypatch):
    monkeypatch.setattr("lib.slic.fast.CPU_CHUNK_BYTES", 5000)
    monkeypatch.setattr("lib.slic.fast.GPU_CHUNK_BYTES", 5000)
    monkeypatch.setattr("lib.slic.fast.WINDOW_BYTES", window_bytes)
    features = make_features(shape)[:1].to(device)
    mask = torch.rand(1, *shape, device=device) < 0.6 if is_masked else None
    if is_masked:
        mask[:, 0, 0] = True
    expected = slic_labels(features, n_spixels, mask=mask)[0]
    rows = RowsOf(features)
    labels = torch.cat(list(slic_label_rows(rows, n_spixels, mask=mask)))
    where = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask[0]
    assert labels[where].equal(expected[where])
    if window_bytes > 1:  # all steps share one reading
        assert rows.n_rows_read == shape[0]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("shape", "n_spixels"), SHAPES_AND_COUNTS)
def test_fast_functions_equal_plain_functions(shape, n_spixels, is_masked, distance, device):
    features = make_features(shape, requires_grad=True).to(device)
    mask = torch.rand(2, *shape, device=device) < 0.6 if is_masked else None
    if is_masked:
        mask[:, 0, 0] = True
    arguments = {"n_iter": 3, "distance": distance, "mask": mask}
    results = []
    for twin in (iteration, fast):
        affinity = twin.slic(features, n_spixels, **arguments).affinity
        weights = torch.arange(affinity.numel(), dtype=torch.float64, device=device).view_as(affinity).sin()
        (gradient,) = torch.autograd.grad((affinity * weights).sum(), features)
        labels = labels_of(twin)(features, n_spixels, **arguments)
        results.append((affinity, gradient, labels if mask is None else labels * mask))
    for plain, faster in zip(*results, strict=True):
        torch.testing.assert_close(faster, plain)


@pytest.mark.parametrize("twin", [iteration, fast])
@pytest.mark.parametrize("outside", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_values_outside_mask_are_ignored(twin, outside, device):
    features = make_features((20, 31)).to(device)
    mask = torch.rand(2, 20, 31, device=device) < 0.6
    mask[:, 0, 0] = False  # pixel index 0, which empty slots hold
    spoilt = torch.where(mask[:, None], features, outside)
    expected = twin.slic(features, 12, mask=mask).affinity
    assert twin.slic(spoilt, 12, mask=mask).affinity.equal(expected)
    labels = labels_of(twin)(spoilt, 12, mask=mask)
    assert labels[mask].equal(labels_of(twin)(features, 12, mask=mask)[mask])


def labels_of(twin):
    """Return a function from the arguments of `slic` to labels."""
    return twin.slic_labels if twin is fast else lambda *args, **options: twin.slic(*args, **options).labels()


def test_gradients_with_mask():
    features = make_features((7, 5), batch=1, channels=3, requires_grad=True)
    values = torch.randn(1, 2, 7, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 7, 5) < 0.6
    assert torch.autograd.gradcheck(
        lambda features, values: slic(features, 6, n_iter=2, mask=mask).reconstruct(values),
        (features, values),
    )


def test_gradient_is_finite_for_pixels_equal_to_superpixels():
    features = torch.zeros(1, 3, 8, 9, requires_grad=True)
    slic(features, 6).reconstruct(torch.randn(1, 2, 8, 9)).square().sum().backward()
    assert features.grad.isfinite().all()


def test_float32_agrees_with_float64_far_from_the_origin(device):
    features = make_features((60, 80), batch=1, channels=5).to(device)
    features[:, -1] += 1000  # rounding of a large squared coordinate must not hide small distances
    features = features.float()  # round before both calls: this test ignores the rounding of the input
    exact, single = slic(features.double(), 40), slic(features, 40)
    agreement = exact.labels() == single.labels()
    assert agreement.float().mean() > 0.99  # without subtracting the cell's centroid: 0.7


@pytest.mark.parametrize("distance", DISTANCES)
def test_batch_equals_one_by_one(distance, device):
    features = make_features((20, 31), batch=3).to(device)
    together = slic(features, 12, distance=distance)
    for idx in range(3):
        alone = slic(features[idx : idx + 1], 12, distance=distance)
        torch.testing.assert_close(together.affinity[idx], alone.affinity[0])
        assert together.labels()[idx].equal(alone.labels()[0])


@pytest.mark.parametrize(("shape", "n_spixels"), SHAPES_AND_COUNTS)
def test_affinity_sums_to_one_over_existing_candidates(shape, n_spixels):
    assignment = slic(make_features(shape), n_spixels)
    grid = assignment.grid
    torch.testing.assert_close(assignment.affinity.sum(2), torch.ones_like(assignment.affinity[:, :, 0]))
    beyond = ~grid.neighbor_mask[None, :, :, None].expand_as(assignment.affinity)
    occupied = grid.pixel_mask[None, :, None].expand_as(assignment.affinity)
    assert (assignment.affinity[beyond & occupied] < 1e-20).all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_affinity_is_subnormal(distance, dtype):
    """Sums over subnormal numbers take many times longer."""
    features = 100 * make_features((20, 31)).to(dtype)
    affinity = slic(features, 12, distance=distance).affinity
    assert affinity.min() >= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_do_not_wrap_around_the_border(side):
    # A stripe along one border has the features of the superpixels at the opposite border.
    height, width, n_spixels = 40, 60, 24
    features = torch.zeros(1, 3, height, width)
    row, col = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    features[:, 1] = row / 10
    features[:, 2] = (col - width / 2).abs() / 10  # mirrored: both borders have the same value
    stripe = slice(0, 5) if side == "left" else slice(width - 5, width)
    features[:, 0, :, stripe] = 9
    opposite = slice(width - 20, width) if side == "left" else slice(0, 20)
    features[:, 0, :, opposite] = 9
    assignment = slic(features, n_spixels)
    n_cols = assignment.grid.grid_shape[1]
    spixel_col = assignment.labels()[0, :, stripe] % n_cols
    assert (spixel_col <= 1).all() if side == "left" else (spixel_col >= n_cols - 2).all()


def test_means_and_reconstruction_of_pure_superpixels():
    # Four flat quadrants, far apart in feature space: the soft assignment equals the hard one.
    row, col = torch.meshgrid(torch.arange(8), torch.arange(9), indexing="ij")
    quadrant = 2 * (row >= 4) + (col >= 5)
    features = 1000.0 * torch.nn.functional.one_hot(quadrant, 4).permute(2, 0, 1)[None]
    assignment = slic(features, 5)
    assert assignment.labels()[0].equal(quadrant)
    values = torch.arange(72.0).view(1, 1, 8, 9)
    expected = torch.stack([values[0, 0][quadrant == idx].mean() for idx in range(4)])
    torch.testing.assert_close(assignment.spixel_means(values)[0, 0], expected)
    torch.testing.assert_close(assignment.reconstruct(values)[0, 0], expected[quadrant])


def test_sparse_export_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse = slic(make_features((20, 31)), 12).to_sparse()
    assert sparse.shape == (2, 2 * 4, 620)
    torch.testing.assert_close(sparse.to_dense().sum(1), torch.ones(2, 620, dtype=torch.float64))


def test_superpixel_without_pixels_stays_finite():
    # With squared distances of this size, all affinity goes to the nearest candidate.
    features = 1e4 * make_features((20, 31), dtype=torch.float32)
    assert slic(features, 60, distance="squared").affinity.isfinite().all()


@pytest.mark.parametrize("n_spixels", [0, -3, 621])
def test_impossible_count_is_rejected(n_spixels):
    with pytest.raises(ValueError, match=rf"n_spixels .* 620 .*got {n_spixels}"):
        slic(make_features((20, 31)), n_spixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"n_iter": 0}, "n_iter .* 0"), ({"distance": "cosine"}, "distance .*'cosine'")],
)
def test_bad_argument_is_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        slic(make_features((20, 31)), 12, **arguments)


@pytest.mark.parametrize("function", [slic, slic_labels])
def test_tensors_on_two_devices_are_refused(function):
    features = torch.empty(1, 3, 20, 31, device="meta")
    mask = torch.ones(1, 20, 31, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"one device, got pixel_features on meta, mask on cpu; move them"):
        function(features, 12, mask=mask)


def test_values_on_another_device_are_refused():
    features = torch.rand(1, 3, 20, 31)
    assignment = slic(features, 12)
    with pytest.raises(ValueError, match="affinity on cpu, values on meta"):
        assignment.reconstruct(features.to("meta"))
    with pytest.raises(ValueError, match="affinity on cpu, spixel_values on meta"):
        assignment.to_pixels(torch.empty(1, 3, 8, device="meta"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_features_of_wrong_dtype_are_rejected(dtype):
    with pytest.raises(ValueError, match="float32 or float64"):
        slic(torch.zeros(1, 3, 8, 8, dtype=dtype), 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_host_synchronisation_on_cuda():
    features = make_features((60, 80), dtype=torch.float32).cuda()
    slic(features, 40)  # builds and caches the index tensors
    try:
        torch.cuda.set_sync_debug_mode("error")
        slic(features, 40).labels()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_grid_built_in_inference_mode_supports_gradients():
    features = torch.rand(1, 3, 29, 37)
    with torch.inference_mode():
        slic_labels(features, 12)
    features.requires_grad_()
    shares = true_label_share(slic(features, 12), torch.arange(29 * 37).view(1, 29, 37) % 3, 3)
    shares.sum().backward()
    assert features.grad.abs().sum() > 0


def test_nearest_candidate_is_first_in_tie():
    distance = torch.rand(2, 3, 9, 20).mul(4).round()  # with many ties
    nearest = _nearest(distance)
    assert nearest.dtype == torch.int64
    np.testing.assert_array_equal(nearest, distance.numpy().argmin(axis=2))
