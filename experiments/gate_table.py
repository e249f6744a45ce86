"""What the experiment `gates` makes of several runs: how alike gates are, and a table with a row for each variant.

The rows of the table, each of three seeds, at half width and on 10,000 images (about 3 minutes a seed on one core):

    while read -r row; do
      python -m experiments gates --data-dir DATA --train-images 10000 --width 0.5 --epochs 15 --bfloat16 \\
        --no-baseline --seed 100 --seeds 3 $row --out "runs/gates/$row"
    done < rows
    python -m experiments gates --table runs/gates --out runs/gates_table

with a line in the file `rows` for each variant: `--retrain` (the net as it is by default), `--net open`, `--net chain`,
`--net narrow`, `--merge sum` (max, squeeze), `--gates unique`, `--gate linear` (hard_concrete), `--sparsity 0.1`,
`--gate hard_concrete --sparsity 0.1`, `--resize nearest` (bicubic, area, pad), `--gate-init 1` (0.5, gaussian,
forward), `--blocks 3`, `--every-layer`.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ash.checks import require
from experiments.files import replace_whole

DEFAULTS = {
    "blocks": 2,
    "every_layer": False,
    "merge": "concat",
    "resize": "bilinear",
    "gates": "shared",
    "gate": "sigmoid",
    "gate_init": None,
    "sparsity": 0.0,
}
"""What makes a variant, and what need not be said of it."""
RETRAINED = ("pruned", "trained_on", "continued", "scratch", "random")
HEAD = ("variant", "parameters", "seeds", "test accuracy, %", "±", "mean gate", "smallest", "largest", "agreement",
        "difference")  # fmt: skip


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def label(options: Any) -> str:
    """The options that make a net another one, in words."""
    parts = [] if options.net == "gated" else [options.net]
    for name, usual in DEFAULTS.items():
        value = getattr(options, name)
        if value != usual:
            parts.append(name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts) or "gated"


def agreement(gates: Sequence[Sequence[float]]) -> dict[str, object]:
    """`agreement`: the mean correlation of the gates of two seeds, None where gates are all alike; `gate_difference`:
    the mean absolute difference."""
    table = torch.tensor(gates, dtype=torch.float64)
    pairs = list(itertools.combinations(table, 2))
    varied = bool((table.std(1) > 1e-9).all())
    same = mean([float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]) if varied else None
    return {"agreement": same, "gate_difference": mean([float((a - b).abs().mean()) for a, b in pairs])}


def collect(folder: Path, path: Path) -> dict[str, object]:
    """Gather the runs in the subfolders of `folder`, write the table to `path`, and return its rows.

    Raises `UserError` where no run of `gates` is finished there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*/summary.json")):
        summary = json.loads(file.read_text(encoding="utf-8"))
        if summary.get("experiment") == "gates" and "variant" in summary:
            found.setdefault(summary["variant"], []).append(summary)
    require(bool(found), f"--table {folder}: no finished run of gates in its subfolders; expected at least one.")
    rows = [row(variant, runs) for variant, runs in found.items()]
    rows.sort(key=lambda each: -float(each["test_accuracy"]))
    text = markdown(rows)
    replace_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))
    return {"rows": rows}


def row(variant: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs of one variant as one."""
    accuracies = [each for run in runs for each in run["test_accuracies"]]
    gates = [each for run in runs for each in run.get("gates", [])]
    result: dict[str, Any] = {
        "variant": variant,
        "parameters": runs[0]["parameters"],
        "seeds": len(accuracies),
        "test_accuracy": mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    }
    if gates:
        every = [gate for each in gates for gate in each]
        result |= {"mean_gate": mean(every), "smallest_gate": min(every), "largest_gate": max(every)}
    if len(gates) > 1:
        result |= agreement(gates)
    for name in RETRAINED:
        each = [run[f"{name}_accuracy"] for run in runs if f"{name}_accuracy" in run]
        if each:
            result[f"{name}_accuracy"] = mean(each)
    return result


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, and below it one of the nets from which gates were removed."""
    keys = ("mean_gate", "smallest_gate", "largest_gate", "agreement", "gate_difference")
    lines = [
        (each["variant"], f"{each['parameters']:,}", str(each["seeds"]), _percent(each["test_accuracy"]),
         _percent(each["spread"]), *(_number(each.get(key)) for key in keys))
        for each in rows
    ]  # fmt: skip
    text = _table(HEAD, lines)
    pruned = [each for each in rows if "pruned_accuracy" in each]
    if pruned:
        head = ("variant", "whole", *(name.replace("_", " ") for name in RETRAINED))
        columns = ("test_accuracy", *(f"{name}_accuracy" for name in RETRAINED))
        cells = [(each["variant"], *(_percent(each.get(key)) for key in columns)) for each in pruned]
        text += "\n" + _table(head, cells)
    return text


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))
