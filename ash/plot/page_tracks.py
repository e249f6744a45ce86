"""What the slider of a page moves: index tuples, edges and gates over training, packed for a browser."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ash.checks import require, shape
from ash.plot.curves import Number, array
from ash.plot.gates import lines_of
from ash.plot.means import Frame, View, listed

TUPLES, EDGES = 2_000, 20_000
"""Tuples and edges that a page draws at most; of more it shows some, drawn at random, and says so."""
CHARACTERS = {"<f4": 16 / 3, "<i4": 16 / 3, "u1": 4 / 3}
"""Characters that a number of each type takes in base64."""


def packed(values: Any, dtype: str) -> str:
    """Numbers as base64 of their bytes, which a browser reads as a typed array."""
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode("ascii")


def spread_evenly(count: int, most: int) -> np.ndarray:
    """At most `most` (at least two) of `count` places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, max(most, 2))).round().astype(int))


def some(count: int, most: int) -> np.ndarray:
    """All of `count` numbers, or `most` of them at random, the same for the same count."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def _thinned(count: int, kept: int) -> list[str]:
    return [] if kept == count else [f"{kept} of {count} frames are here, evenly spread."]


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _rising(steps: list[int]) -> None:
    require(len(steps) > 0, "a track without frames; expected at least one.")
    require(all(a < b for a, b in zip(steps, steps[1:], strict=False)), f"steps {steps[:8]} …; expected rising steps.")


@dataclass(frozen=True, eq=False)
class TupleTrack:
    """Index tuples that move: their means, scales and values at every frame.

    Args:
        frames: a `History`, or frames of one weight tensor with rising steps.
        target: `(n, 2)`, entries (row, column) of the picture that are drawn as hollow squares.
        columns: the columns of the tuples that run (down, across); by default the first output and input column.
        value_limit: end of the colours, symmetric about zero; by default the largest value.
        total: how many tuples there are, where the frames hold only some of them.
    """

    frames: Iterable[Frame]
    target: Any = None
    columns: tuple[int, int] | None = None
    value_limit: Number | None = None
    total: int | None = None

    def encode(self, room: int) -> dict[str, Any]:
        """What the browser draws, in about `room` characters. Raises `UserError` for frames that do not fit."""
        frames = listed(self.frames)
        _rising([frame.step for frame in frames])
        view = View.of(frames, self.columns, self.value_limit)
        k = max(len(frame.values) for frame in frames)
        chosen = some(k, TUPLES)
        table = np.stack([_table(frame, k)[chosen] for frame in frames])
        still = [bool(np.array_equal(part, np.broadcast_to(part[:1], part.shape), equal_nan=True))
                 for part in np.moveaxis(table, 2, 0)]
        each = CHARACTERS["<f4"] * len(chosen) * max(1, still.count(False))
        places = spread_evenly(len(frames), int(room / each))
        blobs: dict[str, int] = {}
        columns = [blobs.setdefault(packed(part[:1] if fixed else part[places], "<f4"), len(blobs))
                   for part, fixed in zip(np.moveaxis(table, 2, 0), still, strict=True)]
        notes = _thinned(len(frames), len(places))
        if len(chosen) < (self.total or k):
            notes.append(f"{len(chosen):,} of {self.total or k:,} tuples are here, drawn at random.")
        spots = np.empty((0, 2)) if self.target is None else array("target", self.target, 2, integer=True)
        return {"kind": "tuples", "steps": [frames[place].step for place in places], "notes": notes,
                "k": len(chosen), "ids": packed(chosen, "<i4"), "columns": columns, "blobs": list(blobs),
                "rank": len(frames[0].shape), "out": frames[0].out_rank, "row": view.row, "column": view.column,
                "sizes": view.sizes, "aspect": view.aspect, "labels": view.labels, "limit": view.limit,
                "target": packed(spots, "<i4")}


def _table(frame: Frame, k: int) -> np.ndarray:
    """Means, scales and value of every tuple, `(k, 2 r + 1)`; a frame with fewer tuples is filled with NaN."""
    own = np.concatenate([frame.means, frame.scales, frame.values[:, None]], axis=1)
    return np.pad(own, ((0, k - len(own)), (0, 0)), constant_values=np.nan)


@dataclass(frozen=True, eq=False)
class EdgeTrack:
    """Edges that appear and disappear.

    Args:
        frames: (step, entries) or (step, entries, values) with rising steps: entries `(n, 2)` are whole numbers
            (row, column), target before source; values `(n,)`.
        sizes: (rows, columns) of the matrix that holds the entries.
        labels: what a row and a column are.
    """

    frames: Sequence[tuple[Any, ...]]
    sizes: tuple[int, int]
    labels: tuple[str, str] = ("target", "source")

    def encode(self, room: int) -> dict[str, Any]:
        """What the browser draws, in about `room` characters. Raises `UserError` for entries outside the matrix, and
        for values that are not as many."""
        rows, columns = shape("sizes", self.sizes)
        require(rows * columns < 2**62 and max(rows, columns) < 2**31, f"sizes={self.sizes}; expected below 2**31.")
        steps = [int(frame[0]) for frame in self.frames]
        _rising(steps)
        ids, values = zip(*(_entries(frame, (rows, columns)) for frame in self.frames), strict=True)
        most = min(len(_distinct(ids)), EDGES)
        places = spread_evenly(len(steps), int(room / max(1.0, CHARACTERS["u1"] * most)))
        shown = _distinct([ids[place] for place in places])
        kept = shown[some(len(shown), EDGES)]
        limit = max((_largest(each) for each in values if each is not None), default=0.0) or 1.0
        states = np.stack([_states(ids[place], values[place], kept, limit) for place in places])
        notes = _thinned(len(steps), len(places))
        if len(kept) < len(shown):
            notes.append(f"{len(kept):,} of {len(shown):,} edges are here, drawn at random; the counts are of all.")
        return {"kind": "edges", "steps": [steps[place] for place in places], "notes": notes,
                "sizes": (rows, columns), "labels": self.labels, "rows": packed(kept // columns, "<i4"),
                "columns": packed(kept % columns, "<i4"), "states": packed(states, "u1"), "limit": limit,
                "valued": values[0] is not None, "counts": _counts([ids[place] for place in places])}


def _distinct(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The numbers in some arrays, each once, sorted (`np.unique` of a million hashes them, which takes seconds)."""
    every = np.sort(np.concatenate(parts))
    return every[np.diff(every, prepend=every[:1] - 1) > 0]


