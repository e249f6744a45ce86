"""A small transformer over characters, made sparse by one call of `ash.sparsify`: dense, rewired, static, top-k.

The net is made of plain torch layers: two blocks of attention and perceptron, 64 wide, four heads, 96 characters of
context. `sparsify` replaces the four linear layers of each block; embeddings and the layer of logits stay dense, and
`--density` is the share of the replaced weights that exists. `--wiring` chooses among

  dense     all weights
  narrow    a dense net so narrow that it stores no more numbers than a sparse one (values and indices)
  static    random entries that stay
  rigl      the smallest are dropped, those of the largest gradient grow
  set       the smallest are dropped, random ones grow
  top_k     DNW: the largest of dense candidates, all of which learn

The text comes from a seeded grammar (`experiments.characters_text`): sums, words written backwards, and sentences whose
verbs agree. Its writer counts the bits of what it chooses, so that the least that any model can need is known exactly:
`floor`. What is reported is bits per character on held-out text from another seed, at the final step, of the net as it
is evaluated; every character is predicted from 48 to 96 before it.

Run s of `--seeds` has the seed `--seed` + s, which decides the net, the windows and random growth. `--evaluate RUN`
takes the nets that the run in that folder has trained and gives their bits again.

Keys of summary.json: `floor`, `rows`, a list with `wiring`, `bits_per_character` (mean over the seeds), `spread`
(standard deviation), `every_seed`, `training_bits` (mean over the last tenth of the steps), `entries` (stored values),
`stored_numbers` (a value and an index for each entry of a sparse layer, dense parameters as they are, biases apart),
`seconds` (of one net). The same as a table in table.md; samples.txt, how the first net of each wiring goes on from
given beginnings; picture: bits.png.

Seeds 100 to 102, defaults: dense 1.077 +- 0.006, RigL 1.18 +- 0.08, SET 1.18 +- 0.06, static 1.21 +- 0.06, top-k 1.21
+- 0.04, narrow 1.115 +- 0.009, the text 0.930. So wirings differ by less than their seeds do, and at this size a narrow
dense net is better and four times as fast: in 1,200 batches, tables of 64 numbers a character have little to prune. A
learning rate of 0.02 took static entries from 1.21 to 1.12 on seed 0 and RigL from 1.14 to 1.20, within the spread.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ash import count
from ash.checks import positive, require
from ash.plot import curves, save
from experiments.characters_net import continued, held_out_bits
from experiments.characters_text import Text, read, write
from experiments.characters_training import Recipe, Trial, build
from experiments.evaluation import read_run
from experiments.loop import LoopOptions
from experiments.options import EvaluateOptions
from experiments.runs import Run
from experiments.sparsity_training import long_training
from experiments.state import load_model

Name = Literal["dense", "narrow", "static", "rigl", "set", "top_k"]
TRAIN_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000
"""Of the two texts, which are the same in every run."""
RECORDS, SAVED_EVERY = 10, 5
"""Records of a net's training; records from one checkpoint to the next."""
BEGINNINGS = ("47+38=", "fabhc|", "the old dog that likes two cats ")


@dataclass
class Options(EvaluateOptions, LoopOptions):
    """Options."""

    wiring: tuple[Name, ...] = ("dense", "narrow", "rigl", "set", "top_k", "static")
    """Which nets."""
    density: float = 0.1
    """Share of the weights of the layers made sparse that exists."""
    distribution: Literal["uniform", "er", "erk"] = "er"
    """How layers share the entries."""
    seeds: int = 1
    """How many seeds, from --seed on."""
    steps: int = 1200
    """Batches."""
    batch: int = 16
    """Windows in a batch."""
    width: int = 64
    """Numbers of a character; a multiple of 4, the heads."""
    layers: int = 2
    """Blocks."""
    context: int = 96
    """Characters of a window, an even number."""
    train_characters: int = 400_000
    """Length of the text for training."""
    held_out_characters: int = 20_000
    """Length of the text that is held out."""
    lr: float = 1e-2
    """Learning rate; it goes to 0 by one cosine."""
    weight_decay: float = 0.01
    """Decoupled."""
    every: int = 50
    """Steps between rewirings, by the gradient averaged over them, until three quarters of the run."""
    fraction: float = 0.3
    """Share of a layer's entries that is rewired, annealed to 0 by a cosine."""

    may_change: ClassVar[frozenset[str]] = EvaluateOptions.may_change - {"steps", "epochs", "data_dir", "download"}
    """One cosine spans the run, so that another number of steps is another run."""

    def resolved(self) -> Options:
        """A quick run is short and its nets are small."""
        changes: dict[str, Any] = {}
        if self.quick:
            few = {"seeds": 1, "steps": 20, "batch": 4, "width": 16, "layers": 1, "every": 5, "context": 64}
            changes = {name: min(getattr(self, name), most) for name, most in few.items()}
            changes |= {"train_characters": 5_000, "held_out_characters": 1_000}
        return dataclasses.replace(self, **changes)


