"""How a node graph is evaluated: once through its nodes in order, in steps of time, or as a differential equation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ash.checks import optional, positive, require
from ash.contract import contract
from ash.growth import DenseGradient
from ash.layers.node_function import NodeFunction
from ash.layers.node_plan import Sizes, plan_of
from ash.layers.node_structure import reached, static_edges
from ash.template import Admissible, Everything
from ash.weight import SparseWeight
from ash.wirings.base import Wiring

SPARSE_BELOW = 0.1
"""Density below which CSR is faster than a dense product. Measured on one core, forward and backward, for 100 × 40
nodes at 4,900 positions up to 800 × 800 at 4,096: at a density of 0.05 CSR takes 0.65 to 1 of the dense time, at 0.1
0.8 to 1.4, at 0.3 from 1.4 to 3.4."""
SMALL = 1 << 14
"""Entries of a weight up to which it is multiplied densely: 100 × 100 at 256 positions takes a third of CSR's time."""
LARGE_ON_GPU = 1 << 24
"""Entries of a weight up to which a GPU multiplies it densely whatever its density."""


class EveryEdge(torch.autograd.Function):
    """y as it is; backward ⟨∂L/∂y_v, Z_u⟩ for every pair (v, u) that may be an edge: "to but not through".

    `sent` holds Z `(b, sources, *space)` by the time of the backward pass: in a static graph nodes that come later
    may be sources too, of edges that do not exist yet. `usable` None: the first `width` sources.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, candidates: Tensor, sent: list[Tensor], usable: Tensor | None, width: int) -> Any:
        ctx.sent, ctx.usable, ctx.width, ctx.like = sent, usable, width, candidates
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        z, g = ctx.sent[0][:, : ctx.width], grad
        if g.dim() > 2:
            g, z = (t.transpose(0, 1).flatten(1).t() for t in (g, z))
        whole = F.pad(g.t() @ z, (0, ctx.like.shape[1] - ctx.width))
        if ctx.usable is not None:
            whole = whole * ctx.usable
        return grad, whole.to(ctx.like.dtype), None, None, None


def candidates_of(wiring: Wiring, weight: SparseWeight) -> Tensor | None:
    """An (n, n) tensor that is to receive the gradient by every pair of nodes; None where nobody wants it.

    The candidates of the weight; or, where the wiring wants to see the gradient, a tensor that passes it on.
    """
    if weight.per_instance or not torch.is_grad_enabled():
        return None
    candidate = weight.candidate
    if not wiring.wants_factors:
        return candidate if candidate is not None and candidate.requires_grad else None
    if candidate is None or not candidate.requires_grad:
        like = weight.values
        watched = torch.zeros(weight.shape, dtype=like.dtype, device=like.device, requires_grad=True)
    else:
        watched = candidate.view_as(candidate)
    watched.register_hook(lambda g: wiring.observe(DenseGradient(g, 1)))
    return watched


def multiply(weight: SparseWeight, x: Tensor, backend: str) -> Tensor:
    """W · x, `(b, sources, *space)` -> `(b, targets, *space)`, by CSR or densely, whichever is faster."""
    if backend != "auto" or weight.per_instance:
        return contract(weight, x, backend)
    entries, whole = weight.entries, weight.shape[0] * weight.shape[1]
    dense = entries > SPARSE_BELOW * whole or whole <= (LARGE_ON_GPU if x.is_cuda else SMALL)
    return contract(weight, x, "dense" if dense else "torch")


def mask(x: Tensor, keep: Tensor) -> Tensor:
    """x `(b, m, *space)` with the channels that `keep` `(m,)` or `(b, m)` leaves out set to zero."""
    wide = keep.expand(x.shape[0], -1)
    return x * wide.reshape(*wide.shape, *[1] * (x.dim() - 2))


class Dynamics(ABC):
    """How the nodes of a graph are evaluated. The weight is the same draw throughout."""

    name: ClassVar[str]

    @property
    def times(self) -> int:
        """How often each edge and node is evaluated, which `ash.count` counts."""
        return 1

    @abstractmethod
    def admissible(self, sizes: Sizes) -> Admissible:
        """Required. The edges that can be used."""

    @abstractmethod
    def functional(self, sizes: Sizes, entry: bool) -> tuple[int, int]:
        """Required. The first node that has a function, and the one after the last; `entry` serves the inputs."""

    @abstractmethod
    def __call__(
        self, sizes: Sizes, function: NodeFunction, weight: SparseWeight, x: Tensor, how: Evaluation
    ) -> Tensor:
        """Required. What the input nodes hold or send, `(b, inputs, *space)` -> `(b, outputs, *space)`."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation needs besides.

    Attributes:
        backend: of products. candidates: `(n, n)`, what is to receive the gradient by every edge, if anything is.
        first: the first node that has a function.
    """

    backend: str = "auto"
    candidates: Tensor | None = None
    first: int = 0


@dataclass(frozen=True)
class Static(Dynamics):
    """Every node once, sources before targets: block by block, or in the topological levels of the edges drawn.

    Z = f(sum of inputs); output nodes give their sums. Nodes that no path from the inputs reaches send zero.
    Levels are evaluated one after the other: blocks are faster where the graph is large.
    """

    name: ClassVar[str] = "static"

    def admissible(self, sizes: Sizes) -> Admissible:
        return static_edges(sizes.inputs, sizes.hidden, sizes.outputs)

    def functional(self, sizes: Sizes, entry: bool) -> tuple[int, int]:
        return (sizes.inputs if entry else 0), sizes.senders

    def __call__(
        self, sizes: Sizes, function: NodeFunction, weight: SparseWeight, x: Tensor, how: Evaluation
    ) -> Tensor:
        plan = plan_of(sizes, weight)
        part = plan.parts()
        wanted = None if how.candidates is None else plan.candidates(how.candidates)
        sent = torch.cat([x, x.new_zeros(x.shape[0], plan.silent, *x.shape[2:])], 1) if plan.silent else x
        everything: list[Tensor] = []
        for step, (start, stop) in enumerate(plan.steps):
            total = multiply(part(start, stop), sent, how.backend)
            if wanted is not None:
                usable = plan.usable(start, stop)
                width = start if usable is None else sizes.senders
                total = EveryEdge.apply(total, wanted[step], everything, usable, width)
            if stop == sizes.n:
                break
            message = function(total, plan.nodes(start, stop, how.first))
            sent = torch.cat([sent, message if plan.all_live else mask(message, plan.live[..., start:stop])], 1)
        everything.append(sent.detach())
        return total


class InTime(Dynamics):
    """Nodes that hold a state: z = (x, 0) at first, and then led by receive(W · emit(z)).

    Every edge can be used, also into input nodes, whose input is given once, and out of output nodes. The state
    of a node that no path from the inputs reaches is zero, that of such an input node after the start.
    """

    def admissible(self, sizes: Sizes) -> Admissible:
        return Everything((sizes.n, sizes.n))

    def functional(self, sizes: Sizes, entry: bool) -> tuple[int, int]:
        return 0, sizes.n

    def __call__(
        self, sizes: Sizes, function: NodeFunction, weight: SparseWeight, x: Tensor, how: Evaluation
    ) -> Tensor:
        inputs = sizes.are_inputs(x.device)
        live = reached(weight.indices, inputs)
        sending = live | inputs
        all_live, all_sending = bool(live.all()), bool(sending.all())
        nodes = slice(0, sizes.n)
        if weight.candidate is not None:
            weight = SparseWeight(weight.indices, weight.values.detach(), weight.out_shape, weight.in_shape)

        def function_of(z: Tensor) -> Tensor:
            message = function.emit(z, nodes)
            message = message if all_sending else mask(message, sending)
            total = multiply(weight, message, how.backend)
            if how.candidates is not None:
                total = EveryEdge.apply(total, how.candidates, [message.detach()], None, sizes.n)
            state = function.receive(total, nodes)
            return state if all_live else mask(state, live)

        start = torch.cat([x, x.new_zeros(x.shape[0], sizes.n - sizes.inputs, *x.shape[2:])], 1)
        return self.run(function_of, start)[:, sizes.senders :]

    @abstractmethod
    def run(self, function_of: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """Required. From the first state `(b, n, *space)` to the last one."""


@dataclass(frozen=True)
class Discrete(InTime):
    """`steps` synchronous steps z ← receive(W · emit(z)), the weights shared over time."""

    name: ClassVar[str] = "discrete"
    steps: int = 5

    def __post_init__(self) -> None:
        positive("steps", self.steps)

    @property
    def times(self) -> int:
        return self.steps

    def run(self, function_of: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        for _ in range(self.steps):
            z = function_of(z)
        return z


@dataclass(frozen=True)
class Continuous(InTime):
    """dz/dt = receive(W · emit(z)) for t from 0 to `time`, by torchdiffeq's `odeint`.

    Args:
        method, rtol, atol, options: as `odeint` takes them. The solver chooses its steps by the batch as a whole,
            also in evaluation, so that an output depends a little, within the tolerances, on the batch around it.

    `ash.count` counts one evaluation of the function; how many the solver makes depends on the data.
    """

    name: ClassVar[str] = "continuous"
    time: float = 1.0
    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("time", "rtol", "atol"):
            positive(name, getattr(self, name))

    def run(self, function_of: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        torchdiffeq = optional("torchdiffeq", "pip install torchdiffeq")
        times = torch.tensor([0.0, self.time], dtype=z.dtype, device=z.device)
        how = {"method": self.method, "rtol": self.rtol, "atol": self.atol, "options": self.options or None}
        try:
            states: Tensor = torchdiffeq.odeint(lambda _, state: function_of(state), z, times, **how)
        except ValueError as problem:
            require("Invalid method" not in str(problem), f"method={self.method!r}: {problem}")
            raise
        return states[-1]


DYNAMICS: dict[str, Callable[[], Dynamics]] = {"static": Static, "discrete": Discrete, "continuous": Continuous}


def hidden_sizes(hidden: int | Sequence[int]) -> int | tuple[int, ...]:
    """The number of hidden nodes, or the sizes of their blocks."""
    if isinstance(hidden, int):
        positive("hidden", hidden, zero=True)
        return hidden
    sizes = tuple(hidden)
    require(all(size >= 1 for size in sizes), f"hidden={sizes}; expected blocks of at least one node.")
    return sizes
