"""The layers of the benchmark against their dense meaning, on a problem small enough to hold it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ash import GaussianWiring, HyperWiring, IndexTuples, MLPHypernetwork, SparseLinear, StaticWiring

SIZE, BATCH = 128, 1 << 14  # enough work for the kernels that serve large layers
INSTANCES = 48  # with a weight each
TOLERANCE = 1e-3


def check_gaussian(context: str) -> float:
    """Largest relative error of output and gradients of a free layer in training; fails above `TOLERANCE`."""
    wiring = GaussianWiring(SIZE, SIZE, SIZE, context=context)
    with torch.no_grad():
        wiring.means.offset.normal_(std=0.3)
        wiring.log_scale.uniform_(-1, 3)
    layer = SparseLinear(SIZE, SIZE, wiring=wiring)
    x, seed = torch.randn(BATCH, SIZE, requires_grad=True), torch.get_rng_state()
    y = layer(x)
    torch.set_rng_state(seed)
    drawn = wiring()
    points = drawn.indices.reshape(wiring.k, -1, wiring.rank)
    dense = _spread(wiring.tuples(), points, together=context == "all")
    return compare(layer, x, y, linear(x, dense, layer.bias))


def check_static() -> float:
    """Largest relative error of output and gradients of a static layer; fails above `TOLERANCE`."""
    wiring = StaticWiring(SIZE, SIZE, density=0.2)
    layer = SparseLinear(SIZE, SIZE, wiring=wiring, backend="torch")  # "auto" would take the oracle itself
    x = torch.randn(BATCH, SIZE, requires_grad=True)
    dense = torch.zeros(SIZE, SIZE).index_put(tuple(wiring.indices.unbind(-1)), wiring.values)
    return compare(layer, x, layer(x), linear(x, dense, layer.bias))


def check_hyper() -> float:
    """The same of an adaptive layer with a context for each tuple."""
    make = partial(MLPHypernetwork, hidden=(8,), gain=1.0)
    wiring = HyperWiring(SIZE, SIZE, SIZE, hypernetwork=make)
    layer = SparseLinear(SIZE, SIZE, wiring=wiring)
    x, seed = torch.randn(INSTANCES, SIZE, requires_grad=True), torch.get_rng_state()
    y = layer(x)
    torch.set_rng_state(seed)
    points = wiring(x).indices.reshape(INSTANCES, wiring.k, -1, wiring.rank)
    dense = _spread_each(wiring.tuples(x), points)
    product = torch.bmm(dense, x.unsqueeze(-1)).squeeze(-1)
    return compare(layer, x, y, product if layer.bias is None else product + layer.bias)


def _spread_each(tuples: IndexTuples, points: Tensor) -> Tensor:
    """The dense weights (b, rows, columns) by the same equation, every tuple a context; points (b, k, m, 2)."""
    means = tuples.anchors + tuples.residuals
    u = (points - means.unsqueeze(-2)).square().sum(-1) / tuples.scales.square()
    same = (points.unsqueeze(-2) == points.unsqueeze(-3)).all(-1).tril(-1).any(-1)
    shares = torch.softmax((-1.5 * torch.log1p(u)).masked_fill(same, -torch.inf), dim=-1)
    instance = torch.arange(len(points))[:, None, None].expand(points.shape[:-1])
    where = instance, points[..., 0], points[..., 1]
    weights = tuples.values.unsqueeze(-1) * shares
    return torch.zeros(len(points), SIZE, SIZE).index_put(where, weights, accumulate=True)


def _spread(tuples: IndexTuples, points: Tensor, together: bool) -> Tensor:
    """The dense weight by equation 2 of arXiv 1810.09184 with Student's t, one context after the other.

    `points` (k, m, 2); `together` puts all tuples into one context.
    """
    k = tuples.k
    dense = torch.zeros(SIZE, SIZE)
    for members in [range(k)] if together else [[i] for i in range(k)]:
        which = torch.tensor(list(members))
        places = torch.unique(points[which].flatten(0, 1), dim=0)
        means = tuples.anchors[which] + tuples.residuals[which]
        distance = (places - means[:, None]).square().sum(-1) / tuples.scales[which].square()
        shares = torch.softmax(-1.5 * torch.log1p(distance), dim=-1)
        dense = dense.index_put(tuple(places.unbind(-1)), tuples.values[which] @ shares, accumulate=True)
    return dense


def compare(layer: nn.Module, x: Tensor, y: Tensor, expected: Tensor) -> float:
    """Largest relative difference of output, and gradients by x and parameters; fails above `TOLERANCE`."""
    inputs = [x, *layer.parameters()]
    g = torch.randn_like(y)
    found, due = ([each, *torch.autograd.grad(each, inputs, g)] for each in (y, expected))
    pairs = [(a.detach(), b.detach()) for a, b in zip(found, due, strict=True)]
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if not error <= TOLERANCE:
        raise AssertionError(f"{layer} is off by {error:.2g}, relative to the dense oracle's largest number")
    return error
