"""Time and memory of single layers on one CPU thread, each figure from a process of its own.

Before a figure is taken, the layer's output and gradients are compared with the dense oracle on a small
problem. A step is a forward and a backward pass, to the parameters and to the input. Times are medians of
several steps. Memory is the peak of the resident set over making the layer, making its input and two steps,
less the base: the resident set after the imports and after a step of a small layer, which loads and compiles
what is needed on first use (the table says how much that is). Ratios are of steps that alternate in one process.

Keys of `summary.json` besides the standard ones: for every figure its name with the median, in seconds
(`…_seconds`), bytes (`…_bytes`) or as a ratio; `bars` and `bars_kept`, how many figures have a bar and how
many keep to it; `missed`, the names of those that do not. The figures with their spread are in
`benchmark.md`, time and memory against the number of tuples in `benchmark.png`.

- `gaussian_K_…`: K tuples on K × K, 2 + 2 samples, one context for all, batch 64.
- `tuple_K_…`: the same with a context for each tuple; `tuple_time_growth` and `tuple_memory_growth`: the
  largest over the smallest time (memory) per tuple.
- `hyper_K_…`: the adaptive layer 784 → 256 whose hypernetwork emits K tuples of 8 points for every instance of a
  batch of 64: a step, its memory, and the step over that of a rival: `gather`, the gather–multiply–index_add
  alone over given indices and values; `dense_hyper`, the same perceptron emitting all 200,704 weights, whose
  memory is `dense_hyper_bytes`. `hyper_K_bytes_each`: bytes for each of the 64 · K · 8 points;
  `hyper_memory_growth`: the largest of these over the smallest; `hyper_dense_memory`: memory over the dense one's.
- `static_N_RIVAL`: a step of N × N random entries (99 % sparse at 4,096 with batch 128, 99.5 % at 8,192 with
  64) over one of `bare`, the three sparse products with nothing around them (the layer then has no bias);
  `sparselab`, the layer of that package; `dense`, `nn.Linear`.
- `rigl_N_…`: a step of N × N at 99 % sparsity with SGD with momentum, batch 64: `seconds`, and with a rewiring
  `rewiring_seconds`; `bytes`, of weights, optimizer and growth, two steps and a rewiring. `masked_rigl_N_…`: the same
  of a dense weight with a mask. `rigl_N_masked`: a step over that of the masked one; `rigl_N_memory`: bytes over its;
  `rigl_N_amortised`: time over its where every hundredth step is followed by a rewiring.
- `graphs_N_…`: a training step of an edge-wise layer that learns to turn the edges of one graph of N nodes and 10 N
  edges round, with Adam; `graphs_N_seconds_each`, `graphs_N_bytes_each`: for each edge; `graphs_time_growth`,
  `graphs_memory_growth`: the largest of these over the smallest graph's.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ash.checks import require
from experiments.benchmark_cases import Case
from experiments.benchmark_graph_rows import SIZES, graph_growths, graph_plan
from experiments.benchmark_hyper import POINTS
from experiments.benchmark_report import Row, draw, table, write_markdown
from experiments.runs import Run, RunOptions

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 900.0
"""Seconds after which a figure counts as failed."""

QUICK_BATCH = 8

Bars = tuple[float | None, float | None]
NONE: Bars = (None, None)
ALL: dict[int, Bars] = {512: (0.040, 60e6), 2048: (0.5, 80e6), 8192: (8.0, 120e6)}
"""Bars in seconds and bytes of the layer with one context, by number of tuples."""
EACH: dict[int, Bars] = {10_000: NONE, 30_000: NONE, 100_000: (0.8, 1e9), 300_000: NONE, 1_000_000: NONE}
"""The same of the layer with a context for each tuple."""
STATIC = {4096: (128, 0.01), 8192: (64, 0.005)}
"""Batch and density of the static layer, by size."""
NAMES = {"all": ("gaussian", "one context for all"), "tuple": ("tuple", "a context for each tuple")}
GROWTH = {"seconds": ("time", 5.0), "bytes": ("memory", 1.5)}
HYPER, RIVALLED = (1024, 2048, 4096), 1024
"""Tuples of the adaptive layer, one of which has rivals."""
HYPER_RIVALS: dict[Literal["gather", "dense_hyper"], tuple[float | None, str]] = {
    "gather": (2.5, "gather, multiply, index_add"),
    "dense_hyper": (0.2, "a dense hypernetwork layer"),
}
RIGL = {8192: (64, 0.01)}
"""Batch and density of RigL's layer, by size."""
PERIOD = 100
"""Steps to a rewiring, where its time is spread over them."""
RIVALS: dict[Literal["bare", "sparselab", "dense"], tuple[float | None, str]] = {
    "bare": (1.5, "three bare products"),
    "sparselab": (1.0, "sparselab"),
    "dense": (None, "nn.Linear"),
}


