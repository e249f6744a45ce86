"""Graphs beside their transforms: which edges the panels show, in which colours, and what is refused."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from ash import SparseBatch, plot
from ash.checks import UserError
from ash.plot.graphs import AGREEMENT

SOURCE = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=float)


def artist(ax, name):
    (found,) = [each for each in ax.collections if each.get_gid() == name]
    return found


def ends(ax, name):
    """The pairs of nodes that the lines of that name join, by the places of the nodes."""
    spots = artist(ax, "nodes").get_offsets()
    number = {tuple(spot): i for i, spot in enumerate(np.asarray(spots).tolist())}
    return {tuple(number[tuple(end)] for end in line) for line in artist(ax, name).get_segments()}


def test_a_directed_graph_its_transform_and_what_was_predicted(tmp_path):
    guess = np.zeros((4, 4))
    guess[1, 0], guess[3, 0], guess[2, 2], guess[0, 3] = 0.5, -1.0, 2.0, 0.4
    figure = plot.graph_pair(SOURCE, SOURCE.T, guess, tmp_path / "graphs.png")
    left, middle, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["graph", "transform", "prediction"]
    assert ends(left, "edges") == {(0, 1), (1, 2)} and ends(middle, "edges") == {(1, 0), (2, 1)}
    assert ends(right, "hit") == {(1, 0)} and ends(right, "missed") == {(2, 1)} and ends(right, "spurious") == {(3, 0)}
    for name, (colour, _) in AGREEMENT.items():
        assert tuple(artist(right, name).get_colors()[0][:3]) == to_rgba(colour)[:3]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["hit 1", "missed 1", "spurious 2"]
    assert (tmp_path / "graphs.png").stat().st_size > 0


def test_every_node_keeps_its_place_and_those_without_a_link_stand_below():
    left, right = plot.graph_pair(SOURCE, SOURCE.T).axes
    spots, others = (np.asarray(artist(ax, "nodes").get_offsets()) for ax in (left, right))
    assert np.array_equal(spots, others) and np.abs(spots).max() <= 1
    assert spots[3, 1] == -1 and (spots[:3, 1] > -1).all()


def test_arrows_end_at_the_node_that_they_point_at():
    left, _ = plot.graph_pair(SOURCE, SOURCE.T).axes
    spots = np.asarray(artist(left, "nodes").get_offsets())
    heads = [c for c in left.collections if c.get_gid() == "heads"][0].get_paths()
    tips = np.array([path.vertices[0] for path in heads])
    assert len(tips) == 2
    for tip, (u, v) in zip(tips, [(0, 1), (1, 2)], strict=True):
        assert np.linalg.norm(tip - spots[v]) < 0.05 < np.linalg.norm(tip - spots[u])


def test_an_undirected_graph_has_no_arrows_and_every_link_once():
    both = SOURCE + SOURCE.T
    left, _, right = plot.graph_pair(both, both, np.zeros((4, 4))).axes
    assert len(artist(left, "edges").get_segments()) == 2
    assert all(collection.get_gid() != "heads" for collection in left.collections)
    assert right.get_legend().get_texts()[1].get_text() == "missed 2"
    (forced, _) = plot.graph_pair(both, both, directed=True).axes
    assert len(artist(forced, "edges").get_segments()) == 4


def test_batches_of_one_graph_and_graphs_without_edges_are_drawn():
    one = SparseBatch.from_entries([torch.tensor([[0, 1], [1, 1]])], None, [(2, 2)])
    left, _ = plot.graph_pair(one, one).axes
    assert ends(left, "edges") == {(0, 1)}
    rings = [c for c in left.collections if c.get_gid() is None and len(c.get_offsets()) == 1]
    assert np.array_equal(rings[0].get_offsets()[0], artist(left, "nodes").get_offsets()[1])
    (alone, _) = plot.graph_pair(np.zeros((1, 1)), np.zeros((1, 1))).axes
    assert len(artist(alone, "nodes").get_offsets()) == 1


def test_matrices_are_images_with_one_scale(tmp_path):
    guess = SparseBatch.from_entries([torch.tensor([[1, 0], [3, 2]])], [torch.tensor([0.5, -2.0])], [(4, 4)])
    figure = plot.adjacency_pair(SOURCE.T, guess, tmp_path / "images.png", source=SOURCE)
    *images, bar = figure.axes
    assert [ax.get_title() for ax in images] == ["graph", "target", "prediction"]
    for ax, matrix in zip(images, [SOURCE, SOURCE.T, guess.to_dense()[0].numpy()], strict=True):
        assert np.array_equal(ax.images[0].get_array(), matrix)
        assert ax.images[0].get_clim() == (-2, 2) == bar.get_ylim()
    assert images[0].get_ylabel() == "from" and images[1].get_xlabel() == "to"
    assert len(plot.adjacency_pair(SOURCE, SOURCE, value_limit=1).axes) == 3


@pytest.mark.parametrize("draw", [plot.graph_pair, plot.adjacency_pair])
def test_what_does_not_fit_is_refused(draw):
    with pytest.raises(UserError, match=r"\(2, 3\); expected \(n, n\)"):
        draw(SOURCE, np.zeros((2, 3)))
    with pytest.raises(UserError, match="expected the same nodes"):
        draw(SOURCE, np.zeros((3, 3)))
    two = SparseBatch.cat([SparseBatch.from_entries([torch.zeros(1, 2)], None, [(4, 4)])] * 2)
    with pytest.raises(UserError, match="a batch of 2 graphs"):
        draw(SOURCE, two)


def test_a_threshold_of_zero_is_refused():
    with pytest.raises(UserError, match="threshold=0"):
        plot.graph_pair(SOURCE, SOURCE, threshold=0)
