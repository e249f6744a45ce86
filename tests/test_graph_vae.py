"""The graph VAE: its graphs, its code, its layers, its scores worked out by hand, whole runs, resuming, errors."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import networkx
import pytest
import torch
from torch import nn

from ash import GaussianWiring, Reconstruction, SparseLinear, StaticWiring
from ash.count import count
from experiments import graph_vae
from experiments.__main__ import main
from experiments.graph_vae_code import GraphCode, to_sparse
from experiments.graph_vae_data import FAMILIES, Graphs, classes, drawn, split, to_graphs
from experiments.graph_vae_density import Mixture, fit
from experiments.graph_vae_nets import GraphVAE, Shape, Slots, log_density, rate, sample
from experiments.graph_vae_scores import (
    connected,
    degree_histograms,
    median_distance,
    mmd,
    random_graphs,
    reconstruction_scores,
    sample_scores,
)
from experiments.graph_vae_training import Recipe, Trial

Graph = networkx.Graph


def of_links(*links: tuple[int, int], nodes: int) -> Graph[int]:
    made: Graph[int] = networkx.empty_graph(nodes)
    made.add_edges_from(links)
    return made


def back(graphs: Graphs) -> list[Graph[int]]:
    return [networkx.from_numpy_array(a[:n, :n].numpy()) for a, n in zip(graphs.adjacency, graphs.nodes, strict=True)]


PATH, STAR, TRIANGLE = (
    networkx.path_graph(4),
    networkx.star_graph(3),
    networkx.cycle_graph(3),
)


# --- graphs ----------------------------------------------------------------------------------------------


def test_parts_share_no_graph_and_none_occurs_twice() -> None:
    parts = split("mixed", (120, 20, 20), (5, 7), 3)
    assert [len(part.nodes) for part in parts[1:]] == [20, 20] and 20 < len(parts.train.nodes) < 120
    graphs = [graph for part in parts for graph in back(part)]
    assert all(networkx.is_connected(graph) for graph in graphs)
    assert {len(graph) for graph in graphs} == {5, 6, 7}
    hashes = [sorted(dict(graph.degree).values()) for graph in graphs]
    for (g, one), (h, other) in itertools.combinations(zip(graphs, hashes, strict=True), 2):
        assert one != other or not networkx.is_isomorphic(g, h)


def test_a_seed_decides_the_graphs() -> None:
    one, same, other = (split("sbm", (30, 5, 5), (8, 10), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a.adjacency, b.adjacency) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.test.adjacency, other.test.adjacency)


def test_too_few_different_graphs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, "--vae.graphs", "ba", "--vae.least-nodes", 4, "--nodes", 4, "--quick") == 2
    assert "different graphs among 160 drawn" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_their_links(family: str) -> None:
    graphs = list(itertools.islice(drawn(family, (8, 12), Random(0)), 60))
    links = [graph.number_of_edges() / len(graph) for graph in graphs]
    assert all(networkx.is_connected(graph) for graph in graphs)
    if family == "er":
        assert all(1 <= each < 2 for each in links)
    if family == "ba":
        assert {graph.number_of_edges() for graph in graphs if len(graph) == 10} == {9, 16}
    if family == "sbm":
        assert all(not set(graph.graph) - {"partition", "name"} for graph in graphs)
        inside = [networkx.community.partition_quality(g, g.graph["partition"])[0] for g in graphs]
        assert sum(inside) / 60 > 0.75


def test_nodes_stand_breadth_first_from_the_most_important_on() -> None:
    # 2 is linked to all; of its neighbours 0 and 3 have a link between them; 4 hangs on 1
    graph = of_links((2, 0), (2, 1), (2, 3), (0, 3), (1, 4), nodes=5)
    made = to_graphs([graph], 6).adjacency[0]
    # 2, then 0 and 3 (degree 2, walks 5) before 1 (degree 2, walks 4), then 4
    wanted = {(0, 1), (0, 2), (1, 2), (0, 3), (3, 4)}
    assert {tuple(place) for place in made.tril().nonzero().flip(1).tolist()} == wanted
    assert torch.equal(made, made.t()) and not made[5].any()
    every = to_graphs(list(itertools.islice(drawn("mixed", (8, 12), Random(1)), 30)), 12)
    earlier = every.adjacency.tril(-1).any(2)
    assert torch.equal(earlier[:, 1:], every.present[:, 1:])


def test_other_orders() -> None:
    graphs = list(itertools.islice(drawn("er", (8, 12), Random(2)), 10))
    degrees = to_graphs(graphs, 12, "degree").adjacency.sum(1)
    assert (degrees[:, :-1] >= degrees[:, 1:]).all()
    given = to_graphs(graphs, 12, "given")
    assert all(networkx.utils.graphs_equal(a, b) for a, b in zip(back(given), map(bare, graphs), strict=True))
    with pytest.raises(Exception, match="order of nodes"):
        to_graphs(graphs, 12, "random")


def bare(graph: Graph[int]) -> Graph[int]:
    """With the attributes that `back` gives edges."""
    made: Graph[int] = networkx.empty_graph(len(graph))
    made.add_edges_from(graph.edges, weight=1)
    return made


def test_closed_walks_tell_all_small_connected_graphs_apart_and_no_relabelled_ones() -> None:
    atlas = [g for g in networkx.graph_atlas_g()[1:209] if networkx.is_connected(g)]
    names = classes(to_graphs(atlas, 7))
    assert len(names) == 143 == len(set(names))  # 1, 1, 2, 6, 21 and 112 of one to six nodes
    order = Random(0)
    turned = []
    for graph in atlas:
        numbers = order.sample(range(len(graph)), len(graph))
        turned.append(networkx.relabel_nodes(graph, dict(enumerate(numbers))))
    assert classes(to_graphs(turned, 7, "given")) == names


# --- the code ----------------------------------------------------------------------------------------------


def test_a_vector_is_the_lower_triangle_with_existing_nodes_on_the_diagonal() -> None:
    code = GraphCode(2, 4)
    graphs = to_graphs([PATH, TRIANGLE], 4, "given")
    path = [1, 1, 1, 0, 1, 1, 0, 0, 1, 1]
    triangle = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert code.places == 10
    assert code.vectors(graphs).tolist() == [path, triangle]
    likeliest = code.most_likely(20 * code.vectors(graphs) - 10)
    assert torch.equal(likeliest.adjacency, graphs.adjacency) and torch.equal(likeliest.nodes, graphs.nodes)


def test_likelihoods_of_all_graphs_sum_to_one_and_are_what_is_drawn() -> None:
    torch.manual_seed(0)
    code = GraphCode(2, 3)
    logits = torch.randn(1, 6)
    every = []
    for n in (2, 3):
        pairs = list(itertools.combinations(range(n), 2))
        every += [of_links(*some, nodes=n) for k in range(len(pairs) + 1) for some in itertools.combinations(pairs, k)]
    graphs = numbered(every, 3)
    chances = code.log_likelihood(logits.expand(len(every), -1), graphs).exp()
    assert len(every) == 10 and float(chances.sum()) == pytest.approx(1, abs=1e-6)
    drawn_ones = code.draw(logits.expand(40_000, -1))
    for each, chance in zip(zip(*graphs, strict=True), chances, strict=True):
        same = (drawn_ones.adjacency == each[0]).flatten(1).all(1) & (drawn_ones.nodes == each[1])
        assert float(same.double().mean()) == pytest.approx(float(chance), abs=0.012)


def numbered(graphs: list[Graph[int]], most: int) -> Graphs:
    adjacency = torch.zeros(len(graphs), most, most, dtype=torch.bool)
    for i, graph in enumerate(graphs):
        for u, v in graph.edges:
            adjacency[i, u, v] = adjacency[i, v, u] = True
    return Graphs(adjacency, torch.tensor([len(graph) for graph in graphs]))


def test_likelihood_by_hand_and_indifferent_to_pairs_of_absent_nodes() -> None:
    code = GraphCode(2, 3)
    logits = torch.tensor([[0.3, -1.0, 0.2, 5.0, -2.0, 0.7]], requires_grad=True)
    graphs = numbered([of_links((0, 1), nodes=2)], 3)
    found = code.log_likelihood(logits, graphs)
    size = 0.5 - math.log(math.exp(0.5) + math.exp(1.2))
    assert found.item() == pytest.approx(size - math.log(1 + math.exp(1.0)), abs=1e-5)
    found.sum().backward()
    assert logits.grad is not None and logits.grad[0, 3:5].tolist() == [0, 0] and logits.grad[0, [1, 5]].all()


def test_sizes_that_are_not_allowed_have_no_chance() -> None:
    code = GraphCode(3, 5)
    logits = torch.full((200, code.places), -30.0)
    assert set(code.draw(logits).nodes.tolist()) == {3} == set(code.most_likely(logits).nodes.tolist())


def test_graphs_of_different_sizes_compare_by_their_links() -> None:
    path, triangle = numbered([PATH], 4), numbered([TRIANGLE], 4)
    assert to_sparse(path).sizes.tolist() == [[4, 4]]
    scores = reconstruction_scores(triangle, path)  # 2 of 3 links; the right number of nodes for none
    assert scores["f1"] == pytest.approx(2 / 3) and scores["exact"] == scores["size"] == 0
    assert reconstruction_scores(path, path) == {"precision": 1, "recall": 1, "f1": 1, "exact": 1, "size": 1}


# --- scores ------------------------------------------------------------------------------------------------


def test_degree_histograms_and_their_discrepancy_by_hand() -> None:
    found = degree_histograms(numbered([PATH, STAR, TRIANGLE], 5))
    assert found.tolist() == [[0, 0.5, 0.5, 0, 0], [0, 0.75, 0, 0.25, 0], [0, 0, 1, 0, 0]]
    path, star, triangle = found.split(1)
    # squared distance of path and star: 0.0625 + 0.25 + 0.0625
    assert mmd(path, star) == pytest.approx(2 - 2 * math.exp(-0.375 / 2))
    assert mmd(path, star, 0.5) == pytest.approx(2 - 2 * math.exp(-0.375 / 0.5))
    # half of a node's share goes one link up: 0.25 + 0.25 from 2, to 1 and to 3
    assert mmd(path, star, emd=True) == pytest.approx(2 - 2 * math.exp(-0.25 / 2))
    both = torch.cat([path, triangle])
    k = math.exp(-0.5 / 2)
    assert mmd(both, path) == pytest.approx((2 + 2 * k) / 4 + 1 - 2 * (1 + k) / 2)
    assert mmd(both, both) == pytest.approx(0, abs=1e-9)
    assert median_distance(both) == pytest.approx(math.sqrt(0.5))


def test_connected_graphs_are_told() -> None:
    graphs = [PATH, TRIANGLE, of_links((0, 1), (2, 3), nodes=4), of_links((0, 1), nodes=3), networkx.path_graph(9)]
    assert connected(numbered(graphs, 9)).tolist() == [True, True, False, False, True]


def test_random_graphs_have_the_sizes_and_the_density() -> None:
    torch.manual_seed(0)
    like = to_graphs(list(itertools.islice(drawn("mixed", (6, 9), Random(0)), 300)), 9)
    found = random_graphs(like)
    assert torch.equal(found.nodes, like.nodes)
    assert torch.equal(found.adjacency, found.adjacency.transpose(1, 2))
    assert not (found.adjacency & ~like.present.unsqueeze(1)).any()
    assert not found.adjacency.diagonal(dim1=1, dim2=2).any()
    assert float(found.adjacency.sum() / like.adjacency.sum()) == pytest.approx(1, abs=0.05)


def test_samples_are_judged_beside_test_graphs() -> None:
    graphs = numbered([PATH, PATH, TRIANGLE, of_links((0, 1), (2, 3), nodes=4)], 4)
    known = frozenset(classes(numbered([networkx.relabel_nodes(PATH, {0: 2, 2: 0})], 4)))
    found = sample_scores(graphs, graphs, known)
    assert found["valid"] == found["unique"] == 0.75 and found["novel"] == 0.5
    assert found["degree_mmd"] == pytest.approx(0, abs=1e-9) == found["degree_mmd_emd"]
    assert found["links"] == pytest.approx(11 / 4) and found["nodes"] == 3.75


# --- the density -------------------------------------------------------------------------------------------


def test_one_component_is_the_mean_and_the_covariance() -> None:
    torch.manual_seed(0)
    z = torch.randn(400, 3) @ torch.tensor([[1.0, 0.5, 0], [0, 2, 0], [0, 0, 0.1]]) + 3
    found = fit(z, 1)
    torch.testing.assert_close(found.means[0], z.double().mean(0))
    covariance = found.factors[0] @ found.factors[0].t() - 1e-3 * torch.eye(3)
    torch.testing.assert_close(covariance, torch.cov(z.double().t(), correction=0))
    drawn_ones = found.draw(8_000).double()
    torch.testing.assert_close(torch.cov(drawn_ones.t()), torch.cov(z.double().t()), atol=0.2, rtol=0.06)


def test_the_mixture_is_that_of_torch_and_finds_two_heaps() -> None:
    torch.manual_seed(0)
    heaps = torch.cat([torch.randn(300, 2) * 0.3 + 4, torch.randn(100, 2) * 0.5 - 4])
    found = fit(heaps, 2)
    order = found.means[:, 0].argsort()
    torch.testing.assert_close(found.logs[order].exp(), torch.tensor([0.25, 0.75]).double(), atol=1e-6, rtol=0)
    parts = torch.distributions.MultivariateNormal(found.means, scale_tril=found.factors)
    whole = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=found.logs), parts)
    torch.testing.assert_close(found.log_density(heaps), whole.log_prob(heaps.double()))
    shares = (found.draw(4000)[:, 0] > 0).double().mean()
    assert float(shares) == pytest.approx(0.75, abs=0.03)


def test_rounds_of_fitting_raise_the_likelihood_and_too_many_components_are_refused() -> None:
    torch.manual_seed(0)
    z = torch.randn(200, 2).exp()
    each: list[Mixture] = []
    for rounds in (0, 1, 5, 20):
        torch.manual_seed(1)
        each.append(fit(z, 4, rounds))
    found = [float(mixture.log_density(z).mean()) for mixture in each]
    assert found == sorted(found) and found[0] < found[-1] - 0.1
    with pytest.raises(Exception, match="5 components for 4 codes"):
        fit(z[:4], 5)


# --- the networks ------------------------------------------------------------------------------------------

SMALL = {"latent": 4, "hidden": 16}


def test_layers_are_what_the_options_say_and_share_the_density() -> None:
    code = GraphCode(8, 12)
    weights = 2 * (78 * 16 + 16 * 16) + 16 * 8 + 4 * 16
    kinds: dict[str, type[nn.Module]] = {"gaussian": GaussianWiring, "static": StaticWiring}
    for wiring, kind in kinds.items():
        net = GraphVAE(code, Shape(**SMALL, density=0.25, wiring=wiring))  # type: ignore[arg-type]
        layers = [module for module in net.modules() if isinstance(module, SparseLinear)]
        assert len(layers) == 6 and all(isinstance(layer.wiring, kind) for layer in layers)
        assert sum(isinstance(module, Reconstruction) for module in net.modules()) == 6
        assert count(net).stored_numbers == 2 * round(0.25 * weights)
    dense = GraphVAE(code, Shape(**SMALL, wiring="dense"))
    assert count(dense).stored_numbers == weights


@pytest.mark.parametrize("decoder", ["layers", "slots"])
def test_gradients_reach_every_parameter(decoder: Any) -> None:
    torch.manual_seed(0)
    net = GraphVAE(
        GraphCode(4, 6), Shape(latent=6, hidden=24, density=0.5, decoder=decoder, slots=20, reconstruct=False)
    )
    mean, log = net.encode(torch.rand(32, 21).round())
    assert mean.shape == log.shape == (32, 6)
    logits = net.decode(sample(mean, log))
    assert logits.shape == (32, 21)
    (logits.square().sum() + rate(mean, log).sum()).backward()
    missing = [name for name, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not [name for name in missing if not name.endswith("log_scale")]


def test_slots_emit_the_graph_as_index_tuples() -> None:
    torch.manual_seed(0)
    code = GraphCode(4, 6)
    slots = Slots(code, Shape(hidden=5, slots=7)).eval()
    x = torch.randn(3, 5)
    weight = slots.layer.wiring(x)
    assert weight.indices.shape == (3, 7, 3) and (weight.indices[..., 0] >= weight.indices[..., 1]).all()
    bias = slots.layer.bias
    assert bias is not None
    whole = weight.to_dense().squeeze(-1) + bias
    torch.testing.assert_close(slots(x), whole[:, code.rows, code.columns])


def test_freezing_rounds_all_gaussian_tuples() -> None:
    net = GraphVAE(GraphCode(4, 6), Shape(**SMALL))
    net.freeze()
    wirings = [module for module in net.modules() if isinstance(module, GaussianWiring)]
    assert len(wirings) == 6 and all(bool(wiring.frozen) for wiring in wirings)


def test_rate_and_density_are_those_of_torch() -> None:
    torch.manual_seed(0)
    mean, log = torch.randn(5, 3), torch.randn(5, 3)
    own = torch.distributions.Normal(mean, (log / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(rate(mean, log), torch.distributions.kl_divergence(own, prior).sum(1))
    z = sample(mean, log)
    torch.testing.assert_close(log_density(z, mean, log), own.log_prob(z).sum(1))
    many = sample(mean[:1].expand(50_000, -1), log[:1].expand(50_000, -1))
    torch.testing.assert_close(many.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(many.std(0), (log[0] / 2).exp(), atol=0.03, rtol=0)


def test_the_weight_of_the_rate_rises_and_stays() -> None:
    recipe = Recipe(steps=100, beta_start=0.1, beta=0.5, rise=0.5)
    assert [recipe.weight(step) for step in (0, 25, 50, 99)] == pytest.approx([0.1, 0.3, 0.5, 0.5])


def test_a_network_learns_to_give_graphs_back() -> None:
    parts = split("er", (150, 10, 10), (5, 6), 0)
    recipe = Recipe(steps=120, batch=64, lr=1e-2, beta=0.05, beta_start=0.01)
    shape = Shape(latent=12, hidden=64, depth=1, density=0.5, wiring="static", reconstruct=False)
    trial = Trial(GraphCode(5, 6), shape, recipe, parts, 0)
    first = trial.train_step()
    for _ in range(recipe.steps - 1):
        last = trial.train_step()
    assert first["distortion"] > 9 and last["distortion"] < 4


# --- whole runs --------------------------------------------------------------------------------------------

KEYS = {"f1", "f1_sampled", "precision", "recall", "exact", "size", "elbo", "elbo_fitted", "degree_mmd", "bandwidth",
        "degree_mmd_fitted", "degree_mmd_train", "degree_mmd_random", "novel", "unique", "valid", "samples",
        "stored_numbers", "train_graphs", "test_graphs", "task", "seed"}  # fmt: skip


def start(out: Path, *arguments: object) -> int:
    return main(["graphs", "--task", "vae", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


def test_a_quick_run_leaves_figures_and_pictures_and_is_judged_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(out, "--quick", "--vae.decoder", "slots") == 0
    summary = content(out)
    assert summary.keys() >= KEYS and "baselines" not in summary
    assert summary["samples"].keys() == {"prior", "fitted", "train", "random"}
    assert summary["samples"]["train"]["valid"] == 1 and summary["samples"]["train"]["novel"] == 0
    for name in ("samples.png", "reconstructions.png", "degrees.png", "training.png"):
        assert (out / name).stat().st_size > 0
    assert start(out, "--quick", "--vae.decoder", "slots", "--evaluate", out) == 0
    again = content(out / "evaluation")
    assert {name: again[name] for name in KEYS} == {name: summary[name] for name in KEYS}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without pictures, which take most of a short one's time."""
    monkeypatch.setattr(graph_vae, "draw", lambda *_: None)


