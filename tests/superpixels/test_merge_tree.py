"""The merge tree: compared with a heap, cut at any number, on maps with crumbs, islands and ties."""

import heapq
import warnings

import numpy as np
import pytest
import torch
from conftest import DEVICES
from skimage.measure import label

from helpers import WaitingCalls, agreement
from lib.runtime.errors import InputError
from lib.superpixels import merge_rounds, merge_rounds_gpu
from lib.superpixels.merge_rounds import merge_in_rounds
from lib.superpixels.merge_tree import build_merge_tree, build_merge_trees, merge_graph, trees_on_gpu
from lib.superpixels.region_graph import build_region_graph, graph_of_bands
from properties import given, settings, st


def random_map(height, width, n_labels, *, seed):
    """Return a map of blocks with noise, and features that follow the blocks loosely."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:height, :width]
    side = max(1, int(np.sqrt(height * width / n_labels)))
    labels = (row // side) * (width // side + 1) + col // side
    noisy = rng.random((height, width)) < 0.05
    labels[noisy] = rng.integers(0, labels.max() + 1, noisy.sum())
    colors = rng.normal(size=(labels.max() + 1, 4))[labels] + 0.3 * rng.normal(size=(height, width, 4))
    features = np.concatenate([colors, 0.05 * np.stack([row, col], -1)], axis=-1)
    return torch.from_numpy(labels), torch.from_numpy(np.moveaxis(features, -1, 0).astype(np.float32))


def within_region_squares(labels, features):
    """Sum of squared distances of the pixels to the mean features of their region."""
    values = features.double().numpy().reshape(len(features), -1).T[labels.ravel() >= 0]
    _, flat = np.unique(labels[labels >= 0], return_inverse=True)
    sums = np.stack([np.bincount(flat, channel) for channel in values.T], axis=1)
    return np.square(values - (sums / np.bincount(flat)[:, None])[flat]).sum()


def merge_with_a_heap(labels, features, n_regions):
    """Merge the cheapest pair of neighbours, one at a time."""
    regions = label(labels, background=-1, connectivity=1) - 1
    pixels = {}
    for (row, col), region in np.ndenumerate(regions):
        if region >= 0:
            pixels.setdefault(region, []).append(features[:, row, col].double().numpy())
    size = {region: len(values) for region, values in pixels.items()}
    mean = {region: np.mean(values, axis=0) for region, values in pixels.items()}
    neighbors = {region: set() for region in pixels}
    for one, other in ((regions[:, 1:], regions[:, :-1]), (regions[1:], regions[:-1])):
        for i, j in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
            if i != j and min(i, j) >= 0:
                neighbors[i].add(j)
                neighbors[j].add(i)

    def entry(i, j):
        cost = size[i] * size[j] / (size[i] + size[j]) * np.square(mean[i] - mean[j]).sum()
        return cost, i, j, size[i], size[j]

    heap = [entry(i, j) for i in neighbors for j in neighbors[i] if i < j]
    heapq.heapify(heap)
    while len(size) > n_regions:
        _, i, j, size_i, size_j = heapq.heappop(heap)
        if size.get(i) != size_i or size.get(j) != size_j:
            continue  # one of the two has been merged since
        mean[i] = (size_i * mean[i] + size_j * mean[j]) / (size_i + size_j)
        size[i] += size.pop(j)
        regions[regions == j] = i
        for k in neighbors.pop(j) - {i}:
            neighbors[k] = neighbors[k] - {j} | {i}
            neighbors[i].add(k)
        neighbors[i].discard(j)
        for k in neighbors[i]:
            heapq.heappush(heap, entry(i, k))
    return regions


def check_regions(labels, n_regions):
    """Check that labels are exactly `n_regions` connected regions, numbered in reading order."""
    assert labels.dtype == np.int32
    inside = labels[labels >= 0]
    values, first = np.unique(inside, return_index=True)
    np.testing.assert_array_equal(values, np.arange(n_regions))
    assert (np.diff(first) > 0).all()
    assert label(labels, background=-1, connectivity=1).max() == n_regions


@pytest.mark.parametrize("seed", range(3))
def test_rounds_are_as_good_as_a_heap(seed):
    labels, features = random_map(80, 121, 500, seed=seed)
    tree = build_merge_tree(labels, features)
    for n_spixels in (600, 300, 100):
        ours = within_region_squares(tree.cut(n_spixels), features)
        heap = within_region_squares(merge_with_a_heap(labels.numpy(), features, n_spixels), features)
        assert ours <= 1.01 * heap


def test_first_merge_is_wards():
    labels = torch.tensor([[0, 0, 0, 1, 2, 2]])
    features = torch.tensor([[[0.0, 0, 0, 2, 5, 7]]])
    tree = build_merge_tree(labels, features)
    # {0, 0, 0} and {2}: 3 * 1 / 4 * 2^2 = 3. Then {0, 0, 0, 2}, mean 0.5, and {5, 7}, mean 6.
    np.testing.assert_array_equal(tree.merges, [[0, 1], [3, 2]])
    np.testing.assert_allclose(tree.costs, [3, 4 * 2 / 6 * 5.5**2])
    np.testing.assert_array_equal(tree.cut(2), [[0, 0, 0, 0, 1, 1]])


def test_costs_never_fall():
    labels = torch.tensor([[0, 1, 2]])
    tree = build_merge_tree(labels, torch.tensor([[[0.0, 10, 0]]]))
    # {0} and {10}: 1 / 2 * 10^2. The merge with the other {0}, 2 / 3 * 5^2, is cheaper but needs the first.
    np.testing.assert_array_equal(tree.costs, [50, 50])
    for seed in range(3):
        assert (np.diff(build_merge_tree(*random_map(30, 40, 60, seed=seed)).costs) >= 0).all()


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    n_labels=st.integers(1, 60),
    masked_share=st.sampled_from([0.0, 0.1, 0.5]),
    is_constant=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_cut_has_its_number_and_nests(height, width, n_labels, masked_share, is_constant, seed):
    labels, features = random_map(height, width, n_labels, seed=seed)
    mask = np.random.default_rng(seed).random((height, width)) >= masked_share
    mask[0, 0] = True
    labels = torch.where(torch.from_numpy(mask), labels, -1)
    tree = build_merge_tree(labels, torch.zeros_like(features) if is_constant else features)
    assert tree.n_pieces == label(mask, connectivity=1).max()
    finer = tree.cut(tree.n_leaves)
    np.testing.assert_array_equal(finer, tree.leaves)
    for n_spixels in range(tree.n_leaves, tree.n_pieces - 1, -1):
        coarser = tree.cut(n_spixels)
        check_regions(coarser, n_spixels)
        np.testing.assert_array_equal(coarser >= 0, mask)
        assert len(np.unique(np.stack([finer[mask], coarser[mask]]), axis=1).T) == finer.max() + 1
        finer = coarser


def test_cut_outside_the_tree_is_refused():
    labels = torch.tensor([[0, 1, -1, 3]])
    tree = build_merge_tree(labels, torch.rand(2, 1, 4))
    assert (tree.n_leaves, tree.n_pieces) == (3, 2)
    for n_spixels in (1, 4):
        with pytest.raises(ValueError, match=f"between 2 and 3, got {n_spixels}"):
            tree.cut(n_spixels)


@pytest.mark.parametrize("shape", [(30, 40), (1, 2583), (600, 2)])  # 2584 is a Fibonacci number
def test_equal_regions_merge_in_few_rounds(shape, monkeypatch):
    rounds = []
    original = merge_rounds._ward_costs
    monkeypatch.setattr(merge_rounds, "_ward_costs", lambda *args: rounds.append(1) or original(*args))
    n_regions = shape[0] * shape[1]
    tree = build_merge_tree(torch.arange(n_regions).view(shape), torch.zeros(2, *shape))
    assert len(rounds) < 40  # one pair a round would take as many as regions
    np.testing.assert_array_equal(tree.costs, np.zeros(n_regions - 1))


def test_infinite_features_are_refused():
    with pytest.raises(InputError, match=r"too large .*`merge_pos_scale`"):
        build_merge_tree(torch.tensor([[0, 1]]), torch.tensor([[[np.inf, 1.0]]]))


def test_threads_do_not_change_the_tree():
    labels, features = random_map(200, 300, 500, seed=0)
    n_threads = torch.get_num_threads()
    trees = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            trees.append(build_merge_tree(labels, features))
    finally:
        torch.set_num_threads(n_threads)
    np.testing.assert_array_equal(trees[0].merges, trees[1].merges)
    np.testing.assert_array_equal(trees[0].costs, trees[1].costs)


@pytest.mark.parametrize("device", DEVICES)
def test_tree_equals_exact_tree(device):
    """On a CPU the sums of features are rounded to float32; on a GPU they are exact."""
    labels, features = random_map(120, 190, 400, seed=0)
    exact = build_merge_tree(labels, features.double())
    tree = build_merge_tree(labels.to(device), features.to(device))
    np.testing.assert_allclose(tree.costs, exact.costs, rtol=1e-5)
    for n_spixels in (400, 100):  # merges of nearly equal cost may change places
        assert agreement(tree.cut(n_spixels), exact.cut(n_spixels)) > 0.99


def make_maps():
    """Return label maps (5, 40, 57) that differ in kind, and features (5, 3, 40, 57) whose sums are exact."""
    rng = np.random.default_rng(0)
    random, _ = random_map(40, 57, 150, seed=0)
    masked = torch.where(torch.from_numpy(rng.random((40, 57)) < 0.3), -1, random)
    islands = torch.full((40, 57), -1)
    islands[::3, ::4] = 7
    grid = torch.arange(40 * 57).view(40, 57)
    one = torch.zeros(40, 57, dtype=torch.int64)
    features = torch.from_numpy(rng.integers(-9, 10, (5, 3, 40, 57)).astype(np.float32))
    features[3] = 0  # all costs are equal
    return torch.stack([random, masked, islands, grid, one]), features


def assert_equal_trees(trees, expected):
    for tree, other in zip(trees, expected, strict=True):
        assert tree.leaves.dtype == other.leaves.dtype
        np.testing.assert_array_equal(tree.leaves, other.leaves)
        np.testing.assert_array_equal(tree.merges, other.merges)
        np.testing.assert_array_equal(tree.costs, other.costs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("min_images", [1, 9])  # rounds on the GPU, and on the CPU
def test_batch_on_a_gpu_equals_one_by_one_on_a_cpu(device, min_images, monkeypatch):
    monkeypatch.setattr("lib.superpixels.merge_tree._MIN_IMAGES_ON_GPU", min_images)
    labels, features = make_maps()
    trees = trees_on_gpu(labels.to(device), features.to(device))
    assert_equal_trees(trees, [build_merge_tree(*each) for each in zip(labels, features, strict=True)])
    assert_equal_trees(trees, build_merge_trees(labels, features))
    assert [tree.n_leaves for tree in trees[2:]] == [14 * 15, 40 * 57, 1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rounds_at_once", [1, 5])
def test_rounds_on_a_gpu_equal_those_on_a_cpu(device, rounds_at_once, monkeypatch):
    """Two equal graphs and a line, with rounding, regions of one place and some equal costs."""
    monkeypatch.setattr(merge_rounds_gpu, "_N_ROUNDS_AT_ONCE", rounds_at_once)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 50, 300).astype(float)
    means = rng.normal(size=(300, 7)) * 10.0 ** rng.integers(-3, 4, 7)
    means[60:90] = means[60]
    edges = np.unique(np.sort(rng.integers(0, 300, (2, 900)), axis=0), axis=1)  # a few join equal places
    line = 600 + np.stack([np.arange(49), np.arange(1, 50)])
    graph = (
        np.concatenate([sizes, sizes, np.ones(50)]),
        np.concatenate([means, means, np.zeros((50, 7))]),
        np.concatenate([edges, 300 + edges, line], axis=1),
        np.concatenate([np.arange(300), np.arange(300), np.arange(50)]),
    )
    expected = merge_in_rounds(*graph)
    found = merge_rounds_gpu.merge_in_rounds(*(torch.from_numpy(values).to(device) for values in graph))
    for values, others in zip(found, expected, strict=True):
        assert values.dtype == others.dtype
        np.testing.assert_array_equal(values, others)
    round_idx, into, cost = expected
    assert (round_idx < 0).sum() == 3  # one region is left of each graph
    np.testing.assert_array_equal(round_idx[:300], round_idx[300:600])
    np.testing.assert_array_equal(into[:300] + 300, into[300:600])
    np.testing.assert_array_equal(cost[:300], cost[300:600])


def test_gpu_is_asked_for_results_a_few_times_however_many_regions():
    counts = []
    for n_labels in (50, 2000):
        maps = [random_map(120, 190, n_labels, seed=seed) for seed in range(3)]
        labels, features = map(torch.stack, zip(*maps, strict=True))
        with WaitingCalls() as calls:
            trees_on_gpu(labels, features)
        assert "item" not in calls.names
        counts.append(sum(name != "numpy" for name in calls.names))  # `numpy` follows `cpu`
    assert 0 < min(counts) <= max(counts) <= 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_is_waited_for_a_few_times():
    maps = [random_map(120, 190, 2000, seed=seed) for seed in range(3)]
    labels, features = (torch.stack(each).cuda() for each in zip(*maps, strict=True))
    for n_images in (1, 3):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trees_on_gpu(labels[:n_images], features[:n_images])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert 0 < sum("synchron" in str(warning.message) for warning in caught) <= 16


@pytest.mark.parametrize("n_rows", [1, 3, 11])
def test_graph_of_bands_has_the_bits_of_the_whole(n_rows, monkeypatch):
    monkeypatch.setattr("lib.superpixels.region_graph._MAX_FLOAT32_PIXELS", 150)
    labels = torch.arange(20)[:, None] // 5 * 4 + torch.arange(31) // 8
    labels[7:12, 20:] = -1
    features = torch.randn(6, 20, 31)
    whole = build_region_graph(labels, features)
    starts = range(0, 20, n_rows)
    bands = ((whole.leaves[row : row + n_rows], features[:, row : row + n_rows]) for row in starts)
    graph = graph_of_bands(bands, len(whole.sizes))
    for name in ("sizes", "means", "edges"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(whole, name))
    tree, tree_of_whole = merge_graph(graph), merge_graph(whole)
    np.testing.assert_array_equal(np.append(tree.cut(5)[0], -1)[whole.leaves], tree_of_whole.cut(5))
