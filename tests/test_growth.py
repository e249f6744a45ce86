"""The largest entries of a sum of outer products, against the dense gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ash import DenseGradient, Factors, Mask, Score, SourceBeforeTarget, UserError, growth, norms
from ash.growth import lean_sum
from ash.pattern import ravel, unravel

SHAPES = [((5,), (7,)), ((2, 3), (4,)), ((3,), (2, 1, 3)), ((1,), (1,)), ((1,), (30,)), ((30,), (1,))]
KEYS = {"largest": torch.abs, "positive": lambda g: g, "negative": torch.neg}
blocks = pytest.mark.parametrize("block", [1, 3, 8, 10**6])
shapes = pytest.mark.parametrize(("out_shape", "in_shape"), SHAPES)


def make(out_shape: tuple[int, ...], in_shape: tuple[int, ...], b: int = 6) -> Factors:
    return Factors(torch.randn(b, *in_shape, dtype=torch.float64), torch.randn(b, *out_shape, dtype=torch.float64))


def best(dense: Tensor, n: int, by: str, barred: Tensor | None = None) -> Tensor:
    """Flattened positions of the n entries that come first, of those not barred."""
    score = KEYS[by](dense.flatten()).clone()
    count = len(score)
    if barred is not None:
        score[barred.flatten()] = -torch.inf
        count -= int(barred.sum())
    return score.topk(min(n, count)).indices


@shapes
def test_dense_and_at(out_shape: tuple[int, ...], in_shape: tuple[int, ...]) -> None:
    factors = make(out_shape, in_shape)
    x, g = factors.x.unflatten(1, in_shape), factors.g.unflatten(1, out_shape)
    expected = sum(torch.tensordot(g[i], x[i], 0) for i in range(6))
    assert factors.shape == (*out_shape, *in_shape)
    assert torch.allclose(factors.dense(), expected)
    some = unravel(torch.randint(0, expected.numel(), (12,)), factors.shape)
    assert torch.allclose(factors.at(some), expected[tuple(some.unbind(-1))])
    assert factors.at(some[:0]).shape == (0,)


@shapes
@blocks
@pytest.mark.parametrize("by", KEYS)
@pytest.mark.parametrize("n", [1, 4, 1000])
def test_top(
    monkeypatch: pytest.MonkeyPatch,
    out_shape: tuple[int, ...],
    in_shape: tuple[int, ...],
    block: int,
    by: str,
    n: int,
) -> None:
    monkeypatch.setattr(growth, "BLOCK", block)
    factors = make(out_shape, in_shape)
    indices, values = factors.top(n, by=by)
    expected = best(factors.dense(), n, by)
    assert ravel(indices, factors.shape).tolist() == expected.tolist()
    assert torch.allclose(values, factors.dense().flatten()[expected])


@blocks
@pytest.mark.parametrize("by", KEYS)
def test_top_leaves_out_what_is_excluded_or_not_admissible(
    monkeypatch: pytest.MonkeyPatch, block: int, by: str
) -> None:
    monkeypatch.setattr(growth, "BLOCK", block)
    factors = make((6,), (6,))
    exclude = torch.tensor([35, 3, 3, 0, 20, 13])  # in any order, with copies
    barred = torch.zeros(36, dtype=torch.bool)
    barred[exclude] = True
    found = factors.top(5, exclude=exclude, by=by)[0]
    assert ravel(found, (6, 6)).tolist() == best(factors.dense(), 5, by, barred).tolist()
    mask = torch.rand(6, 6) > 0.5
    for admissible in (SourceBeforeTarget(6), Mask(mask)):
        both = barred | ~admissible.contains(unravel(torch.arange(36), (6, 6)))
        found = factors.top(1000, exclude=exclude, admissible=admissible, by=by)[0]
        assert ravel(found, (6, 6)).tolist() == best(factors.dense(), 1000, by, both).tolist()
        assert len(found) == 36 - int(both.sum())


def test_nothing_is_left() -> None:
    indices, values = make((2,), (2,)).top(3, exclude=torch.arange(4))
    assert indices.shape == (0, 2)
    assert values.shape == (0,)


@blocks
def test_ties_give_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(growth, "BLOCK", block)
    factors = Factors(torch.ones(2, 6), torch.ones(2, 5))
    indices, values = factors.top(7)
    assert len(ravel(indices, (5, 6)).unique()) == 7
    assert (values == 2).all()
    zeros = Factors(torch.zeros(2, 6), torch.ones(2, 5)).top(7)[0]
    assert len(ravel(zeros, (5, 6)).unique()) == 7


def test_a_few_high_entries_at_the_places_that_are_looked_at_first() -> None:
    row = torch.rand(1, 30_000)
    row[0, :: 30_000 // 56] = 9.0
    row[0, 0] = 10.0
    indices, values = Factors(row, torch.ones(1, 1)).top(7)
    assert values.tolist() == [10.0] + [9.0] * 6
    assert len(indices.unique(dim=0)) == 7


@blocks
def test_at_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(growth, "BLOCK", block)
    factors = make((4,), (5,))
    everywhere = unravel(torch.arange(20), (4, 5))
    assert torch.allclose(factors.at(everywhere), factors.dense().flatten())


def test_factors_add_up_over_batches() -> None:
    one, other = make((2, 2), (3,), 4), make((2, 2), (3,), 5)
    assert torch.allclose((one + other).dense(), one.dense() + other.dense())


def test_sums_of_weighted_factors() -> None:
    one, two, three = (make((2, 2), (3,), b) for b in (4, 5, 6))
    total = ((one.scaled(0.5) + two).scaled(0.2) + three).scaled(-1.0)
    assert torch.allclose(total.dense(), -0.1 * one.dense() - 0.2 * two.dense() - three.dense())
    assert total.is_finite() and total.x.shape == (15, 3)
    assert torch.allclose((one.scaled(3.0) + two).dense(), 3 * one.dense() + two.dense())
    assert torch.allclose((total + one).dense(), total.dense() + one.dense())  # also once they are put together
    assert not (total + one.scaled(torch.inf)).is_finite()


@pytest.mark.parametrize("b", [1, 6])
def test_a_sum_is_held_in_the_leaner_way(b: int) -> None:
    """Of a weight of 5 × 7 as factors while they are at most 35 numbers, then dense."""
    parts = [make((5,), (7,), b) for _ in range(4)]
    total: Score = parts[0]
    expected = parts[0].dense()
    for number, fresh in enumerate(parts[1:], 2):
        total = lean_sum(total, fresh, 0.5)
        expected = 0.5 * expected + fresh.dense()
        assert isinstance(total, Factors if 12 * b * number <= 35 else DenseGradient)
        assert torch.allclose(total.dense(), expected)
    assert torch.allclose(lean_sum(parts[0], parts[1]).dense(), parts[0].dense() + parts[1].dense())
    dense = lean_sum(DenseGradient(expected, 1), DenseGradient(parts[0].dense(), 1), 0.1)
    assert torch.allclose(dense.dense(), 0.1 * expected + parts[0].dense())


def test_what_is_kept_does_not_change_with_the_input() -> None:
    x, g = torch.randn(4, 3), torch.randn(4, 2)
    factors = Factors(x, g)
    kept, before = factors.kept(), factors.dense()
    x.zero_()
    assert torch.equal(kept.dense(), before)
    assert (factors.dense() == 0).all()
    dense = DenseGradient(before, 1)
    assert dense.kept() is dense


def test_it_is_the_gradient_of_a_dense_layer() -> None:
    x, weight = (
        torch.randn(8, 5, dtype=torch.float64),
        torch.randn(3, 5, dtype=torch.float64, requires_grad=True),
    )
    y = x @ weight.t()
    y.retain_grad()
    y.square().sum().backward()
    assert y.grad is not None
    assert torch.allclose(Factors(x, y.grad).dense(), weight.grad)


def test_an_empty_batch_has_a_gradient_of_zero() -> None:
    factors = make((3,), (4,), 0)
    assert torch.equal(factors.dense(), torch.zeros(3, 4, dtype=torch.float64))
    assert (factors.top(2)[1] == 0).all()


def test_factors_hold_no_graph() -> None:
    factors = Factors(torch.randn(2, 3, requires_grad=True), torch.randn(2, 4, requires_grad=True))
    assert not factors.dense().requires_grad


def test_bad_factors() -> None:
    with pytest.raises(UserError, match="unknown order 'biggest'"):
        make((2,), (2,)).top(1, by="biggest")
    with pytest.raises(UserError, match="n=0"):
        make((2,), (2,)).top(0)
    with pytest.raises(UserError, match="expected gradients of one weight"):
        _ = make((2,), (2,)) + make((2,), (3,))


@pytest.mark.usefixtures("unchecked")
def test_factors_of_two_batches() -> None:
    with pytest.raises(UserError, match="2 inputs and 3 gradients; expected as many"):
        Factors(torch.ones(2, 3), torch.ones(3, 2))


@pytest.mark.parametrize("by", KEYS)
@pytest.mark.parametrize("n", [1, 7, 500, 29_000])
@pytest.mark.parametrize("block", [700, 10**6])
def test_top_of_a_larger_gradient_with_ties(monkeypatch: pytest.MonkeyPatch, block: int, n: int, by: str) -> None:
    monkeypatch.setattr(growth, "BLOCK", block)
    factors = Factors(torch.randint(-3, 4, (2, 150)).float(), torch.randint(-3, 4, (2, 200)).float())
    exclude = torch.randperm(30_000)[:900]
    indices, values = factors.top(n, exclude=exclude, by=by)
    score = KEYS[by](factors.dense().flatten())
    assert torch.equal(KEYS[by](values), score.index_fill(0, exclude, -torch.inf).topk(n).values)
    ids = ravel(indices, (200, 150))
    assert len(ids.unique()) == n
    assert not torch.isin(ids, exclude).any()


# --- a gradient that is held -----------------------------------------------------------------------------


def test_a_dense_gradient_answers_as_its_factors_do() -> None:
    factors = make((3, 2), (2, 4))
    dense = DenseGradient(factors.dense(), 2)
    assert (dense.out_shape, dense.in_shape) == ((3, 2), (2, 4))
    places, values = factors.top(7, exclude=torch.arange(9))
    found, at = dense.top(7, exclude=torch.arange(9))
    assert torch.equal(places, found) and torch.allclose(values, at)
    assert torch.allclose(dense.at(places), values)
    assert torch.allclose((dense + dense).dense(), 2 * factors.dense())
    assert torch.allclose(dense.scaled(0.5).dense(), factors.scaled(0.5).dense())


def test_what_a_score_has_to_say() -> None:
    required = {"_device", "__add__", "scaled", "dense", "at", "is_finite", "_grid", "_blocks"}
    assert Score.__abstractmethods__ == required


# --- the guess of how high the n-th is ---------------------------------------------------------------------


def test_the_nth_of_those_that_count() -> None:
    scores, ids = torch.tensor([2.0, 5.0, 1.0, 4.0, 3.0]), torch.arange(10, 15)
    assert [growth._nth(scores, ids, place, None) for place in (1, 2, 5, 6)] == [5, 4, 1, -torch.inf]
    even = [growth._nth(scores, ids, place, lambda own: own % 2 == 0) for place in (1, 2, 3, 4)]
    assert even == [3, 2, 1, -torch.inf]


@pytest.mark.parametrize("held", [False, True])
def test_entries_that_are_looked_at_first_are_called_by_their_positions(held: bool) -> None:
    factors = make((5, 4), (3, 7))
    score: Score = DenseGradient(factors.dense(), 2) if held else factors
    rows = torch.tensor([2, 19, 7, 11, 3])
    found, ids = score._grid(60, rows)
    assert torch.allclose(found, factors.dense().flatten()[ids])
    assert torch.isin(ids // 21, rows).all() and len(ids.unique()) == len(ids)
    assert 30 <= len(ids) <= 105 and len((ids % 21).unique()) > 7


@pytest.mark.parametrize(("width", "guessed"), [(64, False), (100, True)])
def test_the_guess_lets_little_more_than_n_entries_pass(
    monkeypatch: pytest.MonkeyPatch, width: int, guessed: bool
) -> None:
    """Small gradients are looked at without one."""
    begun = []

    class Watched(growth.Largest):
        def __init__(self, n: int, bar: float, counts: Any, total: int):
            begun.append((bar, total))
            super().__init__(n, bar, counts, total)

    monkeypatch.setattr(growth, "Largest", Watched)
    factors = make((width,), (width,))
    assert len(factors.places(50)) == 50
    (bar, total), = begun
    assert total == width**2 and (bar > -torch.inf) == guessed
    assert 50 <= int((factors.dense().abs() > bar).sum()) < 500 or not guessed


@pytest.mark.parametrize("by", ["largest", "positive", "negative"])
def test_a_search_leaves_a_dense_gradient_as_it_is(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "BLOCK", 5)
    gradient = torch.randn(4, 6)
    kept = gradient.clone()
    found, _ = DenseGradient(gradient, 1).top(30, exclude=torch.arange(3), by=by)
    assert torch.equal(gradient, kept)
    assert len(found) == 21


def test_gradients_of_two_kinds_or_weights_do_not_add() -> None:
    with pytest.raises(UserError, match="of one weight, from one host"):
        make((2,), (3,)) + DenseGradient(torch.zeros(2, 3), 1)
    with pytest.raises(UserError, match=r"Factors of a weight \(2,\) x \(3,\)"):
        make((2,), (3,)) + make((3,), (2,))


# --- rows and columns by their norms ----------------------------------------------------------------------


def skewed(b: int, rows: int, cols: int) -> Factors:
    """Norms that fall over four orders of magnitude, in any order; some lines are zero."""
    x, g = (torch.randn(b, n, dtype=torch.float64) * torch.logspace(0, -4, n)[torch.randperm(n)] for n in (cols, rows))
    x[:, ::5], g[:, 1::7] = 0.0, 0.0
    return Factors(x, g)


@pytest.mark.parametrize("by", KEYS)
@pytest.mark.parametrize("n", [1, 40, 900])
def test_blocks_that_cannot_pass_are_left_out(monkeypatch: pytest.MonkeyPatch, n: int, by: str) -> None:
    monkeypatch.setattr(growth, "BLOCK", 64)
    monkeypatch.setattr("ash.norms.TILE", 16)
    monkeypatch.setattr("ash.largest.SLACK", 64)
    factors = skewed(3, 90, 110)
    seen, blocks = 0, factors._blocks

    def counted(*given: Any) -> Any:
        nonlocal seen
        for block, names in blocks(*given):
            seen += block.numel()
            yield block, names

    monkeypatch.setattr(factors, "_blocks", counted)
    exclude = torch.arange(0, 9900, 3)
    barred = torch.zeros(9900, dtype=torch.bool).index_fill(0, exclude, True)
    assert factors.places(n, exclude, by=by).tolist() == best(factors.dense(), n, by, barred).tolist()
    assert seen < 9900 * 2 / 3


def test_more_entries_than_are_not_zero() -> None:
    factors = Factors(torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
    assert factors.places(3).tolist()[0] == 1 and len(factors.places(3).unique()) == 3
    assert factors.places(1, by="negative").tolist() != [1]


def test_the_largest_among_some_rows() -> None:
    factors = make((4, 3), (5,))
    rows = torch.tensor([7, 0, 4])
    outside = torch.ones(12, 5, dtype=torch.bool)
    outside[rows] = False
    expected = best(factors.dense(), 6, "largest", outside)
    assert factors.places(6, rows=rows).tolist() == expected.tolist()
    dense = DenseGradient(factors.dense(), 2)
    assert dense.places(6, rows=rows).tolist() == expected.tolist()
    assert len(dense.places(99, rows=rows)) == 15


def test_compiled_and_plain_searches_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    factors = skewed(4, 400, 300)
    plain = factors.places(700)
    monkeypatch.setattr("ash.largest.COMPILED", 0)
    monkeypatch.setattr("ash.jit.LEAST_POINTS", 1)
    assert torch.equal(factors.places(700), plain)


def test_a_block_has_room_for_all_of_a_tile() -> None:
    """More columns than a tile, of equal norms, so that none is left out."""
    x = torch.randint(0, 2, (3, norms.TILE + 5), dtype=torch.float64) * 2 - 1
    factors = Factors(x, torch.ones(3, 40, dtype=torch.float64))
    found = factors.places(200)
    assert len(found.unique()) == 200
    assert (factors.at(unravel(found, factors.shape)).abs() == 3).all()
