"""Templates and admissible sets, against enumeration on small shapes."""

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ash import (
    Admissible,
    Boxes,
    Everything,
    Mask,
    SourceBeforeTarget,
    Template,
    UserError,
    block_structure,
)
from ash.pattern import ravel

STAIRS = torch.tensor([[False, True, False], [True, True, False], [False, False, True]])
SETS: dict[str, Admissible] = {
    "everything": Everything((3, 1, 4)),
    "boxes": Boxes((4, 6), torch.tensor([[0, 0], [2, 3]]), torch.tensor([[1, 2], [3, 5]])),
    "blocks": block_structure([1, 3, 2]),
    "one box in rank 3": Boxes((3, 3, 3), torch.tensor([[1, 0, 2]]), torch.tensor([[1, 2, 2]])),
    "source before target": SourceBeforeTarget(5),
    "two nodes": SourceBeforeTarget(2),
    "mask": Mask(STAIRS),
}
each_set = pytest.mark.parametrize("admissible", SETS.values(), ids=SETS)


def cells(shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(list(itertools.product(*map(range, shape)))).reshape(-1, len(shape))


def members(admissible: Admissible) -> Tensor:
    everywhere = cells(admissible.shape)
    return everywhere[admissible.contains(everywhere)]


def expected_members(name: str) -> set[tuple[int, ...]]:
    """The entries that each set is meant to hold, written out in plain loops."""
    rules = {
        "everything": lambda i, j, k: True,
        "boxes": lambda i, j: (i <= 1 and j <= 2) or (i >= 2 and j >= 3),
        "blocks": lambda i, j: [0, 1, 1, 1, 2, 2][j] < [0, 1, 1, 1, 2, 2][i],
        "one box in rank 3": lambda i, j, k: i == 1 and k == 2,
        "source before target": lambda i, j: j < i,
        "two nodes": lambda i, j: j < i,
        "mask": lambda i, j: bool(STAIRS[i, j]),
    }
    return {tuple(cell) for cell in cells(SETS[name].shape).tolist() if rules[name](*cell)}


@pytest.mark.parametrize("name", SETS)
def test_contains_and_count(name: str) -> None:
    found = members(SETS[name])
    assert {tuple(cell) for cell in found.tolist()} == expected_members(name)
    assert SETS[name].count() == len(found)
    SETS[name].check()


@each_set
def test_contains_takes_any_leading_shape(admissible: Admissible) -> None:
    points = cells(admissible.shape)
    assert torch.equal(admissible.contains(points.unsqueeze(0))[0], admissible.contains(points))


@each_set
def test_draws_are_uniform_members(admissible: Admissible) -> None:
    ids = ravel(admissible.draw(4000, torch.Generator().manual_seed(0)), admissible.shape)
    inside = ravel(members(admissible), admissible.shape)
    assert torch.isin(ids, inside).all()
    counts = torch.bincount(ids, minlength=math.prod(admissible.shape))[inside]
    assert len(inside) == 1 or scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


@each_set
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distinct_entries(admissible: Admissible, share: float) -> None:
    count = max(1, round(share * admissible.count()))
    found = admissible.distinct(count, torch.Generator().manual_seed(0))
    assert found.shape == (count, len(admissible.shape))
    assert admissible.contains(found).all()
    ids = ravel(found, admissible.shape)
    assert (ids.diff() > 0).all()
    assert torch.equal(found, admissible.distinct(count, torch.Generator().manual_seed(0)))
    with pytest.raises(UserError, match="ask for at most"):
        admissible.distinct(admissible.count() + 1, torch.Generator())


@each_set
def test_drawing_nothing(admissible: Admissible) -> None:
    source = torch.Generator()
    assert admissible.draw(0, source).shape == admissible.distinct(0, source).shape == (0, len(admissible.shape))


def test_distinct_entries_are_uniform() -> None:
    counts = torch.zeros(30)
    for seed in range(400):
        found = Everything((5, 6)).distinct(4, torch.Generator().manual_seed(seed))
        counts[ravel(found, (5, 6))] += 1
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_distinct_entries_of_a_huge_tensor() -> None:
    found = Everything((10**6, 10**6)).distinct(5000, torch.Generator().manual_seed(0))
    assert len(ravel(found, (10**6, 10**6)).unique()) == 5000


def test_all_entries_of_a_small_set_in_a_huge_tensor() -> None:
    small = Boxes((10**6, 10**6), torch.tensor([[10, 20]]), torch.tensor([[39, 49]]))
    assert len(small.distinct(900, torch.Generator().manual_seed(0)).unique(dim=0)) == 900


@each_set
def test_nearest_is_nearest(admissible: Admissible) -> None:
    top = torch.tensor(admissible.shape, dtype=torch.float64) - 1
    positions = torch.rand(60, len(admissible.shape), dtype=torch.float64) * top
    found = admissible.nearest(positions)
    assert found.dtype == torch.int64
    assert admissible.contains(found).all()
    best = torch.cdist(positions, members(admissible).double()).amin(1)
    assert torch.allclose((found - positions).square().sum(-1).sqrt(), best)


@each_set
def test_nearest_with_fixed_columns(admissible: Admissible) -> None:
    inside, r = members(admissible), len(admissible.shape)
    top = torch.tensor(admissible.shape, dtype=torch.float64) - 1
    for fixed in itertools.chain.from_iterable(itertools.combinations(range(r), n) for n in range(r + 1)):
        columns = list(fixed)
        positions = torch.rand(40, r, dtype=torch.float64) * top
        positions[:, columns] = positions[:, columns].round()
        found = admissible.nearest(positions, fixed)
        assert torch.equal(found[:, columns], positions[:, columns].long())
        same = (inside[None, :, columns] == found[:, None, columns]).all(-1)
        distances = torch.cdist(positions, inside.double()).masked_fill(~same, torch.inf).amin(1)
        there = distances.isfinite()
        assert torch.equal(admissible.contains(found), there)
        assert torch.allclose((found - positions).square().sum(-1).sqrt()[there], distances[there])


@each_set
def test_nearest_takes_any_leading_shape(admissible: Admissible) -> None:
    positions = torch.rand(2, 3, len(admissible.shape), dtype=torch.float64)
    assert torch.equal(admissible.nearest(positions)[1], admissible.nearest(positions[1]))
    assert admissible.nearest(positions[:0]).shape == (0, 3, len(admissible.shape))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 0))
