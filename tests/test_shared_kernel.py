"""The shared kernel: its matrix, what counts as found, the moves one by one, whole runs, resuming, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d

from ash import Codebook, Factors, GaussianWiring, Template, UserError
from experiments import shared_kernel
from experiments.__main__ import main
from experiments.code_rescue import CodeRescue, look
from experiments.runs import Run
from experiments.shared_kernel import Learner, Options, convolution

CPU = torch.device("cpu")
COUNTS = {"moved", "merged", "parted", "recoded", "split"}


def start(out: Path, *arguments: object) -> int:
    return main(["shared_kernel", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


def test_the_matrix_is_the_convolution() -> None:
    kernel, x = torch.randn(3, 3), torch.randn(4, 7, 7)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1)).flatten(1)
    matrix = convolution(kernel, 7)
    expected = conv2d(x[:, None], kernel[None, None], padding=1)[:, 0]
    torch.testing.assert_close((padded @ matrix.t()).reshape(4, 7, 7), expected)
    assert int((matrix != 0).sum()) == (3 * 7 - 2) ** 2
    assert not matrix.reshape(49, 9, 9)[:, [0, -1]].any()


def solved(size: int = 5) -> Learner:
    """A learner whose tuples are the convolution's entries, with its nine values as scalars."""
    learner = Learner(Options(size=size), CPU)
    places = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"), -1).reshape(9, 2)
    own = learner.wiring.template.indices
    with torch.no_grad():
        where = (own.reshape(-1, 9, 2) + places).reshape(-1, 2)
        learner.wiring.means.place(torch.arange(learner.wiring.k), where.double())
        learner.wiring.codebook.scalars.copy_(learner.kernel.flatten())
        learner.wiring.codes.copy_(5 * torch.eye(9).repeat(size**2, 1))
    return learner


def test_what_counts_as_found() -> None:
    learner = solved()
    figures = learner.judge()
    assert (figures["recovered_fraction"], figures["held_fraction"], figures["spurious"]) == (1.0, 1.0, 0)
    assert figures["scalar_error"] == 0.0
    assert learner.errors()["mse_rounded"] < 1e-10
    torch.testing.assert_close(learner.found()[1:4, 1:4], learner.kernel)
    middle = 9 * 12  # the first tuple of the output in the middle
    with torch.no_grad():
        learner.wiring.codes[middle] = torch.eye(9)[3]
    entries = 13**2
    assert learner.judge()["recovered_fraction"] == pytest.approx(1 - 1 / entries)
    assert learner.judge()["held_fraction"] == 1.0
    learner.wiring.means.place(torch.tensor([middle]), torch.tensor([[2.0, 3.0]], dtype=torch.float64))
    figures = learner.judge()
    assert figures["held_fraction"] == pytest.approx(1 - 1 / entries)
    assert figures["recovered_fraction"] == pytest.approx(1 - 2 / entries)  # the entry that two tuples hold now


def one_row(positions: list[int], codes: list[int], scalars: list[float]) -> GaussianWiring:
    """One output of 12 inputs in a row of a picture; a tuple at each position with its scalar."""
    template = Template.per_output((1,), (1, 12), len(positions))
    where = torch.tensor([[0.0, float(p)] for p in positions])
    book = Codebook(len(scalars), noise=False)
    wiring = GaussianWiring((1,), (1, 12), template=template, values=book, positions=where, scale=0.2, scale_floor=0.01)
    with torch.no_grad():
        book.scalars.copy_(torch.tensor(scalars))
        wiring.codes.copy_(3.0 * torch.eye(len(scalars))[codes])
    return wiring


def rescue(wiring: GaussianWiring, target: dict[int, float], silent: int | None = None) -> CodeRescue:
    x = torch.randn(4000, 1, 12)
    if silent is not None:
        x[..., silent] = 0.0
    true = torch.zeros(12).index_put((torch.tensor(list(target)),), torch.tensor(list(target.values())))
    error = (wiring.rounded().to_dense().reshape(12).detach() - true) @ x.flatten(1).t()
    move = CodeRescue(scale=0.5)
    wiring.rewire(Factors(x, error[:, None] / len(x)), move)
    return move


def entries(wiring: GaussianWiring) -> dict[int, float]:
    weight = wiring.rounded()
    return {int(c): round(float(v), 3) for c, v in zip(weight.col_ids, weight.values.detach(), strict=True)}


def test_a_spare_tuple_goes_where_it_is_missed() -> None:
    wiring = one_row([3, 3], [0, 1], [1.0, -2.0])
    move = rescue(wiring, {3: 1.0, 8: -2.0})
    assert entries(wiring) == {3: 1.0, 8: -2.0}
    assert (move.counts["merged"], move.counts["moved"]) == (1, 1)


