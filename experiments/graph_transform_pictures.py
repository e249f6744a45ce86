"""Pictures of a transform that was learned: graphs, matrices, scores over training, and where tuples point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ash import EdgeLayer, EdgeWiring, PositionWiring, SparseBatch
from ash.plot import adjacency_pair, curves, graph_pair, image_grid, save
from ash.sites import Sites
from experiments.graph_targets import new_numbers
from experiments.graph_transform_data import Data
from experiments.runs import Run

SHOWN = 5  # moments of the training
NAMES = "uvw"
KINDS = ("returns: w = u", "closes a triangle", "reaches a friend of a friend")


@torch.no_grad()
def look(layer: EdgeLayer, x: SparseBatch) -> dict[str, Tensor]:
    """Where the rounded tuples of a layer point in a graph, and what they are worth.

    `pointed` `(t, l, l)`: share of the sites in which each tuple points at each pair of candidates. `values` `(3,)`,
    where sites are paths: the mean value of those that return, close a triangle, and reach a friend of a friend.
    Of a `PositionWiring`, `places` `(n,)`: the number that each node is given.
    """
    wiring = layer.wiring
    if not isinstance(wiring, EdgeWiring):
        assert isinstance(wiring, PositionWiring)
        return {"places": wiring.table.rounded_indices()[:, 0].cpu()}
    tuples, length, t = wiring.tuples(x), wiring.length, wiring.t
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
    layer: EdgeLayer, data: Data, curve: Sequence[dict[str, float]], seen: Sequence[dict[str, Tensor]], run: Run
) -> None:
    """All pictures of a run."""
    layer.eval()
    _draw_graphs(layer, data, run)
    steps = [point["step"] for point in curve]
    lines = {"rounded": "f1", "sampled": "f1_sampled"}
    series = {name: (steps, [point[key] for point in curve]) for name, key in lines.items()}
    curves(series, run.path("f1.png"), ylabel="F1 of validation graphs", xlabel="batch")
    # More of the moments that are shown lie early on, where most of it moves.
    chosen = sorted({round((len(seen) - 1) * (i / (SHOWN - 1)) ** 2) for i in range(SHOWN)})
    moments = {int(steps[i]): seen[i] for i in chosen}
    if "places" in seen[0]:
        _draw_places({step: each["places"] for step, each in moments.items()}, run)
    else:
        _draw_pointers({step: each["pointed"] for step, each in moments.items()}, run)
    if "values" in seen[0]:
        values = {kind: (steps, [float(each["values"][i]) for each in seen]) for i, kind in enumerate(KINDS)}
        curves(values, run.path("values.png"), ylabel="mean value of a path", xlabel="batch")


def _draw_graphs(layer: EdgeLayer, data: Data, run: Run) -> None:
    """A test graph and the real ones, beside their transforms and what was predicted of them."""
    shown = {"pair": data.test} | {f"real_{name}": pairs for name, pairs in data.real.items()}
    directed = bool((data.test.x[0].permute(1, 0).coalesce().ids != data.test.x[0].ids).any())
    for name, (graphs, answers) in shown.items():
        if not run.options.quick or graphs[0].entries < 100:
            x, y = graphs[0], answers[0]
            graph_pair(x, y, layer(x), run.path(f"{name}.png"), directed=directed)
    x, y = data.test.x[0], data.test.y[0]
    adjacency_pair(y, layer(x), run.path("adjacency.png"), source=x)


def _draw_pointers(moments: Mapping[int, Tensor], run: Run) -> None:
    """For each tuple, at several batches: the share of the sites in which it points at each pair of candidates."""
    t, length = next(iter(moments.values())).shape[:2]
    tuples = [f", tuple {j + 1}" if t > 1 else "" for j in range(t)]
    panels = {f"batch {step}{tuples[j]}": each[j] for j in range(t) for step, each in moments.items()}
    figure = image_grid(panels, limits=(0, 1), label="share of the sites")
    places, names = range(length), list(NAMES[:length])
    for ax in figure.axes[:-1]:
        ax.set(xticks=places, yticks=places, xticklabels=names, yticklabels=names, xlabel="to", ylabel="from")
    save(figure, run.path("pointers.png"))


def _draw_places(moments: Mapping[int, Tensor], run: Run) -> None:
    """At several batches, which number each node is given, against the one that it should have."""
    panels = {}
    for step, places in moments.items():
        wanted = new_numbers(len(places), run.options.seed)
        image = torch.zeros(len(places), len(places))
        image[wanted, places] = 1
        panels[f"batch {step}: {int((wanted == places).sum())} of {len(places)}"] = image
    figure = image_grid(panels, limits=(0, 1), label="node")
    for ax in figure.axes[:-1]:
        ax.set(xlabel="number that is given", ylabel="number that is right")
    save(figure, run.path("pointers.png"))
