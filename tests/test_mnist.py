"""The digits experiment: budgets, what each model is made of, whole runs, resuming, errors."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ash import GaussianWiring, StaticWiring, UserError
from ash.count import count
from experiments import mnist, models, pixels
from experiments.__main__ import main
from experiments.classify import Plan, gaussian_wirings, sampled
from experiments.runs import Run
from tests.page_data import held

SHAPE = (28, 28)
SPARSE = ("ash", "static", "frozen")


def write(folder: Path, train: int = 120, test: int = 40, seed: int = 0) -> Path:
    """A tiny set in MNIST's format: the label says which of ten rows of a noisy image is bright."""
    folder.mkdir(parents=True, exist_ok=True)
    test_random = np.random.default_rng(seed)
    for part, n, random in (("train", train, np.random.default_rng(0)), ("t10k", test, test_random)):
        y = random.integers(0, 10, n)
        x = random.integers(0, 60, (n, *SHAPE))
        x[np.arange(n), 4 + 2 * y] += 150
        heads = struct.pack(">4I", 0x803, n, *SHAPE), struct.pack(">2I", 0x801, n)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(heads[0] + x.astype("u1").tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(heads[1] + y.astype("u1").tobytes())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"))


def start(out: Path, *arguments: object) -> int:
    return main(["mnist", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# --- how large -----------------------------------------------------------------------------------------


@given(
    st.floats(0.005, 1.0),
    st.integers(1, 20),
    st.integers(0, 5),
    st.sampled_from([(64, 10, 50), (784, 10, 300)]),
)
def test_a_budget_is_kept_and_spent(density: float, each: int, outgoing: int, sizes: tuple[int, int, int]) -> None:
    inputs, classes, width = sizes
    numbers = density * width * (inputs + classes)
    unit = 2 * each + (2 * outgoing or classes)
    if int(numbers) < unit:
        with pytest.raises(UserError, match="one hidden unit"):
            models.allot(density, inputs, classes, each, outgoing, width)
        return
    budget = models.allot(density, inputs, classes, each, outgoing, width)
    assert numbers - 2 < budget.stored_numbers <= numbers
    assert 1 <= budget.hidden <= width
    assert each <= int(budget.counts.min()) <= int(budget.counts.max()) <= int(budget.counts.min()) + 1
    assert int(budget.counts.max()) <= inputs
    assert len(budget.rows) == int(budget.counts.sum())


def test_budgets_by_hand() -> None:
    """238,200 weights: 2,382 numbers are 62 units of 2 · 14 + 10, and 26 left over are 13 further tuples."""
    budget = models.allot(0.01, 784, 10, 14)
    assert (budget.dense_weights, budget.hidden, budget.stored_numbers) == (238_200, 62, 2382)
    assert budget.counts.tolist() == [15] * 13 + [14] * 49
    budget = models.allot(0.05, 784, 10, 14, outgoing=2)
    assert (budget.hidden, budget.stored_numbers) == (300, 11_910)
    assert budget.counts.tolist() == [18] * 255 + [17] * 45


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.0}, "--density 0.0; expected"),
        ({"density": 1.5}, "--density 1.5; expected"),
        ({"density": float("nan")}, "--density nan; expected"),
        ({"density": 1e-4}, "expected at least 38, for one hidden unit"),
        ({"each": 0}, "--tuples 0; expected 1 to 784"),
        ({"each": 785}, "--tuples 785; expected 1 to 784"),
        ({"outgoing": 11}, "--outgoing 11; expected 0"),
    ],
)
def test_budgets_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.allot(**{"density": 0.05, "inputs": 784, "classes": 10, "each": 14} | arguments)


# --- what it is made of --------------------------------------------------------------------------------


def network(steps: int = 10, **options: Any) -> torch.nn.Sequential:
    given = mnist.Options(**{"density": 0.01} | options)
    budget = models.allot(given.density or 0.0, 784, 10, given.tuples, given.outgoing)
    return mnist.build(given, budget, SHAPE, steps)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("outgoing", [0, 3])
