"""The steps of trainings: what diverges is told, batches in parts, and several processes, which train as one does."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ash import SparseLinear
from experiments import checkpoint, processes
from experiments.__main__ import main
from experiments.descent import Descent, Diverged, first_not_finite
from experiments.folder import CHECKPOINT
from experiments.loop import Loop, LoopOptions
from experiments.runs import Run, training_state


class Overflowing(nn.Module):
    """Squares until nothing is finite."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 1e30).square()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), Overflowing(), nn.Linear(3, 2))


def descent_of(model: nn.Module, clip: float | None = None) -> Descent:
    return Descent(model, torch.optim.SGD(model.parameters(), lr=0.1), clip)


# --- what diverges ---------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_traced_to_its_layer() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    loss = model(torch.randn(5, 4)).sum()
    with pytest.raises(Diverged, match=r"step 7: the loss is (inf|nan|-inf); .* is that of 1 \(Overflowing\)"):
        descent_of_used(model, loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def descent_of_used(model: nn.Module, loss: Tensor) -> None:
    """As in a training: the model has been called since its descent was made."""
    descent = descent_of(model)
    model(torch.randn(5, 4))
    descent.step(loss, 7)


def test_a_parameter_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    descent = descent_of(model)
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    with pytest.raises(Diverged, match=r"the first parameter that is not finite is 1\.weight"):
        descent.check(model(torch.randn(5, 4)).sum(), 3)
    with pytest.raises(Diverged, match=r"1\.weight is not finite"):
        training_state(model)


def test_without_an_input_or_with_a_bad_one() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(Diverged, match="all parameters are finite"):
        descent_of(model).check(torch.tensor(math.inf), 0)
    assert first_not_finite(model, (torch.tensor([math.nan, 0.0]),)) == "the input is not finite already"
    assert first_not_finite(model, (torch.zeros(2),)) is None


def test_a_step_is_that_of_the_optimizer_and_may_be_clipped() -> None:
    model = nn.Linear(3, 1)
    twin, x = copy.deepcopy(model), torch.full((2, 3), 10.0)
    descent_of(model, clip=1.0).step(model(x).sum(), 0)
    (twin(x).sum() / torch.tensor([20.0, 20.0, 20.0, 2.0]).norm()).backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other - 0.1 * other.grad, atol=1e-6)


def test_a_copy_of_a_watched_model_is_a_model(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    descent_of(model)
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 2)), model(torch.ones(1, 2)))


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["mnist", "--model", "dense", "--out", str(tmp_path), "--batch", "500", "--lr"]
    assert main([*common, "1e-2", "--epochs", "2", "--time-limit", "1e-9"]) == 124
    saved = checkpoint.read(tmp_path / CHECKPOINT)
    monkeypatch.setattr("experiments.classify.cross_entropy", lambda output, y: (output * math.inf).sum())
    capsys.readouterr()
    assert main([*common, "1e-2", "--epochs", "2", "--resume"]) == 2
    told = capsys.readouterr().err
    assert "step 1: the loss is nan" in told and "--resume" in told
    assert checkpoint.read(tmp_path / CHECKPOINT).meta["step"] == saved.meta["step"] == 1


# --- batches in parts ------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run("test", LoopOptions(out=tmp_path, device="cpu", accumulate=3)) as made:
        yield made


def gradient(loop: Loop, x: Tensor, batch: Tensor) -> tuple[list[Tensor], Tensor]:
    for part, share in loop.parts(batch):
        loop.backward(loop(x[part]).square().mean() * share)
    found = [parameter.grad.clone() for parameter in loop.model.parameters() if parameter.grad is not None]
    return found, loop.step(0)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_parts_of_a_batch_add_up_to_the_whole(run: Run, size: int) -> None:
    model = nn.Linear(4, 2).double()
    loop = Loop(run, model, torch.optim.SGD(model.parameters(), lr=0.0))
    x = torch.randn(9, 4, dtype=torch.float64)
    batch = torch.randperm(9)[:size]
    found, loss = gradient(loop, x, batch)
    whole = model(x[batch]).square().mean()
    expected = torch.autograd.grad(whole, list(model.parameters()))
    assert all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))
    assert float(loss) == pytest.approx(float(whole.detach()))
    assert [len(part) for part, _ in loop.parts(batch)] == [len(p) for p in batch.tensor_split(min(3, size))]


