"""Sort a vector of uniform numbers with one adaptive layer; only the sorted vector supervises.

A hypernetwork looks at n numbers and emits n index tuples, whose values are ones: a weight of n × n for each vector,
which is to be the permutation that sorts it. `--template` fixes the tuples' input column (each number picks its
place), their output column (each place picks its number), or neither.

Keys of `summary.json` besides the standard ones: `size`, `exact` (share of 10,000 fresh vectors for which the rounded
tuples are the entries of the sorting permutation, each once), `exact_sampled` (share for which one draw as in training
is within less than 0.5 of the permutation in every entry), `mse_rounded`, `mse_sampled` (mean squared error per output
of W · x), `hypernetwork_parameters`, `offset_parameters`, `stored_numbers` (both together), `emitted_numbers` (per
vector), `training_seconds` (batches and the judging between them, without the pictures).

What the hypernetworks may know: `mlp` is a perceptron over all numbers; `pairs` sums a learned function of two
numbers, tanh units and a linear head, which has to find out that it is to compare them; `set` has a small set
transformer beside it; with `--template outputs` these two give every number a key, and a learned query for each output
points at the nearest key. `comparator` is given tanh(g (x_i - x_j)) and learns 17 numbers: it is reported apart.

What was learned, on seeds 0 to 3, a single run for each figure. Those marked * come from a dense stand-in for the layer
that draws the same points and divides by the same shares.

- *Steepness as a logarithm.* `exact` is decided by near ties, P(failure) = n (n - 1) e for an error e at a tie, so by
  how steep a function becomes. With a first layer whose steepness is a logarithm that takes ten to thirty times the
  other steps (`ash.pairs.SharpLinear`) a perceptron of two layers for n = 8 went from 92.5 % * (ReLU, 256 units, about
  10,000 batches) to 99.5 % * (tanh, 128 units); with three times the other steps and 256 units it stood at 96.5 % *.
- *Errors in units of gaps.* |W^T sort(x) - x| of a number, divided by its distance to the nearest other number: without
  it a mistake between near ties costs nothing. Pairs, n = 8, 25 s: from 94.8 to 98.1 % *.
- *Means in units of an index* (`direct`) instead of a sigmoid, for functions of pairs: n = 16 from 0 to 99.8 % * within
  3,000 batches of 128. A rank is a sum over pairs, which a sigmoid bends.
- The transformer beside the pairs brings little: at n = 32 (seed 1) `set` 99.6 % with 2,347 learned numbers in 75 s,
  `pairs` 99.5 % with 42 in 26 s.
- `--gap-floor` 1e-3 gave 98.6 % for `set` at n = 32 (seed 0), 1e-4 gave 99.6 % (seed 1).
- *Both columns learned* (`--template none`): means that start at different outputs leave tuples that exchange their
  inputs from vector to vector, which adds boundaries on which rounding fails (n = 5: 61 to 99.7 %, by seed and options;
  n = 8: at most 10 %). Starting in the middle of the outputs, at one input each: 99.8 % at n = 5 (two seeds), 98.1 and
  98.7 % at n = 8 (4,000 batches). So which tuple serves which input is given by the start, though nothing holds it.
- Training on the vectors with the smallest gaps of six times as many made the ReLU perceptron worse: 92.5 to 72.9 % *
  in 30 and 35 s (10,200 and 6,200 batches).
- `--template outputs`, n = 8: a perceptron reaches 0.3 % *; keys of eight dimensions 0 % *, queries with random starts
  and only one of the two losses 0 % *; one number as a key, queries that start evenly spread, both losses 99.5 % *.
"""

from __future__ import annotations

from experiments.runs import Run
from experiments.sort_options import PRESETS, Options
from experiments.sorting_task import Sorter

__all__ = ["PRESETS", "Options", "run"]


def run(options: Options, run: Run) -> dict[str, object]:
    """Train one sorter, judge it on fresh vectors, draw it; the keys of the summary."""
    sorter = Sorter(options, run.device)
    sorter.train(run)
    summary = sorter.summary()
    sorter.draw(run)
    return summary
