"""Sampling: bounds, corners, statistics of every kind of point, exact de-duplication."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ash import IndexTuples, Sampling, UserError, jit, sampling
from ash.pattern import ravel
from ash.sampling import corner_points, duplicates, generator_from, new_seed, pass_generator, sample_points

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=["torch", "compiled"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test by torch's random numbers, and by the compiled kernels' in two threads."""
    if request.param == "compiled" and not jit.available():
        pytest.skip("numba is not installed")
    monkeypatch.setattr(jit, "LEAST_POINTS", 0 if request.param == "compiled" else 1 << 60)
    monkeypatch.setattr(jit, "PIECE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def tuples_at(means: Tensor, scale: float | Tensor = 1.0) -> IndexTuples:
    scales = torch.as_tensor(scale, dtype=torch.float32).expand(*means.shape[:-1], 1)
    anchors = means.double().round().long()
    residuals = (means.double() - anchors).float()
    return IndexTuples(anchors, residuals, scales, torch.ones(means.shape[:-1]))


def draw(tuples: IndexTuples, sizes: tuple[int, ...], seed: int = 0, **plan: Any) -> Tensor:
    nothing: dict[str, Any] = {"corners": False, "global_samples": 0, "local_samples": 0}
    return sample_points(tuples, sizes, Sampling(**{**nothing, **plan}), generator_from(seed, CPU))


@st.composite
def placed(draw: st.DrawFn) -> tuple[IndexTuples, tuple[int, ...]]:
    """Some tuples with means inside a tensor of up to four columns, some of size 1."""
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 7, 10**7]), min_size=0, max_size=4)))
    batch = draw(st.sampled_from([(3,), (2, 3), (0,)]))
    means = torch.rand(*batch, len(sizes), dtype=torch.float64) * (torch.tensor(sizes, dtype=torch.float64) - 1)
    scale = draw(st.sampled_from([1e-6, 0.5, 3.0, 1e6]))
    return tuples_at(means, scale), sizes


@given(placed(), st.data())
def test_points_lie_in_the_tensor_and_their_number_is_fixed(
    case: tuple[IndexTuples, tuple[int, ...]], data: st.DataObject
) -> None:
    tuples, sizes = case
    region = st.one_of(st.none(), st.integers(1, 12), st.tuples(*[st.integers(1, 12)] * len(sizes)))
    plan = Sampling(
        global_samples=data.draw(st.integers(0, 3)),
        local_samples=data.draw(st.integers(0, 3)),
        guided_samples=data.draw(st.integers(0, 3)),
        local_region=data.draw(region),
    )
    points = sample_points(tuples, sizes, plan, generator_from(0, CPU))
    assert points.shape == (*tuples.values.shape, plan.points(len(sizes)), len(sizes))
    assert points.dtype == torch.int64
    assert not points.requires_grad
    assert ((points >= 0) & (points < torch.tensor(sizes, dtype=torch.int64))).all()


@given(placed())
def test_corners_are_the_integer_points_around_the_mean_nearest_first(
    case: tuple[IndexTuples, tuple[int, ...]],
) -> None:
    tuples, sizes = case
    corners = corner_points(tuples, sizes)
    assert torch.equal(corners[..., 0, :], tuples.rounded(sizes))
    for mean, found in zip(tuples.means.flatten(0, -2).tolist(), corners.flatten(0, -3).tolist(), strict=True):
        around = [{math.floor(m), math.ceil(m)} for m in mean]
        expected = set(itertools.product(*around))
        inside = {tuple(point) for point in found}
        assert expected <= inside
        assert all(abs(p - m) <= 1 for point in inside for p, m in zip(point, mean, strict=True))
        distances = [math.dist(point, mean) for point in found]
        assert distances[0] == min(distances)


def test_corners_at_the_far_end_of_a_large_column() -> None:
    tuples = tuples_at(torch.tensor([[1e7 - 1.25]], dtype=torch.float64))
    assert corner_points(tuples, (10**7,)).flatten().tolist() == [9_999_999, 9_999_998]


def test_global_samples_are_uniform() -> None:
    points = draw(tuples_at(torch.zeros(2000, 2)), (5, 8), global_samples=4)
    counts = torch.bincount(ravel(points, (5, 8)).flatten(), minlength=40)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_global_samples_reach_every_digit_of_a_large_column() -> None:
    points = draw(tuples_at(torch.zeros(5000, 1)), (10**7,), global_samples=4).flatten()
    counts = torch.bincount(points % 10, minlength=10)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert points.max() > 0.99 * 10**7


