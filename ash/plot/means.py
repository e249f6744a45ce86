"""Index tuples as they lie in the weight tensor: a frame of training, and how one or several are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ash.checks import require, shape
from ash.plot.curves import DIVERGING, INK, PALE, Number, add_bar, array, colour_map, new_figure, tidy

if TYPE_CHECKING:
    import matplotlib.axes

ELLIPSES = 3_000  # more than these would be a grey cloud, and slow
SQUARES = 50_000  # sampled points drawn at most
RATIO = 8.0  # width over height of a panel (or the reverse) beyond which the aspect is no longer equal
GRID = 3.5  # no grid line where two indices are closer than this, in points of paper


@dataclass(frozen=True, eq=False)
class Frame:
    """The index tuples of one weight tensor at one step of training.

    `means` (k, r), `scales` (k, r) standard deviations in units of an index (0 where a column is fixed),
    `values` (k,), `points` (n, r) sampled integer points or None. `shape` holds the r sizes, the `out_rank`
    output columns first. Arrays and tensors are copied. Raises `UserError` for shapes that do not fit.
    """

    step: int
    means: Any
    scales: Any
    values: Any
    points: Any
    shape: tuple[int, ...]
    out_rank: int = 1

    def __post_init__(self) -> None:
        sizes = shape("shape", self.shape)
        require(0 < self.out_rank < len(sizes),
                f"out_rank={self.out_rank}, shape={sizes}; expected an output and an input column at least.")
        given = {"means": (self.means, 2), "scales": (self.scales, 2), "values": (self.values, 1)}
        checked: dict[str, Any] = {name: array(name, value, ndim) for name, (value, ndim) in given.items()}
        k, r = len(checked["means"]), len(sizes)
        for name, expected in (("means", (k, r)), ("scales", (k, r)), ("values", (k,))):
            require(checked[name].shape == expected,
                    f"{name} has the shape {checked[name].shape}; expected {expected}: k={k} of rank r={r}.")
        require(not (checked["scales"] < 0).any(), "scales has entries below 0; expected deviations >= 0.")
        if self.points is not None:
            checked["points"] = array("points", self.points, 2, integer=True)
            width = checked["points"].shape[1]
            require(width == r, f"points has {width} columns; expected {r}, one per column of the means.")
        for name, value in (*checked.items(), ("shape", sizes)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class View:
    """How frames are seen: which columns, how far the colours reach, how the plane is stretched."""

    row: int
    column: int
    sizes: tuple[int, int]
    limit: float
    aspect: float
    labels: tuple[str, str]

    @classmethod
    def of(cls, frames: list[Frame], columns: tuple[int, int] | None, value_limit: Number | None) -> View:
        """The view common to `frames`. Raises `UserError` for none, differing shapes, unknown columns."""
        require(len(frames) > 0, "no frames were given; expected at least one.")
        first = frames[0]
        require(all((frame.shape, frame.out_rank) == (first.shape, first.out_rank) for frame in frames),
                "the frames differ in shape; expected frames of one weight tensor.")
        row, column = columns or (0, first.out_rank)
        rank = len(first.shape)
        require(0 <= row < rank and 0 <= column < rank and row != column,
                f"columns={columns}; expected two different ones of 0 to {rank - 1}, (row, column).")
        require(value_limit is None or value_limit > 0,
                f"value_limit={value_limit}; expected a number above 0, or None for the largest value.")
        rows, cols = first.shape[row], first.shape[column]
        stretch = max(cols / rows / RATIO, rows / cols / RATIO, 1.0)
        aspect = stretch if cols > rows else 1 / stretch
        labels = (_label(first, row, 1 / aspect), _label(first, column, aspect))
        return cls(row, column, (rows, cols), float(value_limit or _reach(frames)), aspect, labels)

    def panel(self, span: float) -> tuple[float, float]:
        """(width, height) in inches of a panel about `span` across."""
        rows, cols = self.sizes
        ratio = cols / (rows * self.aspect)
        width = min(span * math.sqrt(ratio), 10.0)
        return width, min(width / ratio, 8.0)


def _label(frame: Frame, column: int, squeeze: float) -> str:
    side, place, rank = "output", column, frame.out_rank
    if column >= frame.out_rank:
        side, place, rank = "input", column - frame.out_rank, len(frame.shape) - frame.out_rank
    name = f"{side} index" if rank == 1 else f"{side} index, dimension {place}"
    return f"{name} (compressed {squeeze:.3g} ×)" if squeeze > 1 else name


def _reach(frames: list[Frame]) -> float:
    finite = (frame.values[np.isfinite(frame.values)] for frame in frames)
    return max(float(np.abs(values).max(initial=0)) for values in finite) or 1.0


def listed(frames: Frame | Iterable[Frame]) -> list[Frame]:
    """One frame, a list of them or a history, as a list."""
    return [frames] if isinstance(frames, Frame) else list(frames)


def means(
    frames: Frame | Iterable[Frame],
    columns: tuple[int, int] | None = None,
    ax: matplotlib.axes.Axes | None = None,
    *,
    points: bool = True,
    value_limit: Number | None = None,
    title: str | None = None,
    target: Any = None,
) -> matplotlib.axes.Axes:
    """The index tuples as in a printed W: output index down, input index to the right, (0, 0) at upper left.

    A dot is a tuple's mean and its colour the value; the transparent ellipse spans one scale to each side
    (none above 3,000 tuples). Faint squares are sampled points, hollow ones the entries of `target` (n, 2),
    each (row, column) of the picture. Of several frames the last is drawn, with the paths of its tuples since
    the first. After the figure in Bloem, 'Sparse, Adaptive Hypernetworks' (2017).

    `columns` are the columns of the tuples that run (down, across), by default the first output and the first
    input column. Colours are symmetric about zero up to `value_limit` (default: the largest value). An index
    is as high as wide unless one side has more than eight times the indices of the other: then the plane is
    drawn at eight to one, and the label of its longer side says so. Without `ax` a new figure with a colour
    bar is made. Raises `UserError` for no frames, frames that do not fit one another, unknown columns.
    """
    taken = listed(frames)
    view = View.of(taken, columns, value_limit)
    ax = stage(view, target) if ax is None else prepare(ax, view, target)
    draw(ax, taken, view, points=points)
    if title:
        ax.set_title(title, color=INK, fontsize=10)
    return ax


def stage(view: View, target: Any = None) -> matplotlib.axes.Axes:
    """A new figure with one empty panel and its colour bar."""
    width, height = view.panel(4.2)
    ax = prepare(new_figure(width + 1.4, height + 0.8).add_subplot(), view, target)
    add_bar(ax.figure, ax, (-view.limit, view.limit), DIVERGING, "value")
    return ax


def prepare(ax: matplotlib.axes.Axes, view: View, target: Any = None) -> matplotlib.axes.Axes:
    """All of the picture that does not change over training: limits, labels, grid, target."""
    from matplotlib.ticker import MaxNLocator

    rows, cols = view.sizes
    down, across = max(0.5, 0.012 * rows), max(0.5, 0.012 * cols)  # so that no dot at the rim is cut
    ax.set(xlim=(-across, cols - 1 + across), ylim=(rows - 1 + down, -down), axisbelow=True)
    ax.set_aspect(view.aspect)
    tidy(ax)
    for axis, size, label in ((ax.yaxis, rows, view.labels[0]), (ax.xaxis, cols, view.labels[1])):
        locator = MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
        axis.set_ticks([tick for tick in locator.tick_values(0, size - 1) if 0 <= tick < size])
        axis.set_major_formatter("{x:,.0f}")
        axis.set_label_text(label, color=INK, fontsize=9)
    high, wide = _cell(ax, view)
    pale: dict[str, Any] = {"color": PALE, "linewidth": 0.4, "alpha": 0.5, "zorder": 0.5, "gid": "grid"}
    if high >= GRID:
        ax.hlines(np.arange(rows), -0.5, cols - 0.5, **pale)
    if wide >= GRID:
        ax.vlines(np.arange(cols), -0.5, rows - 0.5, **pale)
    if target is not None:
        spots = array("target", target, 2, integer=True)
        require(spots.shape[1] == 2, f"target has the shape {spots.shape}; expected (n, 2), (row, column).")
        side = float(np.clip(0.85 * min(high, wide), 2.5, 12))
        ax.scatter(spots[:, 1], spots[:, 0], s=side**2, marker="s", facecolors="none", edgecolors=INK,
                   linewidths=0.6, zorder=1.5, gid="target")
    return ax


def draw(ax: matplotlib.axes.Axes, frames: list[Frame], view: View, *, points: bool = True) -> list[Any]:
    """The tuples of the last frame and what goes with them; returns the artists, which can be removed."""
    frame = frames[-1]
    order = np.argsort(np.abs(frame.values), kind="stable")  # the largest on top
    across = [view.column, view.row]
    xy, scales, values = frame.means[order][:, across], frame.scales[order][:, across], frame.values[order]
    artists = []
    if points and frame.points is not None and len(frame.points):
        artists.append(_squares(ax, frame.points[:, across], view))
    if 0 < len(xy) <= ELLIPSES:
        artists.append(_ellipses(ax, view, xy, scales, values))
    if len(frames) > 1:
        artists.append(_paths(ax, [one.means[:ELLIPSES][:, across] for one in frames]))
    artists.append(ax.scatter(xy[:, 0], xy[:, 1], c=values, s=_dot(ax, view, len(xy)),
                              cmap=colour_map(DIVERGING), vmin=-view.limit, vmax=view.limit, linewidths=0,
                              zorder=3, gid="means"))
    return artists


def _cell(ax: matplotlib.axes.Axes, view: View) -> tuple[float, float]:
    """(height, width) of one index in points of paper, roughly: the layout has not settled yet."""
    rows, cols = view.sizes
    wide = 72 / ax.figure.dpi * min(ax.bbox.width / cols, ax.bbox.height / (rows * view.aspect))
    return wide * view.aspect, wide


def _dot(ax: matplotlib.axes.Axes, view: View, k: int) -> float:
    """Area of a dot: a good half of a cell, unless few tuples leave room for more or many for less."""
    high, wide = _cell(ax, view)
    room = high * view.sizes[0] * wide * view.sizes[1] / max(k, 1)
    least, most = np.clip(np.sqrt([0.06 * room, 0.5 * room]), 0.8, (5, 9))
    return float(np.clip(0.6 * math.sqrt(high * wide), least, most)) ** 2


def _squares(ax: matplotlib.axes.Axes, spots: np.ndarray, view: View) -> Any:
    every = max(math.ceil(len(spots) / SQUARES), 1)
    side = float(np.clip(0.5 * min(_cell(ax, view)), 1, 7))
    once = np.unique(spots[::every], axis=0)
    return ax.scatter(once[:, 0], once[:, 1], s=side**2, marker="s", color=INK, alpha=0.2, linewidths=0,
                      zorder=1, gid="points")


def _ellipses(ax: matplotlib.axes.Axes, view: View, xy: Any, scales: Any, values: Any) -> Any:
    """One scale to each side of each mean, the fainter the more of them lie over one another."""
    from matplotlib.collections import EllipseCollection

    layers = math.pi * float(np.nansum(scales.prod(axis=1))) / (view.sizes[0] * view.sizes[1])
    faint = float(np.clip(0.4 / max(layers, 1e-9), 0.02, 0.35))  # eight bits blur the hue of fainter ones
    colour = colour_map(DIVERGING)(0.5 + 0.5 * np.clip(values / view.limit, -1, 1))
    pastel = 1 - (1 - colour) * (0.55, 0.55, 0.55, 1)  # many layers never grow as dark as a dot
    face, edge = pastel * (1, 1, 1, faint), colour * (1, 1, 1, min(1.3 * faint, 0.45))
    widths, heights = 2 * scales.T
    ellipses = EllipseCollection(widths, heights, np.zeros(len(xy)), units="xy", offsets=xy,
                                 offset_transform=ax.transData, facecolors=face, edgecolors=edge,
                                 linewidths=0.5, zorder=2, gid="scales")
    return ax.add_collection(ellipses, autolim=False)


def _paths(ax: matplotlib.axes.Axes, places: list[np.ndarray]) -> Any:
    from matplotlib.collections import LineCollection

    require(len({len(xy) for xy in places}) == 1,
            "the frames hold different numbers of tuples; expected as many in each to draw their paths.")
    paths = LineCollection(list(np.stack(places, axis=1)), colors=INK, linewidths=0.5, alpha=0.3, zorder=2.5,
                           gid="paths")
    return ax.add_collection(paths, autolim=False)
