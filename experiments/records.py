"""What a run has left in its folder, read again: options, logged figures, the summary; and the figures as curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ash.checks import UserError, require
from ash.plot import Chart
from experiments.folder import CONFIG, METRICS, SUMMARY

LABELS = ("seed", "density")
"""Numbers in a line of the metrics that say which net it is of, as words and truth values do."""
NOT_DRAWN = ("step", "epoch")
WAYS = ("rounded", "sampled")
"""Last words of a figure's name that say how a network was evaluated."""

Lines = Sequence[Mapping[str, Any]]
Series = dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Record:
    """A run's folder: `config.json`, the lines of `metrics.jsonl`, and `summary.json`, None before the run's end."""

    folder: Path
    config: dict[str, Any]
    lines: Lines
    summary: dict[str, Any] | None

    @property
    def experiment(self) -> str:
        """Its name."""
        return str(self.config["experiment"])


def read_record(folder: Path) -> Record:
    """The record in `folder`. Raises `UserError` where no run has left one, or a damaged one."""
    require(folder.is_dir(), f"{folder} is no folder; expected the folder of a run (its --out).")
    config = _object(folder / CONFIG)
    require(config is not None and "experiment" in config,
            f"{folder} has no {CONFIG} of a run; expected the folder of a run (its --out).")
    assert config is not None
    return Record(folder, config, read_lines(folder / METRICS), _object(folder / SUMMARY))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics; none where there is no file.

    A last line without an end is one that is being written, and left out. Raises `UserError` for any other text.
    """
    if not path.exists():
        return []
    try:
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read ({problem}); expected a JSON object a line, as a run logs.") from None
    require(all(isinstance(line, dict) and "step" in line for line in lines),
            f"{path} has lines that are not of a run; expected a JSON object with a step in each.")
    return lines


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None without the file. Raises `UserError` for any other text."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read ({problem}); expected the JSON that a run leaves.") from None
    require(isinstance(found, dict), f"{path} holds {type(found).__name__}; expected a JSON object.")
    return dict(found)


# --- figures as curves -----------------------------------------------------------------------------------


def figures_of(lines: Lines) -> dict[str, Series]:
    """Every figure that was logged: its curve by the name of the net that it is of ("" where there is but one).

    Nets that were trained one after the other all start at 0.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(net_of(line), []).append(line)
    if groups and all(len(group) == 1 for group in groups.values()):
        groups = {"": list(lines)}  # a line for each net: their order is all that there is to draw
    starts = _starts(list(groups.values()))
    found: dict[str, Series] = {}
    for (label, group), start in zip(groups.items(), starts, strict=True):
        for name in dict.fromkeys(name for line in group for name, value in line.items() if is_drawn(name, value)):
            own = [line for line in group if name in line]
            values = [math.nan if line[name] is None else float(line[name]) for line in own]
            found.setdefault(name, {})[label] = ([line["step"] - start for line in own], values)
    return found


def net_of(line: Mapping[str, Any]) -> str:
    """Which net a line of the metrics is of, in words; "" where there is but one."""
    parts = []
    for name, value in line.items():
        if isinstance(value, bool):
            parts += [name.replace("_", " ")] if value else []
        elif isinstance(value, str) or name in LABELS:
            parts.append(f"{name} {value:g}" if isinstance(value, (int, float)) else str(value))
    return ", ".join(parts)


def is_drawn(name: str, value: object) -> bool:
    """Whether a value in a line of the metrics is a point of a curve; None is one without a number."""
    number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    return number and name not in (*NOT_DRAWN, *LABELS)


def _starts(groups: Sequence[Lines]) -> list[float]:
    """Where each group begins: at the end of the one before it, if no two of them overlap, else at 0."""
    spans = [(group[0]["step"], group[-1]["step"]) for group in groups]
    apart = all(a[1] < b[0] for a, b in zip(spans, spans[1:], strict=False))
    ends = [0, *(end for _, end in spans)] if apart else [0] * len(groups)
    return ends[: len(groups)]


def families(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Figures that belong in one picture: a title for each family, and of each figure in it a name and a short one.

    They belong together if their names end alike, `_rounded` and `_sampled` aside: `test_accuracy` and
    `train_accuracy`, `mse_rounded` and `mse_sampled`.
    """
    groups: dict[str, list[tuple[list[str], list[str], str]]] = {}
    for name in names:
        words = name.split("_")
        ways = [words[-1]] if len(words) > 1 and words[-1] in WAYS else []
        stem = words[: len(words) - len(ways)]
        groups.setdefault(stem[-1], []).append((stem, ways, name))
    found = {}
    for group in groups.values():
        shared = _shared_end([stem for stem, _, _ in group])
        title = " ".join(shared)
        found[title] = {name: " ".join(stem[: len(stem) - len(shared)] + ways) or title for stem, ways, name in group}
    return found


def _shared_end(names: Sequence[Sequence[str]]) -> list[str]:
    """The words that all names end with."""
    shared: list[str] = []
    for words in zip(*(reversed(name) for name in names), strict=False):
        if len(set(words)) > 1:
            break
        shared.insert(0, words[0])
    return shared


def charts(lines: Lines) -> dict[str, Chart]:
    """The figures of a run, those that belong together in one chart."""
    figures, found = figures_of(lines), {}
    for title, family in families(figures).items():
        series = {}
        for name, short in family.items():
            for label, curve in figures[name].items():
                series[_joined(label, short if len(family) > 1 or not label else "")] = curve
        found[title] = Chart(series)
    return found


def _joined(*parts: str) -> str:
    return ": ".join(part for part in parts if part)
