"""Which entries go, where new ones grow, how layers share them: small cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ash import DenseGradient, Everything, Factors, Mask, SourceBeforeTarget
from ash.pattern import unravel
from ash.wirings import drop_grow
from ash.wirings.drop_grow import DROP_RULES, distribute, grow_largest, grow_random, merged_order

VALUES = torch.tensor([0.5, -0.1, 2.0, -3.0, 0.2])
GRADIENTS = torch.tensor([0.1, 9.0, 0.01, 0.001, 2.0])  # |w · g|: 0.05, 0.9, 0.02, 0.003, 0.4


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rule", "expected"), [("magnitude", [1, 4]), ("saliency", [3, 2])])
def test_the_smallest_are_dropped(rule: str, expected: list[int]) -> None:
    assert DROP_RULES[rule](VALUES, GRADIENTS, 2, source()).tolist() == expected
    assert DROP_RULES[rule](VALUES, GRADIENTS, 0, source()).tolist() == []
    assert sorted(DROP_RULES[rule](VALUES, GRADIENTS, 5, source()).tolist()) == [0, 1, 2, 3, 4]


def test_dead_entries_are_dropped_first() -> None:
    gradients = torch.tensor([0.1, 9.0, 0.0, 0.001, 2.0])
    assert DROP_RULES["dead_first"](VALUES, gradients, 2, source()).tolist() == [2, 1]
    assert set(DROP_RULES["dead_first"](VALUES, torch.zeros(5), 5, source()).tolist()) == {0, 1, 2, 3, 4}


def test_random_entries_are_dropped() -> None:
    found = [tuple(DROP_RULES["random"](VALUES, None, 2, source(i)).tolist()) for i in range(200)]
    assert all(len(set(each)) == 2 for each in found)
    counts = torch.bincount(torch.tensor(found).flatten(), minlength=5)
    assert (counts > 50).all()  # 80 expected, standard deviation 7


def test_growth_takes_the_largest_gradients_that_are_free() -> None:
    gradient = torch.tensor([[5.0, -4.0, 1.0], [0.0, 3.0, -6.0]])
    score = DenseGradient(gradient, 1)
    everything = Everything((2, 3))
    assert grow_largest(2, torch.tensor([5]), everything, score).tolist() == [0, 1]  # −6 at 5 is in use
    assert grow_largest(2, torch.tensor([0, 1]), everything, score).tolist() == [5, 4]
    mask = Mask(torch.tensor([[False, True, True], [True, True, False]]))
    assert grow_largest(2, torch.tensor([4]), mask, score).tolist() == [1, 2]


def test_growth_by_factors_is_growth_by_the_dense_gradient() -> None:
    factors = Factors(torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64))
    used = torch.randperm(42)[:20]
    size = factors.dense().abs().flatten().index_fill(0, used, -1.0)
    assert grow_largest(9, used, Everything((6, 7)), factors).tolist() == size.topk(9).indices.tolist()


@pytest.mark.parametrize("admissible", [Everything((6, 6)), SourceBeforeTarget(6), Mask(torch.eye(6) == 0)])
@pytest.mark.parametrize("enumerable", [0, 1 << 26])
@pytest.mark.parametrize("n", [1, 4, 9])
def test_random_growth(admissible: Everything, enumerable: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the free entries are enumerated or drawn, they are admissible, free and different."""
    monkeypatch.setattr(drop_grow, "ENUMERABLE", enumerable)
    used = admissible.distinct(6, source())
    exclude = (used * torch.tensor([6, 1])).sum(-1)[torch.randperm(6)]
    for seed in range(20):
        found = grow_random(n, exclude, admissible, source(seed))
        assert len(found.unique()) == n
        assert not torch.isin(found, exclude).any()
        assert admissible.contains(unravel(found, (6, 6))).all()
        assert torch.equal(found, grow_random(n, exclude, admissible, source(seed)))


@pytest.mark.parametrize("enumerable", [0, 1 << 26])
def test_random_growth_is_uniform_over_what_is_free(enumerable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_grow, "ENUMERABLE", enumerable)
    exclude = torch.tensor([0, 3, 7])
    found = torch.cat([grow_random(5, exclude, Everything((3, 3)), source(i)) for i in range(300)])
    counts = torch.bincount(found, minlength=9)
    assert counts[exclude].sum() == 0
    assert counts.sum() == 1500
    assert (counts[[1, 2, 4, 5, 6, 8]] - 250).abs().max() < 40  # standard deviation about 6.5


def test_all_that_is_free_can_grow() -> None:
    found = grow_random(5, torch.tensor([1, 2, 5, 8]), Everything((3, 3)), source())
    assert sorted(found.tolist()) == [0, 3, 4, 6, 7]


@pytest.mark.parametrize(
    ("keys", "moved", "expected"),
    [
        ([1, 9, 4, 0, 7], [1, 3], [3, 0, 2, 4, 1]),
        ([1, 4, 7], [], [0, 1, 2]),
        ([7, 1, 4], [2, 0, 1], [1, 2, 0]),
    ],
)
def test_keys_that_moved_are_merged_into_the_rest(keys: list[int], moved: list[int], expected: list[int]) -> None:
    assert merged_order(torch.tensor(keys), torch.tensor(moved, dtype=torch.int64)).tolist() == expected


@pytest.mark.parametrize(
    ("total", "claims", "limits", "expected"),
    [
        (10, [3.0, 1.0, 1.0], [99, 99, 99], [6, 2, 2]),
        (3, [0.6, 0.4], [9, 9], [2, 1]),  # 1.8 and 1.2
        (10, [0.06, 0.94], [99, 99], [1, 9]),  # 0.6 and 9.4: the largest remainder
        (10, [8.0, 1.0, 1.0], [4, 99, 99], [4, 3, 3]),  # what the limit keeps from one goes to the others
        (10, [8.0, 1.0, 1.0], [4, 4, 1], [4, 4, 1]),  # no more than the limits allow
        (4, [0.0, 0.0], [9, 9], [2, 2]),
        (4, [1.0, 0.0], [1, 9], [1, 3]),
        (0, [1.0, 2.0], [5, 5], [0, 0]),
        (4, [float("nan"), 1.0], [9, 9], [0, 4]),
    ],
)
def test_distribution(total: int, claims: list[float], limits: list[int], expected: list[int]) -> None:
    assert distribute(total, claims, limits) == expected


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 300)), min_size=1, max_size=6),
)
def test_distribution_adds_up_within_limits(total: int, each: list[tuple[float, int]]) -> None:
    claims, limits = [c for c, _ in each], [limit for _, limit in each]
    given_ = distribute(total, claims, limits)
    assert sum(given_) == min(total, sum(limits))
    assert all(0 <= n <= limit for n, limit in zip(given_, limits, strict=True))


def test_values_keep_their_gradient() -> None:
    values = torch.randn(6, requires_grad=True)
    found: Tensor = DROP_RULES["magnitude"](values, None, 3, source())
    assert not found.requires_grad
    assert values.grad is None
