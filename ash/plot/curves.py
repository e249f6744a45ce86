"""Figures over time and heat maps, and what all figures share: colours, input, files written whole."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ash.checks import UserError, require

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.colors
    import matplotlib.figure

Number = float | int  # a checker that runs takes no int for a float
DPI = 150
INK, PALE = "#3b3a38", "#c9c6c1"
LINES = ("#c2410c", "#1d5fa8", "#2e7d4f", "#7b4ea3", "#b58900", "#5b5853")
# The middle of the map for dots is grey, not white, so that a value near zero still shows on white paper.
DIVERGING = ("#123f78", "#3f7cba", "#93b5d4", "#bdb9b4", "#e5a680", "#dd6a2e", "#b3370a")
HEAT = (*DIVERGING[:3], "#fbf9f6", *DIVERGING[4:])
SEQUENTIAL = ("#fbf9f6", "#f6d3b3", "#e79b6d", "#c2410c", "#74230a", "#2f0d03")


def array(name: str, value: Any, ndim: int, *, integer: bool = False) -> np.ndarray:
    """A copy of `value` (array, tensor on any device, nested lists) as a numpy array of `ndim` dimensions.

    A copy, so that a picture drawn after training shows what was there when it was taken. Raises `UserError`
    where the number of dimensions differs, the entries are no numbers, or they must be whole and are not.
    """
    try:
        taken = np.array(_plain(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: not an array ({error}); expected numbers in {ndim} dimension(s).") from None
    kinds = "iu" if integer else "fiub"
    require(taken.dtype.kind in kinds or taken.size == 0,
            f"{name} holds {taken.dtype}; expected {'whole' if integer else 'real'} numbers.")
    require(taken.ndim == ndim, f"{name} has the shape {taken.shape}; expected {ndim} dimension(s).")
    if integer:
        return taken.astype(np.int64, copy=False)
    return taken if taken.dtype in (np.float32, np.float64) else taken.astype(np.float64)


def _plain(value: Any) -> Any:
    """The value with every tensor in it, alone or in a list, as an array that numpy knows."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def new_figure(width: float, height: float) -> matplotlib.figure.Figure:
    """An empty figure of that size in inches on the Agg canvas; labels never overlap (compressed layout)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"{error}; pictures need it; `pip install 'ash-wiring[plot]'` provides it.") from None
    figure = Figure(figsize=(width, height), dpi=DPI, layout="compressed", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def colour_map(colours: Sequence[str]) -> matplotlib.colors.Colormap:
    """The colours joined evenly into a continuous map."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ash", list(colours))


def add_bar(figure: Any, axes: Any, limits: tuple[Number, Number], colours: Any, label: str) -> None:
    """One colour bar for all of `axes`, at their right."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shown = ScalarMappable(Normalize(*limits), colour_map(colours))
    width, height = figure.get_size_inches()
    broad = 0.15  # inches, the same in every figure
    bar = figure.colorbar(shown, ax=axes, pad=0.02, fraction=min(broad / max(width - 1.3, broad), 0.2),
                          aspect=height / broad)
    bar.set_label(label, color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK, length=2)
    bar.ax.locator_params(nbins=5)
    bar.outline.set_visible(False)


def tidy(ax: matplotlib.axes.Axes) -> None:
    """Quiet spines and ticks, so that the data speak."""
    ax.tick_params(labelsize=8, colors=INK, length=2.5, color=PALE, width=0.8)
    for spine in ax.spines.values():
        spine.set(color=PALE, linewidth=0.8)


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path` and rename it, so that no half-written file bears the name.

    Folders that are missing are made. Raises `UserError` where the place cannot be written.
    """
    target = Path(path)
    aside = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        os.replace(aside, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}); give a path that you may write.") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    return target


