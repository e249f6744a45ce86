"""Frames over time: a bounded history of them, a row of small multiples, an animation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ash.checks import require
from ash.plot.curves import (
    DIVERGING,
    INK,
    Number,
    add_bar,
    colour_map,
    grid_shape,
    new_figure,
    save,
    write_whole,
)
from ash.plot.means import Frame, View, draw, listed, prepare, stage

if TYPE_CHECKING:
    import matplotlib.figure

GIF_DPI = 100


class History:
    """Frames collected in training, never more than `max_frames` (and those of `keep`).

    When full it forgets every second frame and takes in only every second from then on, so that the frames
    stay evenly spread; the first and the last are always there. Frames at the steps in `keep` are never
    forgotten. Raises `UserError` for `max_frames` below 2.
    """

    def __init__(self, max_frames: int = 60, keep: Iterable[int] = ()) -> None:
        require(max_frames >= 2, f"max_frames={max_frames}; expected at least 2, the first and the last.")
        self.max_frames = max_frames
        self.keep = frozenset(keep)
        self._even: list[Frame] = []
        self._kept: list[Frame] = []
        self._last: Frame | None = None
        self._stride, self._seen = 1, 0

    def add(self, frame: Frame) -> None:
        """Take in a frame. Raises `UserError` unless its step is above the last one's."""
        before = frame.step - 1 if self._last is None else self._last.step
        require(frame.step > before, f"step {frame.step} after step {before}; expected rising steps.")
        if self._seen % self._stride == 0:
            self._even.append(frame)
        if frame.step in self.keep:
            self._kept.append(frame)
        self._seen, self._last = self._seen + 1, frame
        while len(self._even) + (self._even[-1] is not frame) > self.max_frames:
            self._even, self._stride = self._even[::2], 2 * self._stride

    @property
    def frames(self) -> list[Frame]:
        """The frames held, in the order of their steps."""
        last = [] if self._last is None else [self._last]
        found = {frame.step: frame for frame in (*self._even, *self._kept, *last)}
        return [found[step] for step in sorted(found)]

    def at(self, steps: Iterable[int]) -> list[Frame]:
        """For each of `steps` the nearest frame held, the earlier of two. Raises `UserError` while empty."""
        frames = self.frames
        require(len(frames) > 0, "the history holds no frame; add one first.")
        return [min(frames, key=lambda frame: abs(frame.step - step)) for step in steps]

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)


def row(
    frames: Frame | Iterable[Frame],
    path: str | os.PathLike[str] | None = None,
    *,
    columns: tuple[int, int] | None = None,
    points: bool = False,
    value_limit: Number | None = None,
    target: Any = None,
    title: str = "step {step:,}",
) -> matplotlib.figure.Figure:
    """Small multiples: a panel per frame as `means` draws it, one colour scale, one bar, the step as title.

    Panels that are wide are stacked, tall or square ones stand abreast, at most five square ones to a line.
    `title` is a format string. Writes the figure where a path is given. Raises `UserError` for no frames and
    for frames that do not fit one another.
    """
    taken = listed(frames)
    view = View.of(taken, columns, value_limit)
    width, height = view.panel(2.3)
    if width > 2 * height:
        width, height = view.panel(2.9)
    lines, abreast = grid_shape(len(taken), width / height)
    figure = new_figure(abreast * (width + 0.15) + 1.3, lines * (height + 0.35) + 0.4)
    axes = []
    for place, frame in enumerate(taken):
        ax = figure.add_subplot(lines, abreast, place + 1)
        prepare(ax, view, target)
        draw(ax, [frame], view, points=points)
        ax.set_title(title.format(step=frame.step), color=INK, fontsize=10)
        if place % abreast:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        if place + abreast < len(taken):
            ax.set_xlabel("")
            ax.tick_params(labelbottom=False)
        axes.append(ax)
    add_bar(figure, axes, (-view.limit, view.limit), DIVERGING, "value")
    if path is not None:
        save(figure, path)
    return figure


def animate(
    frames: Frame | Iterable[Frame],
    path: str | os.PathLike[str],
    fps: Number = 10,
    *,
    hold: Number = 2.0,
    columns: tuple[int, int] | None = None,
    points: bool = False,
    value_limit: Number | None = None,
    target: Any = None,
    title: str = "step {step:,}",
) -> Path:
    """Write the frames as a GIF that loops, `fps` a second, the last for `hold` seconds; returns the path.

    Every frame is drawn as `means` draws it, on one canvas with one colour scale and one palette. The file is
    whole or not there. Neighbours equal to the last pixel are joined into one frame, shown as long. Raises
    `UserError` for no frames, frames that do not fit one another, and a path that does not end in .gif or
    cannot be written.
    """
    taken = listed(frames)
    require(len(taken) > 0, "no frames were given; expected at least one.")
    require(fps > 0 and hold > 0, f"fps={fps}, hold={hold}; expected numbers above 0.")
    require(Path(path).suffix.lower() == ".gif", f"{os.fspath(path)!r}; expected a name that ends in .gif.")
    durations = [round(1000 / fps)] * (len(taken) - 1) + [round(1000 * hold)]
    show = _projector(View.of(taken, columns, value_limit), points, target, title)
    palette = _palette([show(taken[place]) for place in sorted({0, len(taken) // 2, len(taken) - 1})])
    pictures = [show(frame).quantize(palette=palette, dither=0) for frame in taken]
    return write_whole(path, lambda aside: pictures[0].save(
        aside, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True))


def _projector(view: View, points: bool, target: Any, title: str) -> Callable[[Frame], Any]:
    """A function that draws a frame and gives its picture.

    Axes, grid and bar cost most of the time: they are drawn once and restored for every frame.
    """
    from PIL import Image

    ax = stage(view, target)
    figure: Any = ax.figure
    figure.set_dpi(GIF_DPI)
    heading = ax.set_title("0", color=INK, fontsize=10, animated=True)
    figure.canvas.draw()
    behind = figure.canvas.copy_from_bbox(figure.bbox)

    def show(frame: Frame) -> Any:
        figure.canvas.restore_region(behind)
        heading.set_text(title.format(step=frame.step))
        artists = draw(ax, [frame], view, points=points)
        for artist in (*artists, *ax.spines.values(), heading):
            ax.draw_artist(artist)
        for artist in artists:
            artist.remove()
        return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())

    return show


def _palette(pictures: list[Any]) -> Any:
    """One palette for all frames, so that what stands still keeps its colour.

    Dots fill little of a picture: the commonest colours would be paper and ellipses, so those of the dots are
    added.
    """
    from PIL import Image

    sheet = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (0, place * picture.height))
    common: Any = sheet.quantize(192, kmeans=1, dither=Image.Dither.NONE).getpalette()
    found = np.asarray(common[: 3 * 192]).reshape(-1, 3)
    found[(found > 247).all(axis=1)] = 255  # averaging leaves the paper a little grey
    exact = np.rint(255 * colour_map(DIVERGING)(np.linspace(0, 1, 64))[:, :3]).astype(int)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([found, exact]).ravel().tolist())
    return palette
