"""Pictures of the attention experiment: glimpses on the inputs, accuracies over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ash.plot import curves
from ash.plot.curves import INK, LINES, new_figure, save
from experiments.attention_models import GlimpseNet
from experiments.attention_training import Contest

SHOWN, ABREAST = 10, 5


@torch.no_grad()
def draw_glimpses(net: GlimpseNet, contest: Contest, path: Path) -> None:
    """Canvases with a frame around what each glimpse reads, and what the net takes the digit for."""
    net.eval()
    data = contest.data["test"]
    which = torch.arange(min(SHOWN, len(data)))
    canvases, views = contest.seen(data, which)
    told = net(canvases, views).argmax(1)
    read = net.boxes(views).cpu()
    shares = net.locator.heat.scores
    assert shares is not None
    rows = -(-len(which) // ABREAST)
    figure = new_figure(ABREAST * 2.1, rows * 2.35)
    for i in range(len(which)):
        ax = figure.add_subplot(rows, ABREAST, i + 1)
        ax.imshow(canvases[i].cpu().numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        for j, box in enumerate(read[i]):
            _frame(ax, box, LINES[j % len(LINES)], f"{float(shares[i, j].exp()):.0%}")
        truth = int(data.labels[i])
        verdict = f"{truth}" if truth == int(told[i]) else f"{truth}, taken for {int(told[i])}"
        ax.set_title(verdict, color=INK, fontsize=10)
        ax.spines[:].set_color(INK)
    save(figure, path)


def _frame(ax: Any, box: Tensor, colour: str, label: str) -> None:
    """A rectangle around the pixels `(p · p, 2)`, with the share of the attention at its upper edge."""
    low, high = box.amin(0).tolist(), box.amax(0).tolist()
    left, right, top, bottom = low[1] - 0.5, high[1] + 0.5, low[0] - 0.5, high[0] + 0.5
    ax.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=colour, linewidth=1.4)
    inside = top < 8
    ax.text(
        left,
        bottom + 2 if inside else top - 2,
        label,
        color=colour,
        fontsize=7,
        clip_on=True,
        va="top" if inside else "bottom",
        bbox={"color": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
    )


def draw_curves(history: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Validation accuracies of all nets after every epoch."""
    names = {"glimpses": "glimpses, rounded", "full": "the whole canvas", "view": "the view alone"}
    series = {
        names.get(name, name): _series(figures, "validation_accuracy") for name, figures in history.items() if figures
    }
    if history.get("glimpses"):
        series["glimpses, sampled"] = _series(history["glimpses"], "validation_accuracy_sampled")
    curves(series, path, ylabel="validation accuracy", xlabel="epoch")


def _series(figures: list[dict[str, float]], key: str) -> tuple[list[int], list[float]]:
    return list(range(1, len(figures) + 1)), [each[key] for each in figures]
