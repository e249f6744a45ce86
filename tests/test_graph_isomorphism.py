"""Isomorphism: pairs of every kind, what tells them apart, an invariant model, whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ash import UserError
from experiments.__main__ import main
from experiments.graph_data import make, to_batch
from experiments.graph_isomorphism import Judge, Options, Task, best_threshold, encode, table
from experiments.graph_pairs import (
    DRAWN,
    KINDS,
    NEAR,
    apart,
    closed_walks,
    cospectral_atlas,
    couple,
    degrees,
    isomorphic,
    links,
    pairs,
    relabelled,
    right,
    rook_and_shrikhande,
    same_degrees,
    same_hash,
    signature,
    swap,
)

ANY = np.random.default_rng(0)


def start(out: Path, *arguments: object) -> int:
    return main(["graphs", "--task", "isomorphism", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


def characteristic(graph: networkx.Graph[int]) -> list[int]:
    """The coefficients of the characteristic polynomial, exact (Faddeev-LeVerrier, in whole numbers)."""
    a = networkx.to_numpy_array(graph, dtype=int).astype(object)
    power, found = a * 0, [1]
    for k in range(1, len(graph) + 1):
        power = a @ power
        np.fill_diagonal(power, power.diagonal() + found[-1])
        found.append(-int((a * power.T).sum()) // k)
    return found


# --- pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_what_they_are_said_to_be(kind: str) -> None:
    found = pairs(kind, 6, 16, np.random.default_rng(1))
    assert [pair.same for pair in found] == [True, False] * 3
    for pair in found:
        assert pair.same == networkx.is_isomorphic(pair.first, pair.second)
        assert sorted(pair.first) == sorted(pair.second) == list(range(len(pair.first)))
        assert pair.kind == kind and not any(u == v for u, v in pair.first.edges)


@pytest.mark.parametrize("kind", [*NEAR, "regular"])
def test_degrees_do_not_tell_near_misses(kind: str) -> None:
    for i in range(3):
        first, second = couple(kind, 24, np.random.default_rng(i))
        assert degrees(first) == degrees(second)


@pytest.mark.parametrize("kind", ["cospectral", "atlas", "strongly_regular"])
def test_cospectral_graphs_have_the_same_characteristic_polynomial(kind: str) -> None:
    for i in range(2):
        first, second = couple(kind, 16, np.random.default_rng(i))
        assert characteristic(first) == characteristic(second)


def test_the_characteristic_polynomial_of_a_path() -> None:
    assert characteristic(networkx.path_graph(3)) == [1, 0, -2, 0]


def test_what_is_changed() -> None:
    first, second = couple("one_edge", 20, np.random.default_rng(0))
    assert len(set(links(first)) ^ set(links(second))) == 2
    first, second = couple("one_swap", 20, np.random.default_rng(0))
    assert len(set(links(first)) ^ set(links(second))) == 4
    first, second = couple("regular", 20, np.random.default_rng(0))
    assert set(degrees(first)) == {4}


def test_the_two_strongly_regular_graphs() -> None:
    both = rook_and_shrikhande(16, ANY)
    for graph in both:
        a = networkx.to_numpy_array(graph, dtype=int)
        assert (a @ a == 6 * np.eye(16, dtype=int) + 2 * (1 - np.eye(16, dtype=int))).all()
    cliques = [sum(len(clique) == 4 for clique in networkx.find_cliques(graph)) for graph in both]
    assert cliques == [8, 0]


def test_no_two_cospectral_graphs_of_the_atlas_have_the_same_degrees() -> None:
    found = cospectral_atlas()
    assert len(found) == 33
    assert not any(degrees(first) == degrees(second) for first, second in found)


def test_swapping_by_hand() -> None:
    square = swap(networkx.Graph([(0, 1), (2, 3)]), 1, np.random.default_rng(0))
    assert links(square) in ([(0, 2), (1, 3)], [(0, 3), (1, 2)])
    with pytest.raises(UserError, match="without a double edge swap"):
        swap(networkx.complete_graph(4), 1, ANY)


def test_kinds_and_sizes_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="did you mean 'swaps'|Did you mean 'swaps'"):
        couple("swap", 20, ANY)
    with pytest.raises(UserError, match="graphs of 15 nodes; expected at least 16"):
        couple("swaps", 15, ANY)


# --- telling apart ---------------------------------------------------------------------------------------


def test_closed_walks_by_hand() -> None:
    triangle = closed_walks(networkx.complete_graph(3))
    assert triangle[:, :4].tolist() == [[2, 2, 6, 10]] * 3
    assert closed_walks(networkx.path_graph(2)).tolist() == [[1, 0, 1, 0, 1, 0, 1]] * 2


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_relabelling_changes_no_signature(seed: int, nodes: int) -> None:
    generator = np.random.default_rng(seed)
    graph = networkx.gnp_random_graph(nodes, 0.4, seed=seed)
    other = relabelled(graph, generator)
    assert signature(graph) == signature(other) and isomorphic(graph, other)
    assert networkx.is_isomorphic(graph, other)


def test_what_walks_cannot_tell_the_search_does() -> None:
    rook, shrikhande = rook_and_shrikhande(16, ANY)
    assert signature(rook) == signature(shrikhande)
    assert not isomorphic(rook, shrikhande)
    assert isomorphic(rook, relabelled(rook, ANY))


def test_the_baselines_know_what_they_can() -> None:
    found = {kind: pairs(kind, 4, 16, np.random.default_rng(2)) for kind in ("one_edge", "one_swap", "regular")}
    assert right(found["one_edge"], same_degrees) == 1.0
    assert right(found["one_swap"], same_degrees) == 0.5
    assert right(found["one_swap"], same_hash) == 1.0
    assert right(found["regular"], same_hash) == 0.5


def test_pairs_that_occur_elsewhere_are_left_out() -> None:
    own = pairs("swaps", 4, 16, np.random.default_rng(0))
    others = pairs("swaps", 2, 16, np.random.default_rng(1))
    again = others[0]._replace(first=relabelled(others[0].first, ANY))
    assert apart([*own, again], others) == own


# --- the model -------------------------------------------------------------------------------------------


def shaken(options: Options) -> Judge:
    """A model whose wirings look at what they are shown, unlike a fresh one's."""
    model = Judge(options)
    with torch.no_grad():
        for layer in model.layers:
            layer.layer.wiring.hypernetwork.head.weight.normal_(std=0.3)
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sites", ["path", "entry"])
def test_the_vector_is_that_of_a_relabelled_graph(sites: Any, training: bool) -> None:
    model = shaken(Options(sites=sites)).double().train(training)
    graphs = make("mixed", 6, 20, 40, np.random.default_rng(0))
    others = [relabelled(graph, ANY) for graph in graphs]
    with torch.no_grad():
        first, second = (model.vectors(to_batch(each).to(torch.float64)) for each in (graphs, others))
    torch.testing.assert_close(first, second, atol=1e-9, rtol=1e-9)
    assert (first - first.roll(1, 0)).norm(dim=1).min() > 1e-4


