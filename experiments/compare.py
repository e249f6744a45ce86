"""Several runs side by side: their curves on a page, and their final figures as a table.

Of runs of one experiment every figure is shown, of runs of several those that all of them have. A run that is not
finished has curves and no final figures. In the folder --out: `index.html`, and the table in `compare.md`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ash.checks import UserError, require
from ash.plot import Chart, Link, page
from experiments.files import replace_whole
from experiments.folder import CONFIG
from experiments.pages import INDEX, Table, cell
from experiments.records import Record, figures_of, read_record

NOT_COMPARED = ("version", "commit", "out", "resume")
"""Keys of a configuration that say nothing of what was trained."""


@dataclass
class Options:
    """Options of a comparison."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="DIR ...")]
    """Folders of runs, two at least."""
    out: Path = Path("runs") / "compare"
    """Folder of the comparison."""


def main(arguments: Sequence[str], experiments: Mapping[str, str]) -> int:
    """Compare the runs that the command line names, of whatever experiments; the exit status, 0, or 2 for folders that
    are none of runs."""
    options = tyro.cli(Options, prog="python -m experiments compare", description=__doc__, args=list(arguments))
    try:
        print(compare(options.runs, options.out), end="")
    except UserError as problem:
        print(f"compare: {problem}", file=sys.stderr)
        return 2
    return 0


def compare(folders: Sequence[Path], out: Path) -> str:
    """Write the page and the table of these runs into `out`; the table in Markdown.

    Raises `UserError` for fewer than two folders, for one that is given twice or is none of a run, and for an `out`
    that is one of a run.
    """
    require(len(folders) > 1, f"{len(folders)} folders; expected two at least.")
    twice = [str(folder) for i, folder in enumerate(folders) if folder.resolve() in {f.resolve() for f in folders[:i]}]
    require(not twice, f"{', '.join(twice)} is given twice; expected different folders.")
    require(not (out / CONFIG).exists(), f"--out {out} is the folder of a run; choose another with --out.")
    records = dict(zip(names_of(folders), map(read_record, folders), strict=True))
    rows = [*option_rows(records), *figure_rows(records)]
    text = markdown([["", *records], *rows])
    out.mkdir(parents=True, exist_ok=True)
    links = [_link(name, record.folder, out) for name, record in records.items()]
    experiments = ", ".join(dict.fromkeys(record.experiment for record in records.values()))
    page(out / INDEX, f"{experiments}: {len(records)} runs", charts=charts(records),
         tables={"final figures": [["", *links], *rows]})
    replace_whole(out / "compare.md", lambda new: new.write_text(text, encoding="utf-8"))
    return text


def _link(name: str, folder: Path, out: Path) -> str | Link:
    """The name, leading to the run's own page where there is one."""
    own = folder / INDEX
    return Link(name, os.path.relpath(own, out)) if own.exists() else name


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("folders that differ have names that differ")


def option_rows(records: Mapping[str, Record]) -> Table:
    """A row for every option that all have and in which they differ; the experiment, too."""
    configs = [record.config for record in records.values()]
    shared = [key for key in configs[0] if all(key in config for config in configs)]
    differing = [key for key in shared if any(config[key] != configs[0][key] for config in configs)]
    return [[key if key == "experiment" else f"--{key.replace('_', '-')}", *(cell(config[key]) for config in configs)]
            for key in differing if key not in NOT_COMPARED]  # fmt: skip


def figure_rows(records: Mapping[str, Record]) -> Table:
    """A row for every final figure that is a number, a word or a truth value."""
    found = [_scalars(record.summary or {}) for record in records.values()]
    known = [own for own, record in zip(found, records.values(), strict=True) if record.summary is not None]
    keys = list(dict.fromkeys(key for own in known for key in own))
    if len({record.experiment for record in records.values()}) > 1:
        keys = [key for key in keys if all(key in own for own in known)]
    rows = [[key, *(cell(own.get(key)) for own in found)] for key in keys if key != "experiment"]
    states = [["finished", *(cell(record.summary is not None) for record in records.values())]]
    return rows if len(known) == len(found) else [*states, *rows]


def _scalars(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if value is None or isinstance(value, (int, float, str))}


def charts(records: Mapping[str, Record]) -> dict[str, Chart]:
    """A chart for every logged figure, with the curves of all runs."""
    logged = {name: figures_of(record.lines) for name, record in records.items()}
    keys = list(dict.fromkeys(key for figures in logged.values() for key in figures))
    if len({record.experiment for record in records.values()}) > 1:
        keys = [key for key in keys if all(key in figures for figures in logged.values())]
    found = {}
    for key in keys:
        series = {}
        for name, figures in logged.items():
            for label, curve in figures.get(key, {}).items():
                series[f"{name}: {label}" if label else name] = curve
        found[key.replace("_", " ")] = Chart(series)
    return found


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a table in Markdown, the first one its head."""
    lines = [f"| {' | '.join(_text(each) for each in row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def _text(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
