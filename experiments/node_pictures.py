"""Pictures of a node graph's wiring while it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ash import NodeGraph
from ash.plot import EdgeTrack, Frame, adjacency, animate, curves, node_graph, row
from experiments.runs import Run

PANELS = 6
DRAWN = 300
"""Nodes up to which the graph is drawn as dots and lines."""


def draw(run: Run, graph: NodeGraph, frames: Sequence[tuple[int, Tensor]], history: list[dict[str, float]]) -> None:
    """accuracy.png, moved.png, wiring.png, wiring.gif, adjacency.png and, of a small graph, graph.png; the edges for
    the page."""
    steps = [each["step"] for each in history]
    names = {"training": "train_accuracy", "test": "test_accuracy"}
    series = {title: (steps, [each[name] for each in history]) for title, name in names.items()}
    curves(series, run.path("accuracy.png"), ylabel="accuracy")
    shares = {"of the first edges, still there": frames[0][1], "of the last edges, there already": frames[-1][1]}
    lines = {title: ([step for step, _ in frames], share(edges, frames)) for title, edges in shares.items()}
    curves(lines, run.path("moved.png"), ylabel="share")
    every = changes(frames, graph.nodes)
    title = "step {step:,}: new orange, gone blue"
    places = torch.linspace(0, len(every) - 1, min(PANELS, len(every))).round().int().tolist()
    some = changes([frames[place] for place in places], graph.nodes)
    row(some, run.path("wiring.png"), value_limit=1.0)
    animate(every, run.path("wiring.gif"), fps=3, value_limit=1.0, title=title)
    n = graph.nodes
    entries = [(step, torch.stack([ids // n, ids % n], 1)) for step, ids in frames]
    run.show("edges of the graph", EdgeTrack(entries, (n, n)))
    weight = graph.wiring.rounded()
    assert weight is not None
    dense = weight.to_dense().detach()
    s = graph.sizes
    blocks = [s.inputs, *(s.hidden if isinstance(s.hidden, tuple) else (s.hidden,)), s.outputs]
    adjacency(dense, run.path("adjacency.png"), blocks=blocks)
    if graph.nodes <= DRAWN:
        inputs, outputs = range(s.inputs), range(s.senders, s.n)
        node_graph(dense, run.path("graph.png"), blocks=blocks, inputs=inputs, outputs=outputs)


def share(edges: Tensor, frames: Sequence[tuple[int, Tensor]]) -> list[float]:
    """Which share of the edges is there in each frame."""
    return [float(torch.isin(edges, now).double().mean()) for _, now in frames]


def changes(frames: Sequence[tuple[int, Tensor]], n: int) -> list[Frame]:
    """Each frame's edges, and those of the one before that are gone: values 1 for new edges, 0 for old, −1 for gone."""
    found, before = [], frames[0][1]
    for step, now in frames:
        gone = before[~torch.isin(before, now)]
        values = torch.cat([(~torch.isin(now, before)).float(), -torch.ones(len(gone))])
        ids = torch.cat([now, gone])
        means = torch.stack([ids // n, ids % n], -1).double()
        found.append(Frame(step, means, torch.zeros_like(means), values, None, (n, n)))
        before = now
    return found
