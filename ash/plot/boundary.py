"""Decision boundaries of classifiers of points in the plane."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ash.checks import positive, require
from ash.plot.curves import INK, LINES, array, grid_shape, new_figure, save, tidy

if TYPE_CHECKING:
    import matplotlib.figure

COLOURS = (LINES[1], LINES[0], *LINES[2:])  # of class 0, 1, …; two classes are blue and orange
MARGIN = 0.5  # around the points, in units of the plane


def boundaries(
    nets: Mapping[str, Callable[[Tensor], Tensor]],
    x: Any,
    y: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    cells: int = 150,
) -> matplotlib.figure.Figure:
    """How classifiers divide the plane, a panel for each with the points, its accuracy on them in the title.

    Args:
        nets: title -> a module or function from float32 points `(n, 2)` to scores: `(n,)` or `(n, 1)`, above
            zero for the second of two classes, or `(n, classes)`, the largest of which is chosen.
        x: `(m, 2)`, points. y: `(m,)`, classes 0, 1, …, or −1 and 1.
        path: where to write the figure.
        cells: of the grid along each side.

    Modules are asked in evaluation mode, which they leave again. Raises `UserError` for no net and for shapes
    that do not fit.
    """
    require(len(nets) > 0, "no nets were given; expected at least one title with a module or function.")
    positive("cells", cells)
    points, classes = _points(x, y)
    low, high = points.min(0) - MARGIN, points.max(0) + MARGIN
    extent = tuple(np.stack([low, high], axis=1).ravel().tolist())
    grid = np.stack(np.meshgrid(*np.linspace(low, high, cells).T), axis=-1)
    ratio = float(np.divide(*(high - low)))
    rows, abreast = grid_shape(len(nets), ratio)
    figure = new_figure(3.1 * abreast, rows * (3.1 / ratio + 0.3))
    for place, (title, net) in enumerate(nets.items()):
        ax = figure.add_subplot(rows, abreast, place + 1)
        area = _classify(title, net, grid.reshape(-1, 2)).reshape(cells, cells)
        _draw(ax, area, extent, points, classes)
        share = float((_classify(title, net, points) == classes).mean())
        ax.set_title(f"{title}, {100 * share:.4g} %", color=INK, fontsize=10)
    if path is not None:
        save(figure, path)
    return figure


def _points(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    points, classes = array("x", x, 2).astype(np.float64), array("y", y, 1).astype(np.int64)
    require(points.shape[1] == 2 and len(points) == len(classes) > 0,
            f"x of shape {points.shape} and {len(classes)} classes; expected (m, 2) and m of them, at least one.")
    return points, np.maximum(classes, 0)


def _classify(title: str, net: Callable[[Tensor], Tensor], points: np.ndarray) -> np.ndarray:
    was = net.training if isinstance(net, nn.Module) else False
    if isinstance(net, nn.Module):
        net.eval()
    try:
        with torch.no_grad():
            scores = net(torch.from_numpy(points).float()).detach().cpu()
    finally:
        if isinstance(net, nn.Module):
            net.train(was)
    n, given = len(points), tuple(scores.shape)
    require(len(given) in (1, 2) and given[0] == n,
            f"{title!r} gives {given} for {n} points; expected ({n},), ({n}, 1) or ({n}, classes).")
    flat = scores.reshape(len(points), -1)
    return (flat[:, 0] > 0).long().numpy() if flat.shape[1] == 1 else flat.argmax(1).numpy()


def _draw(ax: Any, area: np.ndarray, extent: tuple[float, ...], points: np.ndarray, classes: np.ndarray) -> None:
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(colour) for colour in COLOURS])
    ax.imshow(1 - 0.3 * (1 - palette[area % len(palette)]), extent=extent, origin="lower", interpolation="nearest")
    ax.scatter(*points.T, c=palette[classes % len(palette)], s=14, edgecolors="white", linewidths=0.5, gid="points")
    ax.set(xticks=[], yticks=[])
    tidy(ax)
