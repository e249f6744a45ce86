"""Contexts: which tuples see which points, and from there to one sparse weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash import jit
from ash.cells import cell_weights, fits
from ash.checks import choose, require
from ash.jit.tuples import LARGEST, MOST, tuple_weights
from ash.kernels import Gaussian, Kernel, StudentT
from ash.pattern import ravel
from ash.sampling import duplicates
from ash.shares import point_weights
from ash.template import Admissible, Template
from ash.tuples import IndexTuples

_NAMES = {"tuple": 1, "chunk": 0, "all": 0}
_SHARES = dict.fromkeys(("auto", "table", "cells"))


@dataclass(frozen=True)
class Context:
    """`"tuple"`: a tuple spreads its value over its own points. `"chunk"`: the tuples of a chunk see the
    union of the chunk's points. `"all"`: one chunk.

    Attributes:
        chunk_size: tuples of a chunk.
        shuffle: chunks are drawn anew for every batch; otherwise consecutive tuples stay together.
        shares: how they are found where tuples share points. `"table"`: all points × tuples of a context, streamed.
            `"cells"`: far points cell by cell (`ash.cells`), exact to float32 for the Gaussian and to about 10^-6
            of the largest for Student's t. `"auto"`: whichever is expected to cost less.
    """

    name: str = "tuple"
    chunk_size: int = 64
    shuffle: bool = True
    shares: str = "auto"

    def __post_init__(self) -> None:
        choose("context", self.name, _NAMES)
        choose("way to find shares", self.shares, _SHARES)
        require(self.chunk_size >= 1, f"chunk_size={self.chunk_size}; expected at least 1 tuple in a chunk.")

    def size(self, k: int) -> int:
        """t, the number of tuples of one context."""
        return {"tuple": 1, "chunk": min(self.chunk_size, k), "all": k}[self.name]

    def order(self, k: int, generator: torch.Generator, device: torch.device) -> Int64[Tensor, "c t"] | None:
        """The tuples of every context, padded by −1 at the end; None where they simply follow each other."""
        t = self.size(k)
        shuffled = self.name == "chunk" and self.shuffle
        if k % t == 0 and not shuffled:
            return None
        ids = torch.arange(k, device=device)
        if shuffled:
            ids = torch.randperm(k, generator=generator, device=device)
        padded = torch.full((math.ceil(k / t) * t,), -1, dtype=torch.int64, device=device)
        padded[:k] = ids
        return padded.reshape(-1, t)


def spread(
    tuples: IndexTuples,
    points: Int64[Tensor, "*b k m q"],
    full: Int64[Tensor, "*b k m r"],
    shape: tuple[int, ...],
    *,
    kernel: Kernel,
    context: Context,
    template: Template,
    admissible: Admissible,
    generator: torch.Generator,
) -> Float[Tensor, "*b k m"]:
    """The weight of every point: each tuple's value, divided over the points of its context.

    Args:
        points, full: the points in the learned columns, and in all columns.
        shape: the weight tensor's.

    A point that stands in its context already, or is not admissible, gets exactly 0, so that sizes never
    depend on the draw.
    """
    k, m = points.shape[-3:-1]
    extent = max((shape[j] for j in template.learned), default=1)
    if context.name == "tuple" and _compiled(points, kernel, extent):
        return _own_points(tuples, points, full, kernel, admissible, extent)
    q, batch = points.shape[-1], points.shape[:-3]
    order = context.order(k, generator, points.device)
    if order is not None:
        reach = torch.where(order >= 0, order, order[:, :1]).flatten()  # padding: a chunk's first tuple again
        tuples, points, full = tuples.take(reach), points.index_select(-3, reach), full.index_select(-3, reach)
    c, t = (k // context.size(k), context.size(k)) if order is None else tuple(order.shape)
    c *= math.prod(batch)
    ids = ravel(full, shape).reshape(c, t * m)
    alive = ~duplicates(ids)
    if not admissible.everything:
        alive &= admissible.contains(full).reshape(c, t * m)
    values = tuples.values.reshape(c, t)
    if order is not None:
        values = values * (order >= 0).repeat(math.prod(batch), 1)
    weights = _context_weights(
        context.shares,
        kernel,
        points.reshape(c, t * m, q),
        alive,
        tuples.anchors.reshape(c, t, q),
        tuples.residuals.reshape(c, t, q),
        tuples.scales.reshape(c, t, tuples.scales.shape[-1]),
        values,
        _groups(full, shape, template, c, t, m) if template.columns and t > 1 else None,
        extent,
    )
    weights = weights.reshape(*batch, k if order is None else order.numel(), m)
    return weights if order is None else _undo(weights, order, k)


def _context_weights(shares: str, kernel: Kernel, points: Tensor, *rest: Any) -> Float[Tensor, "c p"]:
    """The weight of every point, by the table or by cells."""
    known = shares != "cells" or type(kernel) in (Gaussian, StudentT)
    require(known, f"shares='cells' with the kernel {kernel!r}; expected a gaussian or student_t, or shares='table'.")
    if shares != "table" and fits(kernel, points):
        weights = cell_weights(shares == "cells", kernel, points, *rest)
        if weights is not None:
            return weights
    return point_weights(kernel, points, *rest)


def _compiled(points: Tensor, kernel: Kernel, extent: int) -> bool:
    """Whether compiled kernels serve where every tuple is a context of its own."""
    m, q = points.shape[-2:]
    fits = q > 0 and m <= MOST and extent <= LARGEST and type(kernel) in (Gaussian, StudentT)
    return fits and jit.serves(points.numel() // max(1, q), points)


def _own_points(
    tuples: IndexTuples, points: Tensor, full: Tensor, kernel: Kernel, admissible: Admissible, extent: int
) -> Tensor:
    """The weight of every point (*b, k, m), by compiled kernels: points in a tuple differ in its learned columns."""
    dead = None if admissible.everything else ~admissible.contains(full).flatten(0, -2)
    weights = tuple_weights(
        tuples.values.flatten(),
        tuples.residuals.flatten(0, -2),
        tuples.scales.flatten(0, -2),
        tuples.anchors.flatten(0, -2),
        points.movedim(-1, 0).flatten(1, -2),
        dead,
        kernel.nu if isinstance(kernel, StudentT) else 0.0,
        extent,
    )
    return weights.unflatten(0, tuples.values.shape)


def _groups(
    full: Tensor, shape: tuple[int, ...], template: Template, c: int, t: int, m: int
) -> tuple[Tensor, Tensor]:
    """Flattened fixed columns of points (c, t·m) and of tuples (c, t)."""
    fixed = full[..., list(template.columns)]
    ids = ravel(fixed, [shape[j] for j in template.columns]).reshape(c, t, m)
    return ids.reshape(c, t * m), ids[:, :, 0].contiguous()


def _undo(weights: Tensor, order: Tensor, k: int) -> Tensor:
    """Weights (*b, c·t, m) in the order of the contexts, back to the tuples' own order (*b, k, m)."""
    flat = order.flatten()
    places = torch.empty(k, dtype=torch.int64, device=order.device)
    real = (flat >= 0).nonzero().squeeze(-1)
    places[flat[real]] = real
    return weights.index_select(-2, places)
