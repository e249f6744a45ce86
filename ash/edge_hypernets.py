"""`EdgeHypernetwork`: features of sites in graphs -> raw numbers of the tuples that each site emits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash.checks import choose, require
from ash.hypernets import Activation

EdgeHypernetworkFactory = Callable[[int, int, int], nn.Module]
"""f(features, t, width) makes a module (features, graph of each site, number of graphs) -> (s, t, width)."""


class MeanContext(nn.Module):
    """The mean over all sites of a graph of a learned function of each.

    Shapes: `(s, dim)`, numbers of graphs `(s,)` -> `(s, dim)`.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.each = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "s dim"], instance: Int64[Tensor, " s"], b: int) -> Float[Tensor, "s dim"]:
        total = x.new_zeros(b, x.shape[1]).index_add(0, instance, self.each(x))
        count = torch.bincount(instance, minlength=b).clamp_(min=1)
        return (total / count.to(x.dtype).unsqueeze(1))[instance]


class InducedAttention(nn.Module):
    """Set attention among the sites of a graph through a few inducing points, at a cost linear in the sites.

    Some learned queries attend to all sites of a graph, and each site attends to what they found.

    Args:
        dim: numbers of a site. inducing: how many queries.

    Shapes: `(s, dim)`, numbers of graphs `(s,)` -> `(s, dim)`.

    Source: set transformer, arXiv 1810.00825, the induced set attention block, with one head.
    """

    def __init__(self, dim: int, inducing: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(inducing, dim) / math.sqrt(dim))
        self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.ask, self.found = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "s dim"], instance: Int64[Tensor, " s"], b: int) -> Float[Tensor, "s dim"]:
        logits = self.key(x) @ self.queries.t()
        where = instance.unsqueeze(1).expand_as(logits)
        top = logits.new_full((b, logits.shape[1]), -torch.inf)
        top = top.scatter_reduce(0, where, logits.detach(), "amax")
        weight = (logits - top[instance]).exp()
        total = weight.new_zeros(top.shape).index_add(0, instance, weight)
        share = weight / total[instance]
        spread = (share.unsqueeze(2) * self.value(x).unsqueeze(1)).flatten(1)
        seen = spread.new_zeros(b, spread.shape[1]).index_add(0, instance, spread).unflatten(1, (-1, x.shape[1]))
        match = (self.ask(x).unsqueeze(1) * self.found(seen)[instance]).sum(2) / math.sqrt(x.shape[1])
        y: Tensor = (match.softmax(1).unsqueeze(2) * seen[instance]).sum(1)
        return y


def _no_context(dim: int, inducing: int) -> None:
    return None


_CONTEXTS: dict[str, Callable[[int, int], nn.Module | None]] = {
    "none": _no_context,
    "mean": lambda dim, inducing: MeanContext(dim),
    "attention": InducedAttention,
}


class EdgeHypernetwork(nn.Module):
    """A multilayer perceptron that is applied to every site, alike, and may be told what the whole graph is like.

    It emits exactly 0 at first, so that every site starts at its wiring's offset; the layers before the last are
    random, so the first step already tells sites apart.

    Args:
        features: f, of a site. t, width: tuples of a site, and numbers of each.
        hidden: sizes of the hidden layers. activation: a factory of modules.
        context: `"none"`; `"mean"`, a mean over all sites of the graph; or `"attention"`, set attention among them
            through `inducing` points. It is added to the first hidden layer.

    Shapes: `(s, f)`, the graph of each site `(s,)`, the number of graphs -> `(s, t, width)`.
    """

    def __init__(
        self,
        features: int,
        t: int,
        width: int,
        *,
        hidden: Sequence[int] = (32,),
        activation: Activation = nn.ReLU,
        context: str = "none",
        inducing: int = 4,
    ):
        super().__init__()
        require(len(hidden) > 0 and min(hidden) >= 1, f"hidden={tuple(hidden)}; expected sizes of at least 1.")
        require(inducing >= 1, f"inducing={inducing}; expected at least 1 point.")
        self.t, self.width, self.features = t, width, features
        self.first = nn.Sequential(nn.Linear(features, hidden[0]), activation())
        self.context = choose("context of sites", context, _CONTEXTS)(hidden[0], inducing)
        layers: list[nn.Module] = []
        for before, after in zip(hidden, hidden[1:], strict=False):
            layers += [nn.Linear(before, after), activation()]
        self.rest, self.head = nn.Sequential(*layers), nn.Linear(hidden[-1], t * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The last layer back to 0; the others have their own."""
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, features: Float[Tensor, "s f"], instance: Int64[Tensor, " s"], b: int
    ) -> Float[Tensor, "s t width"]:
        x = self.first(features)
        if self.context is not None:
            x = x + self.context(x, instance, b)
        raw: Tensor = self.head(self.rest(x))
        return raw.unflatten(1, (self.t, self.width))


def make_hypernetwork(given: nn.Module | EdgeHypernetworkFactory, features: int, t: int, width: int) -> nn.Module:
    """A hypernetwork itself, or one made by its factory. Raises `UserError` where that makes something else."""
    made = given if isinstance(given, nn.Module) else given(features, t, width)
    require(isinstance(made, nn.Module), f"a hypernetwork of type {type(made).__name__}; expected an nn.Module.")
    return made


def emit(
    hypernetwork: nn.Module,
    features: Float[Tensor, "s f"],
    instance: Int64[Tensor, " s"],
    b: int,
    each: tuple[int, int],
) -> Float[Tensor, "s t width"]:
    """What a hypernetwork emits for every site; raises `UserError` unless these are (t, width) = `each` numbers."""
    raw: Tensor = hypernetwork(features, instance, b)
    expected = (len(features), *each)
    require(
        tuple(raw.shape) == expected,
        f"a hypernetwork that emits {tuple(raw.shape)}; expected (s, t, width) = {expected}.",
    )
    return raw


def reset_parts(module: nn.Module) -> None:
    """New parameters of a module, where its parts have `reset_parameters`."""
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
