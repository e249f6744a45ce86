"""The pictures of the sorting experiment: tuples of several vectors at several steps, animations, curves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ash import plot
from ash.plot.curves import new_figure
from experiments.runs import Run

ZERO = 1e-9
"""Where an error of 0 is drawn on a logarithmic axis."""
SHARES = (0.0, 0.1, 0.3, 1.0)
"""Where in the run the pictures are taken, unless steps are given."""


def show(
    run: Run,
    histories: Sequence[plot.History],
    targets: Sequence[Tensor],
    curve: Sequence[dict[str, float]],
    steps: Sequence[int] = (),
) -> None:
    """Draw everything into the run's folder: `means.png`, one picture for each of `steps`, an animation for each
    vector, and `exact.png` and `errors.png`. `targets` are the entries (n, 2) of each vector's permutation."""
    last = histories[0].frames[-1].step
    wanted = [step for step in steps if step <= last] or [round(last * share) for share in SHARES]
    rows = list(zip(*(history.at(wanted) for history in histories), strict=True))
    grid(rows, targets, run.path("means.png"))
    for frames in rows if steps else ():
        grid([frames], targets, run.path(f"means{frames[0].step:04d}.png"))
    for i, (history, target) in enumerate(zip(histories, targets, strict=True), 1):
        plot.animate(history, run.path(f"means{i}.gif"), target=target)
        run.show(f"index tuples of vector {i}", plot.TupleTrack(history, target=target))
    _curves(run, curve)


def grid(rows: Sequence[Sequence[plot.Frame]], targets: Sequence[Tensor], path: object) -> None:
    """A line for each step, a column for each vector, its permutation as hollow squares."""
    lines, across = len(rows), len(targets)
    figure = new_figure(2.1 * across + 0.3, 2.2 * lines + 0.3)
    for i, frames in enumerate(rows):
        for j, (frame, target) in enumerate(zip(frames, targets, strict=True)):
            ax = figure.add_subplot(lines, across, i * across + j + 1)
            plot.means(frame, ax=ax, target=target, title=f"vector {j + 1}, step {frame.step:,}")
            if j:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
            if i < lines - 1:
                ax.set_xlabel("")
                ax.tick_params(labelbottom=False)
    plot.save(figure, path)  # type: ignore[arg-type]


def _curves(run: Run, curve: Sequence[dict[str, float]]) -> None:
    steps = [point["step"] for point in curve]
    for name, label, kinds, logy in (
        ("exact", "vectors sorted exactly", ("exact", "exact_sampled"), False),
        ("errors", "mean squared error (0 as 1e-9)", ("mse_rounded", "mse_sampled"), True),
    ):
        names = ("rounded network", "sampled network")
        least = ZERO if logy else 0.0
        series = {n: (steps, [max(point[k], least) for point in curve]) for n, k in zip(names, kinds, strict=True)}
        plot.curves(series, run.path(f"{name}.png"), ylabel=label, xlabel="batch", logy=logy)