def save(figure: matplotlib.figure.Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure at a fixed resolution, whole or not at all; the suffix chooses the format."""
    known = figure.canvas.get_supported_filetypes()
    suffix = Path(path).suffix.lower().lstrip(".")
    require(suffix in known,
            f"{os.fspath(path)!r} has the suffix {suffix!r}; expected one of {', '.join(sorted(known))}.")
    return write_whole(
        path, lambda aside: figure.savefig(aside, dpi=DPI, bbox_inches="tight", pad_inches=0.08))


def grid_shape(count: int, ratio: float) -> tuple[int, int]:
    """(rows, columns) for `count` panels of that width over height: wide ones stacked, tall ones abreast."""
    abreast = min(max(round(5 / ratio), 1), 10)
    rows = math.ceil(count / abreast)
    return rows, math.ceil(count / rows)


def curves(
    series: Mapping[str, tuple[Any, Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    ylabel: str = "",
    xlabel: str = "step",
    logy: bool = False,
    marks: Mapping[str, Number] | None = None,
    title: str | None = None,
) -> matplotlib.figure.Figure:
    """A line per entry of `series` (name: steps and values, one-dimensional and equally long).

    `marks` (label: step) are dashed vertical lines. On a logarithmic axis values that are not above zero are
    left out; where none is above zero the axis stays linear. Writes the figure where a path is given. Raises
    `UserError` for no series at all and for lengths that differ.
    """
    require(len(series) > 0, "series is empty; expected at least one name with its steps and values.")
    taken = {name: pair_of(name, pair) for name, pair in series.items()}
    figure = new_figure(6.4, 3.6)
    ax = figure.add_subplot()
    tidy(ax)
    for place, (name, (steps, values)) in enumerate(taken.items()):
        marker = "o" if len(steps) == 1 else None
        ax.plot(steps, values, label=name, color=LINES[place % len(LINES)], linewidth=1.4, marker=marker,
                linestyle=("-", "--", ":")[place // len(LINES) % 3])
    if logy and any((values > 0).any() for _, values in taken.values()):
        ax.set_yscale("log", nonpositive="mask")
    ax.grid(color=PALE, linewidth=0.5, alpha=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel(xlabel, color=INK, fontsize=9)
    ax.set_ylabel(ylabel, color=INK, fontsize=9)
    _mark(ax, taken, marks or {})
    if len(taken) > 1:
        lines = math.ceil(sum(len(name) + 8 for name in taken) / 90)
        figure.legend(loc="outside upper center", ncols=math.ceil(len(taken) / lines), frameon=False,
                      fontsize=9, labelcolor=INK)
    if title:
        ax.set_title(title, color=INK, fontsize=10)
    if path is not None:
        save(figure, path)
    return figure


def pair_of(name: str, pair: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a series, checked: one-dimensional and equally long."""
    steps, values = array(f"the steps of {name!r}", pair[0], 1), array(f"the values of {name!r}", pair[1], 1)
    require(len(steps) == len(values),
            f"{name!r} has {len(steps)} steps and {len(values)} values; expected as many of both.")
    return steps, values


def _mark(ax: matplotlib.axes.Axes, taken: Mapping[str, Any], marks: Mapping[str, Number]) -> None:
    left, right = ax.get_xlim()
    for label, step in marks.items():
        ax.axvline(step, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7, zorder=2.5)
        side = 1 if step - left < 0.1 * (right - left) else -1
        end = _free_end(ax, taken, step, 0.06 * (right - left))
        ax.annotate(label, (step, float(end == "top")), xycoords=("data", "axes fraction"),
                    xytext=(4 * side, -3 if end == "top" else 4), textcoords="offset points", rotation=90,
                    ha="left" if side > 0 else "right", va=end, fontsize=8, color=INK,
                    bbox={"color": "white", "alpha": 0.8, "linewidth": 0, "pad": 1})


def _free_end(ax: matplotlib.axes.Axes, taken: Mapping[str, Any], step: Number, reach: float) -> str:
    """The end of the axes, top or bottom, that the curves near `step` leave more room at."""
    near = np.concatenate([values[np.abs(steps - step) <= reach] for steps, values in taken.values()])
    shown = near[np.isfinite(near) & ((near > 0) | (ax.get_yscale() != "log"))]
    if not len(shown):
        return "top"
    heights = (ax.transScale + ax.transLimits).transform([(step, shown.min()), (step, shown.max())])[:, 1]
    return "top" if 1 - heights[1] >= heights[0] else "bottom"


def image_grid(
    images: Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    limits: tuple[Number, Number] | None = None,
    label: str = "",
) -> matplotlib.figure.Figure:
    """A heat map per entry of `images` (title: array (h, w), row 0 on top) with one colour scale and one bar.

    `limits` default to the range of all images from zero on: where any entry is below zero they are symmetric
    and the map diverges. Pixels are square up to five to one; a longer image is compressed to that. Writes
    the figure where a path is given. Raises `UserError` for no image, an empty one and wrong dimensions.
    """
    require(len(images) > 0, "images is empty; expected at least one title with its array (h, w).")
    taken = {name: array(f"image {name!r}", image, 2) for name, image in images.items()}
    require(all(image.size for image in taken.values()), "an image has no entries; expected arrays (h, w).")
    low, high = limits or _limits(list(taken.values()))
    colours = HEAT if low < 0 else SEQUENTIAL
    h, w = np.max([image.shape for image in taken.values()], axis=0)
    ratio = float(np.clip(w / h, 0.2, 5))
    rows, columns = grid_shape(len(taken), ratio)
    size = 2.1 * math.sqrt(ratio)
    figure = new_figure(columns * size + 1, rows * (size / ratio + 0.3))
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(len(taken))]
    for ax, (name, image) in zip(axes, taken.items(), strict=True):
        ax.imshow(image, cmap=colour_map(colours), vmin=low, vmax=high, interpolation="nearest",
                  aspect=float(w / h / ratio))
        ax.set_title(name, color=INK, fontsize=10)
        ax.set(xticks=[], yticks=[])
        tidy(ax)
    add_bar(figure, axes, (low, high), colours, label)
    if path is not None:
        save(figure, path)
    return figure


def _limits(images: Sequence[np.ndarray]) -> tuple[float, float]:
    finite = np.concatenate([image[np.isfinite(image)] for image in images])
    top = float(np.abs(finite).max(initial=0)) or 1.0
    return (-top if finite.min(initial=0) < 0 else 0.0), top
