"""`Tree`: the points of contexts in a hierarchy of cells, each split in two halves of space."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BITS = 62
"""Of the number by which points are sorted: context first, then position."""


class Tree(NamedTuple):
    """Cells over the points of c contexts. The first c cells are the contexts' roots.

    Points stand in the order of the tree, so that those of a cell follow each other.
    """

    where: Float[Tensor, "q n"]
    order: Int64[Tensor, " n"]  # the place that each point had before
    first: Int64[Tensor, " cells"]
    last: Int64[Tensor, " cells"]
    child: Int64[Tensor, " cells"]  # the left half, which the right one follows; −1 for leaves
    middle: Float[Tensor, "cells q"]  # of the smallest box around its points
    half: Float[Tensor, "cells q"]


def grow_tree(
    points: Int64[Tensor, "n q"], context: Int64[Tensor, " n"], c: int, leaf: int, dtype: torch.dtype
) -> Tree:
    """The tree of points in c contexts. A cell of more than `leaf` points is split, as far as positions differ.

    Cells are halved along one column after the other (a radix tree of interleaved bits), and then shrunk to the
    box of their points.
    """
    codes, bits = _codes(points, context, c)
    codes, order = torch.sort(codes, stable=True)
    where = points[order].to(dtype)
    first = torch.searchsorted(codes, torch.arange(c, device=codes.device) << bits)
    last = torch.cat([first[1:], first.new_tensor([len(codes)])]) if c else first
    first, last, child, split = _split(codes, bits, first, last, leaf)
    low, high = _boxes(where, first, last, child, split)
    return Tree(where.t().contiguous(), order, first, last, child, (low + high) / 2, (high - low) / 2)


def _codes(points: Tensor, context: Tensor, c: int) -> tuple[Tensor, int]:
    """Numbers that sort points by context, then by their interleaved bits, of which there are so many."""
    q = points.shape[1]
    points = points - points.amin(0)
    own = max(1, int(points.max()).bit_length())
    drop = max(0, own - (BITS - c.bit_length()) // q)
    table, codes = _interleaved(q, points.device), context
    codes = context << (own - drop) * q
    for j in range(q):
        for begin in range(0, own - drop, 8):
            codes = codes | table[(points[:, j] >> drop + begin) & 255] << (begin * q + q - 1 - j)
    return codes, (own - drop) * q


def _interleaved(q: int, device: torch.device) -> Tensor:
    """The bits of 0 … 255, q places apart."""
    numbers = torch.arange(256, device=device)
    return sum(((numbers >> i) & 1) << (i * q) for i in range(8) if i * q < BITS)  # type: ignore[return-value]


def _split(
    codes: Tensor, bits: int, first: Tensor, last: Tensor, leaf: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Begin, end and left half of every cell; the cells that were split, bit by bit."""
    firsts, lasts, splits, halves = [first], [last], [], []
    count = len(first)
    numbers = torch.arange(count, device=codes.device)
    for bit in range(bits - 1, -1, -1):
        large = last - first > leaf
        first, last, numbers = first[large], last[large], numbers[large]
        if not len(first):
            break
        middle = torch.searchsorted(codes, (codes[first] >> bit + 1 << bit + 1) | 1 << bit)
        parts = (middle > first) & (middle < last)
        begin, between, end = first[parts], middle[parts], last[parts]
        fresh = count + torch.arange(2 * len(begin), device=codes.device)
        count += len(fresh)
        splits.append(numbers[parts])
        halves.append(fresh[::2])
        firsts.append(torch.stack([begin, between], 1).flatten())
        lasts.append(torch.stack([between, end], 1).flatten())
        first, last = torch.cat([first[~parts], firsts[-1]]), torch.cat([last[~parts], lasts[-1]])
        numbers = torch.cat([numbers[~parts], fresh])
    child = torch.full((count,), -1, device=codes.device)
    for own, half in zip(splits, halves, strict=True):
        child[own] = half
    return torch.cat(firsts), torch.cat(lasts), child, splits


def _boxes(where: Tensor, first: Tensor, last: Tensor, child: Tensor, split: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Smallest and largest position of every cell, from the leaves upwards."""
    low, high = (where.new_full((len(first), where.shape[1]), bound) for bound in (math.inf, -math.inf))
    leaves = (child < 0).nonzero().squeeze(-1)
    leaves = leaves[torch.argsort(first[leaves], stable=True)]
    counts = (last - first)[leaves]
    owner = leaves.repeat_interleave(counts).unsqueeze(-1).expand_as(where)
    low.scatter_reduce_(0, owner, where, "amin")
    high.scatter_reduce_(0, owner, where, "amax")
    for own in reversed(split):
        left = child[own]
        low[own] = torch.minimum(low[left], low[left + 1])
        high[own] = torch.maximum(high[left], high[left + 1])
    return low, high