@dataclass(kw_only=True)
class Options(RunOptions):
    """Options of the benchmark."""

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """The benchmark measures the CPU."""
    suite: Literal["cpu", "memory", "all"] = "all"
    """cpu: times and ratios of times; memory: bytes."""
    only: str = ""
    """Take the figures alone whose names contain this."""


def run(options: Options, run: Run) -> dict[str, object]:
    """Take every figure, print the table and write it; the medians for the summary."""
    given = options.device
    require(given == "cpu", f"--device {given}; expected cpu, which the benchmark measures; leave it out.")
    chosen = [(row, case) for row, case in plan(options.quick) if _wanted(row, options)]
    require(bool(chosen), f"--only {options.only}: no such figure in the suite {options.suite}; see --help.")
    load = os.getloadavg()[0]
    _, done = run.load() or (0, {})
    bar = run.progress(total=len(chosen), desc="benchmark", start=len(done))
    for row, case in chosen[len(done) :]:
        bar.set_postfix_str(row.name)
        done[row.name] = spawn(case)
        run.time(len(done), figure=row.name, **done[row.name])
        run.save(len(done), done)
        bar.update()
    bar.close()
    rows = [fill(row, done[row.name]) for row, _ in chosen]
    rows += growths(rows, options.quick)
    rows += adaptive_memory(rows, options.quick)
    rows += rigl_ratios(rows, options.quick)
    rows += graph_growths(rows, options.quick)
    _report(run, rows, load)
    return _summary(rows)


def plan(quick: bool) -> list[tuple[Row, Case]]:
    """Every figure, not yet taken, with its case. Quick ones are few, tiny, and have no bars."""
    if not quick:
        gaussians = [*_gaussians("all", ALL), *_gaussians("tuple", EACH)]
        return [*gaussians, *_hypers(HYPER, RIVALLED), *_statics(STATIC), *_rigls(RIGL), *graph_plan(SIZES)]
    tiny = [
        *_gaussians("all", {128: NONE}),
        *_gaussians("tuple", {128: NONE, 256: NONE}),
        *_hypers((16, 32), 32),
        *_statics({128: (8, 0.05)}),
        *_rigls({128: (8, 0.05)}),
        *graph_plan((20, 40)),
    ]
    return [(replace(row, bar=None), replace(case, batch=QUICK_BATCH, budget=0.02, most=3)) for row, case in tiny]


def _gaussians(context: Literal["tuple", "all"], bars: dict[int, Bars]) -> list[tuple[Row, Case]]:
    key, series = NAMES[context]
    kinds: tuple[Literal["seconds", "bytes"], ...] = ("seconds", "bytes")
    return [
        (
            Row(f"{key}_{k}_{kind}", f"{k:,} tuples, {series}", kind, bar, series=series, size=k),
            Case("gaussian", kind, k, context=context),
        )
        for k, both in bars.items()
        for kind, bar in zip(kinds, both, strict=True)
    ]


def _statics(sizes: dict[int, tuple[int, float]]) -> list[tuple[Row, Case]]:
    return [
        (
            Row(f"static_{n}_{rival}", f"static {n:,}², {1 - density:.1%} sparse / {words}", "ratio", bar),
            Case("static", "ratio", n, batch=batch, density=density, rival=rival),
        )
        for n, (batch, density) in sizes.items()
        for rival, (bar, words) in RIVALS.items()
    ]


