"""`index.html` of a run's folder: what moves in training, the curves, the summary and the pictures, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ash.plot import page
from ash.plot.page_tracks import Track
from experiments.files import dumps
from experiments.records import Lines, charts

INDEX = "index.html"
LONGEST = 300
"""Characters of a cell at most."""

Table = list[list[Any]]


def write(
    path: Path,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    lines: Lines,
    tracks: Mapping[str, Track],
    files: Sequence[Path],
) -> None:
    """Write the page of a finished run: its options, its final figures, its metrics, and what it has to show."""
    about = f"A run with seed {config['seed']}, version {config['version']}"
    about += f", commit {config['commit'][:12]}" if config.get("commit") else ""
    options = {key: value for key, value in config.items() if key not in ("experiment", "version", "commit")}
    tables = {"final figures": _pairs("figure", summary), **_nested(summary), "options": _pairs("option", options)}
    page(
        path,
        config["experiment"],
        about=about,
        tracks=tracks,
        charts=charts(lines),
        tables=tables,
        folded=["options"],
        files=files,
    )


def cell(value: Any) -> Any:
    """A value of a summary as a cell of a table: numbers as they are, all else as text, long text cut."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    text = "–" if value is None else value if isinstance(value, str) else dumps(_short(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _short(value: Any) -> Any:
    """The numbers in lists with four digits."""
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _pairs(name: str, values: Mapping[str, Any]) -> Table:
    return [[name, "value"], *([key, cell(value)] for key, value in values.items() if _rows(value) is None)]


def _nested(summary: Mapping[str, Any]) -> dict[str, Table]:
    """Lists of objects in the summary, and objects of objects, as tables of their own."""
    found: dict[str, Table] = {}
    for key, value in summary.items():
        rows = _rows(value)
        if rows is not None:
            head = list(dict.fromkeys(name for _, row in rows for name in row))
            table = [[title, *(cell(row.get(name)) for name in head)] for title, row in rows]
            found[key.replace("_", " ")] = [["", *head], *table]
    return found


def _rows(value: Any) -> list[tuple[str, Mapping[str, Any]]] | None:
    """The rows of a value that is a table: (title, cells); None if it is none."""
    if isinstance(value, list):
        pairs = [(str(number + 1), row) for number, row in enumerate(value)]
    else:
        pairs = list(value.items()) if isinstance(value, Mapping) else []
    return pairs if pairs and all(isinstance(row, Mapping) for _, row in pairs) else None
