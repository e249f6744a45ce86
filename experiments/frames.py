"""Frames of index tuples that a training collects for its pictures, kept in its checkpoints."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ash import plot
from ash.plot.page_tracks import TUPLES, some

ARRAYS = ("means", "scales", "values")


def packed(history: plot.History) -> list[dict[str, Any]]:
    """The frames of a history as a checkpoint can hold them; their points are left out."""
    return [
        {name: getattr(frame, name) for name in ("step", "shape", "out_rank")}
        | {name: torch.as_tensor(getattr(frame, name)) for name in ARRAYS}
        for frame in history.frames
    ]


def take_up(history: plot.History, frames: list[dict[str, Any]]) -> None:
    """Add to a history what `packed` gave."""
    for frame in frames:
        history.add(plot.Frame(points=None, **frame))


def few(frame: plot.Frame) -> plot.Frame:
    """A frame with as many of its tuples as a page draws, always the same ones."""
    chosen = some(len(frame.values), TUPLES)
    return dataclasses.replace(frame, points=None, **{name: getattr(frame, name)[chosen] for name in ARRAYS})