def _hypers(sizes: Sequence[int], rivalled: int) -> list[tuple[Row, Case]]:
    """The adaptive layer at some sizes, one of them beside its rivals."""
    what = "adaptive 784 → 256"
    found = [
        (Row(f"hyper_{k}_bytes", f"{what}, {k:,} tuples", "bytes", size=k), Case("hyper", "bytes", k)) for k in sizes
    ]
    found += [
        (Row(f"hyper_{rivalled}_seconds", f"{what}, {rivalled:,} tuples", "seconds"), Case("hyper", size=rivalled)),
        (Row("dense_hyper_bytes", "dense hypernetwork 784 → 256", "bytes"), Case("dense_hyper", "bytes")),
    ]
    return found + [
        (
            Row(f"hyper_{rivalled}_{rival}", f"{what}, {rivalled:,} tuples / {words}", "ratio", bar),
            Case("hyper", "ratio", rivalled, rival=rival),
        )
        for rival, (bar, words) in HYPER_RIVALS.items()
    ]


def _rigls(sizes: dict[int, tuple[int, float]]) -> list[tuple[Row, Case]]:
    """RigL's layer and the masked one: a step, a step with a rewiring, memory; and the ratio of a step."""
    found = []
    names: dict[Literal["rigl", "masked_rigl"], str] = {"rigl": "RigL", "masked_rigl": "masked-dense RigL"}
    for n, (batch, density) in sizes.items():
        for layer, words in names.items():
            what = f"{words} {n:,}², {1 - density:.0%} sparse"
            case = Case(layer, "seconds", n, batch=batch, density=density)
            found += [
                (Row(f"{layer}_{n}_seconds", what, "seconds"), case),
                (Row(f"{layer}_{n}_rewiring_seconds", f"{what}, with a rewiring", "seconds"), replace(case, every=1)),
                (Row(f"{layer}_{n}_bytes", what, "bytes"), replace(case, figure="bytes", every=2)),
            ]
        case = Case("rigl", "ratio", n, batch=batch, density=density, rival="masked_rigl")
        found.append((Row(f"rigl_{n}_masked", f"a step, RigL / masked-dense RigL {n:,}²", "ratio", 1 / 10), case))
    return found


def rigl_ratios(rows: Sequence[Row], quick: bool) -> list[Row]:
    """Memory of RigL's layer over the masked one's, and time where every `PERIOD`-th step is followed by a rewiring."""
    medians = {row.name: row.median for row in rows if row.shown and row.median}
    found = []
    for n in (int(name.split("_")[1]) for name in medians if name.startswith("rigl_") and name.endswith("_bytes")):
        own, rival = medians[f"rigl_{n}_bytes"], medians.get(f"masked_rigl_{n}_bytes")
        if own and rival:
            what = f"memory, RigL / masked-dense RigL {n:,}²"
            found.append(_single(f"rigl_{n}_memory", what, own / rival, None if quick else 1 / 15))
    for n in (int(name.split("_")[1]) for name in medians if name.startswith("rigl_") and "rewiring" in name):
        ours, theirs = (_amortised(medians, f"{layer}_{n}") for layer in ("rigl", "masked_rigl"))
        if ours and theirs:
            what = f"a step with a rewiring after each {PERIOD}th, RigL / masked-dense RigL {n:,}²"
            found.append(_single(f"rigl_{n}_amortised", what, ours / theirs, None if quick else 1 / 10))
    return found


def _amortised(medians: dict[str, float], name: str) -> float | None:
    plain, rewiring = medians.get(f"{name}_seconds"), medians.get(f"{name}_rewiring_seconds")
    return None if plain is None or rewiring is None else (plain * (PERIOD - 1) + rewiring) / PERIOD


def _single(name: str, what: str, ratio: float, bar: float | None) -> Row:
    return Row(name, what, "ratio", bar, ratio, ratio, ratio)


def _wanted(row: Row, options: Options) -> bool:
    suite = "memory" if row.figure == "bytes" else "cpu"
    return options.suite in ("all", suite) and options.only in row.name


def spawn(case: Case) -> dict[str, Any]:
    """What `benchmark_cases` prints for a case in a process with one thread; `failed` if nothing."""
    command = [sys.executable, "-m", "experiments.benchmark_cases", *case.arguments()]
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **one}, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT:g} seconds"}
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"failed": f"exit status {done.returncode}: {said[-1] if said else 'no message'}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def fill(row: Row, result: dict[str, Any]) -> Row:
    """The row with what was measured; a failure counts as infinite, a missing package as not measured."""
    if "missing" in result:
        return replace(row, note=result["missing"])
    if "failed" in result:
        return replace(row, median=float("inf"), note=f"failed, {result['failed']}")
    known: dict[str, Any] = {name: result.get(name) for name in ("low", "median", "high", "error", "loaded")}
    own = result.get("seconds")
    note = "" if own is None else f"{_range(own['layer'])} against {_range(own['rival'])}"
    return replace(row, note=note, **known)


