"""The micrograd demo: 101 parameters that are to tell two interleaved half circles apart, over a hundred seeds.

A net 2-16-16-1 with ReLU, sparsities 0, 0.9 and 0.8, sees 100 points (noise 0.1) for 400 full-batch steps on the
hinge loss plus 1e-4 times the sum of squares of all parameters, and is rewired every 20 steps. A single run proves
nothing here: every figure is over all seeds, each with its own points and net, after the last step. `dense` has all
337 parameters, the others 101 of them when evaluated (a Gaussian edge then is its value, the mean rounded).

--preset blog is the demo itself: SGD at 1, weights from -0.1 to 0.1, its own loop of rewiring; as published, and with
its two defects mended (a neuron's connections were drawn from its first inputs alone; edges grew on the gradient of
the last point alone).

Seeds 1000-1099, each figure the share of seeds with at least 99 % (`--wiring all --seed 1000`, a minute on one core):
RigL 100, SET 99, top-k 100, static 75, dense 100 %; RigL under plain SGD with only the start changed
(`--optimizer sgd`) 93 %; the demo (`--preset blog`) 9 % as published and 26 % mended, static 0 and 1 %. Gaussian
edges 97 % (99 % on seeds 2000-2099). They had been looked at once before on these seeds, with another template (99 %,
but 93 % on seeds 0-99). Stripped, RigL's nets keep 13 and 3 of the 16 and 16 units.

What else decides than the wiring, on seeds 0-99, where RigL, SET and top-k reach 100 % and RigL under SGD 92 %:
- The scale of the start, with the fan-in counted over edges that exist: RigL under SGD from 0.1 (`--init uniform`)
  reaches 19 %. The first layer's biases, such that each unit's line passes through one of the points: under SGD 90 %
  without (`--no-kinks`), SET 99 %.
- More L2 inside the gradient than the loss has (`--decay`): an edge on a dead path feels nothing else, so that Adam
  takes it to zero at full speed, and it is the next to be dropped. SET with the loss's own share alone: 97 %.
- Gaussian edges are best with their inputs fixed, two for each unit of the first layer, and the neuron that reads it
  learned: with both learned, at a scale of 1, 93 to 96 %.

Keys of `summary.json` besides the standard ones: `reached_99` (share of the seeds whose final accuracy on the
training points is at least 99 %), `mean_accuracy`, `stripped` (`first`: sizes of the first seed's net, inputs first,
without its dead units; `mean`: mean sizes; `parameters`: mean count), all of the first wiring; and `rows`, for every
wiring an object with these three and `wiring`, `defects` (whether as published), `reached_100`, `least` (the lowest
accuracy), `below_99` (the seeds below), `mean_loss` (hinge), `parameters` (stored by the evaluated net), `seconds`.

`--evaluate FOLDER` judges the nets that the run in that folder has trained, on their points, and draws nothing; the
`rows` then have `wiring`, `defects`, `reached_99`, `mean_accuracy`, `least` and `below_99`.

Pictures: `topology.png` (the first wiring's first net, before and after stripping), `boundaries.png` (of the first
seed: static, the first wiring, the same stripped), `accuracy.png` (the seeds in order of accuracy).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ash.checks import require
from ash.plot import boundaries, curves, topology
from experiments.evaluation import read_run
from experiments.moons_nets import Layers, evaluate, moons
from experiments.moons_options import PRESETS, Options
from experiments.moons_training import Result, share_right, train
from experiments.runs import Run

__all__ = ["PRESETS", "Options", "run"]

TOGETHER = 25
"""Nets that are trained at a time."""
REACHED = 0.99 - 1e-9  # a share of points, which floating point may round down


def run(options: Options, run: Run) -> dict[str, object]:
    """Train every net, draw, and return the figures; or judge those of an earlier run."""
    if options.evaluate is not None:
        return judge(options)
    rows, nets = _resume(run)
    variants = _variants(options)
    bar = run.progress(len(variants) * options.seeds, "nets", len(rows) * options.seeds)
    for wiring, defects in variants[len(rows) :]:
        begun = run.seconds
        own = dataclasses.replace(options, defects=defects)
        results = []
        for result in _train_all(own, wiring):
            results.append(result)
            run.log(run.step + 1, wiring=wiring, defects=defects, seed=result.seed, accuracy=result.accuracy)
            bar.update(1)
        rows.append(row(wiring, defects, results) | {"seconds": round(run.seconds - begun, 2)})
        nets.append(_saved(results))
        run.keep(run.step, partial(dict, rows=rows, nets=nets))
    run.path("moons.md").write_text(table(rows), encoding="utf-8")
    draw(options, rows, nets, run)
    named = {name: rows[0][name] for name in ("reached_99", "mean_accuracy", "stripped")}
    return named | {"rows": [{name: each[name] for name in each if name != "accuracies"} for each in rows]}


def _resume(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    saved = run.load()
    return ([], []) if saved is None else (saved[1]["rows"], saved[1]["nets"])


def _variants(options: Options) -> list[tuple[str, bool]]:
    """The wirings, with or without the demo's defects or both."""
    both = (True, False) if options.compare_defects else (options.defects,)
    return [(wiring, defects) for wiring in options.wiring for defects in both]


def _train_all(options: Options, wiring: str) -> Iterator[Result]:
    """The result of every seed, in order."""
    seeds = range(options.seed, options.seed + options.seeds)
    for start in range(0, len(seeds), TOGETHER):
        yield from train(options, wiring, seeds[start : start + TOGETHER])


