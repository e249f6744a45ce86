"""Pictures of a transform that was learned: graphs, matrices, scores over training, and where tuples point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ash import SparseBatch
from ash.plot import adjacency_pair, curves, graph_pair, image_grid, save
from ash.sites import Sites
from experiments.graph_transform_data import Data
from experiments.graph_transform_nets import GraphNet
from experiments.runs import Run

SHOWN = 5  # moments of the training, more of them early on
NAMES = "uvw"
KINDS = ("returns: w = u", "closes a triangle", "reaches a friend of a friend")


@torch.no_grad()
def look(net: GraphNet, x: SparseBatch) -> dict[str, Tensor]:
    """Where the rounded tuples of a graph point, and what they are worth.

    `pointed` `(t, l, l)`: share of the sites in which each tuple points at each pair of candidates. `values` `(3,)`,
    where sites are paths: the mean value of those that return, close a triangle, and reach a friend of a friend.
    """
    wiring = net.layer.wiring
    tuples, length, t = wiring.tuples(x, net.nodes(x)), wiring.length, wiring.t
    places = tuples.rounded((length, length))
    ids = (torch.arange(t, device=places.device) * length + places[..., 0]) * length + places[..., 1]
    counts = torch.bincount(ids.flatten(), minlength=t * length**2).reshape(t, length, length)
    found = {"pointed": counts.float().cpu() / max(1, len(places))}
    if wiring.sites == "path":
        found["values"] = _values_of_kinds(wiring.find(x), tuples.values[:, 0], x)
    return found


def _values_of_kinds(sites: Sites, values: Tensor, x: SparseBatch) -> Float[Tensor, " 3"]:
    """The mean value of paths of each of `KINDS`; NaN where there are none."""
    u, _, w = sites.candidates.unbind(1)
    linked = torch.isin(x.ids_of(x.instance[sites.entry], torch.stack([u, w], 1)), x.ids)
    kinds = (w == u, (w != u) & linked, (w != u) & ~linked)
    return torch.stack([values[kind].mean() for kind in kinds]).cpu()


@torch.no_grad()
def draw(
    net: GraphNet, data: Data, curve: Sequence[dict[str, float]], seen: Sequence[dict[str, Tensor]], run: Run
) -> None:
    """All pictures of a run."""
    net.eval()
    directed = net.layer.wiring.sites == "entry"
    x, y = data.test.x[0], data.test.y[0]
    graph_pair(x, y, net(x), run.path("pair.png"), directed=directed)
    adjacency_pair(y, net(x), run.path("adjacency.png"), source=x)
    for name, (graphs, answers) in data.real.items():
        given, wanted = graphs[0], answers[0]
        if run.options.quick and name != "florentine":
            continue
        graph_pair(given, wanted, net(given), run.path(f"real_{name}.png"), directed=directed)
    steps = [point["step"] for point in curve]
    lines = {"rounded": "f1", "sampled": "f1_sampled"}
    series = {name: (steps, [point[key] for point in curve]) for name, key in lines.items()}
    curves(series, run.path("f1.png"), ylabel="F1 of validation graphs", xlabel="batch")
    _draw_pointers(steps, [each["pointed"] for each in seen], run)
    if "values" in seen[0]:
        values = {kind: (steps, [float(each["values"][i]) for each in seen]) for i, kind in enumerate(KINDS)}
        curves(values, run.path("values.png"), ylabel="mean value of a path", xlabel="batch")


def _draw_pointers(steps: Sequence[float], moments: Sequence[Tensor], run: Run) -> None:
    """For each tuple, at several batches: the share of the sites in which it points at each pair of candidates."""
    chosen = sorted({round((len(moments) - 1) * (i / (SHOWN - 1)) ** 2) for i in range(SHOWN)})
    panels = {
        f"batch {int(steps[i])}" + (f", tuple {j + 1}" if len(moments[i]) > 1 else ""): moments[i][j]
        for j in range(len(moments[0]))
        for i in chosen
    }
    figure = image_grid(panels, limits=(0, 1), label="share of the sites")
    places = range(moments[0].shape[-1])
    for ax in figure.axes[:-1]:
        ax.set(xticks=places, yticks=places, xticklabels=list(NAMES[: len(places)]))
        ax.set_yticklabels(list(NAMES[: len(places)]))
        ax.set(xlabel="to", ylabel="from")
    save(figure, run.path("pointers.png"))
