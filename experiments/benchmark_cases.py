"""One figure of the benchmark, in a process of its own: `python -m experiments.benchmark_cases LAYER …`.

Prints one line of JSON: `low`, `median`, `high` and `runs` of the figure; the `error` relative to the dense
oracle on a small problem; for ratios the same of the `seconds` of either step; for bytes those `loaded`, code
and tables that a process loads on first use, which the figure does not hold. Or `missing`, a package.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
import tyro

from ash.checks import choose
from experiments.benchmark_case import Case, Layer
from experiments.benchmark_parts import LAYERS
from experiments.measure import peak_above, spread, timed, trimmed_bytes

WARM = {"size": 512, "batch": 4096, "density": 0.02}
"""The case that loads, before anything is measured, what is loaded or compiled on first use. Enough work for
the kernels that serve large layers."""


def main() -> None:
    """Run the case of the command line."""
    print(json.dumps(run(tyro.cli(Case, description=__doc__))))


def run(case: Case) -> dict[str, Any]:
    """Check the layer against the oracle, then measure; see the module's docstring for what comes back."""
    layer = choose("layer", case.layer, LAYERS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begun = trimmed_bytes()
    error = layer.check(case)
    if layer.measure is not None:
        return {"error": error, **layer.measure(case)}
    layer.prepare(dataclasses.replace(case, **{**WARM, "every": min(case.every, 1), **layer.warm}))()
    if case.figure == "bytes":
        loaded = trimmed_bytes() - begun
        return {"error": error, "loaded": loaded, **spread([peak_above(lambda: layer.prepare(case))])}
    if case.figure == "seconds":
        seconds = timed({"layer": layer.prepare(case)}, case.budget, case.most)
        return {"error": error, **spread(seconds["layer"])}
    return _ratio(layer, case, error)


def _ratio(layer: Layer, case: Case, error: float | None) -> dict[str, Any]:
    """Ratios round by round, each of two steps that followed each other."""
    try:
        rival = choose("rival", case.rival, layer.rivals)(case)
    except ImportError as problem:
        return {"missing": f"{case.rival} is not installed ({problem})"}
    seconds = timed({"layer": layer.prepare(case), "rival": rival}, case.budget, case.most)
    ratios = [ours / theirs for ours, theirs in zip(seconds["layer"], seconds["rival"], strict=True)]
    own = {name: spread(figures) for name, figures in seconds.items()}
    return {"error": error, **spread(ratios), "seconds": own}


if __name__ == "__main__":
    main()
