"""What the experiment `sparsity` tells: rows, their table and pictures, and a first layer's entries over training.

One net of every wiring, its first density and seed, is watched.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ash.plot import EdgeTrack, curves, image_grid, save
from experiments.runs import Run
from experiments.sparsity_nets import Task, wirings

Look = tuple[int, Tensor, Tensor]
"""A step, the entries `(n, 2)` (unit, pixel) of a first layer after it, and their values `(n,)`."""


@dataclass(frozen=True)
class Cell:
    """One net: its wiring, density and seed."""

    wiring: str
    density: float
    seed: int

    @property
    def key(self) -> str:
        """A name for it."""
        return f"{self.wiring} {self.density:g} {self.seed}"


def grouped(figures: dict[Cell, dict[str, Any]]) -> Iterable[tuple[tuple[str, float], list[dict[str, Any]]]]:
    """The figures of all seeds together, by wiring and density."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for cell, found in figures.items():
        groups.setdefault((cell.wiring, cell.density), []).append(found)
    return groups.items()


def errors(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread of the test error."""
    found = [cell["test_error"] for cell in cells]
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    return {"test_error": statistics.mean(found), "spread": spread, "test_errors": found}


def row(wiring: str, density: float, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the summary."""
    means = {
        name: statistics.mean(cell[name] for cell in cells) for name in ("validation_error", "seconds", "explored")
    }
    same = {name: cells[0][name] for name in ("entries", "stored_numbers")}
    return {"wiring": wiring, "density": density, **errors(cells), **means, **same}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, errors in percent; the spread is the standard deviation over the seeds."""
    head = ["wiring", "% of weights", "test error %", "spread", "validation error %", "stored numbers", "seconds"]
    lines = [f"| {' | '.join([*head, 'explored'])} |", "|---" * 8 + "|"]
    for each in rows:
        cells = [
            each["wiring"],
            f"{100 * each['density']:g}",
            f"{100 * each['test_error']:.2f}",
            f"{100 * each['spread']:.2f}",
            f"{100 * each['validation_error']:.2f}",
            f"{each['stored_numbers']:,}",
            f"{each['seconds']:.0f}",
            f"{each['explored']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against density, a line per wiring; the dense net's error everywhere."""
    densities = sorted({each["density"] for each in rows if each["wiring"] != "dense"}) or [1.0]
    series: dict[str, tuple[list[float], list[float]]] = {}
    for each in rows:
        where = densities if each["wiring"] == "dense" else [each["density"]]
        steps, values = series.setdefault(each["wiring"], ([], []))
        steps += [100 * density for density in where]
        values += [100 * each["test_error"]] * len(where)
    series = {name: tuple(map(list, zip(*sorted(zip(*pair, strict=True)), strict=True)))  # type: ignore[misc]
              for name, pair in series.items()}  # fmt: skip
    figure = curves(series, xlabel="weights that exist, %", ylabel="test error, %")
    ticks = [100 * density for density in densities]
    figure.axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    save(figure, path)


# --- what is watched ------------------------------------------------------------------------------------


@torch.no_grad()
def look(net: nn.Module, step: int) -> Look | None:
    """The entries of a net's first layer as they are stored; None for a dense one."""
    first = next(iter(wirings(net).values()), None)
    weight = None if first is None else first.rounded()
    if weight is None:
        return None
    entries = torch.stack([weight.row_ids, weight.col_ids], 1)
    return step, entries.to("cpu", torch.int32), weight.values.detach().cpu().clone()


def show(seen: dict[str, list[Look]], task: Task, run: Run) -> None:
    """The entries over training on the run's page, and how many units read each pixel before and after it."""
    first, panels = task.sizes["0"], {}
    for wiring, looks in seen.items():
        title = f"weights of the first layer, {wiring}"
        if first.out <= first.inputs:
            run.show(title, EdgeTrack(looks, (first.out, first.inputs), ("hidden unit", "pixel")))
        else:  # a page is wide
            turned = [(step, entries.flip(1), values) for step, entries, values in looks]
            run.show(title, EdgeTrack(turned, (first.inputs, first.out), ("pixel", "hidden unit")))
        for when, (_, entries, _) in (("start", looks[0]), ("end", looks[-1])):
            counts = entries[:, 1].long().bincount(minlength=math.prod(task.image))
            panels[f"{wiring}, {when}"] = counts.reshape(task.image)
    if panels:
        image_grid(panels, run.path("pixels.png"), label="hidden units that read the pixel")
