"""The identity experiment: targets, learners, the trial, and the whole of it for a few steps."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ash import UserError
from ash.pattern import ravel
from experiments.__main__ import main
from experiments.identity_options import BLOG_FRAMES, PRESETS, Options
from experiments.learners import METHODS, Learner, Tuples, make_learner
from experiments.recovery import Trial, make_target

CPU = torch.device("cpu")


def learner(**options: object) -> Learner:
    return make_learner(Options(**options).resolved(), (8, 8), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "entries"), [("identity", 9), ("permutation", 9), ("sparse", 18)])
def test_targets(kind: str, entries: int) -> None:
    target = make_target(kind, 9)
    assert target.shape == (9, 9) and int((target != 0).sum()) == entries
    if kind == "sparse":
        size = target[target != 0].abs()
        assert bool((size >= 0.5).all() and (size <= 1.5).all()) and {*target.sign().unique().tolist()} == {-1, 0, 1}
    else:
        assert bool((target.sum(0) == 1).all() and (target.sum(1) == 1).all())
    assert torch.equal(make_target("identity", 4), torch.eye(4))


@pytest.mark.parametrize("kind", ["identity", "permutation"])
def test_large_permutations_are_never_held_densely(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = make_target(kind, 8)
    monkeypatch.setattr("experiments.recovery.DENSE", 4)
    torch.manual_seed(0)
    target = make_target(kind, 8)
    assert target.is_sparse and torch.equal(target.to_dense(), dense)
    sparse, other = (Trial(learner(size=8), each, batch=3) for each in (target, dense))
    assert torch.equal(sparse.entries, other.entries) and torch.equal(sparse.where, other.where)
    x = torch.randn(3, 8)
    assert torch.equal(sparse._truth(x), other._truth(x))


def test_options_depend_on_each_other() -> None:
    fixed, learned = Options(size=10).resolved(), Options(size=10, target="sparse").resolved()
    assert (fixed.values, fixed.k, fixed.rescue_every, fixed.scale_decay) == ("ones", 10, 0, 0.003)
    assert (learned.values, learned.k, learned.rescue_every, learned.scale_decay) == ("learned", 20, 25, 0.01)
    assert Options(target="sparse", rescue_every=0, scale_floor=0.2).resolved().rescue_every == 0
    large, small = Options(size=1024).resolved(), Options(size=1023).resolved()
    assert (large.rescue_every, large.scale, small.rescue_every, small.scale) == (25, 32.0, 0, None)
    assert Options(size=1024, target="sparse").resolved().scale is None
    assert Options(quick=True).resolved().steps < Options().steps


def test_a_rescue_moves_at_most_a_twentieth_of_fixed_tuples() -> None:
    """Two of twenty share a row, and one may be moved; when it happens again, none."""
    own = make_learner(Options(size=20, rescue_every=1).resolved(), (20, 20), CPU)
    assert isinstance(own, Tuples)
    own.wiring.means.place(torch.arange(20), torch.arange(20).double().unsqueeze(-1).repeat(1, 2))
    own.wiring.means.place(torch.tensor([3]), torch.tensor([[7.0, 3.0]]).double())
    own.rescue = dataclasses.replace(own.rescue, most=1.0)
    x = torch.randn(4000, 20)
    own._rescue(x, x)
    assert own.moves == 1 and sorted(own.indices()[:, 0].tolist()) == list(range(20))
    own.wiring.means.place(torch.tensor([5]), torch.tensor([[7.0, 3.0]]).double())
    own._rescue(x, x)
    assert own.moves == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "--size"),
        ({"batch": 0}, "--batch"),
        ({"target": "sparse", "values": "ones"}, "--values learned"),
        ({"method": "reinforce", "values": "learned"}, "positions only"),
    ],
)
def test_impossible_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options(**options).resolved()  # type: ignore[arg-type]


def test_the_blogs_preset_is_the_blogs_setting() -> None:
    options = PRESETS["blog"](Options()).resolved()
    points = 4 + options.global_samples + options.local_samples + options.guided_samples + options.kept_samples
    assert (options.size, options.k, options.batch, options.steps, points) == (32, 32, 256, 6000, 68)
    assert options.frames == BLOG_FRAMES and options.run_on and options.kernel == "gaussian"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", ["ones", "learned"])
def test_learners_learn_from_what_they_are_shown_and_restore(method: str, values: str) -> None:
    if method == "reinforce" and values == "learned":
        pytest.skip("learns positions only")
    options = {"size": 8, "method": method, "values": values, "rescue_every": 2 if values == "learned" else 0}
    torch.manual_seed(0)
    one, other = learner(**options), learner(**options)
    x = torch.randn(6, 16, 8)
    for step in range(3):
        one.train_step(x[step], x[step], step)
    other.restore(copy.deepcopy(one.state()))
    state = torch.get_rng_state()
    for trained in (one, other):
        torch.set_rng_state(state)
        for step in range(3, 6):
            trained.train_step(x[step], x[step], step)
    assert torch.equal(one.indices(), other.indices())
    assert torch.equal(one.rounded(x[0]), other.rounded(x[0]))
    assert one.moves == other.moves
    assert one.indices().shape == (8, 2) and one.sampled(x[0]).shape == (16, 8)
    assert one.frame(3).means.shape == (8, 2)


@pytest.mark.parametrize("target", ["identity", "permutation"])
@pytest.mark.parametrize("guided", [0, 2])
def test_a_small_matrix_is_recovered_by_gradient_alone(target: str, guided: int) -> None:
    torch.manual_seed(1)
    matrix = make_target(target, 8)
    trained = learner(size=8, guided_samples=guided)
    for step in range(600):
        x = torch.randn(128, 8)
        trained.train_step(x, x @ matrix.t(), step)
    held = ravel(trained.indices(), (8, 8)).sort().values
    assert torch.equal(held, ravel(matrix.nonzero(), (8, 8)))
    assert trained.moves == 0


def test_greedy_selection_recovers_and_counts_its_moves() -> None:
    torch.manual_seed(1)
    trained = learner(size=8, method="greedy")
    for step in range(60):
        x = torch.randn(128, 8)
        trained.train_step(x, x, step)
    assert torch.equal(trained.indices().sort(0).values, torch.arange(8).unsqueeze(-1).expand(8, 2))
    assert trained.moves > 0


def test_a_trial_judges_without_touching_the_random_state() -> None:
    trained = learner(size=8)
    trial = Trial(trained, torch.eye(8), 16)
    state = torch.get_rng_state()
    first = trial.errors()
    assert torch.equal(torch.get_rng_state(), state) and first == trial.errors()
    assert set(first) == {"rounded_mse", "sampled_mse"}


KEYS = {"size", "recovered", "exact", "steps_to_exact", "rounded_mse", "sampled_mse", "moves", "stored_numbers"}


@pytest.mark.parametrize("method", METHODS)
def test_the_experiment_leaves_a_whole_run_folder(method: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["identity", "--size", "6", "--quick", "--method", method, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= KEYS and summary["size"] == 6 and summary["experiment"] == "identity"
    assert all((out / name).stat().st_size > 0 for name in ("row.png", "means.png", "means.gif", "errors.png"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == summary["steps"] and lines[-1]["recovered"] == summary["recovered"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.recovery.SAVE_EVERY", 20)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    common = ["identity", "--size", "6", "--run-on", "--values", "learned", "--rescue-every", "7"]
    assert main([*common, "--steps", "60", "--out", str(whole)]) == 0
    assert main([*common, "--steps", "40", "--out", str(parted)]) == 0
    assert main([*common, "--steps", "60", "--out", str(parted), "--resume"]) == 0
    read = [json.loads((out / "summary.json").read_text()) for out in (whole, parted)]
    timeless = [{k: v for k, v in s.items() if "seconds" not in k and "memory" not in k} for s in read]
    assert timeless[0] == timeless[1]


def test_usage_errors_are_said_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["identity", "--kernel", "box", *out]) == 2
    assert "unknown kernel 'box'" in capsys.readouterr().err
    assert main(["identity", "--k", "0", *out]) == 2
    assert "k" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_every_option_has_a_default() -> None:
    assert all(field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
               for field in dataclasses.fields(Options))  # fmt: skip