def _entries(frame: tuple[Any, ...], sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Flattened entries of a frame, and their values."""
    step, entries = frame[0], array("entries", frame[1], 2, integer=True)
    fits = entries.shape[1] == 2 and bool(((entries >= 0) & (entries < sizes)).all())
    require(fits, f"the entries at step {step} have the shape {entries.shape}, or lie outside {sizes}; "
            "expected (n, 2), (row, column).")
    values = array("values", frame[2], 1) if len(frame) > 2 else None
    require(values is None or len(values) == len(entries),
            f"values for {0 if values is None else len(values)} of {len(entries)} entries at step {step}; "
            "expected one for each.")
    return entries[:, 0] * sizes[1] + entries[:, 1], values


def _states(ids: np.ndarray, values: np.ndarray | None, kept: np.ndarray, limit: float) -> np.ndarray:
    """A byte for every edge: 0 where it does not exist, else 128 and up to 127 more or less by its value."""
    found = np.zeros(len(kept), np.uint8)
    places = np.searchsorted(kept, ids).clip(max=max(len(kept) - 1, 0))
    there = kept[places] == ids if len(kept) else np.zeros(len(ids), bool)
    shares = np.ones(len(ids)) if values is None else np.nan_to_num(values / limit).clip(-1, 1)
    found[places[there]] = (128 + np.rint(127 * shares[there])).astype(np.uint8)
    return found


def _counts(ids: Sequence[np.ndarray]) -> list[tuple[int, int, int]]:
    """Of every frame how many edges it has, how many of them the one before had not, and how many only that one."""
    found, before = [], _distinct(ids[:1])
    for each in (_distinct([own]) for own in ids):
        same = len(np.intersect1d(each, before, assume_unique=True))
        found.append((len(each), len(each) - same, len(before) - same))
        before = each
    return found


@dataclass(frozen=True, eq=False)
class GateTrack:
    """Gates that open and close: `steps` `(s,)` and `panels` are as for `ash.plot.gates`.

    A row for each panel, a column for each of what feeds them.
    """

    steps: Any
    panels: Mapping[str, Any]

    def lines(self) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
        """The steps, and the gates of each panel by name. Raises `UserError` as `ash.plot.gates` does."""
        require(len(self.panels) > 0, "panels is empty; expected at least one title with its gates.")
        steps = array("steps", self.steps, 1)
        return steps, {title: lines_of(title, given, len(steps)) for title, given in self.panels.items()}

    def encode(self, room: int) -> dict[str, Any]:
        """What the browser draws, in about `room` characters. Raises `UserError` as `lines` does."""
        steps, lines = self.lines()
        _rising([int(step) for step in steps])
        sources = list(dict.fromkeys(name for each in lines.values() for name in each))
        cells = [(row, sources.index(name)) for row, each in enumerate(lines.values()) for name in each]
        table = np.stack([gates for each in lines.values() for gates in each.values()], axis=1)
        places = spread_evenly(len(steps), int(room / (CHARACTERS["<f4"] * len(cells))))
        return {"kind": "gates", "steps": [int(steps[place]) for place in places],
                "notes": _thinned(len(steps), len(places)), "targets": list(lines), "sources": sources,
                "cells": cells, "gates": packed(table[places], "<f4"),
                "limit": max(1.0, _largest(table))}


Track = TupleTrack | EdgeTrack | GateTrack
"""What the slider of a page moves."""
