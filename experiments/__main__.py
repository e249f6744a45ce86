"""`python -m experiments NAME [options]` runs an experiment; without a name it lists them."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Experiment(NamedTuple):
    """An entry of the table: the module that holds the experiment, and a line that says what it does."""

    module: str
    line: str


EXPERIMENTS: dict[str, Experiment] = {
    "identity": Experiment(
        "experiments.identity", "find the entries of an identity, a permutation or a sparse matrix"
    ),
    "mnist": Experiment(
        "experiments.mnist", "classify digits with a sparse hidden layer whose wiring is learned"
    ),
    "sort": Experiment("experiments.sort", "sort vectors of numbers with one adaptive layer"),
    "mnist_sort": Experiment("experiments.mnist_sort", "sort lists of handwritten numbers, given only their order"),
    "attention": Experiment("experiments.attention", "classify digits amid clutter by glimpses, placed from a view"),
    "hosts": Experiment("experiments.hosts", "every wiring in every host, beside the host without a weight"),
    "moons": Experiment("experiments.moons", "tell two half circles apart with 101 parameters, over a hundred seeds"),
    "dnw": Experiment("experiments.dnw", "discover the wiring of a neural graph whose nodes are channels"),
    "shared_kernel": Experiment(
        "experiments.shared_kernel", "find a convolution with index tuples that choose among nine scalars"
    ),
    "sparse_conv": Experiment(
        "experiments.sparse_conv", "accuracy of a residual network against its sparsity, first layer dense or not"
    ),
    "sparsity": Experiment("experiments.sparsity", "test error against density: LeNet-300-100 wired in every way"),
    "gates": Experiment("experiments.gates", "layers fed by all earlier ones through learned gates, and nets without"),
    "graphs": Experiment(
        "experiments.graphs", "transforms of graphs, PageRank, isomorphism and a graph VAE from sparse layers"
    ),
    "characters": Experiment(
        "experiments.characters", "a character transformer made sparse by one call, against the text's exact entropy"
    ),
    "benchmark": Experiment("experiments.benchmark", "time and memory of single layers, as a table"),
}


COMMANDS: dict[str, Experiment] = {
    "compare": Experiment("experiments.compare", "curves and final figures of several runs side by side"),
    "sweep": Experiment("experiments.sweep", "several runs of an experiment, as many at a time as cores or GPUs"),
}
"""What is done with runs; `main(arguments, modules by experiment)` of the module returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (those of the process by default); the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(listing())
        return 0
    if given[0] not in {**EXPERIMENTS, **COMMANDS}:
        print(_unknown(given[0]), file=sys.stderr)
        return 2
    try:
        return _start(given[0], given[1:])
    except KeyboardInterrupt:
        print(f"{given[0]}: interrupted", file=sys.stderr)
        return 130


def listing() -> str:
    """Usage, the table of experiments, and what can be done with runs."""
    width = max(map(len, EXPERIMENTS))
    tables = [[f"  {name:<{width}}  {entry.line}" for name, entry in sorted(table.items())]
              for table in (EXPERIMENTS, COMMANDS)]  # fmt: skip
    usage = "usage: python -m experiments NAME [options]"
    last = "python -m experiments NAME --help lists the options of one."
    return "\n".join([usage, "", *tables[0], "", "with runs:", *tables[1], "", last])


def _start(name: str, arguments: list[str]) -> int:
    # MKL reads it when torch is loaded. Equal runs with equal threads then give equal bits, wherever arrays lie.
    os.environ.setdefault("MKL_CBWR", "AUTO")
    # Loads torch, which the list of experiments does not need.
    from experiments.command import start

    try:
        if name in COMMANDS:
            modules = {each: experiment.module for each, experiment in EXPERIMENTS.items()}
            return int(importlib.import_module(COMMANDS[name].module).main(arguments, modules))
        return start(name, importlib.import_module(EXPERIMENTS[name].module), arguments)
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        return stop.code


def _unknown(name: str) -> str:
    known = [*sorted(EXPERIMENTS), *sorted(COMMANDS)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown experiment {name!r}; expected one of {', '.join(known)}.{hint}"


if __name__ == "__main__":
    sys.exit(main())
