"""Transforms of graphs by layers whose wiring looks at every edge, PageRank, isomorphism, and a graph VAE.

`--task` says which; options of a family of tasks read `--FAMILY.option`:

  identity, reverse, symmetric, two_hop, relabel   transforms of graphs: `experiments.graph_transforms`
  pagerank       personalised PageRank of a seed node: `experiments.graph_pagerank`
  isomorphism    whether two graphs are isomorphic: `experiments.graph_isomorphism`
  vae            a variational autoencoder of small graphs: `experiments.graph_vae`

Keys of `summary.json` are told by those modules, beside `task`. The same graphs serve all: `experiments.graph_data`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, get_args

from ash.checks import choose, positive
from experiments.evaluation import kept_apart
from experiments.runs import Run, RunOptions

__all__ = ["FAMILIES", "TASKS", "Options", "run"]

Task = Literal["identity", "reverse", "symmetric", "two_hop", "relabel", "pagerank", "isomorphism", "vae"]
FAMILIES = {"transform": "graph_transforms", "pagerank": "graph_pagerank", "isomorphism": "graph_isomorphism",
            "vae": "graph_vae"}  # fmt: skip
"""Family of tasks, which names its options on the command line, and its module: it has a dataclass `Options`, a
function `run(options, run)` that gets all options, and may have `resolved(options)`, which completes them."""


def _families() -> dict[str, ModuleType]:
    there = {name: f"experiments.{module}" for name, module in FAMILIES.items()}
    found = {name: importlib.import_module(path) for name, path in there.items() if importlib.util.find_spec(path)}
    return {name: module for name, module in found.items() if hasattr(module, "run")}


_MODULES = _families()


@dataclass(kw_only=True)
class GraphOptions(RunOptions):
    """Options of all tasks."""

    task: Task = "identity"
    """What is learned."""
    nodes: int | None = None
    """Nodes of a graph; each task has its own number."""
    steps: int | None = None
    """Batches; each task has its own number."""
    baselines: bool = False
    """Train what stands beside it, too."""
    evaluate: Path | None = None
    """Folder of a run of the same task and options: judge what it has trained, and train nothing."""

    may_change: ClassVar[frozenset[str]] = RunOptions.may_change | {"evaluate"}

    def resolved(self) -> GraphOptions:
        """The options with what depends on the task decided. Raises `UserError` for impossible ones."""
        for name in ("nodes", "steps"):
            positive(f"--{name}", 1 if getattr(self, name) is None else getattr(self, name))
        completes = getattr(_MODULES.get(family(self.task)), "resolved", None)
        chosen = kept_apart(self, self.evaluate)
        return chosen if completes is None else completes(chosen)


Options = dataclasses.make_dataclass(
    "Options",
    [(name, module.Options, field(default_factory=module.Options)) for name, module in _MODULES.items()],
    bases=(GraphOptions,),
    kw_only=True,
)


def family(task: str) -> str:
    """The family that a task belongs to."""
    return task if task in FAMILIES else "transform"


TASKS: dict[str, Callable[[Any, Run], dict[str, object]]] = {
    task: _MODULES[family(task)].run for task in get_args(Task) if family(task) in _MODULES
}


def run(options: Any, run: Run) -> dict[str, object]:
    """Run the task that the options name; the keys of its summary."""
    return {"task": options.task, **choose("task", options.task, TASKS)(options, run)}
