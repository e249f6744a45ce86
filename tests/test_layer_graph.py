"""`LayerGraph` against a plain loop over targets, sources, instances and maps; every wiring in it; what cannot work."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ash import (
    GateWiring,
    GaussianWiring,
    HyperWiring,
    LayerGraph,
    MLPHypernetwork,
    Rewirer,
    RigLWiring,
    SETWiring,
    SparseLinear,
    SparseWeight,
    StaticWiring,
    TopKWiring,
    UserError,
    Wiring,
)

IN = (2, 6, 6)
MERGES = ("concat", "sum", "max", "squeeze")
RESIZES = ("nearest", "bilinear", "bicubic", "area", "pad")


class Given(Wiring):
    """A dense weight as it is, of which the entries at `places` exist; one, or one for each instance."""

    def __init__(self, dense: Tensor, places: Tensor):
        super().__init__(dense.shape[dense.dim() - places.dim()], tuple(places.shape[1:]))
        self.dense, self.places = nn.Parameter(dense), places

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        indices = self.places.nonzero()
        values = self.dense[(..., *indices.unbind(-1))]
        if values.dim() == 2:
            indices = indices.expand(len(values), *indices.shape)
        return SparseWeight(indices, values, self.out_shape, self.in_shape)

    def stored_entries(self) -> int:
        return int(self.places.sum())


def conv(maps: int, pool: bool = False) -> Callable[[tuple[int, ...]], nn.Module]:
    """A convolution of whatever comes to `maps` maps, smooth, so that gradients can be checked."""

    def make(shape: tuple[int, ...]) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(shape[0], maps, 3, padding=1, dtype=torch.float64), nn.Tanh()]
        return nn.Sequential(*layers, *[nn.AvgPool2d(2)] * pool)

    return make


def dense(features: int) -> Callable[[tuple[int, ...]], nn.Module]:
    return lambda shape: nn.Linear(math.prod(shape), features, dtype=torch.float64)


def graph(merge: str = "concat", resize: str = "bilinear", **options: Any) -> LayerGraph:
    """Two convolutions, the second halving the size, a third, and a dense layer."""
    layers = [conv(3), conv(2, True), conv(4), dense(5)]
    options = {"flat": [3], "squeeze": 3 if merge == "squeeze" else None, "dtype": torch.float64} | options
    return LayerGraph(layers, IN, merge=merge, resize=resize, fill_maps=True, **options)


def given(net: LayerGraph, b: int = 0, share: float = 0.6) -> Given:
    """Random weights at some of the connections that may exist, and weights elsewhere that do not count."""
    mask = net.wiring.admissible.contains(torch.ones(net.wiring.shape).nonzero()).reshape(net.wiring.shape)
    places = mask & (torch.rand(mask.shape) < share)
    lead = [b] if b else []
    return Given(torch.randn(*lead, *mask.shape, dtype=torch.float64), places)


# --- the reference ---------------------------------------------------------------------------------------


def sized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Maps (c, h, w) at another size."""
    if mode == "pad":
        framed = x.new_zeros(x.shape[0], *size)
        top, left = (size[0] - x.shape[1]) // 2, (size[1] - x.shape[2]) // 2
        framed[:, top : top + x.shape[1], left : left + x.shape[2]] = x
        return framed
    if tuple(x.shape[1:]) == size:
        return x
    corners = {} if mode in ("nearest", "area") else {"align_corners": False}
    return functional.interpolate(x.unsqueeze(0), size=size, mode=mode, **corners)[0]