@pytest.mark.parametrize("model", SPARSE)
def test_sparse_models_are_of_equal_size(model: str, outgoing: int, dimensions: int) -> None:
    net = network(model=model, outgoing=outgoing, dimensions=dimensions)
    budget = models.allot(0.01, 784, 10, 14, outgoing)
    assert count(net).stored_numbers == budget.stored_numbers <= 2382
    assert net(torch.randn(3, *SHAPE)).shape == (3, 10)
    weights = pixels.unit_weights(net, SHAPE)
    assert weights.shape == (budget.hidden, *SHAPE)
    assert bool(((weights != 0).flatten(1).sum(1) <= budget.counts).all())


def test_the_dense_net_is_the_reference() -> None:
    size = count(network(model="dense"))
    assert (size.stored_numbers, size.indices) == (238_200, 0)


@pytest.mark.parametrize(
    ("shape", "hidden", "expected"),
    [(SHAPE, 300, (12, 5, 5)), ((8, 8), 58, (6, 3, 3)), ((2, 2), 4, (1, 2, 2)), (SHAPE, 1, (1, 5, 5))],
)
def test_the_convolution_has_similar_tensor_shapes(
    shape: tuple[int, int], hidden: int, expected: tuple[int, int, int]
) -> None:
    net = models.conv_classifier(shape, hidden, 10)
    x = torch.randn(2, *shape)
    assert net[:2](x).shape == (2, *expected)
    assert net(x).shape == (2, 10)


@pytest.mark.parametrize("placement", ["uniform", "centre"])
def test_static_units_read_different_pixels(placement: str) -> None:
    net = network(model="static", placement=placement, density=0.05)
    wiring = net[0].wiring
    assert isinstance(wiring, StaticWiring)
    assert len(wiring.indices.unique(dim=0)) == len(wiring.indices) == 4455
    inside = ((wiring.indices[:, 1:] - 13.5).abs() <= 7).all(1).double().mean()
    assert (float(inside) > 0.4) == (placement == "centre")


def test_gaussians_start_as_centred_static_entries_lie() -> None:
    start = models.around_centre(100_000, SHAPE, 0.15).round().long()
    found = torch.bincount(start[:, 0] * 28 + start[:, 1], minlength=784).double()
    expected = models.centre_weights(SHAPE, 0.15).double()
    inner = torch.zeros(SHAPE, dtype=torch.bool)
    inner[6:22, 6:22] = True
    found, expected = found[inner.flatten()], expected[inner.flatten()]
    assert torch.allclose(found / found.sum(), expected / expected.sum(), atol=1e-3)


def test_flat_positions_are_those_of_rows_and_columns() -> None:
    indices = []
    for dimensions in (1, 2):
        torch.manual_seed(5)
        (wiring,) = gaussian_wirings(network(dimensions=dimensions))
        indices.append(wiring.rounded_indices())
    flat, square = indices
    assert torch.equal(flat[:, 1], square[:, 1] * 28 + square[:, 2])


def test_frozen_means_learn_values_only() -> None:
    net = network(model="frozen")
    (wiring,) = gaussian_wirings(net)
    net(torch.randn(4, *SHAPE)).square().sum().backward()
    assert wiring.values.grad is not None
    assert wiring.means.offset.grad is None
    assert wiring.log_scale.grad is None


def test_scales_shrink_on_schedule() -> None:
    wiring = network(steps=4)[0].wiring
    assert isinstance(wiring, GaussianWiring)
    optimizer = torch.optim.SGD(wiring.parameters(), lr=1e-3)
    found = []
    for _ in range(6):
        optimizer.zero_grad()
        wiring(None).values.square().sum().backward()
        found.append(float(wiring.scales().detach().max()))
        optimizer.step()
    assert found == pytest.approx([3 * 0.1 ** (min(i, 4) / 4) for i in range(6)], rel=1e-5)


def test_sampling_a_frozen_network_leaves_it_frozen() -> None:
    net = network().eval()
    (wiring,) = gaussian_wirings(net)
    wiring.freeze()
    k = wiring.k
    with sampled(net):
        assert net.training
        assert len(wiring(None).values) == 6 * k
    assert not net.training
    assert bool(wiring.frozen)
    assert len(wiring(None).values) == k


def test_steps_of_a_plan() -> None:
    plan = Plan(epochs=3, batch=10, freeze=0.7)
    assert (plan.steps_per_epoch(21), plan.steps(21), plan.freeze_at(21)) == (3, 9, 6)


# --- whole runs ----------------------------------------------------------------------------------------

