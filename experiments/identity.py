"""Learn a sparse matrix from examples: the identity, a permutation, or random entries.

A layer of k index tuples sees random vectors x ~ N(0, 1) and is to give T · x; nothing in it knows T. The run
stops once the rounded tuples have been exactly T's entries for 200 batches.

Keys of `summary.json` besides the standard ones: `size`, `recovered` (entries of T found by rounded means),
`exact` (every entry of T once, and no other), `steps_to_exact` (the first of the 200 batches, null if never),
`seconds_to_exact`, `rounded_mse`, `sampled_mse` (mean squared error per output on 1,000 fresh vectors, of the
rounded network and of the one that is sampled in training), `moves` (tuples moved by anything but the gradient
of their means), `merged` (of these, because two shared an entry), `stored_numbers`, `training_seconds`.

What was learned, on seeds 0-9:
- The step of the means must be proportional to each tuple's own scale (`--means anchored`): with one step for
  all, wide tuples crawl and narrow ones overshoot.
- A fat tail (`--kernel student_t`) finds permutations that a Gaussian misses.
- The decay of the scales (`--scale-decay`) decides between speed and failure when values are fixed: without it
  very wide tuples stay wide; at 0.015 they narrow before they have found an entry, and the last one or two
  entries of 64 or 128 are never found. 0.005 does so in one of three permutations of 512; 0.003 found all, on
  every seed, in as few batches.
- Learned values need help, because two tuples at one entry feel no force apart and an idle one no force at all:
  `--rescue-every` merges and moves (see `ash.Rescue`), counted in `moves`. Two more things were needed: a
  ceiling that narrows the scales within 600 steps (else one wide tuple wanders for thousands of batches), and
  taking apart tuples that settle half way between two neighbouring entries and serve both, a solution of the
  sampled network that no rounding can keep (`snap`).
- Kept samples (each tuple keeps the one of its points where the last batch's loss asked most for weight) are
  what makes the search work without the whole gradient: permutations of 32 and 64 without guided samples are
  found in 200-540 batches, and never within 2,000 without kept ones (30 of 32, 58 of 64), for a chance find is
  lost again before its gradient can pull a tuple over. They cost nothing but their own points.
- From N = 1,024 on (`LARGE`) two things are different, both for fixed values. Scales begin at √N, about the distance
  between neighbouring entries, and not at N/8: wide tuples see so many points that none of them counts, and it took
  a permutation of 1,024 200 batches of mere narrowing before the first entries were found. And the last few tuples
  are rescued: of 1,024, some 1,000 arrive within 300 batches, while the last one, hopping about at a scale of
  hundreds of indices, met the last free entry after 1,075 (permutation, seed 0) and 925 (identity, seed 1), without
  a move. `Rescue` moves nothing before at most 2 % of the tuples are misplaced, and never more than 5 % in a run;
  then identity and permutation are exact after 300 to 375 batches, with 18 or 19 moves.
- Late in training scales are small, and shares are computed by cells (`ash.cells`): a batch of 4,096 takes half a
  second on one busy core where the whole table takes several.
- Guided samples need the whole gradient, block by block. Beside kept ones they matter from 256 on: of a
  permutation of 512, 511 entries were found within 3,000 batches without, all of them after 1,130 with.
"""

from __future__ import annotations

from experiments.identity_options import PRESETS, Options
from experiments.learners import make_learner
from experiments.recovery import Trial, make_target
from experiments.runs import Run

__all__ = ["PRESETS", "Options", "run"]


def run(options: Options, run: Run) -> dict[str, object]:
    """Train one learner; the keys stand in the module's docstring."""
    target = make_target(options.target, options.size).to(run.device)
    learner = make_learner(options, target.shape, run.device)
    trial = Trial(learner, target, options.batch, keep_frames=options.frames)
    trial.train(run, options.steps, run_on=options.run_on, title=f"{options.method} {options.target} {options.size}")
    trial.draw(run, options.frames)
    return {"size": options.size, **trial.summary(), "stored_numbers": 2 * int(options.k or 0)}