def growths(rows: Sequence[Row], quick: bool) -> list[Row]:
    """How much more time and memory a tuple takes at one size than at another, with a context for each.

    Of the medians, and so of the smallest and of the largest figures. Only where every size was measured.
    """
    found = []
    for figure, (word, bar) in GROWTH.items():
        own = [row for row, _ in plan(quick) if row.series == NAMES["tuple"][1] and row.figure == figure]
        names = {row.name for row in own}
        each = [row for row in rows if row.name in names and row.shown]
        if len(each) == len(names):
            what = f"{word} per tuple, largest / smallest of these"
            low, median, high = (_growth(each, name) for name in ("low", "median", "high"))
            own_bar = None if quick else bar
            found.append(Row(f"tuple_{word}_growth", what, "ratio", own_bar, low, median, high))
    return found


def adaptive_memory(rows: Sequence[Row], quick: bool) -> list[Row]:
    """Bytes of the adaptive layer for each point, their growth, and its memory beside the dense hypernetwork's."""
    own = [row for row in rows if row.name.startswith("hyper_") and row.figure == "bytes" and row.shown]
    each = POINTS * (QUICK_BATCH if quick else Case("hyper").batch)
    found = [_divided(row, f"{row.name}_each", f"{row.what}, for each point", each * row.size, "each") for row in own]
    if len(own) > 1:
        growth = max(row.median or 0 for row in found) / min(row.median or 0 for row in found)
        bar = None if quick else GROWTH["bytes"][1]
        what = "memory for each point, largest / smallest of these"
        found.append(Row("hyper_memory_growth", what, "ratio", bar, growth, growth, growth))
    dense = next((row.median for row in rows if row.name == "dense_hyper_bytes" and row.shown), None)
    beside = [row for row in own if row.size == RIVALLED or quick][-1:]
    if dense:
        what = "memory, adaptive / dense hypernetwork layer"
        found += [_divided(row, "hyper_dense_memory", what, dense, "ratio") for row in beside]
    return [replace(row, bar=1.0) if row.name == "hyper_dense_memory" and not quick else row for row in found]


def _divided(row: Row, name: str, what: str, by: float, figure: str) -> Row:
    """A row's figures divided by a number."""
    low, median, high = (None if own is None else own / by for own in (row.low, row.median, row.high))
    return Row(name, what, figure, None, low, median, high)


def _growth(rows: Sequence[Row], name: str) -> float:
    each = [getattr(row, name) / row.size for row in rows]
    return float(max(each) / min(each))


def _range(seconds: dict[str, float]) -> str:
    low, median, high = (1e3 * seconds[name] for name in ("low", "median", "high"))
    return f"{median:.3g} ms (min {low:.3g}, max {high:.3g})"


def _report(run: Run, rows: Sequence[Row], load: float) -> None:
    about = [
        f"{_processor()}, one thread, Python {platform.python_version()}, {_versions()}",
        f"load average before the first figure: {load:.2f} on {os.cpu_count()} cores",
        "a step: forward and backward, to parameters and input; each figure from a process of its own",
        "memory: peak above the resident set after the imports and a step of a small layer, before layer and "
        "input are made",
        "error: largest deviation of output and gradients from the dense oracle on a small problem, relative",
    ]
    print(table(rows))
    write_markdown(run.path("benchmark.md"), rows, about)
    if any(row.series and row.shown for row in rows):
        draw(run.path("benchmark.png"), rows)


def _summary(rows: Sequence[Row]) -> dict[str, object]:
    barred = [row for row in rows if row.ok is not None]
    missed = [row.name for row in barred if not row.ok]
    figures = {row.name: row.median for row in rows}
    return {**figures, "bars": len(barred), "bars_kept": len(barred) - len(missed), "missed": missed}


def _versions() -> str:
    found = []
    for package in ("torch", "numba", "sparselab"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
