"""Drawings of networks, graphs, adjacency matrices, boundaries and chosen inputs: what they show and refuse."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from torch import nn

from ash import GaussianWiring, HyperWiring, SparseLayer, SparseLinear, SparseWeight, StaticWiring, plot
from ash.checks import UserError
from ash.plot.topology import NEGATIVE, POSITIVE, WIDEST

FIRST = [[1.0, 0.0], [0.0, -2.0], [0.5, 0.0]]  # 2 inputs, 3 units
LAST = [[0.0, 4.0, 0.0]]  # of which only the second leads to the output


def artist(ax, name):
    (found,) = [each for each in ax.collections if each.get_gid() == name]
    return found


def test_units_live_only_on_a_path_from_an_input_to_an_output():
    inputs, hidden, output = plot.live_units([FIRST, LAST])
    assert inputs.tolist() == [False, True]
    assert hidden.tolist() == [False, True, False]
    assert output.tolist() == [True]


def test_a_unit_without_inputs_is_dead_and_so_is_all_that_hangs_on_it():
    *_, hidden, output = plot.live_units([[[1.0], [0.0]], [[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0]]])
    assert hidden.tolist() == [False, False]
    assert output.tolist() == [False]


def test_a_topology_shows_every_unit_and_edge_by_sign_and_size(tmp_path):
    figure = plot.topology({"net": [FIRST, LAST]}, tmp_path / "net.png")
    (ax,) = figure.axes
    edges = artist(ax, "edges")
    assert edges.get_linewidths() == pytest.approx([0.4, 0.25 * WIDEST, 0.5 * WIDEST, WIDEST])
    assert [tuple(c[:3]) for c in edges.get_colors()][2:] == [to_rgba(NEGATIVE)[:3], to_rgba(POSITIVE)[:3]]
    assert np.array_equal(edges.get_segments()[-1], [[1, 0], [2, 0]])  # the middle one of three units, and the output
    assert len(artist(ax, "live").get_offsets()) == 3
    assert artist(ax, "dead").get_offsets().tolist() == [[0, 0.5], [1, 1], [1, -1]]
    assert [text.get_text() for text in ax.texts] == ["1 of 2", "1 of 3", "1"]
    assert ax.get_title() == "net"
    assert (tmp_path / "net.png").stat().st_size > 0


def test_edges_of_dead_units_are_grey():
    (ax,) = plot.topology({"net": [FIRST, LAST]}).axes
    first, second = artist(ax, "edges").get_colors()[:2]
    assert first[0] == pytest.approx(first[2], abs=0.05)
    assert tuple(first) == tuple(second)


def test_panels_share_one_scale_of_widths():
    figure = plot.topology({"small": [[[1.0]]], "large": [[[-4.0]]]})
    small, large = (artist(ax, "edges").get_linewidths()[0] for ax in figure.axes)
    assert small == pytest.approx(large / 4)


def test_nets_without_an_edge_can_be_drawn():
    figure = plot.topology({"none": [np.zeros((3, 2)), np.zeros((1, 3))]})
    figure.canvas.draw()
    assert len(artist(figure.axes[0], "dead").get_offsets()) == 6


@pytest.mark.parametrize(("nets", "message"), [
    ({}, "no nets"),
    ({"net": []}, "'net' has no layers"),
    ({"net": [FIRST, FIRST]}, "layer 1 of 'net' has 2 inputs after 3 outputs"),
    ({"net": [np.zeros((0, 2))]}, "without entries"),
    ({"net": [np.zeros(3)]}, "layer 0 of 'net'"),
])
def test_topologies_refuse_what_is_no_net(nets, message):
    with pytest.raises(UserError, match=message):
        plot.topology(nets)


def test_the_weights_of_a_model_are_those_of_its_evaluation():
    gaussian = GaussianWiring(3, (2, 2), k=5)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), SparseLinear(4, 4, wiring=StaticWiring(4, 4, k=3)))
    first, second = plot.layer_weights(model)
    assert np.array_equal(first, model[0].weight.detach().numpy())
    assert (second != 0).sum() == 3
    (rounded,) = plot.layer_weights(SparseLayer((2, 2), 3, wiring=gaussian).train())
    assert np.allclose(rounded, gaussian.rounded().to_dense().detach().reshape(3, 4).numpy())


def test_weights_that_depend_on_the_input_or_do_not_exist_are_refused():
    with pytest.raises(UserError, match="depends on the input"):
        plot.layer_weights(SparseLinear(4, 4, wiring=HyperWiring(4, 4, k=3, hypernetwork=nn.Linear(4, 12))))
    with pytest.raises(UserError, match="no linear and no sparse layer"):
        plot.layer_weights(nn.Sequential(nn.ReLU()))


def test_a_graph_without_cycles_stands_in_columns_by_the_longest_path():
    weight = np.zeros((4, 4))
    weight[1, 0], weight[2, 1], weight[2, 0] = 1.0, -1.0, 2.0
    (ax,) = plot.node_graph(weight, inputs=[0], outputs=[2]).axes
    spots = np.concatenate([artist(ax, "live").get_offsets(), artist(ax, "dead").get_offsets()])
    assert spots[0, 0] == spots[3, 0] < spots[1, 0] < spots[2, 0]
    assert len(artist(ax, "dead").get_offsets()) == 1
    assert len(artist(ax, "edges").get_segments()) == 3


def test_a_graph_with_cycles_stands_in_a_circle_and_nodes_without_edges_are_dead():
    weight = np.zeros((4, 4))
    weight[1, 0] = weight[0, 1] = weight[2, 2] = 1.0
    (ax,) = plot.node_graph(weight).axes
    live, dead = artist(ax, "live").get_offsets(), artist(ax, "dead").get_offsets()
    assert (len(live), len(dead)) == (3, 1)
    assert np.allclose(np.linalg.norm(np.concatenate([live, dead]), axis=1), 1, atol=1e-6)


def test_blocks_are_columns_of_a_graph_and_lines_of_its_adjacency(tmp_path):
    weight = np.zeros((5, 5))
    weight[2:, :2] = -1.0
    (ax,) = plot.node_graph(weight, tmp_path / "graph.png", blocks=[2, 3]).axes
    across = artist(ax, "live").get_offsets()[:, 0]
    assert np.ptp(across[:2]) == np.ptp(across[2:]) == 0
    assert across[0] < across[2]
    image, bar = plot.adjacency(torch.tensor(weight), tmp_path / "image.png", blocks=[2, 3]).axes
    assert image.images[0].get_clim() == (-1, 1) == bar.get_ylim()
    assert [line.get_ydata()[0] for line in image.get_lines()][:1] == [1.5]
    assert (image.get_ylabel(), image.get_xlabel()) == ("target", "source")


@pytest.mark.parametrize("draw", [plot.node_graph, plot.adjacency])
def test_graphs_refuse_what_does_not_fit(draw):
    with pytest.raises(UserError, match=r"shape \(2, 3\); expected \(n, n\)"):
        draw(np.zeros((2, 3)))
    with pytest.raises(UserError, match="add up to the 4 nodes"):
        draw(np.zeros((4, 4)), blocks=[2, 3])


def test_a_graph_refuses_nodes_that_it_has_not():
    with pytest.raises(UserError, match=r"\[7\] of a graph of 4 nodes"):
        plot.node_graph(np.zeros((4, 4)), inputs=[7])


def test_readers_count_every_output_once():
    weight = SparseWeight(torch.tensor([[0, 0, 1], [0, 0, 1], [1, 0, 1], [1, 1, 2]]), torch.ones(4), (2,), (2, 3))
    assert plot.readers(weight, (2, 3)).tolist() == [[0, 2, 0], [0, 0, 1]]
    assert plot.readers(weight.to_dense().reshape(2, 6), (2, 3)).tolist() == [[0, 2, 0], [0, 0, 1]]
    image, bar = plot.chosen_inputs({"net": weight}, (2, 3)).axes
    assert image.images[0].get_array().tolist() == [[0, 2, 0], [0, 0, 1]]
    assert bar.get_ylabel() == "readers"
    with pytest.raises(UserError, match="6 inputs; expected 2 x 2"):
        plot.readers(weight, (2, 2))


POINTS, CLASSES = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 2.0]]), torch.tensor([-1, -1, 1, -1])


def test_boundaries_colour_the_plane_and_give_the_accuracy(tmp_path):
    nets = {"right": lambda p: p[:, 0] - 1.5, "classes": lambda p: torch.stack([1.5 - p[:, 0], p[:, 0] - 1.5], 1)}
    figure = plot.boundaries(nets, POINTS, CLASSES, tmp_path / "b.png", cells=20)
    assert [ax.get_title() for ax in figure.axes] == ["right, 75 %", "classes, 75 %"]
    area = figure.axes[0].images[0].get_array()
    assert (area[:, :10] == area[0, 0]).all() and (area[:, 10:] == area[0, -1]).all()
    assert (area[0, 0] != area[0, -1]).any()
    assert np.array_equal(area, figure.axes[1].images[0].get_array())
    assert figure.axes[0].get_xlim() == pytest.approx((-0.5, 3.5))
    assert np.array_equal(artist(figure.axes[0], "points").get_offsets(), POINTS)


def test_boundaries_ask_a_module_in_evaluation_and_leave_it_as_it_was():
    class Net(nn.Module):
        def forward(self, x):
            assert not self.training
            return x[:, :1]

    net = Net().train()
    plot.boundaries({"net": net}, POINTS, CLASSES, cells=3)
    assert net.training


@pytest.mark.parametrize(("nets", "x", "message"), [
    ({}, POINTS, "no nets"),
    ({"net": lambda p: p[:, 0]}, POINTS[:3], "expected"),
    ({"net": lambda p: p[:3, 0]}, POINTS, "'net' gives"),
])
def test_boundaries_refuse_what_does_not_fit(nets, x, message):
    with pytest.raises(UserError, match=message):
        plot.boundaries(nets, x, CLASSES, cells=3)


def test_a_heat_map_has_a_figure_in_every_cell_that_has_a_value(tmp_path):
    ax, bar = plot.heat_map([[0.1, 0.9], [float("nan"), 0.5]], ["a", "b"], ["c", "d e"], tmp_path / "h.png").axes
    assert [(text.get_text(), text.get_position()) for text in ax.texts] == [
        ("0.1", (0, 0)), ("0.9", (1, 0)), ("0.5", (1, 1))]
    assert ax.texts[0].get_color() != ax.texts[1].get_color() == "white"
    assert ax.images[0].get_clim() == bar.get_ylim() == (0.1, 0.9)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["c", "d\ne"]
    assert plot.heat_map([[3.0]], ["a"], ["b"]).axes[0].images[0].get_clim() == (2.5, 3.5)
    with pytest.raises(UserError, match="2 rows and 1 columns"):
        plot.heat_map([[1.0]], ["a", "b"], ["c"])


def test_networkx_loads_with_the_first_drawing_and_pyplot_never():
    code = ("import sys, ash.plot as p; early = 'networkx' in sys.modules; p.topology({'n': [[[1.0]]]});"
            "p.node_graph([[0.0, 1.0], [0.0, 0.0]]);"
            "sys.exit(early or 'networkx' not in sys.modules or 'matplotlib.pyplot' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