def test_blocks_of_any_sizes(sizes: list[int]) -> None:
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    blocks = block_structure(sizes)
    expected = owner[None, :] < owner[:, None]
    assert torch.equal(blocks.contains(cells(blocks.shape)).reshape(expected.shape), expected)
    assert blocks.count() == expected.sum()


@pytest.mark.parametrize(
    "empty",
    [block_structure([4]), SourceBeforeTarget(1), Mask(torch.zeros(2, 2, dtype=torch.bool))],
    ids=repr,
)
def test_sets_without_entries_are_refused(empty: Admissible) -> None:
    with pytest.raises(UserError, match="leaves no entry"):
        empty.check()


def test_boxes_that_are_none() -> None:
    low, high = torch.tensor([[0, 0], [1, 1]]), torch.tensor([[2, 2], [3, 3]])
    with pytest.raises(UserError, match="overlap"):
        Boxes((5, 5), low, high)
    with pytest.raises(UserError, match="reach out"):
        Boxes((3, 3), low, high)
    with pytest.raises(UserError, match="expected"):
        Boxes((5, 5, 5), low, high)


def test_boxes_count_beyond_float64() -> None:
    assert Everything((2**31, 2**31 - 1)).count() == 2**31 * (2**31 - 1)


# --- templates -------------------------------------------------------------------------------------------


def test_a_template_of_outputs() -> None:
    plan = Template.per_output((2, 3), (4,), 2)
    assert plan.k == 12
    assert plan.columns == (0, 1)
    assert plan.learned == (2,)
    assert plan.sizes((2, 3, 4)) == (4,)
    assert plan.indices[:5].tolist() == [[0, 0], [0, 0], [0, 1], [0, 1], [0, 2]]


def test_a_template_of_inputs() -> None:
    plan = Template.per_input((5,), (2, 2), 1)
    assert plan.columns == (1, 2)
    assert plan.indices.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert plan.sizes((5, 2, 2)) == (5,)


@pytest.mark.parametrize("columns", [(), (1,), (0, 2), (2, 0), (0, 1, 2)])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_fill_puts_every_column_in_its_place(columns: tuple[int, ...], batch: tuple[int, ...]) -> None:
    shape, k, m = (4, 5, 6), 7, 2
    whole = torch.stack([torch.randint(0, s, (*batch, k, m)) for s in shape], -1)
    fixed = torch.stack([torch.randint(0, shape[c], (k,)) for c in columns], -1) if columns else torch.zeros(k, 0)
    plan = Template(3, columns, fixed.long())
    full = plan.fill(whole[..., list(plan.learned)], plan.indices)
    for column in range(3):
        if column in columns:
            expected = fixed[:, columns.index(column), None].expand(*batch, k, m)
        else:
            expected = whole[..., column]
        assert torch.equal(full[..., column], expected)


@pytest.mark.parametrize("columns", [(0, 0), (2,), (-1,)])
def test_columns_out_of_range_or_twice(columns: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="expected different columns from 0 to 1"):
        Template(2, columns, torch.zeros(3, len(columns), dtype=torch.int64))


@pytest.mark.parametrize("indices", [None, torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 1), torch.zeros(3)])
def test_fixed_indices_of_another_shape_or_type(indices: Tensor | None) -> None:
    with pytest.raises(UserError, match=r"expected integers of shape \(k, 1\)"):
        Template(2, (0,), indices)


def test_fixed_indices_are_needed() -> None:
    with pytest.raises(UserError, match="no fixed indices"):
        Template.per_output((3,), (3,), 0)


def test_fixed_indices_out_of_range() -> None:
    plan = Template(2, (1,), torch.tensor([[0], [4], [5]]))
    plan.check((2, 6))
    with pytest.raises(UserError, match="tuple 2 fixes column 1 at 5; expected 0 to 4"):
        plan.check((2, 5))
    with pytest.raises(UserError, match="same rank"):
        plan.check((2, 5, 1))


def test_a_large_mask_is_searched_in_parts() -> None:
    mask = Mask(torch.rand(200, 200) > 0.5)
    positions = torch.rand(150, 2, dtype=torch.float64) * 199
    expected = torch.stack([mask.nearest(position[None])[0] for position in positions[::50]])
    assert torch.equal(mask.nearest(positions)[::50], expected)
