"""Which edges a node graph may have, in which order its nodes are evaluated, and which of them are alive."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ash.checks import UserError
from ash.template import Admissible, SourceBeforeTarget, block_structure


class Feedforward(SourceBeforeTarget):
    """Entries (target, source) with source < target, none of them into an input node or out of an output node.

    Args:
        inputs: the first nodes. hidden: those in between. outputs: the last ones.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__(inputs + hidden + outputs)
        self.inputs, self.senders = inputs, inputs + hidden

    def count(self) -> int:
        hidden = self.senders - self.inputs
        return hidden * self.inputs + hidden * (hidden - 1) // 2 + (self.n - self.senders) * self.senders

    def contains(self, points: Tensor) -> Tensor:
        target, source = points.unbind(-1)
        return (source < target) & (target >= self.inputs) & (source < self.senders)

    def nearest(self, positions: Tensor, fixed: Sequence[int] = ()) -> Tensor:
        """Inside its bounds an entry stays; otherwise the nearest one has its source right before its target."""
        given = positions.round().long()
        target, source = given[..., 0].clamp(self.inputs, self.n - 1), given[..., 1].clamp(0, self.senders - 1)
        if 0 in fixed and 1 in fixed:
            return given
        if 0 in fixed:
            return torch.stack([given[..., 0], torch.minimum(source, given[..., 0] - 1).clamp(min=0)], -1)
        if 1 in fixed:
            later = torch.maximum(target, given[..., 1] + 1).clamp(max=self.n - 1)
            return torch.stack([later, given[..., 1]], -1)
        middle = ((positions.sum(-1) + 1) / 2).round().long().clamp(max(1, self.inputs), self.senders)
        between = torch.stack([middle, middle - 1], -1)
        return torch.where((source < target).unsqueeze(-1), torch.stack([target, source], -1), between)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        sources = torch.arange(self.n).clamp(max=self.senders)
        sources[: self.inputs] = 0
        target = torch.multinomial(sources.double(), count, replacement=True, generator=generator)
        uniform = torch.rand(count, dtype=torch.float64, generator=generator)
        return torch.stack([target, torch.minimum((uniform * sources[target]).long(), sources[target] - 1)], -1)

    def __repr__(self) -> str:
        return f"Feedforward({self.inputs}, {self.senders - self.inputs}, {self.n - self.senders})"


def static_edges(inputs: int, hidden: int | Sequence[int], outputs: int) -> Admissible:
    """The edges of a static graph: from a node to any later one, or, with blocks, from a block to any later one."""
    if isinstance(hidden, int):
        return Feedforward(inputs, hidden, outputs)
    return block_structure((inputs, *hidden, outputs))


def reached(edges: Tensor, start: Tensor) -> Tensor:
    """Nodes to which a path of at least one edge leads from those in `start` `(n,)`; boolean, `(*b, n)`.

    `edges` `(*b, k, 2)` are (target, source); the paths of an instance run over its own edges.
    """
    first = start.int().expand(*edges.shape[:-2], -1)
    target, source = edges.unbind(-1)
    found = torch.zeros_like(first)
    while True:
        more = found.scatter_reduce(-1, target, (found | first).gather(-1, source), "amax")
        if torch.equal(more, found):
            return found.bool()
        found = more


def levels(edges: Tensor, n: int, inputs: int) -> Tensor:
    """Length of the longest path from the input nodes to each node; −1 where no path leads, `(n,)`.

    `edges` `(k, 2)` are (target, source), without a cycle.
    """
    target, source = edges.unbind(-1)
    level = torch.full((n,), -1, device=edges.device)
    level[:inputs] = 0
    for _ in range(n + 1):
        before = level[source]
        longer = level.scatter_reduce(0, target, torch.where(before < 0, -1, before + 1), "amax")
        if torch.equal(longer, level):
            return level
        level = longer
    raise UserError("the graph has a cycle; expected edges from earlier nodes to later ones.")


def backward_edge(edge: tuple[int, int], edges: Tensor, where: str) -> UserError:
    """The error for an edge (target, source) that a static graph cannot have; names the cycle that it closes."""
    target, source = edge
    path = _path(edges, target, source)
    cycle = f"; it closes the cycle {' -> '.join(map(str, [*path, target]))}" if path else ""
    return UserError(
        f"the edge {source} -> {target} in a static node graph{cycle}; expected edges of {where}: from earlier nodes "
        "to later ones. Leave it out, give the wiring as a factory, or choose dynamics 'discrete' or 'continuous'."
    )


def _path(edges: Tensor, start: int, goal: int) -> list[int]:
    """Nodes on a shortest path from `start` to `goal`, both included; empty where there is none."""
    after: dict[int, list[int]] = {}
    for target, source in edges.reshape(-1, 2).tolist():
        after.setdefault(source, []).append(target)
    paths, seen = [[start]], {start}
    for path in paths:
        if path[-1] == goal:
            return path
        for node in after.get(path[-1], []):
            if node not in seen:
                seen.add(node)
                paths.append([*path, node])
    return []
