"""Node graphs against a plain loop over their nodes: values, gradients, order, dead nodes, frozen graphs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ash import (
    ChannelFunction,
    Context,
    Continuous,
    Discrete,
    GateWiring,
    GaussianWiring,
    HyperWiring,
    MLPHypernetwork,
    NodeFunction,
    NodeGraph,
    RigLWiring,
    Sampling,
    SparseWeight,
    StaticWiring,
    TopKWiring,
    UserError,
    freeze,
)
from ash.layers.node_structure import Feedforward, levels, reached

N, INPUTS, HIDDEN, OUTPUTS = 9, 2, 5, 2
EULER = Continuous(method="euler", options={"step_size": 0.5})
DYNAMICS = {"static": "static", "blocks": "static", "discrete": Discrete(2), "continuous": EULER}


def hyper(*args: Any, **options: Any) -> HyperWiring:
    net = MLPHypernetwork((INPUTS, 3, 2), k=6, width=4)
    return HyperWiring(*args, k=6, hypernetwork=net, condition_shape=(INPUTS, 3, 2), context="all", **options)


WIRINGS: dict[str, Callable[..., Any]] = {
    "static": partial(StaticWiring, density=0.45),
    "candidates": partial(TopKWiring, density=0.45),
    "no update": partial(TopKWiring, density=0.45, update=False),
    "sampled": partial(GaussianWiring, k=5),
    "chunks": partial(GaussianWiring, k=5, context=Context("all"), sampling=Sampling(local_samples=3)),
    "per instance": partial(GaussianWiring, k=5, per_instance=True, context="all"),
    "gates": partial(GateWiring, density=0.45),
}


def make(name: str, wiring: Any, **options: Any) -> NodeGraph:
    hidden = (2, 3) if name == "blocks" else HIDDEN
    options = {"dtype": torch.float64, "dynamics": DYNAMICS[name], **options}
    return NodeGraph(INPUTS, hidden, OUTPUTS, wiring=wiring, **options)


def image(b: int = 2) -> Tensor:
    return torch.randn(b, INPUTS, 3, 2, dtype=torch.float64)


# --- the oracle ----------------------------------------------------------------------------------------


def halves(graph: NodeGraph, v: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """norm, and ReLU → depthwise convolution, of one node."""
    f = graph.function
    assert isinstance(f, ChannelFunction) and f.norm is not None and f.weight is not None
    norm, weight = f.norm, f.weight

    def receive(total: Tensor) -> Tensor:
        x = total.unsqueeze(1)
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        return ((x - mean) / (var + 1e-5).sqrt() * norm.weight[v] + norm.bias[v]).squeeze(1)

    def emit(state: Tensor) -> Tensor:
        return F.conv2d(F.relu(state).unsqueeze(1), weight[v : v + 1], padding=1).squeeze(1)

    return receive, emit


def paths(exists: Tensor) -> list[bool]:
    """Which nodes a path of at least one edge leads to from the inputs."""
    power, result = exists.double(), torch.zeros(N)
    for _ in range(N + 1):
        result += power[:, :INPUTS].sum(1)
        power = (power @ exists.double()).clamp(max=1)
    return [bool(v > 0) for v in result]


def oracle(graph: NodeGraph, w: Tensor, exists: Tensor, x: Tensor) -> Tensor:
    """The outputs for one dense weight (n, n), of which the edges in `exists` are there."""
    live, parts = paths(exists), [halves(graph, v) for v in range(N)]
    zero = torch.zeros_like(x[:, 0])
    if graph.dynamics.name == "static":
        sent = [parts[v][1](parts[v][0](x[:, v])) for v in range(INPUTS)]
        for v in range(INPUTS, N):
            total = sum((w[v, u] * sent[u] for u in range(min(v, N - OUTPUTS))), zero)
            if v >= N - OUTPUTS:
                sent.append(total)
            else:
                sent.append(parts[v][1](parts[v][0](total)) if live[v] else zero)
        return torch.stack(sent[-OUTPUTS:], 1)
    state = [x[:, v] if v < INPUTS else zero for v in range(N)]

    def led(state: list[Tensor]) -> list[Tensor]:
        sent = [parts[v][1](state[v]) for v in range(N)]
        totals = [sum((w[v, u] * sent[u] for u in range(N)), zero) for v in range(N)]
        return [parts[v][0](totals[v]) if live[v] else zero for v in range(N)]

    for _ in range(graph.dynamics.times if graph.dynamics.name == "discrete" else 2):
        new = led(state)
        euler = graph.dynamics.name == "continuous"
        state = [s + 0.5 * d for s, d in zip(state, new, strict=True)] if euler else new
    return torch.stack(state[-OUTPUTS:], 1)


def existing(weight: SparseWeight) -> Tensor:
    """Which edges there are; entries of value 0 where none may be do not count."""
    ones = SparseWeight(weight.indices, (weight.values != 0).double(), weight.out_shape, weight.in_shape)
    return ones.to_dense() > 0


def reference(graph: NodeGraph, weight: SparseWeight, dense: Tensor, x: Tensor) -> Tensor:
    exists = existing(weight)
    if not weight.per_instance:
        return oracle(graph, dense, exists, x)
    return torch.cat([oracle(graph, dense[i], exists[i], x[i : i + 1]) for i in range(len(x))])


def drawn(graph: NodeGraph, x: Tensor) -> SparseWeight:
    torch.manual_seed(4)
    weight: SparseWeight = graph.wiring(x)
    return weight


# --- values and gradients ------------------------------------------------------------------------------


CASES = [(w, "auto") for w in WIRINGS] + [(w, b) for w in ("static", "candidates") for b in ("torch", "dense")]


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(("wiring", "backend"), CASES)
def test_values_and_gradients_are_those_of_a_loop_over_nodes(wiring: str, dynamics: str, backend: str) -> None:
    graph = make(dynamics, WIRINGS[wiring], backend=backend)
    x = image().requires_grad_()
    weight = drawn(graph, x)
    leaves = [p for p in graph.parameters() if p.requires_grad]
    torch.manual_seed(4)
    y = graph(x)
    expected = reference(graph, weight, weight.to_dense(), x)
    assert torch.allclose(y, expected)
    g = torch.randn_like(y)
    losses = [(out * g).sum() + 0 * x.sum() for out in (y, expected)]
    found, right = (torch.autograd.grad(loss, [x, *leaves], allow_unused=True) for loss in losses)
    for one, other, p in zip(found, right, [x, *leaves], strict=True):
        one, other = (torch.zeros_like(p) if t is None else t for t in (one, other))
        if p is getattr(graph.wiring, "candidate", None) and wiring == "candidates":
            other = other * graph.wiring.admissible.contains(every_edge()).reshape(N, N)
        assert torch.allclose(one, other, atol=1e-9)
    assert wiring != "static" or y.abs().max() > 0


def every_edge() -> Tensor:
    return torch.cartesian_prod(torch.arange(N), torch.arange(N))


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_a_weight_for_each_instance(dynamics: str) -> None:
    graph = make(dynamics, hyper)
    x = image()
    weight = drawn(graph, x)
    torch.manual_seed(4)
    assert torch.allclose(graph(x), reference(graph, weight, weight.to_dense(), x))
    condition = image()
    other = drawn(graph, condition)
    torch.manual_seed(4)
    assert torch.allclose(graph(x, condition), reference(graph, other, other.to_dense(), x))


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_gradients_by_differences(dynamics: str) -> None:
    graph = make(dynamics, partial(StaticWiring, k=11))
    x, values = image(1).requires_grad_(), graph.wiring.values

    def run(x: Tensor, values: Tensor) -> Tensor:
        names = {"wiring.values": values}
        return torch.func.functional_call(graph, names, (x,))

    assert torch.autograd.gradcheck(run, (x, values.detach().clone().requires_grad_()), atol=1e-4)


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("wiring", ["static", "candidates"])
def test_a_wiring_sees_the_gradient_by_every_edge(dynamics: str, wiring: str) -> None:
    graph = make(dynamics, WIRINGS[wiring])
    x = image()
    weight = graph.wiring(x)
    dense = weight.to_dense().detach().requires_grad_()
    expected = reference(graph, weight, dense, x)
    (expected.square().sum() + (2 * expected).square().sum()).backward()
    plain = copy.deepcopy(graph)
    plain(x).square().sum().backward()
    graph.wiring.collecting = True
    graph(x).square().sum().backward()
    (2 * graph(x)).square().sum().backward()
    score = graph.wiring.collected()
    usable = graph.wiring.admissible.contains(every_edge()).reshape(N, N)
    assert score is not None and dense.grad is not None
    assert torch.allclose(score.dense()[usable], dense.grad[usable], atol=1e-9)
    assert graph.wiring.collected() is None
    own = {"static": "values", "candidates": "candidate"}[wiring]
    one, other = (getattr(each.wiring, own).grad for each in (graph, plain))
    assert torch.allclose(one, 5 * other)
    with torch.no_grad():
        graph(x)
    assert graph.eval()(x).requires_grad and graph.wiring.collected() is None


def test_candidates_between_nodes_of_one_level_learn() -> None:
    """0 -> 1 and 0 -> 2, both to the output 3: an edge 1 -> 2 could be, and gets ⟨Z_1, ∂L/∂I_2⟩."""
    w = torch.zeros(4, 4, dtype=torch.float64)
    w[1, 0], w[2, 0], w[3, 1], w[3, 2] = 2.0, 3.0, 5.0, 7.0
    graph = NodeGraph(1, 2, 1, wiring=partial(TopKWiring, k=4), function="relu", dtype=torch.float64)
    graph.wiring.load_dense(w)
    y = graph(torch.tensor([[1.0], [10.0]], dtype=torch.float64))
    assert y.flatten().tolist() == [31.0, 310.0]
    y.sum().backward()
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[1, 0], expected[2, 0], expected[2, 1] = 5 * 11, 7 * 11, 7 * 22  # Z_1 is 2 and 20
    expected[3, 0], expected[3, 1], expected[3, 2] = 11, 22, 33
    assert torch.equal(graph.wiring.candidate.grad, expected)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_all_edges_of_a_top_k_graph_are_a_dense_graph(dynamics: str) -> None:
    graph = make(dynamics, partial(TopKWiring, density=1.0))
    other = make(dynamics, partial(StaticWiring, density=1.0))
    other.load_state_dict({**other.state_dict(), **dict(graph.function.state_dict(prefix="function."))})
    other.wiring.load_dense(graph.wiring.candidate.detach())
    x = image()
    y, z = graph(x), other(x)
    assert torch.allclose(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    found = graph.wiring.candidate.grad[tuple(other.wiring.indices.unbind(-1))]
    assert torch.allclose(found, other.wiring.values.grad)


# --- node functions ------------------------------------------------------------------------------------


def test_conv_norm_relu() -> None:
    """One hidden node, one edge each way: out = w · relu(norm(conv(v · relu(norm(conv(x))))))."""
    graph = NodeGraph(1, 1, 1, wiring=chain(3), function="conv_norm_relu", dtype=torch.float64)
    with torch.no_grad():
        graph.wiring.values.copy_(torch.tensor([2.0, -3.0]))
    x = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    kernel = graph.function.weight
    z = F.relu(F.instance_norm(F.conv2d(x, kernel[:1], padding=1)))
    z = F.relu(F.instance_norm(F.conv2d(2 * z, kernel[1:2], padding=1)))
    assert torch.allclose(graph(x), -3 * z)


def chain(n: int) -> StaticWiring:
    """0 -> 1 -> 2 …"""
    indices = torch.stack([torch.arange(1, n), torch.arange(n - 1)], -1)
    return StaticWiring(n, n, indices=indices, dtype=torch.float64)


@pytest.mark.parametrize("hidden", [3, (1, 2)])
def test_batch_norm_keeps_the_statistics_of_every_node(hidden: int | tuple[int, ...]) -> None:
    graph = NodeGraph(2, hidden, 1, wiring=partial(StaticWiring, density=1.0), norm="batch", function="norm_relu")
    norm = nn.BatchNorm1d(2)
    for _ in range(3):
        x = torch.randn(16, 2)
        graph(x), norm(x)
    assert torch.allclose(graph.function.norm.running_mean[:2], norm.running_mean)
    assert torch.allclose(graph.function.norm.running_var[:2], norm.running_var)
    assert (graph.function.norm.running_var[2:5] != 1).all()
    assert len(graph.function.norm.running_var) == 5  # the output has no function
    x = torch.randn(4, 2)
    graph.eval(), norm.eval()
    assert torch.allclose(graph(x)[:1], graph(x[:1]), atol=1e-6)


class Shifted(NodeFunction):
    """Sends something even from zero, and knows its node."""

    def emit(self, state: Tensor, nodes: slice | Tensor) -> Tensor:
        number = torch.arange(100)[nodes].to(state)
        return state.exp() + number.reshape(1, -1, *[1] * (state.dim() - 2))


@pytest.mark.parametrize("dynamics", ["static", "blocks", "discrete"])
@pytest.mark.parametrize("function", [nn.Tanh(), Shifted(), lambda n: Shifted(), "relu"])
def test_functions_of_vectors(function: Any, dynamics: str) -> None:
    graph = make(dynamics, partial(StaticWiring, k=12), function=function)
    x = torch.randn(3, INPUTS, dtype=torch.float64)
    weight = graph.wiring()
    w, live, f = weight.to_dense(), paths(existing(weight)), graph.function
    zero, every = torch.zeros(3, dtype=torch.float64), torch.arange(N)

    def at(half: Callable[..., Tensor], value: Tensor, v: int) -> Tensor:
        return half(value.unsqueeze(1), every[v : v + 1]).squeeze(1)

    if dynamics == "discrete":
        state = [x[:, v] if v < INPUTS else zero for v in range(N)]
        for _ in range(2):
            sent = [at(f.emit, state[v], v) if live[v] or v < INPUTS else zero for v in range(N)]
            totals = [sum((w[v, u] * sent[u] for u in range(N)), zero) for v in range(N)]
            state = [totals[v] if live[v] else zero for v in range(N)]
        expected = state[-OUTPUTS:]
    else:
        sent = [at(f.emit, x[:, v], v) for v in range(INPUTS)]
        for v in range(INPUTS, N):
            total = sum((w[v, u] * sent[u] for u in range(min(v, N - OUTPUTS))), zero)
            sent.append(total if v >= N - OUTPUTS else at(f.emit, total, v) if live[v] else zero)
        expected = sent[-OUTPUTS:]
    assert torch.allclose(graph(x), torch.stack(expected, 1))
    assert torch.allclose(graph.eval().frozen()(x), torch.stack(expected, 1))


def test_an_entry_takes_the_place_of_the_input_nodes_function() -> None:
    entry = nn.Conv2d(3, INPUTS, 3, stride=2, padding=1)
    graph = make("static", partial(StaticWiring, density=1.0), entry=entry)
    bare = make("static", graph.wiring, entry=nn.Identity())
    bare.function = graph.function
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    assert graph(x).shape == (2, OUTPUTS, 4, 3)
    assert torch.equal(graph(x), bare(entry(x)))
    assert torch.allclose(graph.eval().frozen()(x), graph(x))


# --- order and dead nodes ------------------------------------------------------------------------------


def test_admissible_edges_of_the_published_graph() -> None:
    """32 inputs, four blocks of 192, the last 100 nodes outputs: of 640,000 entries 254,960 can be used.

    264,960 are counted where output nodes may feed output nodes, 10,000 of them.
    """
    graph = NodeGraph(32, (192, 192, 192, 92), 100, wiring=partial(StaticWiring, k=32000))
    assert graph.nodes == 800
    assert graph.wiring.admissible.count() == 254_960
    target, source = graph.wiring.indices.unbind(-1)
    assert len(graph.wiring.indices) == 32000
    assert (source < 700).all() and (target >= 32).all() and (source < target).all()
    assert NodeGraph(32, 668, 100, dynamics="discrete").wiring.admissible.count() == 640_000


@pytest.mark.parametrize("sizes", [(1, 0, 1), (2, 3, 2), (3, 1, 1), (1, 4, 3)])
def test_feedforward_edges_against_enumeration(sizes: tuple[int, int, int]) -> None:
    edges, n = Feedforward(*sizes), sum(sizes)
    inputs, senders = sizes[0], sizes[0] + sizes[1]
    allowed = [[t, s] for t, s in itertools.product(range(n), repeat=2) if s < min(t, senders) and t >= inputs]
    every = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    assert every[edges.contains(every)].tolist() == allowed
    assert edges.count() == len(allowed)
    drawn = edges.draw(4000, torch.Generator().manual_seed(0))
    ids, counts = (drawn[:, 0] * n + drawn[:, 1]).unique(return_counts=True)
    assert ids.tolist() == [t * n + s for t, s in allowed]
    assert (counts / 4000 - 1 / len(allowed)).abs().max() < 0.03
    positions = torch.rand(200, 2, dtype=torch.float64) * (n + 1) - 1
    table = torch.tensor(allowed, dtype=torch.float64)
    found = edges.nearest(positions)
    best = (table[None] - positions[:, None]).square().sum(-1).min(-1).values
    assert edges.contains(found).all()
    assert torch.allclose((found - positions).square().sum(-1), best)


@pytest.mark.parametrize("column", [0, 1])
def test_feedforward_edges_with_a_fixed_column(column: int) -> None:
    edges = Feedforward(2, 3, 2)
    fixed = torch.arange(2, 7) if column == 0 else torch.arange(5)
    positions = torch.rand(200, 2, dtype=torch.float64) * 8 - 1
    positions[:, column] = fixed[torch.randint(0, 5, (200,))].double()
    found = edges.nearest(positions, fixed=(column,))
    assert edges.contains(found).all()
    assert torch.equal(found[:, column], positions[:, column].long())
    table = [e for e in torch.cartesian_prod(torch.arange(7), torch.arange(7)) if edges.contains(e)]
    for at, entry in zip(positions, found, strict=True):
        best = min(float((e - at).abs()[1 - column]) for e in table if e[column] == at[column])
        assert abs(float((entry - at).abs()[1 - column]) - best) < 1e-9
    assert edges.nearest(torch.tensor([[1.2, 5.7]]).double(), fixed=(0, 1)).tolist() == [[1, 6]]


def test_levels_and_reach() -> None:
    """0 -> 1 -> 3, 0 -> 3, 2 -> 4: node 3 is two edges away, nothing reaches 2 and 4."""
    edges = torch.tensor([[1, 0], [3, 1], [3, 0], [4, 2]])
    assert levels(edges, 5, 1).tolist() == [0, 1, -1, 2, -1]
    start = torch.arange(5) < 1
    assert reached(edges, start).tolist() == [False, True, False, True, False]
    loop = torch.cat([edges, torch.tensor([[0, 3]])])
    assert reached(loop, start).tolist() == [True, True, False, True, False]
    assert reached(torch.stack([edges, edges.flip(-1)]), start).tolist()[1] == [False] * 5
    with pytest.raises(UserError, match="cycle"):
        levels(loop, 5, 1)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_nodes_without_inputs_send_zero(dynamics: str) -> None:
    """Only a dead node feeds the outputs: they are zero, though its norm has a shift; and so are their gradients."""
    wiring = StaticWiring(N, N, indices=torch.tensor([[7, 4], [8, 4], [3, 0]]), dtype=torch.float64)
    graph = make(dynamics, wiring)
    nn.init.ones_(graph.function.norm.bias)
    x = image().requires_grad_()
    y = graph(x)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(wiring.values.grad, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(graph.eval().frozen()(x), y)


# --- frozen --------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(st.sampled_from(list(DYNAMICS)), st.integers(1, 24), st.integers(0, 10**6), st.booleans())
def test_a_frozen_graph_gives_the_same(dynamics: str, k: int, seed: int, batch_norm: bool) -> None:
    torch.manual_seed(seed)
    graph = make(dynamics, partial(StaticWiring, k=min(k, 22)), norm="batch" if batch_norm else "instance")
    nn.init.normal_(graph.function.norm.bias)
    graph(image())
    graph.eval()
    x = image().requires_grad_()
    frozen, y = graph.frozen(), graph(x)
    assert torch.allclose(frozen(x), y, atol=1e-9)
    entries = 0 if frozen.graph is None else frozen.graph.wiring.stored_entries()
    assert entries <= graph.wiring.stored_entries()
    assert all(not p.requires_grad for p in frozen.parameters())


def test_a_frozen_graph_has_live_nodes_and_edges_only() -> None:
    """0 -> 2 -> 7 is all that counts: 1 -> 3 ends nowhere, 4 -> 8 comes from nowhere."""
    wiring = StaticWiring(N, N, indices=torch.tensor([[2, 0], [7, 2], [3, 1], [8, 4]]), dtype=torch.float64)
    graph = make("static", wiring).eval()
    frozen = graph.frozen()
    assert frozen.read.tolist() == [0] and frozen.given.tolist() == [0]
    assert frozen.graph.nodes == 3 and frozen.graph.wiring.stored_entries() == 2
    assert frozen.graph.function.weight.shape == (2, 1, 3, 3)
    x = image()
    assert torch.equal(frozen(x)[:, 1], torch.zeros(2, 3, 2, dtype=torch.float64))
    assert torch.allclose(frozen(x), graph(x))


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_freezing_a_model_freezes_its_graphs(dynamics: str) -> None:
    graph = make(dynamics, partial(GaussianWiring, k=7))
    model = nn.Sequential(graph, nn.Flatten(), nn.Linear(OUTPUTS * 6, 2, dtype=torch.float64))
    frozen, x = freeze(model), image()
    assert torch.allclose(frozen(x), model.eval()(x))
    assert not any(isinstance(each, GaussianWiring) for each in frozen.modules())
    loaded = copy.deepcopy(frozen)
    loaded.load_state_dict(frozen.state_dict())
    assert torch.equal(loaded(x), frozen(x))


# --- use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_a_state_dict_and_a_copy(dynamics: str) -> None:
    graph, other = (make(dynamics, partial(TopKWiring, k=9)) for _ in range(2))
    x = image()
    other.load_state_dict(graph.state_dict())
    assert torch.equal(graph(x), other(x))
    assert torch.equal(copy.deepcopy(graph)(x), graph(x))


def test_a_weight_is_drawn_once_per_pass() -> None:
    graph = make("continuous", partial(GaussianWiring, k=5), dynamics=Continuous(rtol=1e-6, atol=1e-6))
    calls = []
    graph.wiring.register_forward_hook(lambda *_: calls.append(1))
    graph(image())
    assert calls == [1]


def test_an_adaptive_solver_comes_to_the_same() -> None:
    graph = make("continuous", partial(StaticWiring, k=12), dynamics=Continuous(rtol=1e-6, atol=1e-6))
    fine = copy.deepcopy(graph)
    fine.dynamics = Continuous(method="rk4", options={"step_size": 0.05})
    x = image()
    assert torch.allclose(graph(x), fine(x), atol=1e-3)


def test_rewiring_a_graph_moves_to_the_steepest_edges() -> None:
    graph = make("static", partial(RigLWiring, k=8))
    graph.wiring.collecting = True
    graph(image()).square().sum().backward()
    score = graph.wiring.collected()
    free = graph.wiring.ids()
    expected = score.top(2, exclude=free, admissible=graph.wiring.admissible)[0]
    moved = graph.wiring.rewire(score, 0.25).moved
    assert sorted(graph.wiring.indices[moved].tolist()) == sorted(expected.tolist())
    assert graph(image()).shape == (2, OUTPUTS, 3, 2)


def test_nodes_that_are_read() -> None:
    graph = make("static", StaticWiring(N, N, indices=torch.tensor([[2, 0], [7, 2], [3, 0]]), dtype=torch.float64))
    assert graph.read_nodes().nonzero().flatten().tolist() == [0, 2]
    assert make("static", hyper).read_nodes().all()


# --- bad input -----------------------------------------------------------------------------------------


def test_a_cycle_in_a_static_graph_names_it() -> None:
    wiring = StaticWiring(N, N, indices=torch.tensor([[3, 2], [4, 3], [2, 4]]))
    with pytest.raises(UserError, match="the edge 4 -> 2 in a static node graph; it closes the cycle 2 -> 3 -> 4 -> 2"):
        NodeGraph(INPUTS, HIDDEN, OUTPUTS, wiring=wiring)
    assert NodeGraph(INPUTS, HIDDEN, OUTPUTS, wiring=wiring, dynamics="discrete").nodes == N


@pytest.mark.parametrize(("target", "source"), [(1, 0), (8, 7), (3, 3), (3, 2)])
def test_edges_that_a_static_graph_cannot_have(target: int, source: int) -> None:
    wiring = StaticWiring(N, N, indices=torch.tensor([[target, source]]))
    with pytest.raises(UserError, match=f"the edge {source} -> {target} in a static node graph"):
        NodeGraph(INPUTS, (2, 3), OUTPUTS, wiring=wiring)


def test_an_edge_that_appears_later() -> None:
    wiring = TopKWiring(N, N, 3, dtype=torch.float64)
    wiring.load_dense(torch.tril(torch.ones(N, N, dtype=torch.float64), -3))
    graph = NodeGraph(1, N - 2, 1, wiring=wiring, dtype=torch.float64)
    with torch.no_grad():
        wiring.candidate[2, 5] = 7.0
    with pytest.raises(UserError, match="the edge 5 -> 2"):
        graph(image()[:, :1])


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: NodeGraph(0, 3, 1), "0 inputs and 1 outputs"),
        (lambda: NodeGraph(2, -1, 1), "hidden=-1"),
        (lambda: NodeGraph(2, (3, 0), 1), r"hidden=\(3, 0\)"),
        (lambda: NodeGraph(2, 3, 1, dynamics="discreet"), "Did you mean 'discrete'"),
        (lambda: NodeGraph(2, 3, 1, function="norm_conv"), "unknown node function 'norm_conv'"),
        (lambda: NodeGraph(2, 3, 1, norm="layer"), "norm='layer'"),
        (lambda: NodeGraph(2, 3, 1, function=nn.BatchNorm2d(6)), "BatchNorm2d has parameters"),
        (lambda: NodeGraph(2, 3, 1, function=lambda n: nn.ReLU()), "unknown node function 'ReLU'"),
        (lambda: NodeGraph(2, 3, 1, backend="cuda"), "unknown backend"),
        (lambda: NodeGraph(2, 3, 1, wiring=StaticWiring(5, 5)), r"expected \(6,\) x \(6,\)"),
        (lambda: Discrete(0), "steps=0"),
        (lambda: Continuous(rtol=0.0), "rtol=0.0"),
        (lambda: NodeGraph(2, 3, 1)(torch.zeros(2, 3, 4, 4)), r"expected \(b, 2, \*space\)"),
        (lambda: NodeGraph(2, 3, 1)(torch.zeros(2)), r"expected \(b, 2, \*space\)"),
        (lambda: NodeGraph(2, 3, 1, entry=nn.Conv2d(3, 1, 1))(torch.zeros(2, 3, 4, 4)), "what Conv2d makes"),
        (lambda: NodeGraph(2, 3, 1)(torch.zeros(2, 2)), r"expected \(height, width\)"),
        (lambda: NodeGraph(2, 3, 1)(torch.zeros(2, 2, 1, 1)), "more than one position"),
        (lambda: NodeGraph(2, 3, 1, function="norm_relu")(torch.zeros(2, 2)), "Choose norm='batch'"),
        (lambda: NodeGraph(2, 3, 1)(torch.full((1, 2, 4, 4), torch.nan)), "NaN"),
        (lambda: NodeGraph(2, 3, 1, dynamics=Continuous(method="dopri"))(torch.zeros(1, 2, 4, 4)), "method='dopri'"),
        (lambda: make("static", hyper).frozen(), "HyperWiring makes a weight for every input"),
    ],
)
def test_bad_input(make_it: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_it()


def test_without_torchdiffeq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchdiffeq", None)
    graph = NodeGraph(2, 3, 1, dynamics="continuous")
    with pytest.raises(UserError, match="pip install torchdiffeq"):
        graph(torch.zeros(1, 2, 4, 4))
