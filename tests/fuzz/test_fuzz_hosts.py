"""Hosts with any options: drop-ins for torch's layers, graphs of nodes, transforms of graphs, sorting."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from fuzzing import FULL, LAYOUTS, ODD, SEEDS, Shape, attempt, batch_of, each_path, fuzz, laid_out, path, shapes
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ash import (
    Discrete,
    EdgeHypernetwork,
    EdgeLayer,
    EdgeWiring,
    GateWiring,
    GaussianWiring,
    LayerGraph,
    NodeGraph,
    PermutationWiring,
    PositionWiring,
    Quicksort,
    Reconstruction,
    RigLWiring,
    Sampling,
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    StaticWiring,
    TopKWiring,
    UserError,
    reconstruction_loss,
)

pytestmark = pytest.mark.nightly
WIRINGS: dict[str, Any] = {
    "static": StaticWiring,
    "gaussian": GaussianWiring,
    "per instance": partial(GaussianWiring, per_instance=True),
    "top k": TopKWiring,
    "rigl": RigLWiring,
    "gate": GateWiring,
}
each_wiring = st.sampled_from(sorted(WIRINGS))
DENSITIES = st.floats(0.05, 1)


@fuzz(500, seed=SEEDS, wiring=each_wiring, density=DENSITIES, inputs=st.integers(1, 9), outputs=st.integers(1, 9),
      lead=st.lists(st.integers(0, 3), max_size=3).map(tuple), wide=st.integers(0, 2), layout=LAYOUTS, dtype=FULL,
      odd=st.sampled_from([None, None, None, *ODD]), how=each_path)  # fmt: skip
def test_linear_layers(
    seed: int, wiring: str, density: float, inputs: int, outputs: int, lead: Shape, wide: int, layout: str,
    dtype: torch.dtype, odd: float | None, how: str,
) -> None:  # fmt: skip
    make = partial(WIRINGS[wiring], density=density)
    layer = SparseLinear(inputs, outputs, dtype=dtype, wiring=make, backend="torch")
    x = laid_out(torch.randn(*lead, inputs, dtype=dtype), layout if lead else "contiguous")
    if wide:
        with pytest.raises(UserError, match=f"expected \\(\\*, {inputs}\\)"):
            layer(torch.randn(*lead, inputs + wide, dtype=dtype))
        return
    if odd is not None and x.numel():
        x = x.contiguous().clone()
        x.view(-1)[int(torch.randint(0, x.numel(), ()))] = odd
        with pytest.raises(UserError, match="NaN or infinite"):
            layer(x)
        return
    layer.eval()
    with path(how), torch.no_grad():
        wanted = F.linear(x, layer.wiring(x.reshape(-1, inputs)).to_dense(), layer.bias)
        assert torch.allclose(layer(x), wanted, atol=1e-5)
        assert layer.train()(x).shape == wanted.shape


@fuzz(500, seed=SEEDS, wiring=each_wiring, density=DENSITIES, channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
      groups=st.sampled_from([1, 1, 2, 0]), kernel=st.tuples(st.integers(0, 3), st.integers(1, 3)),
      stride=st.integers(0, 2), padding=st.sampled_from([0, 1, 2, (1, 0), "same", "valid", "some", -1]),
      dilation=st.integers(1, 2), mode=st.sampled_from(["zeros", "reflect", "replicate", "circular", "mirror"]),
      picture=st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 6)),
      backend=st.sampled_from(["auto", "dense", "torch"]), last=st.booleans(), how=each_path)  # fmt: skip
def test_convolutions(
    seed: int, wiring: str, density: float, channels: tuple[int, int], groups: int, kernel: tuple[int, int],
    stride: int, padding: Any, dilation: int, mode: str, picture: tuple[int, int, int], backend: str, last: bool,
    how: str,
) -> None:  # fmt: skip
    """What `nn.Conv2d` with the dense kernel gives; what that cannot do is refused with a message."""
    c, o = (each * max(1, groups) for each in channels)
    b, h, w = picture
    make = partial(WIRINGS[wiring], density=density)
    options = (c, o, kernel, stride, padding, dilation, groups)
    x = torch.randn(b, c, h, w)
    x = x.contiguous(memory_format=torch.channels_last) if last else x

    def torch_does() -> nn.Conv2d:
        dense = nn.Conv2d(*options, padding_mode=mode)
        dense(x)
        return dense

    layer, refusal = attempt(lambda: SparseConv2d(*options, padding_mode=mode, wiring=make, backend=backend).eval())
    if refusal is None:
        with path(how), torch.no_grad():
            y, refusal = attempt(lambda: layer(x))
    if refusal is not None:
        if not (groups > 1 and backend == "torch") and padding != -1 and min(kernel) > 0:
            with pytest.raises((ValueError, RuntimeError)):
                torch_does()
        return
    dense = torch_does()
    with torch.no_grad():
        weight = layer.wiring(x)
        dense.bias.copy_(layer.bias)
        dense.weight.copy_(weight.to_dense()[0] if weight.per_instance and b else (
            torch.zeros_like(dense.weight) if weight.per_instance else weight.to_dense()))  # fmt: skip
        assert torch.allclose(y, dense(x), atol=1e-4) and y.shape == dense(x).shape


@fuzz(300, seed=SEEDS, wiring=each_wiring, sizes=st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)),
      blocks=st.booleans(), density=DENSITIES, b=st.integers(0, 3), space=st.sampled_from([(), (), (2,), (2, 3)]),
      backend=st.sampled_from(["auto", "dense", "torch"]), steps=st.integers(0, 3), train=st.booleans())  # fmt: skip
def test_node_graphs(
    seed: int, wiring: str, sizes: tuple[int, int, int], blocks: bool, density: float, b: int, space: Shape,
    backend: str, steps: int, train: bool,
) -> None:  # fmt: skip
    """Node by node in order, or `steps` times at once."""
    inputs, hidden, outputs = sizes
    given: Any = [max(1, hidden // 2), max(1, hidden - hidden // 2)] if blocks else hidden
    n = inputs + outputs + (sum(given) if blocks else hidden)
    make = partial(
        NodeGraph, inputs, given, outputs, wiring=partial(WIRINGS[wiring], density=density), function=nn.Tanh(),
        dynamics=Discrete(steps) if steps else "static", backend=backend,
    )  # fmt: skip
    graph, refusal = attempt(lambda: make().double().train(train))
    if refusal is not None:
        assert min(inputs, outputs) < 1 or n < 2
        return
    x = torch.randn(b, inputs, *space, dtype=torch.float64)
    torch.manual_seed(3)
    y = graph(x)
    assert y.shape == (b, outputs, *space) and bool(torch.isfinite(y).all())
    if steps or wiring == "per instance":
        return
    torch.manual_seed(3)
    dense = graph.wiring(x).to_dense().detach()
    z = torch.zeros(b, n, *space, dtype=torch.float64)
    z[:, :inputs] = x.tanh()
    for node in range(inputs, n):
        total = torch.einsum("s,bs...->b...", dense[node], z)
        z[:, node] = total.tanh() if node < n - outputs else total
    assert torch.allclose(y, z[:, n - outputs :], atol=1e-9)


@fuzz(250, seed=SEEDS, layers=st.integers(0, 4), features=st.integers(1, 4),
      merge=st.sampled_from(["concat", "sum", "max"]), wiring=st.sampled_from(["gate", "static", "top k", "rigl"]),
      unique=st.booleans(), b=st.integers(0, 3),
      train=st.booleans())  # fmt: skip
def test_layer_graphs_of_vectors(
    seed: int, layers: int, features: int, merge: str, wiring: str, unique: bool, b: int, train: bool
) -> None:
    def make(shape: Shape) -> nn.Module:
        return nn.Linear(shape[0], features, dtype=torch.float64)

    options = {"density": 0.6} if wiring != "gate" else {"values": "ones"}
    given = partial(WIRINGS[wiring], **options)
    build = partial(LayerGraph, [make] * layers, features, merge=merge, unique=unique, dtype=torch.float64)
    graph, refusal = attempt(lambda: build(wiring=given).train(train))
    if refusal is not None:
        assert layers < 2, refusal
        return
    x = torch.randn(b, features, dtype=torch.float64)
    weight = graph.wiring(x)
    dense, there = weight.to_dense(), torch.zeros(weight.shape, dtype=torch.bool)
    there[tuple(weight.indices.unbind(-1))] = True
    if not unique:
        dense, there = (each.unsqueeze(-1).expand(-1, -1, features) for each in (dense, there))
    states = [x]
    for t, layer in enumerate(graph.layers):
        parts = [states[s] * (1 if (t, s) == (0, 0) else dense[t, s]) for s in range(t + 1)]
        if merge == "concat":
            fed = torch.cat(parts, 1)
        elif merge == "sum":
            fed = torch.stack(parts).sum(0)
        else:
            here = [there[t, s] | ((t, s) == (0, 0)) for s in range(t + 1)]
            gone = torch.stack([p.masked_fill(~h, -math.inf) for p, h in zip(parts, here, strict=True)]).amax(0)
            fed = torch.where(torch.stack(here).any(0), gone, 0.0)
        states.append(layer(fed))
    assert torch.allclose(graph(x), states[-1], atol=1e-9)


@fuzz(400, seed=SEEDS, nodes=st.lists(st.integers(1, 5), min_size=1, max_size=3), n=st.integers(0, 12),
      channels=st.sampled_from([(), (2,)]), sites=st.sampled_from(["entry", "path"]), neighbours=st.integers(0, 3),
      t=st.integers(0, 2), out_rank=st.integers(1, 3), context=st.sampled_from(["none", "mean", "attention"]),
      sampled=st.booleans(), features=st.integers(0, 2), train=st.booleans(),
      values=st.sampled_from(["emitted", "shared", "ones"]))  # fmt: skip
def test_transforms_of_graphs(
    seed: int, nodes: list[int], n: int, channels: Shape, sites: str, neighbours: int, t: int, out_rank: int,
    context: str, sampled: bool, features: int, train: bool, values: str,
) -> None:  # fmt: skip
    """Entries lie in their graphs, gradients are finite, and every instance is on its own."""
    make = partial(
        EdgeWiring, partial(EdgeHypernetwork, hidden=(4,), context=context), t, out_rank=out_rank, sites=sites,
        neighbours=neighbours, node_features=features, channels=max(1, math.prod(channels)),
        values=values, sampling=Sampling() if sampled else None,
    )  # fmt: skip
    wiring, refusal = attempt(make)
    if refusal is not None:
        assert t < 1 or (sites == "path" and neighbours)
        return
    layer = EdgeLayer(wiring).train(train)
    x = batch_of([(s, s) for s in nodes], n, "random", channels, torch.float32)
    given = torch.randn(sum(nodes), features) if features else None
    y = layer(x, given).check("refuse")
    assert y.rank == out_rank and y.sizes.tolist() == [[s] * out_rank for s in nodes]
    y.values.sum().backward()
    assert x.values.grad is None or bool(torch.isfinite(x.values.grad).all())
    if not train:
        starts = torch.tensor([0, *nodes]).cumsum(0)
        for i, one in enumerate(y):
            own = None if given is None else given[starts[i] : starts[i + 1]]
            assert torch.allclose(layer(x[i], own).to_dense(), one.to_dense(), atol=1e-5)


@fuzz(150, seed=SEEDS, nodes=st.integers(0, 6), sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
      n=st.integers(0, 9), train=st.booleans(), guided=st.booleans())  # fmt: skip
def test_places_of_nodes(seed: int, nodes: int, sizes: list[int], n: int, train: bool, guided: bool) -> None:
    if nodes < 2:
        with pytest.raises(UserError, match="expected at least 2"):
            PositionWiring(nodes)
        return
    layer = EdgeLayer(PositionWiring(nodes, window=4)).train(train)
    x = batch_of([(s, s) for s in sizes], n, "random", (), torch.float32)
    if max(sizes) > nodes:
        with pytest.raises(UserError, match="at most"):
            layer(x)
        return
    y = layer(x).check("refuse")
    assert y.sizes.tolist() == [[nodes, nodes]] * len(sizes)
    assert torch.allclose(y.to_dense().sum((1, 2)), x.to_dense().sum((1, 2)), atol=1e-4)
    if guided:
        layer.guide(x, y, batch_of([(nodes, nodes)] * len(sizes), n, "random", (), torch.float32))
        layer(x).check("refuse")


KEYS = st.sampled_from(["normal", "ties", "equal", "sorted", "reversed", "far"])


def keys_of(kind: str, b: int, n: int) -> Tensor:
    keys = torch.randn(b, n, dtype=torch.float64)
    if kind == "ties":
        return keys.round()
    if kind == "equal":
        return torch.zeros_like(keys)
    if kind in ("sorted", "reversed"):
        return keys.sort(-1, descending=kind == "reversed").values
    return keys * 1e200 if kind == "far" else keys


@fuzz(500, seed=SEEDS, n=st.integers(0, 16), b=st.integers(0, 3), kind=KEYS, train=st.booleans(),
      kernel=st.sampled_from(["student_t", "gaussian", "logistic", "normal"]),
      scale=st.sampled_from([1.0, 1e-6, 1e6, 0.0, -1.0]), odd=st.sampled_from([None] * 6 + list(ODD)),
      extra=st.sampled_from([(), (2,)]))  # fmt: skip
def test_quicksort(
    seed: int, n: int, b: int, kind: str, train: bool, kernel: str, scale: float, odd: float | None, extra: Shape
) -> None:
    sort, refusal = attempt(lambda: Quicksort(n, kernel=kernel, scale=scale).train(train))
    if refusal is not None:
        assert n not in (2, 4, 8, 16) or kernel == "normal" or scale <= 0
        return
    keys = keys_of(kind, b, n).requires_grad_()
    if odd is not None and b:
        keys.data[0, 0] = odd
        with pytest.raises(UserError, match="NaN or infinite"):
            sort(keys)
        return
    splits = sort(keys)
    whole = splits.product().to_dense()
    payload = torch.randn(b, n, *extra, dtype=torch.float64)
    assert torch.allclose(splits(payload), torch.einsum("bij,bj...->bi...", whole, payload), atol=1e-9)
    assert torch.allclose(whole.sum(1), torch.ones(b, n, dtype=torch.float64), atol=1e-6)
    order = keys.detach().argsort(dim=-1, stable=True)
    if not train:
        assert torch.equal(whole, F.one_hot(order, n).double())
    target = order.argsort(-1)
    shares = sort.log_shares(keys, target)
    assert bool((shares <= 1e-9).all()) and not bool(torch.isnan(shares).any())


@fuzz(250, seed=SEEDS, n=st.integers(0, 7), b=st.integers(0, 3), kind=KEYS.filter(lambda kind: kind != "far"),
      train=st.booleans(), means=st.sampled_from(["direct", "sigmoid"]))  # fmt: skip
def test_permutations(seed: int, n: int, b: int, kind: str, train: bool, means: str) -> None:
    if n < 1:
        with pytest.raises(UserError, match="at least 1"):
            PermutationWiring(n)
        return
    wiring = PermutationWiring(n, means=means, dtype=torch.float64).train(train)
    weight = wiring(keys_of(kind, b, n)).check()
    dense = weight.to_dense()
    assert torch.allclose(dense.sum(1), torch.ones(b, n, dtype=torch.float64))
    if not train:
        assert torch.equal(dense.sum(2), torch.ones(b, n, dtype=torch.float64))
        assert set(dense.unique().tolist()) <= {0, 1}


@fuzz(200, seed=SEEDS, in_shape=shapes(2, 4), out_shape=shapes(2, 4), b=st.integers(1, 3), bias=st.booleans(),
      extra=st.sampled_from([(), (2,)]),
      wiring=st.sampled_from(["static", "gaussian", "per instance", "gate"]))  # fmt: skip
def test_reconstruction(
    seed: int, in_shape: Shape, out_shape: Shape, b: int, bias: bool, extra: Shape, wiring: str
) -> None:
    layer = SparseLayer(in_shape, out_shape, wiring=partial(WIRINGS[wiring], density=0.5), dtype=torch.float64)
    judged = Reconstruction(layer, bias=bias)
    with pytest.raises(UserError, match="without a loss"):
        reconstruction_loss(judged)
    x = torch.randn(b, *in_shape, *extra, dtype=torch.float64)
    torch.manual_seed(1)
    y = judged(x)
    torch.manual_seed(1)
    weight = layer.wiring(x)
    assert torch.equal(y, layer(x)) or wiring in ("gaussian", "per instance")
    dense = weight.to_dense() if weight.per_instance else weight.to_dense().unsqueeze(0).expand(b, *weight.shape)
    flat = dense.reshape(b, *weight.matrix_shape)
    back = torch.einsum("boi,boe->bie", flat, y.reshape(b, weight.matrix_shape[0], -1)).reshape(x.shape)
    assert torch.allclose(reconstruction_loss(judged), (back - x).square().mean())
