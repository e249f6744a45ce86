"""The hypernetworks of the sorting experiment: n numbers x → raw means of n tuples. None holds a sort or a rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash.checks import choose
from ash.hypernets import SetHypernetwork, SmallLinear
from ash.pairs import PairHypernetwork, SharpLinear
from ash.wirings.hyper import HypernetworkFactory
from experiments.sort_options import Options

CENTRE = 0.5
"""Mean of the numbers to sort."""


class SharpMLP(nn.Module):
    """A perceptron of tanh units over all n numbers, its first layer with learned steepness.

    Shapes: `(b, n)` -> `(b, k, width)`.
    """

    def __init__(self, in_shape: Sequence[int], k: int, width: int, *, hidden: Sequence[int] = (128,)):
        super().__init__()
        layers: list[nn.Module] = [SharpLinear(in_shape[0], hidden[0], centre=CENTRE), nn.Tanh()]
        for before, after in zip(hidden, hidden[1:], strict=False):
            layers += [nn.Linear(before, after), nn.Tanh()]
        self.k, self.width = k, width
        self.trunk, self.head = nn.Sequential(*layers), SmallLinear(hidden[-1], k * width, 0.1)

    def forward(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b k width"]:
        raw: Tensor = self.head(self.trunk(x))
        return raw.reshape(len(x), self.k, self.width)


class Comparator(nn.Module):
    """Σ_j Σ_h c_h · tanh(g_h (x_i − x_j)): odd saturating comparison features, given rather than learned.

    Their steepness g and their weights c are learned: 2h numbers.

    Shapes: `(b, n)` -> `(b, n, width)`.
    """

    def __init__(self, in_shape: Sequence[int], k: int, width: int, *, hidden: int = 8):
        super().__init__()
        self.groups = in_shape[0]
        self.log_gain = nn.Parameter(torch.linspace(0, 3, hidden))
        self.head = nn.Linear(hidden, k // self.groups * width, bias=False)
        nn.init.normal_(self.head.weight, std=0.05)

    def forward(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b k width"]:
        steep = x.unsqueeze(-1) * self.log_gain.exp()
        raw: Tensor = self.head((steep.unsqueeze(2) - steep.unsqueeze(1)).tanh().sum(2))
        return raw


class SetAndPairs(nn.Module):
    """A small set transformer and a learned function of pairs beside it; their outputs are added.

    Shapes: `(b, n)` -> `(b, n, width)`.
    """

    def __init__(self, in_shape: Sequence[int], k: int, width: int, *, hidden: int = 8, dim: int = 16):
        super().__init__()
        self.groups = in_shape[0]
        self.elements = SetHypernetwork(in_shape, k, width, dim=dim, heads=2, layers=1)
        self.pairs = PairHypernetwork(in_shape, k, width, hidden=hidden, centre=CENTRE, gain=0.03)

    def forward(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b k width"]:
        raw: Tensor = self.elements(x) + self.pairs(x)
        return raw


class Pointer(nn.Module):
    """For each output a learned query, for each element a key from a learned function of pairs; a mean is the
    average position of the elements, weighted by how near their keys are to the query.

    For the template whose outputs are fixed. Queries start evenly spread, as means do; what a key says is learned.

    Shapes: `(b, n)` -> `(b, n, 1)`.
    """

    position: Tensor

    def __init__(self, in_shape: Sequence[int], k: int, width: int, *, hidden: int = 8):
        super().__init__()
        n = in_shape[0]
        self.keys = PairHypernetwork(in_shape, n, width, hidden=hidden, centre=CENTRE, gain=0.03)
        self.queries = nn.Parameter(torch.arange(k) - (k - 1) / 2)
        self.log_focus = nn.Parameter(torch.zeros(()))
        self.register_buffer("position", torch.arange(float(n)), persistent=False)

    def forward(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b k width"]:
        far = (self.queries.unsqueeze(1) - self.keys(x).squeeze(-1).unsqueeze(1)).square()
        share = (-far * self.log_focus.exp()).softmax(-1)
        return (share @ self.position).unsqueeze(-1)


def make_hypernetwork(options: Options) -> HypernetworkFactory:
    """What makes the hypernetwork that `options` ask for, as `f(in_shape, k, width)`."""
    hidden = options.hidden
    assert hidden is not None
    if options.template == "outputs" and options.hypernetwork != "mlp":
        return partial(Pointer, hidden=hidden[0])
    choices: dict[str, HypernetworkFactory] = {
        "mlp": partial(SharpMLP, hidden=hidden),
        "set": partial(SetAndPairs, hidden=hidden[0]),
        "pairs": partial(PairHypernetwork, hidden=hidden[0], centre=CENTRE, gain=0.03),
        "comparator": partial(Comparator, hidden=hidden[0]),
    }
    return choose("hypernetwork", options.hypernetwork, choices)