def _saved(results: Sequence[Result]) -> dict[str, Any]:
    """All nets, layer by layer `(s, out, in)` and `(s, out)`, and the first one stripped, for the pictures."""
    stripped = [[torch.tensor(part) for part in layer] for layer in results[0].stripped]
    layers = [
        [torch.tensor(np.stack([net.layers[i][part] for net in results])) for part in range(2)]
        for i in range(len(results[0].layers))
    ]
    return {"layers": layers, "stripped": stripped}


def _net(saved: dict[str, Any], number: int = 0) -> Layers:
    """One of the nets that were saved."""
    return [(weight[number].numpy(), bias[number].numpy()) for weight, bias in saved["layers"]]


def judge(options: Options) -> dict[str, object]:
    """The accuracies of the nets that the run of `--evaluate` has trained, each on its own points."""
    saved = read_run(options, "moons")
    given, rows = saved.meta["options"], []
    for row, nets in zip(saved.state["rows"], saved.state["nets"], strict=True):
        seeds = range(given["seed"], given["seed"] + given["seeds"])
        points = (moons(given["points"], given["noise"], seed) for seed in seeds)
        shares = [share_right(_net(nets, i), x, y) for i, (x, y) in enumerate(points)]
        rows.append({"wiring": row["wiring"], "defects": row["defects"]} | _shares(shares, seeds))
    require(bool(rows), f"--evaluate {options.evaluate}: no wiring is finished there; expected one; --resume it.")
    return {"rows": rows}


def row(wiring: str, defects: bool, results: Sequence[Result]) -> dict[str, Any]:
    """The figures of one wiring over all seeds."""
    accuracies = [each.accuracy for each in results]
    sizes = torch.tensor([each.sizes for each in results], dtype=torch.float64)
    counts = [sum(np.count_nonzero(w) + len(b) for w, b in each.stripped) for each in results]
    return {
        "wiring": wiring,
        "defects": defects,
        "reached_100": _share(accuracies, 1.0),
        **_shares(accuracies, [each.seed for each in results]),
        "mean_loss": sum(each.loss for each in results) / len(results),
        "parameters": results[0].parameters,
        "stripped": {"first": results[0].sizes, "mean": sizes.mean(0), "parameters": sum(counts) / len(counts)},
        "accuracies": accuracies,
    }


def _shares(accuracies: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    """What both a training and an evaluation report of one wiring."""
    return {
        "reached_99": _share(accuracies, REACHED),
        "mean_accuracy": sum(accuracies) / len(accuracies),
        "least": min(accuracies),
        "below_99": [seed for seed, found in zip(seeds, accuracies, strict=True) if found < REACHED],
    }


def _share(accuracies: Sequence[float], least: float) -> float:
    return sum(accuracy >= least for accuracy in accuracies) / len(accuracies)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, shares and accuracies in percent."""
    head = ("wiring", "≥ 99 %", "100 %", "mean accuracy", "least", "parameters", "stripped, mean", "seconds")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in rows:
        sizes = "-".join(f"{size:.3g}" for size in torch.as_tensor(each["stripped"]["mean"]).tolist())
        cells = [
            label(each),
            f"{100 * each['reached_99']:.3g}",
            f"{100 * each['reached_100']:.3g}",
            f"{100 * each['mean_accuracy']:.2f}",
            f"{100 * each['least']:.3g}",
            str(each["parameters"]),
            sizes,
            f"{each['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def label(row: dict[str, Any]) -> str:
    """The name of a row."""
    return f"{row['wiring']}, as published" if row["defects"] else str(row["wiring"])


# --- pictures ----------------------------------------------------------------------------------------


def draw(options: Options, rows: list[dict[str, Any]], nets: list[dict[str, Any]], run: Run) -> None:
    """The three pictures; the static net beside the others is trained here if it was not among them."""
    whole, stripped, name = _net(nets[0]), _layers(nets[0]["stripped"]), label(rows[0])
    shapes = {f"{name}, {_shape(whole)}": whole, f"stripped, {_shape(stripped)}": stripped}
    topology({title: [weight for weight, _ in net] for title, net in shapes.items()}, run.path("topology.png"))
    x, y = moons(options.points, options.noise, options.seed)
    shown = {"static": _static(options, rows, nets), name: whole, f"{name}, stripped": stripped}
    functions = {title: functools.partial(evaluate, net) for title, net in shown.items()}
    boundaries(functions, x, y, run.path("boundaries.png"))
    order = {label(each): sorted(each["accuracies"]) for each in rows}
    series = {title: (range(1, len(found) + 1), found) for title, found in order.items()}
    curves(series, run.path("accuracy.png"), ylabel="accuracy", xlabel="seed, in order of accuracy")


def _static(options: Options, rows: list[dict[str, Any]], nets: list[dict[str, Any]]) -> Layers:
    for each, net in zip(rows, nets, strict=True):
        if each["wiring"] == "static":
            return _net(net)
    return train(dataclasses.replace(options, defects=_variants(options)[0][1]), "static", [options.seed])[0].layers


def _layers(saved: Sequence[Sequence[torch.Tensor]]) -> Layers:
    return [(weight.numpy(), bias.numpy()) for weight, bias in saved]


def _shape(layers: Layers) -> str:
    return "-".join(map(str, [layers[0][0].shape[1], *(len(bias) for _, bias in layers)]))