def run(options: Options, run: Run) -> dict[str, object]:
    """Train or evaluate, draw, and return the figures."""
    check(options)
    held_out = write(options.held_out_characters, HELD_OUT_SEED)
    if options.evaluate is not None:
        return {"floor": held_out.bits_per_character, "rows": evaluate(options, held_out, run)}
    with long_training():
        done, nets = train(options, held_out, run)
    rows = [row(wiring, list(cells.values())) for wiring, cells in done.items()]
    run.path("table.md").write_text(table(rows, held_out.bits_per_character), encoding="utf-8")
    samples = {wiring: continuations(nets[wiring], options, run) for wiring in done}
    run.path("samples.txt").write_text(shown(samples), encoding="utf-8")
    draw(done, held_out.bits_per_character, run)
    return {"floor": held_out.bits_per_character, "rows": rows}


def check(options: Options) -> None:
    """Raise `UserError` for numbers that no run can do with."""
    require(0 < options.density <= 1, f"--density {options.density}; expected a share above 0 and at most 1.")
    require(0 <= options.fraction <= 1, f"--fraction {options.fraction}; expected a share from 0 to 1.")
    require(bool(options.wiring), "no --wiring; expected at least one.")
    for name in ("seeds", "steps", "batch", "layers", "every"):
        require(getattr(options, name) >= 1, f"--{name} {getattr(options, name)}; expected at least 1.")
    for name, by in (("width", 4), ("context", 2)):
        value = getattr(options, name)
        require(value >= by and value % by == 0, f"--{name} {value}; expected a multiple of {by}.")
    for name in ("train_characters", "held_out_characters"):
        value, least = getattr(options, name), options.context + 1
        require(value >= least, f"--{name.replace('_', '-')} {value}; expected at least a window, {least}.")
    positive("--lr", options.lr)
    positive("--weight-decay", options.weight_decay, zero=True)


def recipe_of(options: dict[str, Any], wiring: str) -> Recipe:
    """What of the options makes and trains a net of that wiring."""
    names = [field.name for field in dataclasses.fields(Recipe) if field.name != "wiring"]
    return Recipe(wiring=wiring, **{name: options[name] for name in names})


def made(recipe: Recipe, seed: int, run: Run) -> nn.Module:
    """A fresh net, drawn by its seed."""
    torch.manual_seed(seed)
    return build(recipe).to(run.device)


def trained(recipe: Recipe, seed: int, state: dict[str, Any], run: Run) -> nn.Module:
    """The net of that wiring and seed that a state holds."""
    net = made(recipe, seed, run)
    load_model(state["nets"][recipe.wiring][str(seed)], net)
    return net


# --- training -------------------------------------------------------------------------------------------

Cells = dict[str, dict[str, dict[str, Any]]]
"""Figures by wiring and seed."""


def train(options: Options, held_out: Text, run: Run) -> tuple[Cells, dict[str, nn.Module]]:
    """Train every net that the checkpoint has not finished; their figures, and the first net of each wiring."""
    saved = run.load()
    state: dict[str, Any] = {"done": {}, "nets": {}, "trial": None} if saved is None else saved[1]
    recipes = [recipe_of(vars(options), wiring) for wiring in dict.fromkeys(options.wiring)]
    text = write(options.train_characters, TRAIN_SEED).ids.to(run.device)
    total = len(recipes) * options.seeds * options.steps
    finished = sum(map(len, state["done"].values())) * options.steps
    bar = run.progress(total, "characters", start=finished)
    for recipe in recipes:
        for seed in range(options.seed, options.seed + options.seeds):
            if str(seed) not in state["done"].get(recipe.wiring, {}):
                trial = Trial(made(recipe, seed, run), recipe, text, seed, run)
                train_one(trial, held_out, seed, run, state, bar)
    nets = {recipe.wiring: trained(recipe, options.seed, state, run) for recipe in recipes}
    return {wiring: state["done"][wiring] for wiring in nets}, nets