def merged(net: LayerGraph, t: int, states: list[Tensor], weight: Tensor, places: Tensor) -> Tensor:
    """What feeds layer t for one instance: states[s] (c, h, w), weight and places (targets, sources, maps)."""
    sizes = [tuple(x.shape[1:]) for x in states[: t + 1]]
    choose = max if net.resize_mode == "pad" else min
    size = (choose(h for h, _ in sizes), choose(w for _, w in sizes))
    widest = max(len(x) for x in states[: t + 1])
    parts, there = [], []
    for s in range(t + 1):
        x = sized(states[s], size, net.resize_mode)
        direct = (t, s) == (0, 0)
        scale = [1.0 if direct else (weight[t, s, c] if places[t, s, c] else 0.0) for c in range(len(x))]
        parts.append(torch.stack([x[c] * scale[c] for c in range(len(x))]))
        there.append([direct or bool(places[t, s, c]) for c in range(len(x))])
    if net.merge == "concat":
        return torch.cat(parts)
    if net.merge == "squeeze":
        together = torch.cat(parts)
        if not isinstance(net.squeezes[t], nn.Linear):
            return together
        if t == 3:
            return net.squeezes[t].weight @ together.flatten()
        return torch.einsum("oc,chw->ohw", net.squeezes[t].weight, together)
    result = []
    for c in range(widest):
        maps = [x[c] for x, here in zip(parts, there, strict=True) if c < len(x) and here[c]]
        nothing = parts[0].new_zeros(size)
        if net.merge == "sum":
            result.append(torch.stack([nothing, *maps]).sum(0))
        else:
            result.append(torch.stack(maps).amax(0) if maps else nothing)
    return torch.stack(result)


def reference(net: LayerGraph, x: Tensor, weight: Tensor, places: Tensor) -> Tensor:
    """The whole graph, instance by instance."""
    results = []
    for i in range(len(x)):
        own = weight[i] if weight.dim() > places.dim() else weight
        if not net.unique:
            own = own.unsqueeze(-1).expand(*own.shape, 9)
        here = places if net.unique else places.unsqueeze(-1).expand(*places.shape, 9)
        states = [x[i]]
        for t, layer in enumerate(net.layers):
            fed = merged(net, t, states, own, here)
            states.append(layer((fed.flatten() if t == 3 else fed).unsqueeze(0))[0])
        results.append(states[-1])
    return torch.stack(results)


@pytest.mark.parametrize(
    ("merge", "resize", "b", "unique"),
    [
        *((merge, resize, 0, resize == "area") for merge in MERGES for resize in RESIZES),
        *((merge, "bilinear", 2, unique) for merge in MERGES for unique in (False, True)),
    ],
)
def test_a_plain_loop(merge: str, resize: str, b: int, unique: bool) -> None:
    """Outputs and the gradients by input, connections and layers, in training and in evaluation."""
    net = graph(merge, resize, unique=unique)
    wiring = given(net, b)
    net.wiring = wiring
    x = torch.randn(2, *IN, dtype=torch.float64, requires_grad=True)
    leaves = [x, wiring.dense, *(p for p in net.layers.parameters())]
    expected = reference(net, x, wiring.dense, wiring.places)
    factor = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * factor).sum(), leaves, allow_unused=True)
    for mode in (True, False):
        y = net.train(mode)(x)
        assert torch.allclose(y, expected)
        found = torch.autograd.grad((y * factor).sum(), leaves, allow_unused=True)
        for one, other in zip(found, wanted, strict=True):
            zero = torch.zeros((), dtype=torch.float64)
            assert torch.allclose(zero if one is None else one, zero if other is None else other)
        with torch.no_grad():
            assert torch.allclose(net(x), expected)


