"""`NodeGraph`: a graph of nodes that are channels, wired by any wiring."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ash.backends import get_backend
from ash.checks import UserError, check_finite, choose, require
from ash.layers.host import WiringFactory, make_wiring
from ash.layers.node_dynamics import DYNAMICS, Dynamics, Evaluation, Static, candidates_of, hidden_sizes
from ash.layers.node_function import NodeFunction, make_function
from ash.layers.node_plan import Sizes, plan_of, usable_edges
from ash.layers.node_structure import reached
from ash.weight import SparseWeight
from ash.wirings.base import Wiring
from ash.wirings.frozen import FrozenWiring


class NodeGraph(nn.Module):
    """Nodes are channels: each sums what its sources send, one scalar per edge, and applies a function of its own.

    Nodes are numbered: `inputs` first, then hidden ones, `outputs` last. The weight is (n,) × (n,), target × source,
    and has no bias.

    Args:
        inputs, outputs: how many nodes take the input and give the output.
        hidden: how many there are in between; or sizes of blocks, where edges go from a block to later ones only.
        wiring: a `Wiring` of shape (n,) × (n,), or a factory, which is called with `admissible`, the edges that the
            dynamics can use: so k counts usable edges only. A `GaussianWiring` of density 0.1 by default.
        dynamics: `"static"`, `"discrete"`, `"continuous"`, or a `Static`, `Discrete`, `Continuous` with options.
        function: what nodes do: the name of a `ChannelFunction`, a `NodeFunction`, a factory called with the number of
            nodes that have a function (all but a static graph's outputs, and its inputs where there is an `entry`), or
            a module without parameters, such as `nn.ReLU()`.
        norm: `"instance"` or `"batch"`, for a function by name.
        entry: a module in place of the input nodes' own function, from the graph's input to what these nodes send (in
            time: to their first state), `(b, inputs, *space)`: a convolution with a stride; `nn.Identity()`.
        backend: how W · Z is computed, see `contract`; `"auto"` chooses by density and size.

    Shapes: `(b, inputs, *space)` -> `(b, outputs, *space)`; space is (height, width), or () for vectors.

    An output node of a static graph gives the sum of its inputs, in time its state. A node that no path from an
    input node reaches sends zero. A wiring that asks for the gradient gets it for every edge that can be used; so do
    candidates ("to but not through").

    Raises `UserError` for shapes that do not fit, a static graph with an edge that goes backwards (a cycle), input
    that is NaN or infinite (`graph.check_input = False` leaves that out), and where torchdiffeq is missing.

    Source: arXiv 1906.00586, sections 2 and 3. Departures: unusable edges do not compete for k, output nodes have no
    outgoing edges in a static graph, a node that nothing reaches is zero and not the norm's shift.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int | Sequence[int],
        outputs: int,
        *,
        wiring: Wiring | WiringFactory | None = None,
        dynamics: str | Dynamics = "static",
        function: str | nn.Module | Callable[[int], NodeFunction] = "norm_relu_conv",
        norm: str = "instance",
        entry: nn.Module | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        require(inputs >= 1 and outputs >= 1, f"{inputs} inputs and {outputs} outputs; expected at least one of each.")
        self.sizes = Sizes(inputs, hidden_sizes(hidden), outputs)
        self.dynamics = choose("dynamics", dynamics, DYNAMICS)() if isinstance(dynamics, str) else dynamics
        self.backend, self.check_input = backend, True
        if backend != "auto":
            get_backend(backend)
        n = self.sizes.n
        allowed = self.dynamics.admissible(self.sizes)
        self.wiring = make_wiring(wiring, (n,), (n,), admissible=allowed, device=device, dtype=dtype)
        self.functional = self.dynamics.functional(self.sizes, entry is not None)
        made = make_function(function, self.functional[1] - self.functional[0], norm)
        self.function = made.to(device=device, dtype=dtype)
        self.entry = entry if entry is None else entry.to(device=device, dtype=dtype)
        self._check_edges()

    def _check_edges(self) -> None:
        """A wiring that was not made for this graph may have edges that it cannot use."""
        with torch.no_grad():
            weight = self.wiring.rounded()
        if weight is not None and isinstance(self.dynamics, Static):
            plan_of(self.sizes, weight)

    @property
    def nodes(self) -> int:
        """n, the number of nodes."""
        return self.sizes.n

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`(b, inputs, *space)` -> `(b, outputs, *space)`; one draw of the weight.

        An adaptive wiring sees `condition` `(b, *condition_shape)`, or x itself where none is given.
        """
        if self.check_input:
            check_finite(x, self)
        first = self._enter(x)
        weight = self.wiring(x if condition is None else condition)
        how = Evaluation(self.backend, candidates_of(self.wiring, weight), self.functional[0])
        return self.dynamics(self.sizes, self.function, weight, first, how)

    def _enter(self, x: Tensor) -> Tensor:
        """What the input nodes send; in time, what they hold at first."""
        first: Tensor = x if self.entry is None else self.entry(x)
        expected = self.sizes.inputs
        if first.dim() < 2 or first.shape[1] != expected:
            what = "an input" if self.entry is None else f"what {type(self.entry).__name__} makes of the input,"
            raise UserError(f"{what} of shape {tuple(first.shape)} for NodeGraph({self.extra_repr()}); "
                            f"expected (b, {expected}, *space).")  # fmt: skip
        self.function.check(tuple(first.shape[2:]))
        static = isinstance(self.dynamics, Static)
        return self.function(first, slice(0, expected)) if static and self.entry is None else first

    @torch.no_grad()
    def read_nodes(self) -> Tensor:
        """Which nodes have an outgoing edge in evaluation, `(n,)`: the others need not be evaluated.

        Every one, where the wiring depends on the input.
        """
        weight = self.wiring.rounded()
        read = torch.zeros(self.nodes, dtype=torch.bool)
        read[slice(None) if weight is None else weight.indices[:, 1].cpu()] = True
        return read

    def frozen(self) -> FrozenNodeGraph:
        """This graph in evaluation, with its live nodes and edges alone: cost and storage follow the edges.

        Raises `UserError` where the wiring depends on the input.
        """
        return FrozenNodeGraph(self)

    def extra_repr(self) -> str:
        s = self.sizes
        return f"inputs={s.inputs}, hidden={s.hidden}, outputs={s.outputs}, dynamics={self.dynamics}"


class FrozenNodeGraph(nn.Module):
    """A node graph whose edges are fixed, without the nodes and edges that have no part in its outputs.

    A node has a part where a path from an input node leads to it and one from it to an output node. Same shapes and
    the same outputs as the graph in evaluation, up to the order of sums.

    Attributes:
        read: which of the input nodes have a part. given: which of the output nodes; the others give zero.
        graph: the `NodeGraph` of the remaining nodes; None where none remains.
    """

    read: Tensor
    given: Tensor

    def __init__(self, whole: NodeGraph):
        super().__init__()
        weight = whole.wiring.rounded()
        if weight is None:
            raise UserError(f"{type(whole.wiring).__name__} makes a weight for every input; expected one that is fixed "
                            "in evaluation, so that it can be frozen.")  # fmt: skip
        sizes = whole.sizes
        edges, values, alive = _live_part(sizes, weight, isinstance(whole.dynamics, Static))
        ids = alive.nonzero().squeeze(-1)
        self.outputs, self.entry = sizes.outputs, copy.deepcopy(whole.entry)
        self.register_buffer("read", ids[ids < sizes.inputs])
        self.register_buffer("given", ids[ids >= sizes.senders] - sizes.senders)
        self.graph = _smaller(whole, edges, values, ids) if len(self.given) else None
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, inputs, *space)` -> `(b, outputs, *space)`."""
        first = x if self.entry is None else self.entry(x)
        if self.graph is None:
            return first.new_zeros(first.shape[0], self.outputs, *first.shape[2:])
        y: Tensor = self.graph(first if len(self.read) == first.shape[1] else first[:, self.read])
        if len(self.given) == self.outputs:
            return y
        return y.new_zeros(y.shape[0], self.outputs, *y.shape[2:]).index_copy(1, self.given, y)


class _LivePart(NodeGraph):
    """The nodes of a frozen graph."""

    def frozen(self) -> NodeGraph:  # type: ignore[override]
        """This graph, which is frozen."""
        return self


def _live_part(sizes: Sizes, weight: SparseWeight, static: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The edges `(k, 2)` between nodes that have a part in the outputs, their values, and which nodes these are."""
    whole = weight.coalesce()
    edges, values = usable_edges(sizes, whole) if static else (whole.indices, whole.values)
    inputs = sizes.are_inputs(edges.device)
    outputs = torch.arange(sizes.n, device=edges.device) >= sizes.senders
    live = reached(edges, inputs)
    alive = ((live | inputs) & reached(edges.flip(-1), outputs)) | (live & outputs)
    kept = alive[edges].all(-1)
    return edges[kept], values[kept].detach(), alive


def _smaller(whole: NodeGraph, edges: Tensor, values: Tensor, ids: Tensor) -> NodeGraph:
    """The graph of the nodes `ids` alone."""
    sizes, m, (first, last) = whole.sizes, len(ids), whole.functional
    number = torch.full((sizes.n,), -1, device=ids.device)
    number[ids] = torch.arange(m, device=ids.device)
    weight = SparseWeight(number[edges], values, (m,), (m,))
    ends = torch.tensor([sizes.inputs, *_blocks(sizes), sizes.outputs]).cumsum(0).tolist()
    counts = [int(((ids >= start) & (ids < end)).sum()) for start, end in zip([0, *ends], ends, strict=False)]
    hidden = [count for count in counts[1:-1] if count]
    graph = _LivePart(
        counts[0],
        sum(hidden) if isinstance(sizes.hidden, int) else hidden,
        counts[-1],
        wiring=FrozenWiring(weight),
        dynamics=whole.dynamics,
        function=whole.function.select(ids[(ids >= first) & (ids < last)] - first),
        entry=None if whole.entry is None else nn.Identity(),
        backend=whole.backend,
    )
    graph.check_input = whole.check_input
    return graph


def _blocks(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.hidden,) if isinstance(sizes.hidden, int) else sizes.hidden
