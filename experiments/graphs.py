"""Transforms of graphs by layers whose wiring looks at every edge, PageRank, isomorphism, and a graph VAE.

`--task` says which; options of a family of tasks read `--FAMILY.option`:

  identity, reverse, symmetric, two_hop, relabel   transforms of graphs: `experiments.graph_transforms`
  pagerank       personalised PageRank of a seed node: `experiments.graph_pagerank`
  isomorphism    whether two graphs are isomorphic: `experiments.graph_isomorphism`
  vae            a variational autoencoder of small graphs: `experiments.graph_vae`

Keys of `summary.json` are told by those modules, beside `task`. The same graphs serve all: `experiments.graph_data`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Literal

from ash.checks import positive
from experiments import graph_isomorphism, graph_pagerank, graph_transforms, graph_vae
from experiments.options import EvaluateOptions
from experiments.runs import Run

__all__ = ["MODULES", "TASKS", "Options", "run"]

MODULES: dict[str, ModuleType] = {
    "identity": graph_transforms,
    "reverse": graph_transforms,
    "symmetric": graph_transforms,
    "two_hop": graph_transforms,
    "relabel": graph_transforms,
    "pagerank": graph_pagerank,
    "isomorphism": graph_isomorphism,
    "vae": graph_vae,
}
"""The module of every task: it has a dataclass `Options`, a function `run(options, run)` that is given all options,
and `resolved(options)`, which completes them."""

TASKS: dict[str, Callable[[Any, Run], dict[str, object]]] = {task: module.run for task, module in MODULES.items()}


@dataclass(kw_only=True)
class Options(EvaluateOptions):
    """Options of all tasks, and of each family of tasks."""

    task: Literal["identity", "reverse", "symmetric", "two_hop", "relabel", "pagerank", "isomorphism", "vae"] = (
        "identity"
    )
    """What is learned."""
    nodes: int | None = None
    """Nodes of a graph; each task has its own number."""
    steps: int | None = None
    """Batches; each task has its own number."""
    baselines: bool = False
    """Train what stands beside it, too."""
    transform: graph_transforms.Options = field(default_factory=graph_transforms.Options)
    pagerank: graph_pagerank.Options = field(default_factory=graph_pagerank.Options)
    isomorphism: graph_isomorphism.Options = field(default_factory=graph_isomorphism.Options)
    vae: graph_vae.Options = field(default_factory=graph_vae.Options)

    may_change: ClassVar[frozenset[str]] = EvaluateOptions.may_change - {"steps"}
    """One schedule spans the run, so that another number of steps is another run."""

    def resolved(self) -> Options:
        """The options with what depends on the task decided. Raises `UserError` for impossible ones."""
        for name in ("nodes", "steps"):
            positive(f"--{name}", 1 if getattr(self, name) is None else getattr(self, name))
        chosen: Options = MODULES[self.task].resolved(self)
        return chosen


def run(options: Options, run: Run) -> dict[str, object]:
    """Run the task that the options name; the keys of its summary."""
    return {"task": options.task, **TASKS[options.task](options, run)}
