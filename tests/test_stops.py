"""Experiments that are told to stop again and again, mostly within an epoch: they end as if nobody had stopped them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments import stopping
from experiments.__main__ import main
from experiments.epoch import Epoch, epoch_of, state_of
from tests.kills import Outcome

RUNS: dict[str, tuple[tuple[str, ...], int]] = {
    "attention": (("attention", "--quick", "--canvas", "50", "--pieces", "3", "--side", "8", "--timing", "0",
                   "--nets", "glimpses", "view"), 3),
    "dnw": (("dnw", "--quick"), 3),
    "gates": (("gates", "--quick", "--width", "0.07", "--train-images", "60", "--batch", "20"), 4),
    "mnist": (("mnist", "--quick"), 3),
    "sparsity": (("sparsity", "--quick", "--wiring", "rigl", "top_k"), 1),
    "sparse_conv": (("sparse_conv", "--quick", "--wiring", "rigl", "--width", "2", "--density", "0.2",
                     "--first", "sparse", "--seeds", "2"), 5),
}  # fmt: skip
"""Arguments, and how many times a process meets a point from which it could go on before it is told to stop."""


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_ends_as_one_that_is_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, points = RUNS[name]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(stopping.Stopping, "meet", told_at(points))
    out, processes = tmp_path / "parts", 1
    status = main([*arguments, "--out", str(out)])
    while status == 128 + signal.SIGTERM:
        processes += 1
        status = main([*arguments, "--out", str(out), "--resume"])
    assert status == 0 and processes >= 3
    assert Outcome.of(out).differences(Outcome.of(tmp_path / "whole")) == []


def told_at(points: int) -> Callable[[stopping.Stopping], None]:
    """A stand-in for `Stopping.meet` by which a run is told to stop where it does that for the so many-th time."""
    meet = stopping.Stopping.meet

    def told(self: stopping.Stopping) -> None:
        meet(self)
        self.met = getattr(self, "met", 0) + 1  # type: ignore[attr-defined]
        if self.met == points:  # type: ignore[attr-defined]
            self._told = signal.SIGTERM

    return told


def test_sums_of_an_epoch_are_where_losses_are() -> None:
    """An order may lie elsewhere: pictures are read on the CPU whatever device a net is on."""
    meta = torch.device("meta")
    now = Epoch.begin(torch.arange(6), meta)
    now.add(torch.ones((), device=meta), torch.ones((), dtype=torch.int64, device=meta), 4)
    assert (now.batches, now.images, now.order.device.type) == (1, 4, "cpu")
    assert [part.tolist() for part in now.rest(4)] == [[4, 5]]
    begun = Epoch.begin(torch.arange(6), torch.device("cpu"))
    begun.add(torch.tensor(0.5), 3, 4)
    again = epoch_of(state_of(begun), torch.device("cpu"))
    assert again is not None and again.figures() == {"loss": 0.5, "train_accuracy": 0.75}
    assert epoch_of(state_of(None), meta) is None