def test_a_harmful_tuple_goes_where_it_does_no_harm() -> None:
    wiring = one_row([3, 6], [0, 1], [1.0, -2.0])
    rescue(wiring, {3: 1.0}, silent=11)
    assert entries(wiring)[3] == 1.0
    assert 11 in entries(wiring)


def test_nothing_moves_where_all_is_found() -> None:
    wiring = one_row([3, 8, 5], [0, 1, 0], [1.0, -2.0])
    move = rescue(wiring, {3: 1.0, 8: -2.0, 5: 1.0})
    assert sum(move.counts.values()) == 0


def test_tuples_take_the_scalar_that_is_wanted() -> None:
    wiring = one_row([3, 8], [1, 1], [1.0, -2.0])
    move = rescue(wiring, {3: 1.0, 8: -2.0})
    assert entries(wiring) == {3: 1.0, 8: -2.0}
    assert move.counts["recoded"] == 1


def test_a_scalar_that_is_not_needed_takes_half_of_anothers_tuples() -> None:
    wiring = one_row([1, 2, 3, 4, 5], [0, 0, 0, 0, 1], [0.5, 2.0, 2.1])
    move = rescue(wiring, {1: 0.3, 2: 0.3, 3: 0.7, 4: 0.7, 5: 2.0})
    found = entries(wiring)
    assert move.counts["split"] == 1
    assert [found[i] for i in (1, 2, 3, 4)] == pytest.approx([0.3, 0.3, 0.7, 0.7], abs=0.05)
    assert abs(found[5] - 2.0) <= 0.1


def test_a_batch_says_what_is_wanted() -> None:
    wiring = one_row([3, 3, 8], [0, 1, 1], [1.0, -2.0])
    x = torch.randn(4000, 1, 12)
    true = torch.zeros(12).index_put((torch.tensor([3, 8]),), torch.tensor([1.0, -1.5]))
    error = (wiring.rounded().to_dense().reshape(12).detach() - true) @ x.flatten(1).t()
    sight = look(wiring, Factors(x, error[:, None] / len(x)))
    assert sight.wanted.tolist() == pytest.approx([1.0, 1.0, -1.5], abs=0.15)
    assert sight.spare.tolist() == [False, True, False]
    assert sight.power.tolist() == pytest.approx([1.0] * 12, abs=0.15)


def test_a_small_kernel_is_found(tmp_path: Path) -> None:
    assert start(tmp_path, "--size", 8, "--steps", 400) == 0
    summary = content(tmp_path)
    assert summary["recovered_fraction"] >= 0.95
    assert summary["mse_rounded"] < 0.05 * summary["mse_zero"]
    assert {*COUNTS, "scalar_error", "held_fraction", "mse_sampled", "tuples", "entries"} <= set(summary)
    assert (summary["tuples"], summary["entries"]) == (9 * 64, 22**2)
    assert {path.name for path in tmp_path.glob("*.png")} == {"kernel.png", "recovered.png", "scalars.png"}


def test_a_run_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_kernel, "draw", lambda *_: None)
    arguments = ("--size", 4, "--steps", 220, "--batch", 16, "--rescue-every", 10)
    assert start(tmp_path / "whole", *arguments) == 0
    save = Run.save

    def save_and_stop(run: Run, step: int, state: Any, *score: Any) -> None:
        save(run, step, state, *score)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Run, "save", save_and_stop)
        assert start(tmp_path / "run", *arguments) == 130
    assert start(tmp_path / "run", *arguments, "--resume") == 0
    name = "metrics.jsonl"
    assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.parametrize("arguments", [["--noise", "--context", "tuple"], ["--rescue-every", "0", "--codebook", "12"]])
def test_other_settings_run(tmp_path: Path, arguments: list[str]) -> None:
    assert start(tmp_path, "--quick", *arguments) == 0
    summary = content(tmp_path)
    assert 0 <= summary["recovered_fraction"] <= summary["held_fraction"] <= 1
    assert (summary["moved"] == 0) == ("0" in arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "2"], "--size 2; expected at least 3"),
        (["--codebook", "8"], "--codebook 8; expected at least 9"),
        (["--steps", "0"], "--steps=0"),
        (["--kernel", "box"], "unknown kernel 'box'"),
    ],
)
def test_options_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert start(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_bad_options_raise() -> None:
    with pytest.raises(UserError, match="--batch"):
        Options(batch=0).resolved()