KEYS = {
    *("experiment", "seed", "steps", "seconds", "peak_memory_bytes", "dataset", "model", "density", "hidden"),
    *("test_accuracy", "test_accuracy_at_best_validation", "best_epoch", "validation_accuracy"),
    *("train_accuracy", "stored_numbers", "index_bytes", "dense_weights"),
}
POSITIONS, SAMPLED = {"tuples", "collided"}, {"test_accuracy_rounded", "test_accuracy_sampled"}
MORE = {"ash": POSITIONS | SAMPLED, "frozen": POSITIONS}


@pytest.mark.parametrize("model", ["ash", "static", "frozen", "dense", "conv"])
def test_a_run_of_every_model(tmp_path: Path, data: Path, model: str) -> None:
    assert start(tmp_path, "--model", model, "--data-dir", data, "--quick", "--batch", 32) == 0
    summary = content(tmp_path)
    assert set(summary) == KEYS | MORE.get(model, set())
    assert (summary["dataset"], summary["model"], summary["steps"]) == ("mnist", model, 8)
    assert summary["stored_numbers"] <= (238_200 if model == "dense" else 11_910)
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]
    assert summary["test_accuracy"] == lines(tmp_path)[-1]["test_accuracy"]
    names = {"accuracy.png"} | (set() if model == "conv" else {"pixels.png", "units.png"})
    assert {path.name for path in tmp_path.glob("*.png")} == names
    assert set(content_list(tmp_path)) == names | {"index.html"}
    tracks = held(tmp_path / "index.html")["tracks"]
    if model not in ("ash", "frozen"):
        assert not tracks
        return
    assert tracks[0]["steps"] == [0, 4, 8] and (tracks[0]["rank"], tracks[0]["out"]) == (3, 1)
    assert tracks[0]["k"] <= 2000 and f"of {summary['tuples']:,} tuples" in "".join(tracks[0]["notes"])


def content_list(out: Path) -> list[str]:
    return list(json.loads((out / "pictures.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "blog"],
        ["--dimensions", "1", "--kernel", "gaussian", "--no-scheduled-scale"],
        ["--context", "chunk", "--global-samples", "1", "--guided-samples", "1", "--freeze", "1"],
    ],
)
def test_a_run_of_other_settings(tmp_path: Path, data: Path, arguments: list[str]) -> None:
    assert start(tmp_path, "--data-dir", data, "--quick", "--density", "0.005", *arguments) == 0
    assert content(tmp_path)["stored_numbers"] <= 1191


def test_digits_are_learned_without_a_download(tmp_path: Path) -> None:
    assert start(tmp_path, "--epochs", 6) == 0
    summary = content(tmp_path)
    assert summary["dataset"] == "digits"
    assert summary["stored_numbers"] <= 0.1 * summary["dense_weights"] == 2220
    assert summary["test_accuracy"] > 0.9
    assert summary["test_accuracy"] == summary["test_accuracy_rounded"]


def test_the_test_set_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "draw", lambda *_: None)
    found = []
    for name, seed in (("a", 1), ("b", 2)):
        folder = write(tmp_path / name, seed=seed)
        assert start(tmp_path / "run", "--data-dir", folder, "--quick", "--batch", 32) == 0
        summary = content(tmp_path / "run")
        figures = [{k: v for k, v in line.items() if "test" not in k} for line in lines(tmp_path / "run")]
        found.append((figures, summary["best_epoch"]))
    assert found[0] == found[1]


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("model", ["ash", "static"])
def test_a_run_that_was_killed_goes_on(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, model: str, stop: int
) -> None:
    """Before the means are frozen, and after."""
    monkeypatch.setattr(mnist, "draw", lambda *_: None)
    arguments = ["--model", model, "--data-dir", data, "--epochs", 4, "--batch", 32, "--density", "0.01"]
    assert start(tmp_path / "whole", *arguments, "--freeze", 0.6) == 0
    save = Run.save

    def save_and_stop(run: Run, step: int, state: Any, *score: Any) -> None:
        save(run, step, state, *score)
        if len(state["history"]) == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Run, "save", save_and_stop)
        assert start(tmp_path / "run", *arguments, "--freeze", 0.6) == 130
    assert not (tmp_path / "run" / "summary.json").exists()
    assert start(tmp_path / "run", *arguments, "--freeze", 0.6, "--resume") == 0
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert held(tmp_path / "run" / "index.html") == held(tmp_path / "whole" / "index.html")
    timed = ("seconds", "peak_memory_bytes")
    ends = [content(tmp_path / name) for name in ("run", "whole")]
    assert {k: v for k, v in ends[0].items() if k not in timed} == {k: v for k, v in ends[1].items() if k not in timed}