def train_one(trial: Trial, held_out: Text, seed: int, run: Run, state: dict[str, Any], bar: Any) -> None:
    """Train one net, from where the state has it; its figures and parameters go to the state."""
    own: dict[str, Any] = {"curve": [], "losses": [], "seconds": 0.0}
    saved, state["trial"] = state["trial"], None
    if saved is not None:
        own = saved.pop("own")
        trial.resume(saved)
        bar.update(trial.step)
    start, begun, before = run.step - trial.step, time.perf_counter(), own["seconds"]
    ids, steps = held_out.ids.to(run.device), trial.recipe.steps
    every = max(1, steps // RECORDS)
    now = partial(going_on, trial, own, state)
    while trial.step < steps:
        own["losses"] = [*own["losses"][-max(1, steps // 10) + 1 :], trial.train_step()]
        bar.update(1)
        last = trial.step == steps
        if trial.step % every and not last:
            run.keep(start + trial.step, now, due=False)
            continue
        found = held_out_bits(trial.net, ids, trial.recipe.context)
        own["curve"].append([trial.step, found])
        own["seconds"] = before + time.perf_counter() - begun
        place = {"wiring": trial.recipe.wiring, "seed": seed}
        run.log(start + trial.step, **place, loss=own["losses"][-1], bits_per_character=found)
        run.time(start + trial.step, **place)
        if last:
            finish(trial, own, seed, state)
        due = last or len(own["curve"]) % SAVED_EVERY == 0
        run.keep(start + trial.step, partial(dict, state) if last else now, due)


def going_on(trial: Trial, own: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """The state in the middle of a trial's training."""
    return state | {"trial": trial.state() | {"own": own}}


def finish(trial: Trial, own: dict[str, Any], seed: int, state: dict[str, Any]) -> None:
    """Put what is told of a trained net, and its parameters, into the state."""
    size, wiring = count(trial.net), trial.recipe.wiring
    state["done"].setdefault(wiring, {})[str(seed)] = {
        "bits_per_character": own["curve"][-1][1],
        "training_bits": statistics.mean(own["losses"]),
        "entries": size.values,
        "stored_numbers": size.stored_numbers,
        "seconds": round(own["seconds"], 1),
        "curve": own["curve"],
    }
    state["nets"].setdefault(wiring, {})[str(seed)] = dict(trial.net.state_dict())


def evaluate(options: Options, held_out: Text, run: Run) -> list[dict[str, Any]]:
    """The bits of the nets that the run of `--evaluate` has finished, on the held-out text of these options."""
    saved = read_run(options, "characters")
    rows = []
    for wiring, nets in saved.state["nets"].items():
        recipe = recipe_of(saved.meta["options"], wiring)
        found = (trained(recipe, int(seed), saved.state, run) for seed in nets)
        bits = [held_out_bits(net, held_out.ids.to(run.device), recipe.context) for net in found]
        rows.append({"wiring": wiring, **mean_bits(bits)})
    require(bool(rows), f"--evaluate {options.evaluate}: no net is finished there; expected one; --resume it.")
    return rows


# --- what is reported -----------------------------------------------------------------------------------


def mean_bits(found: list[float]) -> dict[str, Any]:
    """Mean and spread over the seeds."""
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    return {"bits_per_character": statistics.mean(found), "spread": spread, "every_seed": found}


def row(wiring: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the summary."""
    means = {name: statistics.mean(cell[name] for cell in cells) for name in ("training_bits", "seconds")}
    return {"wiring": wiring, **mean_bits([cell["bits_per_character"] for cell in cells]), **means,
            **{name: cells[0][name] for name in ("entries", "stored_numbers")}}  # fmt: skip


def table(rows: list[dict[str, Any]], floor: float) -> str:
    """The rows in Markdown; the last one is the least that any model can need."""
    head = ["wiring", "bits per character", "spread", "in training", "stored numbers", "seconds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in rows:
        cells = [
            each["wiring"],
            f"{each['bits_per_character']:.3f}",
            f"{each['spread']:.3f}",
            f"{each['training_bits']:.3f}",
            f"{each['stored_numbers']:,}",
            f"{each['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, f"| the writer of the text | {floor:.3f} | | | | |"]) + "\n"


def continuations(net: nn.Module, options: Options, run: Run) -> list[str]:
    """How a net goes on from the given beginnings, to the end of the line."""
    starts = [Text("\n" + beginning, 0.0).ids.to(run.device) for beginning in BEGINNINGS]
    told = [read(continued(net, start, 24, options.context)) for start in starts]
    return [text[1:].partition("\n")[0] for text in told]


def shown(samples: dict[str, list[str]]) -> str:
    """The continuations of each wiring, one below the other."""
    return "\n".join(f"{wiring}\n" + "".join(f"  {line}\n" for line in lines) for wiring, lines in samples.items())


def draw(done: Cells, floor: float, run: Run) -> None:
    """Held-out bits over training, of the first seed, and the floor."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for wiring, cells in done.items():
        points = next(iter(cells.values()))["curve"]
        series[wiring] = ([step for step, _ in points], [found for _, found in points])
    last = max(steps[-1] for steps, _ in series.values())
    series["the writer"] = ([0, last], [floor, floor])
    save(curves(series, ylabel="held-out bits per character"), run.path("bits.png"))
