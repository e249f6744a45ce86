"""In which order a static node graph is evaluated, and with which part of its weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ash.layers.node_function import Nodes
from ash.layers.node_structure import backward_edge, levels, reached, static_edges
from ash.weight import SparseWeight

Part = Callable[[int, int], SparseWeight]


@dataclass(frozen=True)
class Sizes:
    """Input nodes come first, then hidden ones (in blocks, where these are given), then output nodes."""

    inputs: int
    hidden: int | tuple[int, ...]
    outputs: int

    @property
    def senders(self) -> int:
        """Nodes that are no outputs."""
        return self.inputs + (self.hidden if isinstance(self.hidden, int) else sum(self.hidden))

    @property
    def n(self) -> int:
        """Nodes."""
        return self.senders + self.outputs

    def are_inputs(self, device: torch.device) -> Tensor:
        """Which nodes are inputs, `(n,)`."""
        return torch.arange(self.n, device=device) < self.inputs


@dataclass(frozen=True)
class Plan:
    """The order of a static evaluation. Nodes are ranked so that those of a step stand side by side.

    Attributes:
        sizes: of the graph.
        order: `(n,)`, the nodes by rank; None where they stay as they are.
        steps: ranges of ranks, each evaluated at once after all earlier ones; the last one holds the outputs.
        edges: `(*b, k, 2)`, (target, source) by rank.
        values: `(*b, k)`, of these edges.
        live: `(*b, n)` by rank, the nodes that a path from the inputs reaches.
        all_live: whether that is every node of the steps but the outputs.
    """

    sizes: Sizes
    order: Tensor | None
    steps: Sequence[tuple[int, int]]
    edges: Tensor
    values: Tensor
    live: Tensor
    all_live: bool

    @property
    def silent(self) -> int:
        """Nodes that no edge reaches and that are ranked behind the inputs, before all steps: they send zero."""
        return self.steps[0][0] - self.sizes.inputs

    def nodes(self, start: int, stop: int, first: int) -> Nodes:
        """The nodes of a range of ranks, counted from `first`, the first one that has a function."""
        return slice(start - first, stop - first) if self.order is None else self.order[start:stop] - first

    def parts(self) -> Part:
        """The weight of a range of targets, by rank; its sources are the nodes before."""
        return self._instances if self.values.dim() == 2 else self._shared()

    def _shared(self) -> Part:
        target, place = self.edges[:, 0].sort(stable=True)
        source, values = self.edges[place, 1], self.values[place]
        bounds = [*(start for start, _ in self.steps), self.sizes.n]
        where = torch.searchsorted(target, torch.tensor(bounds, device=target.device)).tolist()
        cuts = dict(zip(bounds, where, strict=True))

        def part(start: int, stop: int) -> SparseWeight:
            some = slice(cuts[start], cuts[stop])
            indices = torch.stack([target[some] - start, source[some]], -1)
            return SparseWeight(indices, values[some], (stop - start,), (start,))

        return part

    def _instances(self, start: int, stop: int) -> SparseWeight:
        target, source = self.edges.unbind(-1)
        here = (target >= start) & (target < stop)
        indices = torch.stack([torch.where(here, target - start, 0), torch.where(here, source, 0)], -1)
        return SparseWeight(indices, self.values * here, (stop - start,), (start,))

    def candidates(self, tensor: Tensor) -> Sequence[Tensor]:
        """Of an (n, n) tensor the targets of every step, `(stop − start, senders)` each, by rank."""
        senders = self.sizes.senders
        ranked = tensor[:, :senders] if self.order is None else tensor[self.order][:, self.order[:senders]]
        first = self.steps[0][0]
        return ranked[first:].split([stop - start for start, stop in self.steps])

    def usable(self, start: int, stop: int) -> Tensor | None:
        """Which edges into a range of ranks may exist, `(stop − start, senders)`; None: all from ranks before."""
        if self.order is None:
            return None
        return self.order[: self.sizes.senders] < self.order[start:stop].unsqueeze(-1)


def plan_of(sizes: Sizes, weight: SparseWeight) -> Plan:
    """The plan for a draw of the weight. Raises `UserError`, naming it, for an edge that no static graph can have.

    Entries of value 0 at places where no edge may be, as sampling gives them, are left out.
    """
    edges, values = usable_edges(sizes, weight)
    live = reached(edges, sizes.are_inputs(edges.device))
    order, steps = _by_level(sizes, edges) if isinstance(sizes.hidden, int) else (None, _by_block(sizes))
    if order is not None:
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        edges, live = rank[edges], live[..., order]
    all_live = bool(live[..., steps[0][0] : sizes.senders].all())
    return Plan(sizes, order, steps, edges, values, live, all_live)


def usable_edges(sizes: Sizes, weight: SparseWeight) -> tuple[Tensor, Tensor]:
    """Edges `(*b, k, 2)` of a static graph and their values; see `plan_of`."""
    structure = static_edges(sizes.inputs, sizes.hidden, sizes.outputs)
    edges, values = weight.indices, weight.values if weight.candidate is None else weight.values.detach()
    usable = structure.contains(edges)
    if bool(usable.all()):
        return edges, values
    bad = (~usable & (values != 0)).nonzero()
    if len(bad):
        target, source = edges[tuple(bad[0])].tolist()
        own = edges[int(bad[0, 0])] if weight.per_instance else edges
        raise backward_edge((target, source), own, repr(structure))
    if not weight.per_instance:
        return edges[usable], values[usable]
    return edges * usable.unsqueeze(-1), values  # from the first input to itself, which nothing reads


def _by_block(sizes: Sizes) -> list[tuple[int, int]]:
    assert not isinstance(sizes.hidden, int)
    ends = torch.tensor([sizes.inputs, *sizes.hidden, sizes.outputs]).cumsum(0).tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))


def _by_level(sizes: Sizes, edges: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Nodes by the length of the longest path to them; those that nothing reaches come behind the inputs."""
    flat = edges.reshape(-1, 2)
    level = levels(flat[flat[:, 0] != flat[:, 1]], sizes.n, sizes.inputs).clamp(min=0)
    last = int(level[: sizes.senders].max()) + 1
    level[sizes.senders :] = last
    counts = torch.bincount(level, minlength=last + 1).tolist()
    ends = torch.tensor(counts).cumsum(0).tolist()
    return level.sort(stable=True).indices, list(zip(ends[:-1], ends[1:], strict=True))
