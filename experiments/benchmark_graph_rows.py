"""Rows of the benchmark that graphs have: time and memory of a step by the number of nodes, and for each edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from experiments.benchmark_case import Case, Layer, Part, Plan
from experiments.benchmark_graphs import EDGES, check_graphs, graph_step
from experiments.benchmark_report import Row

LARGEST = 100_000
SIZES = (1_000, 3_000, 10_000, 30_000, LARGEST)
BARS: dict[str, float] = {"seconds": 10.0, "bytes": 6e9}
"""Of a step on the largest graph."""
LINEAR = 2.0
"""Time and memory of an edge: at most so many times what it takes in the smallest graph."""
EACH = {"seconds": ("time", "seconds_each"), "bytes": ("memory", "each")}


def plan(quick: bool) -> Plan:
    """A step on graphs of some numbers of nodes."""
    return graph_plan((20, 40) if quick else SIZES)


def graph_plan(sizes: Sequence[int]) -> Plan:
    """A step on graphs of these numbers of nodes."""
    kinds: tuple[Literal["seconds", "bytes"], ...] = ("seconds", "bytes")
    return [
        (
            Row(
                f"graphs_{n}_{kind}",
                f"graph of {n:,} nodes, {EDGES * n:,} edges",
                kind,
                BARS[kind] if n == LARGEST else None,
                size=n,
            ),
            Case("graphs", kind, n),
        )
        for n in sizes
        for kind in kinds
    ]


def graph_growths(rows: Sequence[Row], quick: bool) -> list[Row]:
    """Time and memory for each edge, and the largest of them over that of the smallest graph."""
    found = []
    for kind, (word, unit) in EACH.items():
        own = [row for row in rows if row.name.startswith("graphs_") and row.figure == kind and row.shown]
        each = [_for_each_edge(row, unit) for row in own]
        found += each
        if len(each) > 1:
            ratio = max(row.median or 0 for row in each) / (each[0].median or 1)
            what = f"{word} for each edge, largest / smallest graph's"
            found.append(Row(f"graphs_{word}_growth", what, "ratio", None if quick else LINEAR, ratio, ratio, ratio))
    return found


def _for_each_edge(row: Row, unit: str) -> Row:
    edges = EDGES * row.size
    figures: list[Any] = [None if own is None else own / edges for own in (row.low, row.median, row.high)]
    return Row(f"{row.name}_each", f"{row.what}, for each edge", unit, None, *figures)


PART = Part(
    layers={"graphs": Layer(lambda case: graph_step(case.size), lambda case: check_graphs())},
    plan=plan,
    derived=graph_growths,
)