@pytest.mark.usefixtures("undrawn")
def test_a_run_with_baselines_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = ("--quick", "--baselines", "--steps", 8)
    assert start(whole, *given) == 0
    steps, train_step = [0], Trial.train_step

    def stop(trial: Trial) -> dict[str, float]:
        steps[0] += 1
        if steps[0] in (8, 15):  # between checkpoints, in the first network and in the second
            raise RuntimeError("stopped")
        return train_step(trial)

    monkeypatch.setattr(Trial, "train_step", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        start(broken, *given)
    with pytest.raises(RuntimeError, match="stopped"):
        start(broken, *given, "--resume")
    assert start(broken, *given, "--resume") == 0
    one, other = content(whole), content(broken)
    assert one["baselines"].keys() == {"without_terms", "static", "dense"}
    varying = {"seconds", "peak_memory_bytes"}
    assert {k: v for k, v in one.items() if k not in varying} == {k: v for k, v in other.items() if k not in varying}
    assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("given", "message"), [
    (("--vae.freeze", 1.5), "--vae.freeze 1.5"),
    (("--vae.density", 0), "--vae.density 0"),
    (("--vae.counts", 10, 1, 5), "--vae.counts (10, 1, 5)"),
    (("--nodes", 7), "--vae.least-nodes 8 and --nodes 7"),
    (("--vae.least-nodes", 3), "--vae.least-nodes 3 and --nodes 12"),
    (("--vae.latent", 0), "--vae.latent=0"),
    (("--vae.beta-start", -1), "--vae.beta-start=-1"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, given: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, *given) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_other_options_is_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert start(out, "--quick", "--steps", 2) == 0
    assert start(tmp_path / "again", "--quick", "--vae.latent", 5, "--evaluate", out) == 2
    assert "expected" in capsys.readouterr().err
    assert start(tmp_path / "again", "--quick", "--evaluate", tmp_path / "nothing") == 2
    assert "no such folder" in capsys.readouterr().err