def test_what_paths_tell_and_edges_do_not() -> None:
    found = [pair for pair in pairs("regular", 6, 20, np.random.default_rng(0)) if not pair.same]
    with torch.no_grad():
        paths = shaken(Options(sites="path")).double().log_distances(encode(found).to(torch.float64))
        edges = shaken(Options(sites="entry")).double().log_distances(encode(found).to(torch.float64))
    assert paths.min() > -8 and edges.max() < -12


def test_gradients_reach_everything() -> None:
    given = [pair for kind in DRAWN for pair in pairs(kind, 2, 16, np.random.default_rng(0))]
    model = shaken(Options())
    model(encode(given)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and bool(torch.isfinite(p.grad).all()), name
    assert all(bool(layer.layer.wiring.offset.grad.any()) for layer in model.layers)


def test_the_best_threshold_by_hand() -> None:
    found = torch.tensor([0.0, 5.0, 1.0, 4.0, 9.0])
    assert best_threshold(found, torch.tensor([True, False, True, False, False])) == 2.5
    # one isomorphic pair too far away
    assert best_threshold(found, torch.tensor([True, False, True, False, True])) == 2.5
    assert best_threshold(torch.tensor([1.0, 1.0, 3.0]), torch.tensor([True, False, False])) == 2.0


def test_the_table_has_a_row_for_everything_that_judges() -> None:
    row = {"accuracy": 1.0, "accuracy_larger": 0.5, "accuracy_by_kind": {"swaps": 0.25}}
    lines = table({**row, "baselines": {"degree_sequence": row}}).splitlines()
    assert lines[2:] == ["| network | 100.0 | 50.0 | 25.0 |", "| degree sequence | 100.0 | 50.0 | 25.0 |"]


# --- runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs are drawn once for all runs of a test, which have the same options."""
    made: list[Task] = []

    def once(options: Any, device: torch.device) -> Task:
        if not made:
            made.append(Task(options, device))
        return made[0]

    monkeypatch.setattr("experiments.graph_isomorphism.Task", once)


@pytest.mark.usefixtures("one_task")
def test_a_run_that_stops_goes_on_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Callable[..., int]
) -> None:
    for name in ("show", "curves"):
        monkeypatch.setattr(f"experiments.graph_isomorphism.{name}", lambda *_, **__: None)
    assert start(tmp_path / "whole", "--quick") == 0
    assert interrupted(2, lambda: start(tmp_path / "parts", "--quick")) == 130
    assert start(tmp_path / "parts", "--quick", "--resume") == 0
    assert start(tmp_path / "judged", "--quick", "--evaluate", tmp_path / "whole") == 0
    whole, parts, judged = (content(tmp_path / name) for name in ("whole", "parts", "judged"))
    for name in ("accuracy", "accuracy_by_kind", "threshold", "least_different", "baselines"):
        assert whole[name] == parts[name] == judged[name], name
    assert list(whole["accuracy_by_kind"]) == [*DRAWN, "strongly_regular", "atlas"]
    assert whole["baselines"]["degree_sequence"]["accuracy"] == 0.5


def test_the_pictures_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "experiments.graph_isomorphism.figures",
        lambda *_: {"accuracy_by_kind": {}, "baselines": {}, "accuracy": 0.0, "accuracy_larger": 0.0},
    )
    assert start(tmp_path, "--quick") == 0
    for name in ("distances.png", "pair.png", "accuracy.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert (tmp_path / "isomorphism.md").read_text(encoding="utf-8").startswith("| | near-miss set")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--nodes", 15), "--nodes 15; expected at least 16"),
        (("--isomorphism.train-pairs", 1), "--isomorphism.train-pairs 1; expected at least 2"),
        (("--isomorphism.layers", 0), "--isomorphism.layers=0"),
    ],
)
def test_options_that_do_not_fit(
    flags: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