@pytest.mark.parametrize("size", [10**7, 2**40])
def test_wide_local_samples_reach_every_digit_of_a_large_column(size: int) -> None:
    means = torch.full((5000, 1), size / 2, dtype=torch.float64)
    points = draw(tuples_at(means, size / 10), (size,), local_samples=4).flatten()
    counts = torch.bincount(points % 10, minlength=10)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_local_samples_have_the_tuples_mean_and_scale() -> None:
    means = torch.tensor([[400.3, 99.9]]).expand(4000, 2)
    scales = torch.tensor([[30.0, 5.0]]).expand(4000, 2)
    tuples = IndexTuples.from_means(means, scales, torch.ones(4000))
    points = draw(tuples, (801, 201), local_samples=2).double().flatten(0, 1)
    error = scales[0] / math.sqrt(len(points))
    assert ((points.mean(0) - means[0]).abs() < 4 * error).all()
    assert torch.allclose(points.std(0), scales[0].double(), rtol=0.05)


@pytest.mark.parametrize("region", [None, 1])
def test_points_of_a_narrow_tuple_lie_at_its_mean_wherever_its_anchor_is(region: int | None) -> None:
    residuals, scales = torch.tensor([[2.3], [-3.4]]), torch.full((2, 1), 1e-3)
    tuples = IndexTuples(torch.tensor([[10], [10]]), residuals, scales, torch.ones(2))
    points = draw(tuples, (100,), local_samples=3, local_region=region)
    assert points.squeeze(-1).tolist() == [[12] * 3, [7] * 3]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_a_region_is_a_uniform_window_centred_on_the_mean(width: int) -> None:
    means = 50 + torch.rand(4000, 1)
    points = draw(tuples_at(means), (100,), local_samples=4, local_region=width).squeeze(-1).double()
    off = points - means.double()
    assert off.abs().max() <= width / 2 + 1e-5
    assert abs(off.mean()) < 4 * math.sqrt((width**2 + 1) / 12 / off.numel())
    sides = (points - means.double().floor())[(means.squeeze(-1) % 1 - 0.5).abs() < 0.2]
    assert len(sides.unique()) >= width


@given(st.integers(1, 9), st.integers(0, 40), st.floats(0.05, 0.45), st.booleans())
def test_mirrored_means_have_mirrored_windows(width: int, whole: int, part: float, up: bool) -> None:
    size = 41
    mean = min(max(whole + (part if up else -part), 0), size - 1)
    both = torch.tensor([[mean], [size - 1 - mean]], dtype=torch.float64)
    points = draw(tuples_at(both), (size,), local_samples=150, local_region=width).squeeze(-1)
    one, other = (row.unique() for row in points)
    assert len(one) == width
    assert torch.equal(one, (size - 1 - other).flip(0))


def test_a_window_at_the_border_is_shifted_and_a_large_one_covers_the_tensor() -> None:
    points = draw(tuples_at(torch.tensor([[0.0, 0.0]])), (9, 3), local_samples=300, local_region=(4, 50))
    assert points[..., 0].unique().tolist() == [0, 1, 2, 3]
    assert points[..., 1].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("plan", [{"global_samples": 3}, {"local_samples": 3}, {"guided_samples": 3}])
def test_a_draw_is_a_function_of_the_seed(plan: dict[str, int]) -> None:
    tuples = tuples_at(torch.rand(50, 2) * 90, 20.0)
    torch.manual_seed(1)
    one = draw(tuples, (100, 100), seed=5, **plan)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(draw(tuples, (100, 100), seed=5, **plan), one)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(draw(tuples, (100, 100), seed=6, **plan), one)


def test_seeds_come_from_the_default_generator_or_from_a_given_one() -> None:
    torch.manual_seed(3)
    one = new_seed(CPU)
    torch.manual_seed(3)
    assert new_seed(CPU) == one
    assert new_seed(CPU) != one
    assert new_seed(CPU, torch.Generator().manual_seed(3)) == one
    assert 0 <= one < 2**63
    assert max(new_seed(CPU) for _ in range(20)) > 2**60


def test_a_pass_has_a_generator_of_its_own_from_a_seed_of_the_default_one() -> None:
    torch.manual_seed(3)
    own = pass_generator(CPU)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    assert own.initial_seed() == new_seed(CPU)
    torch.rand(5, generator=own)
    assert torch.equal(torch.get_rng_state(), after)


def test_instances_draw_for_themselves() -> None:
    tuples = tuples_at(torch.full((2, 20, 2), 50.0), 20.0)
    points = draw(tuples, (100, 100), local_samples=3)
    assert not torch.equal(points[0], points[1])


def guided(k: int, each: int, proposals: Tensor) -> Tensor:
    plan = Sampling(corners=False, global_samples=0, local_samples=0, guided_samples=each)
    tuples = tuples_at(torch.zeros(k, 2))
    return sample_points(tuples, (10**6, 10**6), plan, generator_from(0, CPU), proposals)


@pytest.mark.parametrize("count", [0, 5, 12, 40])
def test_proposals_are_dealt_out_once_each(count: int) -> None:
    proposals = torch.stack([torch.arange(count), torch.arange(count)], -1)  # uniform points meet them never
    points = guided(4, 3, proposals).flatten(0, 1)
    dealt = points[(points[:, 0] == points[:, 1]) & (points[:, 0] < count)]
    assert len(dealt) == len(dealt.unique(dim=0)) == min(count, 12)


