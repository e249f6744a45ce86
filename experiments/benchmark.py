"""Time and memory of single layers, each figure from a process of its own; on the CPU with one thread.

`--suite`: `cpu`, times on the CPU; `memory`, bytes on the CPU; `scale`, layers of millions of rows and columns;
`gpu`, the fused kernels, which needs a GPU.

Before a figure is taken, the layer's output and gradients are compared with the dense oracle on a small
problem. A step is a forward and a backward pass, to the parameters and to the input. Times are medians of
several steps. Memory is the peak of the resident set over making the layer, making its input and two steps,
less the base: the resident set after the imports and after a step of a small layer, which loads and compiles
what is needed on first use (the table says how much that is). Ratios are of steps in one process,
some of either in turn.

Keys of `summary.json` besides the standard ones: for every figure its name with the median, in seconds
(`…_seconds`), bytes (`…_bytes`) or as a ratio; `bars` and `bars_kept`, how many figures have a bar and how
many keep to it; `missed`, the names of those that do not. The figures with their spread are in
`benchmark.md`, time and memory against the number of tuples in `benchmark.png`.

- `gaussian_K_…`: K tuples on K × K, 2 + 2 samples, one context for all, batch 64.
- `tuple_K_…`: the same with a context for each tuple; `tuple_time_growth` and `tuple_memory_growth`: the
  largest time (memory) per tuple over that with the fewest tuples.
- `free_K_…`: K tuples with a context for each, 8 points each, on a matrix with 6.1 tuples a row, batch 64;
  `free_fixed_K_…`: their output rows are fixed. `bare`: a step over the three sparse products on the same points,
  without a bias; `limit`: over a copy of the bytes that these must move at least.
- `cells_K_whole`, `cells_K_whole_gaussian`: K tuples on K × K with scales of 1 index, one context for all, batch 64: a
  step with shares by cells over a step by the streamed whole table, Student's t (in the suite `scale`) and the
  Gaussian; its error is that of output and gradients of this layer, relative to the table's.
- `hyper_K_…`: the adaptive layer 784 → 256 whose hypernetwork emits K tuples of 8 points for every instance of a
  batch of 64: a step, its memory, and the step over that of a rival: `gather`, the gather–multiply–index_add
  alone over given indices and values; `dense_hyper`, the same perceptron emitting all 200,704 weights, whose
  memory is `dense_hyper_bytes`. `hyper_K_bytes_each`: bytes for each of the 64 · K · 8 points;
  `hyper_memory_growth`: the largest of these over the smallest; `hyper_dense_memory`: memory over the dense one's.
- `static_N_RIVAL`: a step of N × N random entries (90 % sparse at 1,024 with batch 128, 99 % at 4,096 with 128,
  99.5 % at 8,192 with 64) over one of `bare`, the three sparse products with nothing around them (the layer then has
  no bias); `sparselab`, the layer of that package; `dense`, `nn.Linear`; `limit`, a copy of the bytes that the three
  products must move at least.
- `density_D_…`: a static layer 2,048 × 2,048 at density D, and `density_1_…`, `nn.Linear`; batch 64.
- `crossover_N`: the density of N × N, batch 64, from which a static layer trains faster by a dense product than by
  CSR; `crossover_N_linear`: from which `nn.Linear` does; `crossover_N_auto`: at 1.5 times the first and at the first
  over 1.5, seconds of what `backend="auto"` takes over those of the other, the larger of the two.
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

import torch

from ash.checks import require
from experiments.benchmark_case import QUICK_BATCH, Case, Part, Plan
from experiments.benchmark_parts import PARTS
from experiments.benchmark_report import Row, draw, table, write_markdown
from experiments.runs import Run, RunOptions

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 900.0
"""Seconds after which a figure counts as failed."""


@dataclass(kw_only=True)
class Options(RunOptions):
    """Options of the benchmark."""

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """The suite says which device is measured."""
    suite: Literal["all", "cpu", "memory", "scale", "gpu"] = "all"
    """cpu: times and their ratios; memory: bytes; all: both; scale: layers of millions of rows; gpu: fused kernels."""
    only: str = ""
    """Take the figures alone whose names contain this."""


def run(options: Options, run: Run) -> dict[str, object]:
    """Take every figure, print the table and write it; the medians for the summary."""
    _check_device(options)
    suite = options.suite if options.suite in ("scale", "gpu") else "cpu"
    parts = [part for part in PARTS if part.suite == suite]
    plan = [pair for part in parts for pair in part_plan(part, options.quick)]
    chosen = [(row, case) for row, case in plan if _wanted(row, options)]
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
    for part in parts:
        rows += part.derived(rows, options.quick)
    _report(run, rows, load)
    return _summary(rows)


def _check_device(options: Options) -> None:
    given, gpu = options.device, options.suite == "gpu"
    fits = gpu or given != "cuda"
    require(fits, f"--device {given} with --suite {options.suite}; leave it out, the suite says what is measured.")
    require(not gpu or torch.cuda.is_available(), "--suite gpu needs a GPU that torch can use; none was found.")


def part_plan(part: Part, quick: bool) -> Plan:
    """Every figure of a part, not yet taken, with its case. Quick ones are few, tiny, and have no bars."""
    if not quick:
        return part.plan(False)
    tiny = part.plan(True)
    return [(replace(row, bar=None), replace(case, batch=QUICK_BATCH, budget=0.02, most=3)) for row, case in tiny]


def _wanted(row: Row, options: Options) -> bool:
    suites = {"cpu": row.figure != "bytes", "memory": row.figure == "bytes"}
    return options.only in row.name and suites.get(options.suite, True)


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


def _range(seconds: dict[str, float]) -> str:
    low, median, high = (1e3 * seconds[name] for name in ("low", "median", "high"))
    return f"{median:.3g} ms (min {low:.3g}, max {high:.3g})"


def _report(run: Run, rows: Sequence[Row], load: float) -> None:
    about = [
        f"{_processor()}, one thread unless a row says more, Python {platform.python_version()}, {_versions()}",
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
