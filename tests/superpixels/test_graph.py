"""Test graphs of superpixels."""

import builtins

import numpy as np
import pytest
import torch

from lib.runtime.errors import InputError
from lib.superpixels.regions import Superpixels

# Label 2 does not occur.
LABELS = np.array([[0, 1, 1, 1, 1], [0, 0, 1, 3, 3], [-1, 0, 3, 3, 3]], dtype=np.int32)


def make_superpixels(**more):
    image_rgb = np.random.default_rng(0).integers(0, 256, (*LABELS.shape, 3), dtype=np.uint8)
    return Superpixels(LABELS, image_rgb, 4, **more)


def test_edges_go_both_ways_with_border_lengths():
    graph = make_superpixels().to_graph()
    assert graph.edges.tolist() == [[0, 0, 1, 1, 3, 3], [1, 3, 0, 3, 0, 1]]
    assert graph.border_lengths.tolist() == [3, 1, 3, 4, 1, 4]
    assert graph.edges.dtype == torch.int64
    assert graph.edges.is_contiguous()
    assert graph.border_lengths.dtype == torch.float32


def test_border_lengths_sum_to_the_sides_between_superpixels():
    labels = np.random.default_rng(0).integers(0, 5, (20, 31)).astype(np.int32)
    superpixels = Superpixels(labels, None, 5)
    n_sides = (labels[1:] != labels[:-1]).sum() + (labels[:, 1:] != labels[:, :-1]).sum()
    assert superpixels.border_lengths.sum() == n_sides
    assert len(superpixels.border_lengths) == len(superpixels.edges)


def test_positions_are_rows_and_columns():
    positions = make_superpixels().to_graph().positions
    np.testing.assert_allclose(positions[3], [8 / 5, 16 / 5], rtol=1e-6)
    assert positions[2].isnan().all()


def test_colors_and_learned_features():
    features = np.random.default_rng(1).random((5, *LABELS.shape), dtype=np.float32)
    superpixels = make_superpixels(pixel_features=features, n_base_features=5)
    inside = LABELS == 3
    colors = superpixels.to_graph().node_features
    np.testing.assert_allclose(colors[3], superpixels.image_rgb[inside].mean(axis=0), rtol=1e-6)
    learned = superpixels.to_graph("learned").node_features
    assert learned.dtype == torch.float32
    np.testing.assert_allclose(learned[3], features[:, inside].mean(axis=1), rtol=1e-6)


def test_pascalvoc_sp_features_equal_loop():
    superpixels = make_superpixels()
    features = superpixels.to_graph("pascalvoc_sp").node_features
    assert features.shape == (4, 14)
    for label in (0, 1, 3):
        inside = label == LABELS
        colors = superpixels.image_rgb[inside] / 255
        parts = [colors.mean(0), colors.std(0), colors.max(0), colors.min(0), np.argwhere(inside).mean(0)]
        np.testing.assert_allclose(features[label], np.concatenate(parts), rtol=1e-6, atol=1e-7)
    assert features[2].isnan().all()


def test_standard_deviation_of_one_colour_is_zero():
    superpixels = Superpixels(LABELS, np.full((*LABELS.shape, 3), 77, dtype=np.uint8), 4)
    features = superpixels.to_graph("pascalvoc_sp").node_features[[0, 1, 3]]
    np.testing.assert_allclose(features[:, 3:6], 0, atol=1e-7)
    np.testing.assert_allclose(features[:, 6:12], 77 / 255, rtol=1e-6)


def test_a_single_superpixel_has_no_edges():
    graph = Superpixels(np.zeros((2, 3), np.int32), np.zeros((2, 3, 3), np.uint8), 1).to_graph()
    assert graph.edges.shape == (2, 0)
    assert graph.border_lengths.shape == (0,)


@pytest.mark.parametrize(
    ("node_features", "message"),
    [("colours", r"`node_features` must be one of colors, .*'colours'"), ("learned", "with features")],
)
def test_node_features_that_do_not_exist(node_features, message):
    with pytest.raises(InputError, match=message):
        make_superpixels().to_graph(node_features)


@pytest.mark.slow  # the import
def test_pyg_data():
    data_module = pytest.importorskip("torch_geometric.data")
    superpixels = make_superpixels()
    data, graph = superpixels.to_pyg("pascalvoc_sp"), superpixels.to_graph("pascalvoc_sp")
    assert isinstance(data, data_module.Data)
    assert data.validate()
    assert data.is_undirected()
    assert data.is_coalesced()
    assert (data.num_nodes, data.num_edges, data.num_node_features, data.num_edge_features) == (4, 6, 14, 1)
    torch.testing.assert_close(data.x, graph.node_features, equal_nan=True)
    torch.testing.assert_close(data.pos, graph.positions, equal_nan=True)
    assert data.edge_attr[:, 0].tolist() == graph.border_lengths.tolist()


def test_pyg_that_is_not_installed(monkeypatch):
    real_import = builtins.__import__

    def without_pyg(name, *args, **kwargs):
        if name.startswith("torch_geometric"):
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyg)
    with pytest.raises(InputError, match="pip install torch_geometric"):
        make_superpixels().to_pyg()
