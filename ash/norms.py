"""A product of matrices, block by block, as far as the norms of rows and columns allow entries above a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

TILE = 1 << 10
"""Columns of a block: products of flatter blocks are slower, several times where b is large."""

Block = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Some of a matrix, (rows, columns), and what makes flattened positions of places in it."""


def product_blocks(
    g: Float[Tensor, "b o"], x: Float[Tensor, "b i"], rows: Int64[Tensor, " r"], bar: Callable[[], float], block: int
) -> Iterator[Block]:
    """Those rows of gᵀ · x in blocks of about so many entries, without such as have no |entry| above the bar.

    Entry (i, j) is at most |g_i| · |x_j|. Rows and columns come by falling norm, each row as far as that bound passes
    the bar, which may rise in between. Rows of about one norm are taken together, the fewer columns the more rows.
    """
    gt, heights, rows = _by_norm(g[:, rows], rows)
    x, widths, cols = _by_norm(x, torch.arange(x.shape[1], device=x.device))
    gt, width, row = gt.t().contiguous(), x.shape[1], 0
    room = x.new_empty(max(block, min(width, TILE)))  # one for all blocks: memory in pieces of many sizes adds up
    while row < len(gt):
        reach = _reach(widths, heights[row], bar())
        if not reach:
            return
        step = max(1, block // min(reach, TILE))
        for col in range(0, reach, TILE):
            if col >= _reach(widths, heights[row], bar()):
                break  # the bar has risen
            part, own = gt[row : row + step], cols[col : min(col + TILE, reach)]
            found = room[: len(part) * len(own)].view(len(part), len(own))
            torch.mm(part, x[:, col : col + len(own)], out=found)
            yield found, partial(names, rows[row : row + step] * width, own)
        row += step


def names(starts: Int64[Tensor, " rows"], cols: Int64[Tensor, " cols"], places: Int64[Tensor, " n"]) -> Tensor:
    """Flattened positions of places in a block of rows that start there, and of those columns."""
    if len(places) == len(starts) * len(cols):
        return (starts[:, None] + cols).flatten()
    return starts[places.div(len(cols), rounding_mode="floor")] + cols[places % len(cols)]


def _by_norm(lines: Float[Tensor, "b n"], numbers: Int64[Tensor, " n"]) -> tuple[Tensor, np.ndarray, Tensor]:
    """Lines in the order of their norms, the largest first; the negative norms, rounded up; and the lines' numbers."""
    norms = torch.linalg.vector_norm(lines, dim=0, dtype=torch.float64).neg_()
    norms, order = norms.sort(stable=True)
    rounding = 1 + (len(lines) + 8) * torch.finfo(lines.dtype).eps  # of a product of two of them
    return lines[:, order], norms.mul_(rounding).cpu().numpy(), numbers[order]


def _reach(norms: np.ndarray, other: float, bar: float) -> int:
    """How many norms may give a product above the bar with another norm; all negative, in rising order."""
    if bar < 0:
        return len(norms)
    return int(np.searchsorted(norms, bar / other)) if other < 0 else 0