@pytest.mark.parametrize("unique", [False, True], ids=["shared", "unique"])
@pytest.mark.parametrize("merge", MERGES)
def test_gradcheck(merge: str, unique: bool) -> None:
    layers = [conv(2), conv(2, True), dense(2)]
    squeeze = 2 if merge == "squeeze" else None
    net = LayerGraph(layers, (2, 4, 4), merge=merge, squeeze=squeeze, unique=unique, flat=[2], dtype=torch.float64)
    start = torch.randn(net.wiring.logits.shape, dtype=torch.float64)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def run(logits: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(net, {"wiring.logits": logits}, (x,))

    assert torch.autograd.gradcheck(run, (start.requires_grad_(), x), fast_mode=True)


# --- by hand -----------------------------------------------------------------------------------------------


class Times(nn.Module):
    """Vectors times a number; counts how often it ran."""

    def __init__(self, by: float):
        super().__init__()
        self.by, self.runs = by, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x * self.by


def by_hand(weights: Tensor, merge: str, **options: Any) -> LayerGraph:
    """Three layers that multiply vectors of one feature by 2, 3 and 5."""
    net = LayerGraph([Times(2.0), Times(3.0), Times(5.0)], 1, merge=merge, wiring=StaticWiring, **options)
    net.wiring = Given(weights, weights != 0)
    for layer in net.layers:
        layer.runs = 0
    return net


W = torch.tensor([[0.0, 0.0, 0.0], [0.5, -1.0, 0.0], [2.0, 0.0, 1.0]])


def test_a_sum_by_hand() -> None:
    """x = 4: layer 0 gives 8; layer 1 3·(2 − 8) = −18; layer 2 5·(8 − 18) = −50."""
    assert by_hand(W, "sum")(torch.tensor([[4.0]])).tolist() == [[-50.0]]


def test_a_largest_by_hand() -> None:
    """Layer 1: 3·max(2, −8) = 6; layer 2: 5·max(8, 6); a connection that is absent is no zero: x = −4."""
    net = by_hand(W, "max")
    assert net(torch.tensor([[4.0]])).tolist() == [[40.0]]
    # layer 0: −8; layer 1: 3·max(−2, 8) = 24; layer 2: 5·max(−8, 24)
    assert net(torch.tensor([[-4.0]])).tolist() == [[120.0]]
    lone = torch.zeros(3, 3)
    lone[1, 0], lone[2, 1] = 1.0, 1.0
    assert by_hand(lone, "max")(torch.tensor([[-4.0]])).tolist() == [[-40.0]]


@pytest.mark.parametrize("merge", ["sum", "max"])
def test_a_layer_without_connections_gets_zeros(merge: str) -> None:
    lone = torch.zeros(3, 3)
    lone[1, 0] = 1.0
    for mode in (True, False):
        assert by_hand(lone, merge).train(mode)(torch.tensor([[4.0], [1.0]])).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("b", [0, 3])
def test_no_connection_at_all(merge: str, b: int) -> None:
    """Every layer but the first gets zeros of the right shape, as does the last, whose bias is what comes out."""
    net = graph(merge)
    net.wiring = given(net, b, share=0.0)
    for mode in (True, False):
        y = net.train(mode)(torch.randn(3, *IN, dtype=torch.float64))
        assert torch.allclose(y, net.layers[-1].bias.expand(3, 5))


def test_absent_connections_and_dead_layers_cost_nothing_in_evaluation() -> None:
    """Layer 0 feeds nothing that leads to the output."""
    lone = torch.zeros(3, 3)
    lone[1, 0], lone[1, 1], lone[2, 0] = 1.0, 1.0, 1.0
    net = by_hand(lone, "sum").eval()
    assert net(torch.tensor([[4.0]])).tolist() == [[20.0]]
    assert [layer.runs for layer in net.layers] == [0, 0, 1]
    net.train()(torch.tensor([[4.0]]))
    assert [layer.runs for layer in net.layers] == [1, 1, 2]


def test_gates_that_close_take_their_layers_with_them() -> None:
    net = LayerGraph([Times(2.0), Times(3.0), Times(5.0)], 1, merge="sum")
    gates = net.wiring
    assert isinstance(gates, GateWiring)
    assert len(gates.entries()) == 5
    with torch.no_grad():
        gates.logits[(gates.indices == torch.tensor([2, 2])).all(-1)] = -20.0
    before = net.eval()(torch.ones(1, 1))
    gates.prune(0.01)
    for layer in net.layers:
        layer.runs = 0
    with torch.no_grad():
        assert torch.allclose(net(torch.ones(1, 1)), before)
    assert [layer.runs for layer in net.layers] == [1, 0, 1]


def test_a_vector_feeds_maps_and_maps_a_vector() -> None:
    layers = [dense(3), conv(2), dense(4)]
    for flatten, features in (("flatten", 2 * 16 + 3 + 2 * 16), ("pool", 2 + 3 + 2)):
        net = LayerGraph(layers, (2, 4, 4), flat=[0, 2], flatten=flatten, dtype=torch.float64)
        assert [target.shape for target in net.targets] == [
            ((2 * 16,) if flatten == "flatten" else (2,)), (5, 4, 4), (features,)
        ]  # fmt: skip
        x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
        first = net.layers[0](x.flatten(1) if flatten == "flatten" else x.mean((2, 3)))
        second = net.layers[1](torch.cat([x, first[:, :, None, None].expand(3, 3, 4, 4)], 1) / 2)
        parts = [x.flatten(1), first, second.flatten(1)] if flatten == "flatten" else [x.mean((2, 3)), first,
                                                                                       second.mean((2, 3))]  # fmt: skip
        assert torch.allclose(net(x), net.layers[2](torch.cat(parts, 1) / 2))


def test_layers_that_take_vectors_are_known() -> None:
    layers = [nn.Conv2d(2, 3, 1), nn.Sequential(nn.Linear(8 + 12, 4), nn.ReLU()), SparseLinear(8 + 12 + 4, 4)]
    net = LayerGraph(layers, (2, 2, 2), flatten="flatten")
    assert [target.flat for target in net.targets] == [False, True, True]
    assert net(torch.randn(5, 2, 2, 2)).shape == (5, 4)


def test_maps_with_one_dimension() -> None:
    layers = [nn.Conv1d(2, 2, 3), nn.Conv1d(4, 2, 1)]
    net = LayerGraph(layers, (2, 7), resize="area")
    x = torch.randn(3, 2, 7)
    first = net.layers[0](x)
    merged = torch.cat([functional.adaptive_avg_pool1d(x, 5), first], 1) / 2
    assert torch.allclose(net(x), net.layers[1](merged))


def test_direct_connections_are_there_whatever_the_wiring_says() -> None:
    net = by_hand(torch.zeros(3, 3), "sum", direct=[(0, 0), (1, 1), (2, 2)])
    assert net(torch.tensor([[4.0]])).tolist() == [[120.0]]
    assert len(net.connections()) == 3


def test_no_direct_connection() -> None:
    net = by_hand(torch.zeros(3, 3), "sum", direct=())
    assert net(torch.tensor([[4.0]])).tolist() == [[0.0]]
    assert len(net.connections()) == 6


# --- connections back --------------------------------------------------------------------------------------


def test_connections_back_by_hand() -> None:
    """Passes over two layers that double and triple; the second feeds the first with weight 1, from the second pass on.

    x = 1: 2, 6; then 2·(1 + 6) = 14, 42; then 2·(1 + 42) = 86, 258.
    """
    weights = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    for steps, expected in ((2, 42.0), (3, 258.0)):
        net = LayerGraph([Times(2.0), Times(3.0)], 1, merge="sum", steps=steps)
        assert set(net.connections()) == {(0, 2), (1, 0), (1, 1)}
        net.wiring = Given(weights, weights != 0)
        for mode in (True, False):
            assert net.train(mode)(torch.tensor([[1.0]])).tolist() == [[expected]]


def test_a_source_that_is_not_computed_yet_is_no_zero_for_max() -> None:
    weights = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    net = LayerGraph([Times(2.0), Times(3.0)], 1, merge="max", steps=2)
    net.wiring = Given(weights, weights != 0)
    # −2, −6; then 2·max(−1, −6) = −2, −6
    assert net(torch.tensor([[-1.0]])).tolist() == [[-6.0]]


@pytest.mark.parametrize("resize", ["bilinear", "area"])
@pytest.mark.parametrize("merge", MERGES)
def test_connections_back_are_an_unrolled_loop(merge: str, resize: str) -> None:
    squeeze = 3 if merge == "squeeze" else None
    layers = [conv(2), conv(2, True), conv(2)]
    net = LayerGraph(layers, (2, 6, 6), merge=merge, resize=resize, squeeze=squeeze, steps=2, maps=(2, 2, 2),
                     dtype=torch.float64)  # fmt: skip
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    y = net(x)
    sizes, gate, states = [(6, 6), (6, 6), (3, 3)], 0.5, {0: x}
    for _ in range(2):
        for t in range(3):
            parts = {}
            for s in range(4):
                known = s in states and s != t + 1
                size = sizes[t]
                if known:
                    part = states[s] if tuple(states[s].shape[2:]) == size else functional.interpolate(
                        states[s], size=size, mode=resize, **({} if resize == "area" else {"align_corners": False}))
                    parts[s] = part if (t, s) == (0, 0) else part * gate
                elif s != t + 1:
                    parts[s] = None
            if merge in ("sum", "max"):
                there = torch.stack([p for p in parts.values() if p is not None])
                fed = there.sum(0) if merge == "sum" else there.amax(0)
            else:
                zero = torch.zeros(2, 2, *size, dtype=torch.float64)
                fed = torch.cat([zero if p is None else p for p in parts.values()], 1)
                if merge == "squeeze":
                    fed = torch.einsum("oc,bchw->bohw", net.squeezes[t].weight, fed)
            states[t + 1] = net.layers[t](fed)
    assert torch.allclose(y, states[3])
    y.sum().backward()
    assert net.wiring.logits.grad is not None
    assert (net.wiring.logits.grad != 0).all()


# --- every wiring --------------------------------------------------------------------------------------------

hyper = partial(HyperWiring, hypernetwork=partial(MLPHypernetwork, hidden=(8,)), condition_shape=IN)
WIRINGS: dict[str, Callable[..., Wiring]] = {
    "static": partial(StaticWiring, density=0.6),
    "gaussian": partial(GaussianWiring, density=0.6),
    "hyper": partial(hyper, density=0.6),
    "top_k": partial(TopKWiring, density=0.6),
    "set": partial(SETWiring, density=0.6),
    "rigl": partial(RigLWiring, density=0.6),
    "gates": partial(GateWiring, values="ones"),
    "hard concrete": partial(GateWiring, gate="hard_concrete", values="ones"),
    "gates and values": GateWiring,
}


@pytest.mark.parametrize(("merge", "unique"), [("concat", False), ("sum", True), ("max", False)])
@pytest.mark.parametrize("kind", WIRINGS)
def test_every_wiring_is_the_weight_that_it_draws(kind: str, merge: str, unique: bool) -> None:
    net = graph(merge, unique=unique, wiring=WIRINGS[kind])
    x = torch.randn(3, *IN, dtype=torch.float64)
    for mode in (True, False):
        net.train(mode)
        torch.manual_seed(5)
        y = net(x)
        torch.manual_seed(5)
        weight = net.wiring(x)
        places = [_exists(weight.instance(i)) for i in range(3)]
        whole = weight.to_dense() if weight.per_instance else weight.to_dense().expand(3, *weight.shape)
        for i in range(3):
            assert torch.allclose(y[i : i + 1], reference(net, x[i : i + 1], whole[i], places[i]))


def _exists(weight: SparseWeight) -> Tensor:
    places = torch.zeros(weight.shape, dtype=torch.bool)
    places[tuple(weight.indices.unbind(-1))] = True
    return places


@pytest.mark.parametrize("kind", WIRINGS)
def test_every_wiring_learns_and_survives_a_checkpoint(kind: str) -> None:
    unique = kind in ("gates", "hyper", "rigl")
    net = graph("sum", unique=unique, wiring=WIRINGS[kind])
    before = [p.detach().clone() for p in net.wiring.parameters()]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    x, goal = torch.randn(8, *IN, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (net(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, net.wiring.parameters(), strict=True))
    other = graph("sum", unique=unique, wiring=WIRINGS[kind])
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(x), net.eval()(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_a_candidate_gets_the_gradient_of_connections_that_do_not_exist() -> None:
    net = graph("sum", wiring=partial(TopKWiring, k=3))
    x = torch.randn(3, *IN, dtype=torch.float64)
    weight = net.wiring(x)
    dense = weight.to_dense().detach().requires_grad_()
    expected = reference(net, x, dense, torch.ones(dense.shape, dtype=torch.bool))
    (wanted,) = torch.autograd.grad(expected.square().sum(), dense)
    candidate = weight.candidate
    assert candidate is not None
    net(x).square().sum().backward()
    found = next(p.grad for p in net.wiring.parameters() if p.shape == dense.shape or p.numel() == dense.numel())
    assert found is not None
    mask = net.wiring.admissible.mask
    assert torch.allclose(found.reshape(dense.shape)[mask], wanted[mask])
    assert (found.reshape(dense.shape)[mask & (dense == 0)] != 0).any()


def test_a_wiring_that_collects_gets_the_whole_gradient() -> None:
    net = graph("concat", wiring=partial(StaticWiring, k=3))
    net.wiring.collecting = True
    x = torch.randn(3, *IN, dtype=torch.float64)
    net(x).square().sum().backward()
    score = net.wiring.collected()
    assert score is not None
    dense = net.wiring().to_dense().detach().requires_grad_()
    everything = torch.ones(dense.shape, dtype=torch.bool)
    (wanted,) = torch.autograd.grad(reference(net, x, dense, everything).square().sum(), dense)
    mask = net.wiring.admissible.mask
    assert torch.allclose(score.dense()[mask], wanted[mask])


def test_rewiring_moves_connections_among_those_that_may_exist() -> None:
    net = graph("sum", wiring=partial(RigLWiring, k=4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rewirer = Rewirer(net, optimizer, every=2, end=20, fraction=0.5)
    before = {tuple(each) for each in net.wiring.rounded().indices.tolist()}
    x, goal = torch.randn(8, *IN, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    for _ in range(12):
        optimizer.zero_grad()
        (net(x) - goal).square().mean().backward()
        optimizer.step()
        rewirer.step()
    after = net.wiring.rounded().indices
    assert len({tuple(each) for each in after.tolist()}) == 4
    assert {tuple(each) for each in after.tolist()} != before
    assert net.wiring.admissible.contains(after).all()


def test_a_condition() -> None:
    wiring = partial(HyperWiring, hypernetwork=partial(MLPHypernetwork, hidden=(4,)), condition_shape=2, density=0.5)
    net = graph("sum", wiring=wiring).eval()
    x, condition = torch.randn(3, *IN, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    weight = net.wiring(condition).to_dense()
    y = net(x, condition)
    places = torch.ones(weight.shape[1:], dtype=torch.bool)
    assert torch.allclose(y, reference(net, x, weight, places))


def test_bfloat16() -> None:
    net = LayerGraph([nn.Conv2d(2, 3, 3), nn.Conv2d(5, 3, 3)], IN)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(3, *IN).bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net.wiring.logits.grad is not None


# --- what cannot work ------------------------------------------------------------------------------------------


def make(layers: Sequence[Any], in_shape: Any = IN, **options: Any) -> LayerGraph:
    return LayerGraph(layers, in_shape, **options)


A, B = partial(nn.Conv2d, 2, 3, 3), partial(nn.Conv2d, 5, 4, 3)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([A(), B()], {"merge": "sum"}, r"layers\[1\] is fed by input \(2, 6, 6\), layers\[0\] \(3, 4, 4\), which "
         r"merge='sum' cannot merge: \[2, 3\] maps; expected equal numbers"),
        ([A(), nn.Conv2d(3, 4, 3)], {}, r"layers\[1\] \(Conv2d\(3, 4.*\) cannot take \(b, 5, 4, 4\), which "
         r"merge='concat', resize='bilinear' make of input \(2, 6, 6\), layers\[0\] \(3, 4, 4\)"),
        ([nn.Sequential(A(), nn.Flatten(2)), B()], {}, r"maps of different dimensions"),
        ([nn.Conv2d(2, 2, 6), nn.Conv2d(4, 2, 3)], {}, r"cannot take \(b, 4, 1, 1\)"),
        ([A(), nn.LSTM(4, 4)], {"merge": "max", "fill_maps": True}, r"layers\[1\] \(LSTM.* cannot take"),
        ([A(), lambda shape: 3], {}, r"layers\[1\] makes a int; expected a module"),
        ([A()], {}, "1 layers; expected at least 2"),
        ([A(), B()], {"merge": "mean"}, "unknown merge 'mean'"),
        ([A(), B()], {"resize": "lanczos"}, "unknown way to resize 'lanczos'"),
        ([A(), B()], {"flatten": "rows"}, "unknown way to flatten 'rows'"),
        ([A(), B()], {"merge": "squeeze"}, "merge='squeeze', squeeze=None"),
        ([A(), B()], {"squeeze": 4}, "merge='concat', squeeze=4"),
        ([A(), B()], {"merge": "squeeze", "squeeze": [4]}, r"squeeze=\[4\]; expected a number of maps for each"),
        ([A(), B()], {"steps": 0}, "steps=0"),
        ([A(), B()], {"steps": 2}, "no maps"),
        ([A(), B()], {"steps": 2, "maps": (3,)}, r"maps=\(3,\)"),
        ([A(), B()], {"direct": [(0, 1)]}, r"direct=\(\(0, 1\),\)"),
        ([A(), B()], {"flat": [2]}, r"flat=\(2,\)"),
        ([A(), B()], {"wiring": StaticWiring(2, 3)}, "expected \\(2,\\) x \\(2,\\)"),
        ([A(), B()], {"wiring": StaticWiring(2, 2, 2)}, "connections that cannot be"),
    ],
)  # fmt: skip
def test_bad_graphs(layers: Sequence[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(layers, **options)


def test_maps_with_one_dimension_are_not_interpolated_as_pictures() -> None:
    with pytest.raises(UserError, match=r"layers\[1\].*resize='bilinear' cannot bring to one size"):
        make([nn.Conv1d(2, 2, 3), nn.Conv1d(4, 2, 1)], (2, 7))


def test_wrong_numbers_of_maps_for_connections_back() -> None:
    first = partial(nn.Conv2d, 2 + 4, 3, 3, padding=1)
    with pytest.raises(UserError, match=r"layers\[0\] is fed back by layers\[1\] \(5, 6, 6\): 5 maps or features; exp"):
        make([first(), nn.Conv2d(5, 5, 1)], steps=2, maps=(3, 4))


def test_padding_cannot_shrink() -> None:
    up = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Upsample(scale_factor=2))
    with pytest.raises(UserError, match=r"fed back by layers\[1\] \(2, 12, 12\), which resize='pad' cannot bring"):
        make([nn.Conv2d(4, 2, 1), up], resize="pad", steps=2, maps=(2, 2))


def test_bad_inputs() -> None:
    net = make([A(), B()])
    with pytest.raises(UserError, match=r"an input of shape \(3, 2, 5, 6\); expected \(b, 2, 6, 6\)"):
        net(torch.zeros(3, 2, 5, 6))
    with pytest.raises(UserError, match="are NaN or infinite"):
        net(torch.full((3, *IN), math.nan))


def test_training_modes_survive_the_making() -> None:
    norm = nn.BatchNorm2d(2)
    net = make([nn.Sequential(norm, nn.Conv2d(2, 3, 3), nn.Dropout()), B().eval()])
    assert [m.training for m in (norm, net.layers[0][2], net.layers[1])] == [True, True, False]
    assert int(norm.num_batches_tracked) == 0


def test_names_of_the_connections() -> None:
    net = make([A(), B(), nn.Conv2d(9, 1, 1)])
    assert net.connections() == {
        (1, 0): "input → layers[1]",
        (1, 1): "layers[0] → layers[1]",
        (2, 0): "input → layers[2]",
        (2, 1): "layers[0] → layers[2]",
        (2, 2): "layers[1] → layers[2]",
    }
    assert "merge='concat'" in repr(net)