def test_proposals_go_to_random_places() -> None:
    points = guided(100, 1, torch.zeros(50, 2, dtype=torch.int64)).squeeze(1)
    places = (points == 0).all(-1).nonzero().squeeze(-1)
    assert len(places) == 50
    assert places.tolist() != list(range(50))


@pytest.mark.parametrize("samples", [0, 1])
def test_kept_points_come_last_after_guided_ones(samples: int) -> None:
    """A tuple that has kept none gets a uniform one; a plan without kept samples takes none."""
    plan = Sampling(global_samples=1, local_samples=1, guided_samples=1, kept_samples=samples)
    proposals, kept = torch.tensor([[3, 4], [3, 4]]), torch.tensor([[[7, 8]], [[-1, -1]]])
    given = tuples_at(torch.zeros(2, 2)), (10**6, 10**6), plan
    found, without = (sample_points(*given, generator_from(0, CPU), proposals, None, own) for own in (kept, None))
    assert torch.equal(found[:, :7], without[:, :7])
    assert found[:, 6].tolist() == proposals.tolist()
    assert found[:, 7:].tolist() == ([[[7, 8]], without[1, 7:].tolist()] if samples else [[], []])
    assert (without >= 0).all()


def test_with_fixed_columns_a_tuple_gets_proposals_of_its_own_group() -> None:
    plan = Sampling(corners=False, global_samples=0, local_samples=0, guided_samples=3)
    theirs = torch.tensor([5, 2, 5, 2, 5, 7, 5])
    proposals = torch.arange(7)[:, None]
    own = torch.tensor([5, 2, 9, 7, 5])
    points = sample_points(
        tuples_at(torch.zeros(5, 1)), (10**9,), plan, generator_from(0, CPU), proposals, (theirs, own)
    ).squeeze(-1)
    for group, found in zip(own.tolist(), points.tolist(), strict=True):
        suited = {i for i, g in enumerate(theirs.tolist()) if g == group}
        dealt = [point for point in found if point < 7]
        assert set(dealt) <= suited
        assert len(set(dealt)) == len(dealt) == min(3, len(suited))
    many = sample_points(
        tuples_at(torch.zeros(40, 1)), (9,), plan, generator_from(0, CPU), proposals, (theirs, torch.full((40,), 5))
    )
    assert set(many[:, 0, 0].tolist()) == {0, 2, 4, 6}


@given(st.integers(0, 5), st.integers(0, 40), st.integers(1, 50))
def test_duplicates_are_all_but_the_first_of_a_context(c: int, p: int, largest: int) -> None:
    ids = torch.randint(0, largest, (c, p))
    for pairwise in (0, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "PAIRWISE", pairwise)
            found = duplicates(ids)
        for row, again in zip(ids.tolist(), found.tolist(), strict=True):
            assert again == [row[j] in row[:j] for j in range(p)]


@pytest.mark.parametrize("shape", [(28, 28, 28, 28), (2**31, 2**31 - 1)])
def test_duplicates_are_exact_at_large_sizes(shape: tuple[int, ...]) -> None:
    points = torch.stack([torch.randint(0, size, (20_000,)) for size in shape], -1)
    points[10_000:] = points[torch.randint(0, 10_000, (10_000,))]
    points[:5_000, -1] = (points[5_000:10_000, -1] + 1) % shape[-1]  # neighbours, that rounding would merge
    points[:5_000, :-1] = points[5_000:10_000, :-1]
    ids = ravel(points, shape)
    assert ids.max() < math.prod(shape)
    first = np.sort(np.unique(ids.numpy(), return_index=True)[1])
    assert (~duplicates(ids[None])[0]).nonzero().squeeze(-1).tolist() == first.tolist()
    assert len(np.unique(points.numpy(), axis=0)) == len(first)


def test_neighbouring_ids_near_the_end_of_int64_are_told_apart() -> None:
    ids = torch.arange(2**62, 2**62 + 40)[None]
    assert not duplicates(ids).any()
    assert duplicates(torch.cat([ids, ids], 1)).sum() == 40


def test_number_of_points() -> None:
    assert Sampling().points(2) == 8
    assert Sampling(guided_samples=3).points(3) == 15
    assert Sampling(corners=False, local_samples=0).points(4) == 2


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"global_samples": -1}, "global_samples=-1"),
        ({"corners": False, "global_samples": 0, "local_samples": 0}, "a tuple without points"),
        ({"local_region": 0}, "local_region=0"),
        ({"local_region": (3, -1)}, "local_region="),
    ],
)
def test_bad_plans(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**plan)


def test_a_region_for_another_number_of_columns() -> None:
    with pytest.raises(UserError, match="for 2 learned columns"):
        draw(tuples_at(torch.zeros(1, 2)), (5, 5), local_samples=1, local_region=(3, 3, 3))
