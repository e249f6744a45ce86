"""The picture of one tuple in one batch, for the page on the idea: its points, their shares, its mean's gradient."""

from __future__ import annotations

from typing import Any

import matplotlib.figure
import torch
from matplotlib.patches import Circle

from ash import GaussianWiring, Sampling

ROWS, COLUMNS, MEAN, SCALE, SEED = 12, 16, (6.4, 6.3), 1.6, 5
WANTED = (8, 8)
"""Where the loss would rather have more of the value; one of the points."""
INK, RED, PALE, BLUE = "#3b3b3b", "#b5390f", "#d8d2c8", "#1f4e8c"


def figure() -> matplotlib.figure.Figure:
    """Three panels: the mean and integer points around it, the share of each, and where the gradient moves the mean."""
    torch.manual_seed(SEED)
    wiring = GaussianWiring(
        ROWS, COLUMNS, 1, kernel="gaussian", scale=SCALE, positions=torch.tensor([MEAN]), values="ones",
        sampling=Sampling(local_samples=7, global_samples=4),
    )  # fmt: skip
    weight = wiring()
    (-weight.to_dense()[WANTED]).backward()
    rows, columns = weight.indices.t().tolist()
    shares = weight.values.tolist()
    grad = wiring.means.offset.grad
    assert grad is not None
    pull = -grad[0] / grad[0].norm() * SCALE
    made = matplotlib.figure.Figure(figsize=(10.5, 3.1), layout="constrained")
    panels = made.subplots(1, 3, sharey=True)
    titles = ("sample: integer points, near and far", "weigh: each has a share of the value", "learn: the mean follows")
    for ax, title in zip(panels, titles, strict=True):
        _prepare(ax, title)
    panels[0].scatter(columns, rows, s=26, facecolors="none", edgecolors=INK, linewidths=1.2)
    panels[1].scatter(columns, rows, s=[1200 * share for share in shares], color=RED, alpha=0.85, linewidths=0)
    panels[2].scatter(columns, rows, s=[1200 * share for share in shares], color=RED, alpha=0.25, linewidths=0)
    panels[2].plot(WANTED[1], WANTED[0], marker="s", markersize=13, fillstyle="none", color=BLUE, markeredgewidth=1.6)
    panels[2].annotate("more weight\nwanted here", (WANTED[1] + 0.5, WANTED[0]), (11, 9.6), color=BLUE, fontsize=9,
                       arrowprops={"arrowstyle": "-", "color": BLUE, "linewidth": 0.8})  # fmt: skip
    panels[2].annotate("", (MEAN[1] + float(pull[1]), MEAN[0] + float(pull[0])), (MEAN[1], MEAN[0]),
                       arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8})  # fmt: skip
    panels[0].set_ylabel("output index", color=INK, fontsize=9)
    return made


def _prepare(ax: Any, title: str) -> None:
    """A panel with the weight's entries as a grid, the mean and its scale."""
    ax.set_title(title, fontsize=10, color=INK)
    ax.set(xlim=(-0.5, COLUMNS - 0.5), ylim=(ROWS - 0.5, -0.5), aspect="equal")
    ax.set_xticks(range(0, COLUMNS, 5))
    ax.set_xticks([x - 0.5 for x in range(COLUMNS)], minor=True)
    ax.set_yticks([y - 0.5 for y in range(ROWS)], minor=True)
    ax.grid(which="minor", color=PALE, linewidth=0.6)
    ax.tick_params(which="both", length=0, colors=INK, labelsize=8)
    ax.set_xlabel("input index", color=INK, fontsize=9)
    ax.add_patch(Circle((MEAN[1], MEAN[0]), SCALE, facecolor=RED, alpha=0.12, edgecolor=RED))
    ax.plot(MEAN[1], MEAN[0], marker="+", markersize=9, color=INK, markeredgewidth=1.6)