def test_epochs_belong_to_the_run(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stretch its one cosine."""
    monkeypatch.setattr(mnist, "draw", lambda *_: None)
    arguments = ["--data-dir", data, "--model", "static", "--density", "0.01"]
    assert start(tmp_path, *arguments, "--epochs", 1) == 0
    assert start(tmp_path, *arguments, "--epochs", 2, "--resume") == 2
    assert "--epochs" in capsys.readouterr().err


# --- errors --------------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])


def damage(folder: Path) -> None:
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(b"\x1f\x8b" + path.read_bytes()[2:])


def shorten(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + bytes(2))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "train-images-idx3-ubyte: .*truncated"),
        (damage, "t10k-images-idx3-ubyte: the gzip archive is damaged"),
        (shorten, "train-labels-idx1-ubyte: 120 images and 2 labels"),
        (empty, "exists without train-images-idx3-ubyte"),
    ],
)
def test_bad_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str) -> None:
    spoil(write(tmp_path / "data"))
    assert start(tmp_path / "run", "--data-dir", tmp_path / "data") == 2
    shown = capsys.readouterr().err
    assert re.search(f"^mnist: .*{message}", shown)
    assert "Traceback" not in shown
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--density", "0"], "--density 0.0; expected"),
        (["--tuples", "65"], "--tuples 65; expected 1 to 64"),
        (["--epochs", "0"], "--epochs 0; expected at least 1"),
        (["--batch", "0"], "--batch 0; expected at least 1"),
        (["--freeze", "1.5"], "--freeze 1.5; expected a share"),
        (["--subset", "0"], "subset=0"),
        (["--kernel", "gauss"], "unknown kernel 'gauss'"),
        (["--model", "adaptive"], "adaptive"),
        (["--context", "pixels"], "pixels"),
        (["--lr", "-1"], "--lr=-1"),
        (["--scale", "0"], "--scale=0"),
        (["--local-samples", "-1"], "local_samples=-1"),
        (["--preset", "blok"], "unknown preset 'blok'"),
    ],
)
def test_options_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert start(tmp_path, *arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("model", ["ash", "static", "hyper"])
def test_a_net_is_judged_again(tmp_path: Path, data: Path, model: str) -> None:
    arguments = ("--quick", "--data-dir", data, "--model", model)
    assert start(tmp_path, *arguments) == 0
    trained = content(tmp_path)
    assert start(tmp_path, "--data-dir", data, "--evaluate", tmp_path) == 0
    found = content(tmp_path / "evaluation")
    for key in ("model", "test_accuracy", "validation_accuracy"):
        assert found[key] == trained[key]
    assert found["trained_steps"] == trained["steps"]
    assert ("test_accuracy_sampled" in found) == (model == "ash")
    assert start(tmp_path, "--data-dir", data, "--evaluate", tmp_path, "--checkpoint", "best") == 0
    best = content(tmp_path / "evaluation")
    assert best["test_accuracy"] == trained["test_accuracy_at_best_validation"]
    assert best["trained_steps"] == trained["best_epoch"] * trained["steps"] // 2


def test_judging_leaves_other_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Path("runs/mnist/checkpoint/kept")
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert main(["mnist", "--quick", "--epochs", "1", "--out", "other"]) == 0
    for folder in ("other", "other/checkpoint"):
        assert main(["mnist", "--evaluate", folder]) == 0
        assert content(Path("other/evaluation"))["checkpoint"] == "last"
    assert kept.exists() and content(Path("other"))["steps"] > 0


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "--evaluate nowhere: no such folder; expected that of a run"),
        ("empty", "no best checkpoint in empty/checkpoint; expected one that an earlier run left; give the"),
    ],
)
def test_what_cannot_be_judged(
    folder: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["mnist", "--evaluate", folder, "--checkpoint", "best"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("nowhere").exists()
