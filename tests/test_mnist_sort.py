"""The sorting of handwritten numbers: lists, ways to learn from an order, and the whole of it for a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ash import Anneal, UserError
from experiments import mnist_sort
from experiments.__main__ import main
from experiments.data import digits
from experiments.digit_lists import Digits, KeyNetwork, chance, parts, score, target_places
from experiments.images import Images, train_validation
from experiments.mnist_sort import Options
from experiments.orderings import DiffsortOrdering, HyperOrdering, Ordering, QuicksortOrdering
from experiments.runs import Run

CPU = torch.device("cpu")
NARROW = Anneal(0.3, 0.01, 10)
ORDERINGS = {
    "quicksort": lambda n: QuicksortOrdering(n, NARROW, "student_t"),
    "hyper": lambda n: HyperOrdering(n, NARROW, "student_t", 0),
    "hyper, sampled": lambda n: HyperOrdering(n, NARROW, "student_t", 2),
    "hyper, features": lambda n: HyperOrdering(n, Anneal(0.3, 0.1, 10), "student_t", 3, 3),
    "odd_even": lambda n: DiffsortOrdering(n, "odd_even", 10.0, "cauchy", "categorical"),
    "bitonic": lambda n: DiffsortOrdering(n, "bitonic", 10.0, "cauchy", "binary"),
}


def pool(digits: int = 4) -> Digits:
    return Digits(torch.rand(40, 6, 6), torch.arange(40) % 10, digits)


# --- lists -----------------------------------------------------------------------------------------------


def test_the_digits_of_a_number_stand_side_by_side() -> None:
    some = pool(3)
    drawn = some.draw(5, 7, torch.Generator().manual_seed(1))
    which = torch.randint(40, (5, 7, 3), generator=torch.Generator().manual_seed(1))
    assert drawn.pictures.shape == (35, 1, 6, 18) and drawn.values.shape == (5, 7)
    for i, j in ((0, 0), (4, 6), (2, 3)):
        expected = torch.cat([some.pixels[each] for each in which[i, j]], dim=1)
        assert torch.equal(drawn.pictures[7 * i + j, 0], expected)
        assert int(drawn.values[i, j]) == int("".join(str(int(some.labels[each])) for each in which[i, j]))


def test_lists_longer_than_the_data() -> None:
    assert pool(4).draw(1, 10).values.shape == (1, 10)
    with pytest.raises(UserError, match="lists of 11 numbers of 4.*at most 10 numbers"):
        pool(4).draw(1, 11)


def test_parts_are_apart_halved_and_standardised() -> None:
    x = torch.randint(0, 256, (30, 28, 28), dtype=torch.uint8)
    images = train_validation(Images(x, torch.arange(30) % 10, x[:5] // 2, torch.arange(5), "some"), 0.2, seed=0)
    found = parts(images, 4, CPU, torch.float32)
    assert [len(each.labels) for each in found] == [24, 6, 5]
    assert found.train.pixels.shape[1:] == (14, 14)
    assert abs(float(found.train.pixels.mean())) < 1e-5 and abs(float(found.train.pixels.std()) - 1) < 1e-5
    block = images.test_x[0, 4:6, 8:10].float().mean()
    scale = (found.test.pixels[0, 2, 4] - found.test.pixels[0, 0, 0]) / (
        block - images.test_x[0, :2, :2].float().mean()
    )
    other = (found.train.pixels[3, 1, 1] - found.train.pixels[3, 0, 0]) / (
        images.train_x[3, 2:4, 2:4].float().mean() - images.train_x[3, :2, :2].float().mean()
    )
    assert torch.allclose(scale, other, rtol=1e-4)
    assert parts(digits_with_validation(), 1, CPU, torch.float32).train.pixels.shape[1:] == (8, 8)


def digits_with_validation() -> Images:
    return train_validation(digits(), 1 / 12, seed=0)


@pytest.mark.parametrize(("side", "count"), [(14, 4), (8, 1)])
def test_the_network_is_a_convolution_with_the_stride_of_a_digit(side: int, count: int) -> None:
    network, x = KeyNetwork(side, count, (4, 6, 5), 7), torch.randn(9, 1, side, count * side)
    spans = nn.Conv2d(4, 6, side // 2, stride=side // 2)
    weight = network.digit.weight.reshape(6, side // 2, side // 2, 4).permute(0, 3, 1, 2)
    maps = torch.nn.functional.conv2d(network.strokes(x).relu(), weight, network.digit.bias, stride=spans.stride)
    features = network.mix(maps.relu().squeeze(2).transpose(1, 2)).relu()
    expected = network.key(network.number(features.flatten(1)).relu()).squeeze(-1)
    assert torch.allclose(network(x), expected, atol=1e-5)


def test_keys_keep_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        keys = KeyNetwork(8, 1)(torch.randn(500, 1, 8, 8))
    assert keys.dtype == torch.float32
    assert len(keys.unique()) > 450


def test_pictures_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="7 pixels high"):
        KeyNetwork(7, 1)
    odd = Images(torch.zeros(4, 17, 17), torch.zeros(4).long(), torch.zeros(1, 17, 17), torch.zeros(1).long(), "odd")
    with pytest.raises(UserError, match="pictures of 17 x 17"):
        parts(odd, 1, CPU, torch.float32)


# --- scores ------------------------------------------------------------------------------------------------


def test_equal_numbers_may_come_in_any_order() -> None:
    values = torch.tensor([[7, 3, 7], [1, 2, 3]])
    assert score(values, torch.tensor([[1, 0, 2], [0, 1, 2]])) == (1.0, 1.0)
    assert score(values, torch.tensor([[1, 2, 0], [1, 0, 2]])) == (0.5, pytest.approx(4 / 6))
    keys = torch.tensor([[0.9, 0.1, 0.5], [0.3, 0.2, 0.1]])
    assert target_places(values, keys).tolist() == [[2, 0, 1], [0, 1, 2]]


def test_targets_sort_the_numbers() -> None:
    values, keys = torch.randint(0, 5, (30, 8)), torch.randn(30, 8)
    order = target_places(values, keys).argsort(1)
    assert torch.equal(values.gather(1, order), values.sort(1).values)
    assert score(values, order) == (1.0, 1.0)


def test_a_random_order_scores_by_chance() -> None:
    values = torch.stack([torch.randperm(3) for _ in range(6000)])
    orders = torch.stack([torch.randperm(3) for _ in range(6000)])
    found = score(values, orders)
    assert found.exact_match == pytest.approx(chance(3), abs=0.02)
    assert found.element_wise == pytest.approx(1 / 3, abs=0.02)


# --- ways to learn from an order ------------------------------------------------------------------------------


def keys_for(name: str, b: int, n: int) -> Tensor:
    return torch.randn(b, n, 3) if name == "hyper, features" else torch.randn(b, n)


@pytest.mark.parametrize("name", ORDERINGS)
def test_orderings_are_exact_in_evaluation_and_lean_to_it_in_training(name: str) -> None:
    ordering: Ordering = ORDERINGS[name](8)
    keys = keys_for(name, 20, 8)
    ordering.eval()
    ordering.at_step(10)
    ranks = ordering.ranks(keys)
    assert torch.equal(ordering.order(keys), ranks.argsort(1))
    if keys.dim() == 2:
        assert torch.equal(ordering.order(keys), keys.argsort(1))
    hard = ordering.matrix(keys)
    assert torch.equal(hard @ ranks.unsqueeze(-1), ranks.sort(1).values.unsqueeze(-1))
    ordering.train()
    soft = ordering.matrix(keys).detach()
    assert soft.shape == hard.shape
    assert float((soft * hard).sum() / hard.sum()) > (0.5 if keys.dim() == 2 else 1 / 8)


@pytest.mark.parametrize("name", ORDERINGS)
def test_a_descent_on_the_loss_sorts_the_keys(name: str) -> None:
    ordering: Ordering = ORDERINGS[name](4)
    keys, target = keys_for(name, 6, 4).requires_grad_(), torch.stack([torch.randperm(4) for _ in range(6)])
    optimizer = torch.optim.Adam([keys, *ordering.parameters()], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        ordering.loss(keys, target).backward()
        optimizer.step()
    assert torch.equal(ordering.eval().order(keys.detach()), target.argsort(1))


@pytest.mark.parametrize("name", ORDERINGS)
def test_losses_of_hopeless_keys_are_finite(name: str) -> None:
    keys = torch.linspace(1e3, -1e3, 8).repeat(2, 1)
    if name == "hyper, features":
        keys = keys.unsqueeze(-1).repeat(1, 1, 3)
    keys.requires_grad_()
    loss: Tensor = ORDERINGS[name](8).loss(keys, torch.arange(8).repeat(2, 1))
    loss.backward()
    assert torch.isfinite(loss) and keys.grad is not None and torch.isfinite(keys.grad).all()


# --- the experiment ---------------------------------------------------------------------------------------------

FEW = ("--size", "4", "--batch", "8", "--lists", "20", "--channels", "2", "6", "4")


def start(out: Path, *arguments: object) -> int:
    return main(["mnist_sort", "--out", str(out), *map(str, (*FEW, *arguments))])


def content(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "summary.json").read_text())
    return found


@pytest.mark.parametrize("method", ["hyper", "quicksort", "diffsort"])
def test_a_quick_run(tmp_path: Path, method: str) -> None:
    assert start(tmp_path, "--quick", "--method", method) == 0
    found = content(tmp_path)
    keys = ["exact_match", "element_wise", "element_wise_sampled", "validation_exact_match"]
    peers = [] if method == "diffsort" else [f"peer_{key}" for key in keys]
    assert all(0 <= found[key] <= 1 for key in keys + peers)  # type: ignore[operator]
    assert ("peer_exact_match" in found) == (method != "diffsort")
    assert (found["dataset"], found["size"], found["digits"], found["method"]) == ("digits", 4, 4, method)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("exact_match.png", "sorted.png"))


def test_every_key_of_the_summary_is_explained(tmp_path: Path) -> None:
    assert start(tmp_path, "--steps", 2) == 0
    text = mnist_sort.__doc__ or ""
    standard = {"experiment", "seed", "steps", "seconds", "peak_memory_bytes"}
    missing = [key for key in content(tmp_path) if key not in standard and f"`{key.removeprefix('peer_')}`" not in text]
    assert not missing


def test_one_digit_without_a_peer_learns(tmp_path: Path) -> None:
    options = ("--digits", 1, "--no-peer", "--steps", 150, "--batch", 30, "--lists", 200, "--channels", 8, 24, 16)
    assert main(["mnist_sort", "--out", str(tmp_path), "--size", "3", *map(str, options)]) == 0
    found = content(tmp_path)
    assert "peer_exact_match" not in found
    assert found["exact_match"] > 0.6  # type: ignore[operator]


def test_a_resumed_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mnist_sort, "draw", lambda *_: None)
    arguments = ("--steps", 8, "--judge-every", 4, "--samples", 1)
    assert start(tmp_path / "whole", *arguments) == 0
    save = Run.save

    def save_and_stop(run: Run, step: int, state: object, *score: object) -> None:
        save(run, step, state, *score)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Run, "save", save_and_stop)
        assert start(tmp_path / "run", *arguments) == 130
    assert start(tmp_path / "run", *arguments, "--resume") == 0
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "whole")]
    assert logs[0] == logs[1]
    timed = ("seconds", "peak_memory_bytes")
    ends = [{k: v for k, v in content(tmp_path / name).items() if k not in timed} for name in ("run", "whole")]
    assert ends[0] == ends[1]
    assert start(tmp_path / "run", "--steps", 9, "--judge-every", 4, "--samples", 1, "--resume") == 2
    assert "--steps" in capsys.readouterr().err


def test_both_start_alike_and_see_the_same_lists(tmp_path: Path) -> None:
    with Run("mnist_sort", Options(out=tmp_path, size=4, batch=3, steps=2).resolved()) as run:
        made = mnist_sort.build(run.options, 8, CPU)  # type: ignore[arg-type]
        states = [each.network.state_dict() for each in made.values()]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] if not name.startswith("key"))
        assert states[0]["key.weight"].shape == (8, 64) and states[1]["key.weight"].shape == (1, 64)
        assert made["method"].network.key.weight is not made["peer"].network.key.weight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "quicksort", "--size", 6), "--size 6; expected a power of two"),
        (("--size", 1), "--size 1; expected at least 2"),
        (("--size", 90), "lists of 90 numbers"),
        (("--batch", 0), "--batch=0"),
        (("--lr", 0), "--lr=0"),
        (("--samples", -1), "--samples=-1"),
        (("--data-dir", "nowhere"), "nowhere is no folder"),
    ],
)
def test_what_cannot_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    assert start(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