def test_what_is_not_finite_is_never_saved(run: Run) -> None:
    model = nn.Linear(2, 2)
    loop = Loop(run, model, torch.optim.SGD(model.parameters(), lr=0.0))
    run.keep(1, loop.state)
    with torch.no_grad():
        model.bias[0] = math.inf
    with pytest.raises(Diverged, match="after step 2 bias"):
        run.keep(2, loop.state)
    assert checkpoint.read(run.folder / CHECKPOINT).meta["step"] == 1


def test_a_state_of_other_processes_is_refused(run: Run) -> None:
    model = SparseLinear(4, 4)
    loop = Loop(run, model, torch.optim.SGD(model.parameters(), lr=0.1))
    state = loop.state()
    loop.restore(state)
    with pytest.raises(Exception, match="the checkpoint is of 2 processes; expected 1"):
        loop.restore(state | {"ranks": [state["torch"]["cpu"]] * 2})


# --- several processes -----------------------------------------------------------------------------------


launched = pytest.mark.skipif("ASH_PROCESSES" not in os.environ, reason="half a minute each; ASH_PROCESSES=1 runs them")


@dataclass
class Ended:
    """What a command did."""

    status: int
    seconds: float
    out: str
    err: str


def command(arguments: list[str], out: Path) -> subprocess.Popen[str]:
    """Two processes of an experiment, in the folder `out`."""
    line = [sys.executable, "-m", "experiments", *arguments, "--processes", "2", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def ended(process: subprocess.Popen[str]) -> Ended:
    begun = time.monotonic()
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, time.monotonic() - begun, out, err)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


DENSE = ["mnist", "--model", "static", "--epochs", "3", "--batch", "200", "--lr", "1e-3"]


@launched
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    assert main([*DENSE, "--out", str(tmp_path / "one")]) == 0
    found = ended(command(DENSE, tmp_path / "two"))
    assert found.status == 0, found.err
    assert found.out.count("test_accuracy ") == 1
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["validation_accuracy"] == pytest.approx(b["validation_accuracy"], abs=0.01)


@launched
def test_a_killed_rank_ends_the_run_which_goes_on_later(tmp_path: Path) -> None:
    arguments = ["mnist", "--epochs", "400", "--batch", "200"]
    process = command(arguments, tmp_path)
    killed = _other_rank(process, tmp_path)
    os.kill(killed, signal.SIGKILL)
    found = ended(process)
    assert found.status == 1
    assert "rank 0 of 2 no longer reaches another one" in found.err and "--resume" in found.err
    assert found.seconds < 60
    step = checkpoint.read(tmp_path / CHECKPOINT).meta["step"]
    again = ended(command([*arguments, "--resume", "--time-limit", "1"], tmp_path))
    assert again.status == 124, again.err
    assert checkpoint.read(tmp_path / CHECKPOINT).meta["step"] > step


def _other_rank(process: subprocess.Popen[str], folder: Path) -> int:
    """The process of rank 1, once the run has saved something."""
    end = time.monotonic() + 90
    while time.monotonic() < end and not (folder / CHECKPOINT / checkpoint.RECORD).exists():
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[-1])


def test_an_experiment_of_one_process_refuses_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["identity", "--quick", "--out", str(tmp_path)]) == 2
    assert "expected one: start it without torchrun" in capsys.readouterr().err


def test_ranks_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.world_size()) == (0, 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes.rank() == 0
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (processes.rank(), processes.world_size()) == (3, 4)


def test_only_errors_of_a_connection_are_of_a_lost_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = RuntimeError("[pair.cc:537] Connection closed by peer")
    assert processes.lost(broken) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "go on from the last checkpoint" in str(processes.lost(broken))
    assert processes.lost(RuntimeError("shapes differ")) is None
