"""Training a learner until it has recovered a known sparse matrix, and judging it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ash import plot
from ash.pattern import ravel
from experiments.frames import packed, take_up
from experiments.learners import Learner
from experiments.runs import Run

HOLD = 200
"""Batches for which a learner must stay exact."""
TOLERANCE = 1e-3
"""Rounded mean squared error below which the values count as learned."""
FRAME_EVERY, ERRORS_EVERY, SAVE_EVERY = 10, 50, 500
DENSE = 1 << 9
"""The largest permutation that is held as a dense matrix."""
FRESH, NUMBERS = 1000, 1 << 27
"""Vectors on which errors are measured, or as many as have so many numbers."""


def make_target(kind: str, n: int) -> Tensor:
    """The matrix to learn, `(n, n)`, drawn from torch's default generator; in COO if it is large and a permutation."""
    if kind != "sparse":
        cols = torch.arange(n) if kind == "identity" else torch.randperm(n)
        where = torch.stack([torch.arange(n), cols])
        target = torch.sparse_coo_tensor(where, torch.ones(n), (n, n), check_invariants=False, is_coalesced=True)
        return target if n > DENSE else target.to_dense()
    flat = torch.zeros(n * n)
    where = torch.randperm(n * n)[: 2 * n]
    flat[where] = torch.randn(2 * n).sign() * (0.5 + torch.rand(2 * n))
    return flat.reshape(n, n)


class Trial:
    """One learner on one target. The target is known to the judging parts alone; the learner sees T · x.

    Args:
        target: `(n, n)`.
        batch: vectors in a batch.
        keep_frames: steps whose frames are never thinned out.
    """

    def __init__(self, learner: Learner, target: Tensor, batch: int, keep_frames: Sequence[int] = ()):
        self.learner, self.target, self.batch = learner, target, batch
        self.where = target.indices().t() if target.is_sparse else target.nonzero()
        self.entries = ravel(self.where, tuple(target.shape))
        self.keep = frozenset(keep_frames)
        self.history = plot.History(60, keep=keep_frames)
        self.curve: list[dict[str, float]] = []
        self.first: int | None = None
        self.seconds_to_exact: float | None = None
        self.recovered, self.exact = 0, False
        self.before = 0.0
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.before + time.perf_counter() - self.began

    def train(self, run: Run, steps: int, run_on: bool, title: str) -> None:
        """Train for at most `steps` batches; unless `run_on`, stop once the learner has held the target."""
        start = self._resume(run)
        bar = run.progress(steps, title, start)
        self.began = time.perf_counter()
        for step in range(start, steps + 1):
            self._judge(step)
            done = step == steps or (not run_on and self._held(step))
            if step > start or not start:  # a checkpoint holds what was recorded at its own step
                self._record(run, step, done)
            if done:
                break
            if step > start:
                run.keep(step, self.state, due=step % SAVE_EVERY == 0)
            x = torch.randn(self.batch, self.target.shape[1], device=self.target.device)
            self.learner.train_step(x, self._truth(x), step)
            bar.update(1)
        self.before, self.began = self.seconds, time.perf_counter()

    def _truth(self, x: Tensor) -> Tensor:
        """T · x, of a dense or a sparse T."""
        return (self.target @ x.t()).t() if self.target.is_sparse else x @ self.target.t()

    def _judge(self, step: int) -> None:
        """How many entries of the target the rounded tuples hold, whether exactly those, and since when."""
        held = ravel(self.learner.indices(), tuple(self.target.shape)).sort().values
        self.recovered = int(torch.isin(self.entries, held).sum())
        self.exact = torch.equal(held, self.entries)
        if self.exact and self.first is None:
            self.first, self.seconds_to_exact = step, self.seconds
        if not self.exact:
            self.first = self.seconds_to_exact = None

    def _held(self, step: int) -> bool:
        """Exact for long enough, and, where values are learned, with values that have arrived."""
        if self.first is None or step - self.first < HOLD:
            return False
        return not self.learner.learned_values or self.errors()["rounded_mse"] < TOLERANCE

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """Mean squared error per output on fresh vectors, of the rounded and of the sampled network."""
        with torch.random.fork_rng():
            n = self.target.shape[1]
            x = torch.randn(max(1, min(FRESH, NUMBERS // n)), n, device=self.target.device)
            truth = self._truth(x)
            outputs = {"rounded_mse": self.learner.rounded(x), "sampled_mse": self.learner.sampled(x)}
        return {name: float((y - truth).square().mean()) for name, y in outputs.items()}

    def _record(self, run: Run, step: int, done: bool) -> None:
        if step % FRAME_EVERY == 0 or done or step in self.keep:
            self.history.add(self.learner.frame(step))
        if step % ERRORS_EVERY == 0 or done:
            figures = {"recovered": self.recovered, **self.errors(), "moves": self.learner.moves}
            self.curve.append({"step": step, **figures})
            run.log(step, **figures)
            run.time(step)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed trial needs, pictures included."""
        judged = {"first": self.first, "seconds_to_exact": self.seconds_to_exact, "seconds": self.seconds}
        return {"learner": self.learner.state(), "frames": packed(self.history), "curve": self.curve, "judged": judged}

    def _resume(self, run: Run) -> int:
        saved = run.load()
        if saved is None:
            return 0
        step, state = saved
        judged = state["judged"]
        self.first, self.seconds_to_exact = judged["first"], judged["seconds_to_exact"]
        self.before, self.curve = judged["seconds"], list(state["curve"])
        take_up(self.history, state["frames"])
        self.learner.restore(state["learner"])
        return step

    def draw(self, run: Run, frames: Sequence[int] = ()) -> None:
        """The pictures: last means, small multiples, animation, errors over time, and the tuples for the page."""
        steps = frames or [round(self.curve[-1]["step"] * share) for share in (0, 0.05, 0.15, 0.4, 1)]
        chosen = {frame.step: frame for frame in self.history.at(steps)}
        target = self.where
        plot.row(list(chosen.values()), run.path("row.png"), target=target)
        for frame in chosen.values() if frames else ():
            plot.row([frame], run.path(f"means{frame.step:04d}.png"), target=target)
        plot.row(self.history.frames[-1:], run.path("means.png"), target=target)
        plot.animate(self.history, run.path("means.gif"))
        run.show("index tuples", plot.TupleTrack(self.history, target=target))
        times = [point["step"] for point in self.curve]
        names = {"rounded network": "rounded_mse", "sampled network": "sampled_mse"}
        series = {label: (times, [point[name] for point in self.curve]) for label, name in names.items()}
        marks = {} if self.first is None else {"exact": self.first}
        plot.curves(
            series, run.path("errors.png"), ylabel="mean squared error", xlabel="batch", logy=True, marks=marks
        )

    def summary(self) -> dict[str, object]:
        """The final figures of the trial."""
        last = self.curve[-1]
        return {
            "recovered": self.recovered,
            "exact": self.exact,
            "steps_to_exact": self.first,
            "seconds_to_exact": self.seconds_to_exact,
            "rounded_mse": last["rounded_mse"],
            "sampled_mse": last["sampled_mse"],
            "moves": self.learner.moves,
            "merged": self.learner.merged,
            "training_seconds": self.before,
        }
