"""The runs of a sweep as one table, with means and spread over their seeds, as a plot, and as a page."""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ash.checks import require
from ash.plot import Chart, Link, page, spread
from experiments.compare import markdown
from experiments.files import replace_whole, write_json
from experiments.pages import INDEX, Table, cell
from experiments.records import Lines, figures_of

SEED = "seed"
LEFT_OUT = ("experiment", SEED, "peak_memory_bytes")
"""Keys of a summary that are no result."""
PANELS = 9
ALL = "all runs"

Groups = Mapping[str, list["Result"]]


@dataclass(frozen=True)
class Result:
    """A run of a sweep: its values of the grid, its folder, its summary and metrics, and how it has failed, if so."""

    values: Mapping[str, str]
    folder: Path
    summary: Mapping[str, Any] | None
    lines: Lines
    failure: str

    @property
    def kind(self) -> str:
        """Its values, without the seed."""
        return ", ".join(f"{key} {value}" for key, value in self.values.items() if key != SEED) or ALL


def report(name: str, out: Path, results: Sequence[Result], wanted: Sequence[str]) -> str:
    """Write `sweep.md`, `.csv`, `.json`, `.png` and the page into `out`; the table in Markdown.

    Raises `UserError` where a figure that is wanted is in no summary.
    """
    good = [result for result in results if result.summary is not None]
    keys, groups = figures(good, wanted), grouped(good)
    lines = [[kind, len(own), *(told(own, key) for key in keys)] for kind, own in groups.items()]
    tables: dict[str, Table] = {"over the seeds": [["", "runs", *keys], *lines]}
    failures = [[result.folder.name, result.failure] for result in results if result.failure]
    if failures:
        tables["failed"] = [["failed", "why"], *failures]
    text = "\n".join(map(markdown, tables.values()))
    replace_whole(out / "sweep.md", lambda new: new.write_text(text, encoding="utf-8"))
    _write_csv(out / "sweep.csv", results)
    runs = [{"values": r.values, "folder": r.folder.name, "failure": r.failure, "summary": r.summary} for r in results]
    means = {kind: {key: _moments(own, key) for key in keys} for kind, own in groups.items()}
    write_json(out / "sweep.json", {"experiment": name, "groups": means, "runs": runs})
    if good and keys:
        panels = {key: {kind: [_number(r, key) for r in own] for kind, own in groups.items()} for key in keys[:PANELS]}
        spread(panels, out / "sweep.png")
    _write_page(name, out, results, tables)
    return text


def figures(good: Sequence[Result], wanted: Sequence[str]) -> list[str]:
    """The keys of the summaries that are told: those wanted, or else all numbers that are not the same everywhere."""
    summaries = [result.summary or {} for result in good]
    pairs = [pair for summary in summaries for pair in summary.items()]
    known = list(dict.fromkeys(key for key, value in pairs if isinstance(value, (int, float))))
    missing = [key for key in wanted if good and key not in known]
    require(not missing, f"--figures {' '.join(missing)}: no number of a summary; expected some of {', '.join(known)}.")
    if wanted:
        return list(wanted)
    told = [key for key in known if key not in LEFT_OUT and not (good and key in good[0].values)]
    varied = [key for key in told if len({summary.get(key) for summary in summaries}) > 1]
    return varied or told


def grouped(good: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs by kind: they differ in their seeds alone."""
    groups: dict[str, list[Result]] = {}
    for result in good:
        groups.setdefault(result.kind, []).append(result)
    return groups


def told(group: Sequence[Result], key: str) -> str:
    """Mean and standard deviation of a figure, or how often it is true; how many runs have it, where not all do."""
    values = [(result.summary or {}).get(key) for result in group]
    if all(isinstance(value, bool) for value in values):
        return f"{sum(map(bool, values))} of {len(values)}"
    moments = _moments(group, key)
    if not moments["runs"]:
        return "–"
    text = f"{moments['mean']:.4g}" + (f" ± {moments['deviation']:.2g}" if moments["runs"] > 1 else "")
    return text if moments["runs"] == len(group) else f"{text} ({moments['runs']} of {len(group)})"


def _moments(group: Sequence[Result], key: str) -> dict[str, Any]:
    """Of a figure the mean, the standard deviation (of a sample), the ends, and how many runs have it."""
    values = [value for result in group if math.isfinite(value := _number(result, key))]
    if not values:
        return {"runs": 0}
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    ends = {"low": min(values), "high": max(values)}
    return {"runs": len(values), "mean": statistics.mean(values), "deviation": deviation, **ends}


def _number(result: Result, key: str) -> float:
    value = (result.summary or {}).get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _write_csv(path: Path, results: Sequence[Result]) -> None:
    """A line for each run: its values, its scalar figures, and how it has failed."""
    rows = [{**(result.summary or {}), **result.values, "failure": result.failure} for result in results]
    plain = [{key: value for key, value in row.items() if not isinstance(value, (list, dict))} for row in rows]
    keys = list(dict.fromkeys([*results[0].values, *(key for row in plain for key in row)]))

    def write(new: Path) -> None:
        with new.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(plain)

    replace_whole(path, write)


# --- the page --------------------------------------------------------------------------------------------


def _write_page(name: str, out: Path, results: Sequence[Result], tables: Mapping[str, Table]) -> None:
    runs: Table = [["run", "state", "steps", "seconds"]]
    for result in results:
        summary = result.summary or {}
        link = Link(result.folder.name, os.path.relpath(result.folder / INDEX, out))
        named = link if (result.folder / INDEX).exists() else result.folder.name
        state = result.failure or "finished"
        runs.append([named, cell(state), cell(summary.get("steps")), cell(summary.get("seconds"))])
    picture = out / "sweep.png"
    page(out / INDEX, f"{name}: {len(results)} runs", about="Bands reach from the lowest to the highest run.",
         charts=charts(results), tables={**tables, "runs": runs}, files=[picture] if picture.exists() else [])


def charts(results: Sequence[Result]) -> dict[str, Chart]:
    """A chart for every logged figure: the mean over the runs of a kind that have logged it at that step, in a band
    from the lowest to the highest."""
    curves: dict[str, dict[str, list[Any]]] = {}
    for result in results:
        for key, series in figures_of(result.lines).items():
            for label, curve in series.items():
                name = ": ".join(part for part in (result.kind, label) if part)
                curves.setdefault(key, {}).setdefault(name, []).append(curve)
    found = {}
    for key, kinds in curves.items():
        banded = {kind: band(own) for kind, own in kinds.items()}
        means = {kind: (steps, values) for kind, (steps, values, *_) in banded.items()}
        found[key.replace("_", " ")] = Chart(means, {kind: (low, high) for kind, (*_, low, high) in banded.items()})
    return found


def band(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], ...]:
    """Steps, and the mean, the lowest and the highest value of several curves at each of them."""
    at: dict[float, list[float]] = {}
    for steps, values in curves:
        for step, value in zip(steps, values, strict=True):
            if math.isfinite(value):
                at.setdefault(step, []).append(value)
    there = [at[step] for step in sorted(at)]
    return sorted(at), [statistics.mean(each) for each in there], [*map(min, there)], [*map(max, there)]
