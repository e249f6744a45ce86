"""Points, shares and contexts: what tuples draw wherever they are, and how values spread, against a full table."""

from __future__ import annotations

import itertools
import math

import problems
import pytest
import torch
from fuzzing import ODD, SEEDS, Shape, each_path, fuzz, path, shapes
from hypothesis import strategies as st
from torch import Tensor

from ash import (
    Boxes,
    Context,
    Everything,
    IndexTuples,
    Mask,
    Sampling,
    SourceBeforeTarget,
    StudentT,
    Template,
    UserError,
)
from ash.contexts import spread
from ash.drawn import draw_weight
from ash.kernels import get_kernel
from ash.pattern import ravel, unravel
from ash.sampling import corner_points, duplicates, generator_from, sample_points
from ash.shares import point_weights

pytestmark = pytest.mark.nightly
CPU = torch.device("cpu")
KERNELS = st.sampled_from(["gaussian", "student_t", "student_t(2)", "student_t(2.5)", "student_t(40)"])
SIZES = st.lists(st.sampled_from([1, 2, 3, 7, 64, 2**16 + 1, 2**24 + 3, 2**31 + 5, 2**40]), max_size=3).map(tuple)
SCALES = st.sampled_from([1e-30, 1e-8, 0.3, 1.0, 1e3, 1e12])
COUNT = st.integers(0, 3)


@st.composite
def plans(draw: st.DrawFn, q: int | None = None) -> Sampling:
    """Any numbers of points, at least one; windows of any width."""
    region: int | tuple[int, ...] | None = draw(st.sampled_from([None, 1, 2, 9, 2**33]))
    counts = [draw(COUNT) for _ in range(4)]
    corners = draw(st.booleans()) or not any(counts)
    return Sampling(corners, *counts, local_region=region)


def tuples_in(sizes: Shape, lead: Shape, scale: float, columns: int, dtype: torch.dtype) -> IndexTuples:
    """Means anywhere in a tensor of these sizes, borders and halves among them."""
    share = torch.rand(*lead, len(sizes), dtype=torch.float64)
    share = torch.where(torch.rand_like(share) < 0.2, share.round(), share)
    means = share * (torch.tensor(sizes, dtype=torch.float64) - 1)
    anchors = means.floor().long()
    residuals = (means - anchors.double() + torch.randint(-1, 2, means.shape)).to(dtype)
    scales = torch.full((*lead, columns), scale, dtype=dtype)
    return IndexTuples(anchors, residuals, scales, torch.randn(lead).to(dtype))


def inside(points: Tensor, sizes: Shape) -> bool:
    return bool(((points >= 0) & (points < torch.tensor(sizes, dtype=torch.int64))).all())


@fuzz(1200, seed=SEEDS, sizes=SIZES, k=st.integers(1, 5), b=st.sampled_from([None, 0, 2]), plan=plans(), scale=SCALES,
      per_column=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
      odd=st.sampled_from([None, *ODD, 1e30, -1e30]), how=each_path)  # fmt: skip
def test_points_lie_in_the_tensor(
    seed: int, sizes: Shape, k: int, b: int | None, plan: Sampling, scale: float, per_column: bool, dtype: torch.dtype,
    odd: float | None, how: str,
) -> None:  # fmt: skip
    """Wherever the means are, also at no number at all."""
    lead = (k,) if b is None else (b, k)
    columns = len(sizes) if per_column and sizes else 1
    tuples = tuples_in(sizes, lead, scale, columns, dtype)
    if odd is not None and tuples.residuals.numel():
        tuples.residuals.view(-1)[0] = odd
        tuples.scales.view(-1)[-1] = abs(odd)
    with path(how):
        points = sample_points(tuples, sizes, plan, generator_from(seed, CPU))
        again = sample_points(tuples, sizes, plan, generator_from(seed, CPU))
    assert points.shape == (*lead, plan.points(len(sizes)), len(sizes)) and points.dtype == torch.int64
    assert torch.equal(points, again)
    assert inside(points, sizes) and inside(tuples.rounded(sizes), sizes)
    if plan.corners and odd is None:
        assert torch.equal(points[..., 0, :], tuples.rounded(sizes))


@fuzz(400, seed=SEEDS, sizes=st.lists(st.integers(1, 9), max_size=4).map(tuple), k=st.integers(1, 4))
def test_corners_are_the_integers_around_a_mean(seed: int, sizes: Shape, k: int) -> None:
    tuples = tuples_in(sizes, (k,), 1.0, 1, torch.float64)
    for mean, corners in zip(tuples.means.tolist(), corner_points(tuples, sizes).tolist(), strict=True):
        clipped = [min(max(m, 0.0), s - 1.0) for m, s in zip(mean, sizes, strict=True)]
        wanted = set(itertools.product(*[{math.floor(m), math.ceil(m)} for m in clipped]))
        assert wanted <= {tuple(corner) for corner in corners}
        assert all(abs(c - m) <= 1 for corner in corners for c, m in zip(corner, clipped, strict=True))


@fuzz(300, seed=SEEDS, c=st.integers(1, 3), p=st.integers(0, 50), different=st.sampled_from([1, 5, 2**62]))
def test_duplicates(seed: int, c: int, p: int, different: int) -> None:
    ids = torch.randint(0, different, (c, p)) if different < 2**62 else torch.randint(0, 2, (c, p)) * (2**62)
    wanted = [[not first for first in problems.first_copies(row)] for row in ids.tolist()]
    assert duplicates(ids).tolist() == wanted


@fuzz(300, seed=SEEDS, shape=st.lists(st.integers(1, 2**20), max_size=3).map(tuple), n=st.integers(0, 9))
def test_positions_are_flattened_and_back(seed: int, shape: Shape, n: int) -> None:
    columns = [torch.randint(0, size, (n,)) for size in shape]
    indices = torch.stack(columns, -1) if shape else torch.zeros(n, 0, dtype=torch.int64)
    ids = ravel(indices, shape)
    assert torch.equal(unravel(ids, shape), indices)
    assert all(0 <= each < math.prod(shape) for each in ids.tolist())


@fuzz(900, seed=SEEDS, c=st.integers(1, 4), t=st.integers(1, 5), p=st.integers(1, 12), q=st.integers(0, 3),
      largest=st.sampled_from([4, 4096, 2**26]), kernel=KERNELS, scale=SCALES, per_column=st.booleans(),
      grouped=st.booleans(), dead=st.booleans(), dtype=st.sampled_from([torch.float64, torch.float32]))  # fmt: skip
def test_shares_are_those_of_the_full_table(
    seed: int, c: int, t: int, p: int, q: int, largest: int, kernel: str, scale: float, per_column: bool, grouped: bool,
    dead: bool, dtype: torch.dtype,
) -> None:  # fmt: skip
    low = torch.randint(0, largest, ())
    points = torch.randint(0, 6, (c, p, q)) + low
    alive = torch.rand(c, p) < 0.6 if dead else torch.ones(c, p, dtype=torch.bool)
    groups = None
    if grouped:
        groups = torch.randint(0, 2, (c, p)), torch.randint(0, 2, (c, t))
        groups[0][:, 0] = 0
        groups[1].mul_(groups[0].amax(1, keepdim=True))
    for context in range(c):  # every tuple reaches a living point
        for name in {0} if groups is None else set(groups[1][context].tolist()):
            own = torch.ones(p, dtype=torch.bool) if groups is None else groups[0][context] == name
            alive[context, int(own.nonzero()[0])] = True
    s = max(1, q) if per_column else 1
    anchors = torch.randint(0, 6, (c, t, q)) + low
    parts = [torch.rand(c, t, q) - 0.5, scale * (0.5 + torch.rand(c, t, s)), torch.randn(c, t)]
    ours = [part.to(dtype).requires_grad_() for part in parts]
    theirs = [part.detach().double().requires_grad_() for part in ours]
    which = get_kernel(kernel)
    nu = which.nu if isinstance(which, StudentT) else None
    found = point_weights(which, points, alive, anchors, *ours, groups, int(low) + 6)
    narrow = theirs[1].clamp(min=1e-8)
    wanted = problems.point_weights(points, alive, anchors + theirs[0], narrow, theirs[2], nu, groups)
    assert (found == 0)[~alive].all()
    precise = dtype == torch.float64
    atol = 1e-7 if precise else 2e-3
    assert torch.allclose(found.double(), wanted, atol=atol), (found, wanted)
    assert torch.allclose(found.double().sum(1), _reached(theirs[2]), atol=1e-4)
    factor = torch.randn(c, p, dtype=torch.float64)
    gradients = torch.autograd.grad((found.double() * factor).sum(), ours, materialize_grads=True)
    assert all(bool(torch.isfinite(each).all()) for each in gradients)
    if precise and 0.1 < scale < 1e4:
        expected = torch.autograd.grad((wanted * factor).sum(), theirs, materialize_grads=True)
        for one, other in zip(gradients, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def _reached(values: Tensor) -> Tensor:
    """What each context spreads in all."""
    return values.detach().sum(1)


ADMISSIBLE = {
    "everything": lambda n: Everything((n, n)),
    "source before target": SourceBeforeTarget,
    "mask": lambda n: Mask(torch.rand(n, n) < 0.7),
    "box": lambda n: Boxes((n, n), torch.tensor([[0, 1]]), torch.tensor([[n - 2, n - 1]])),
}


@fuzz(900, seed=SEEDS, n=st.integers(2, 6), k=st.integers(1, 9), b=st.sampled_from([None, 1, 3]), plan=plans(),
      context=st.sampled_from(["tuple", "chunk", "all"]), chunk=st.integers(1, 5), shuffle=st.booleans(),
      shares=st.sampled_from(["auto", "table", "cells"]), kernel=KERNELS, which=st.sampled_from(sorted(ADMISSIBLE)),
      fixed=st.booleans(), how=each_path)  # fmt: skip
def test_contexts_spread_whole_values_over_admissible_points(
    seed: int, n: int, k: int, b: int | None, plan: Sampling, context: str, chunk: int, shuffle: bool, shares: str,
    kernel: str, which: str, fixed: bool, how: str,
) -> None:  # fmt: skip
    lead = (k,) if b is None else (b, k)
    admissible = ADMISSIBLE[which](n)
    template = Template(2, (0,), torch.randint(0, n, (k, 1))) if fixed else Template(2)
    columns = template.indices if fixed else torch.zeros(k, 0, dtype=torch.int64)
    sizes = template.sizes((n, n))
    tuples = tuples_in(sizes, lead, 0.7, 1, torch.float64)
    with path(how):
        points = sample_points(tuples, sizes, plan, generator_from(seed, CPU))
        full = template.fill(points, columns)
        contained = admissible.contains(full)
        tuples = IndexTuples(tuples.anchors, tuples.residuals, tuples.scales, tuples.values * contained.any(-1))
        if not bool(contained.any(-1).all()):
            return  # a wiring makes sure that every tuple has a point
        weights = spread(
            tuples, points, full, (n, n), kernel=get_kernel(kernel), context=Context(context, chunk, shuffle, shares),
            template=template, admissible=admissible, generator=generator_from(seed, CPU),
        )  # fmt: skip
    assert weights.shape == points.shape[:-1] and bool((weights[~contained] == 0).all())
    if context != "tuple" and not bool(contained.all()) and fixed:
        return
    total = tuples.values.sum(-1)
    assert torch.allclose(weights.sum((-1, -2)), total, atol=1e-5)


@fuzz(500, seed=SEEDS, out_shape=shapes(2), in_shape=shapes(2), k=st.integers(1, 7), b=st.sampled_from([None, 1, 3]),
      plan=plans(), kernel=KERNELS, per_column=st.booleans(), scale=SCALES)  # fmt: skip
def test_draws_that_are_not_stored_are_those_that_are(
    seed: int, out_shape: Shape, in_shape: Shape, k: int, b: int | None, plan: Sampling, kernel: str, per_column: bool,
    scale: float,
) -> None:  # fmt: skip
    shape, template = (*out_shape, *in_shape), Template(len(out_shape) + len(in_shape))
    lead = (k,) if b is None else (b, k)
    tuples = tuples_in(shape, lead, scale, len(shape) if per_column else 1, torch.float64)
    with path("compiled"):
        drawn = draw_weight(
            tuples, torch.zeros(k, 0, dtype=torch.int64), out_shape, in_shape, sampling=plan, kernel=get_kernel(kernel),
            context=Context(), template=template, admissible=Everything(shape), generator=generator_from(seed, CPU),
        )  # fmt: skip
        if drawn is None:
            assert plan.points(len(shape)) > 8
            return
        drawn.check()
        ids = ravel(drawn.indices, shape).reshape(-1, plan.points(len(shape)))
        points = unravel(ids, shape)
        flat = tuples.anchors.reshape(-1, 1, len(shape)), tuples.residuals.reshape(-1, 1, len(shape))
        scales = tuples.scales.reshape(len(ids), 1, -1).clamp(min=1e-8)
        which = get_kernel(kernel)
        nu = which.nu if isinstance(which, StudentT) else None
        wanted = problems.point_weights(
            points, ~duplicates(ids), flat[0] + flat[1], scales, tuples.values.reshape(-1, 1), nu
        )
        assert torch.allclose(drawn.values.reshape(wanted.shape), wanted, atol=1e-6)
        if not drawn.per_instance:
            rows, cols = drawn.row_ids[_order(drawn)], drawn.col_ids[_order(drawn)]
            assert torch.equal(drawn.pattern.row.long(), rows) and torch.equal(drawn.pattern.col.long(), cols)
            assert torch.allclose(drawn.arranged(), drawn.values[_order(drawn)])


def _order(drawn: object) -> Tensor:
    order = drawn.pattern.order  # type: ignore[attr-defined]
    return torch.arange(drawn.entries) if order is None else order.long()  # type: ignore[attr-defined]


@fuzz(300, numbers=st.tuples(*[st.integers(-2, 3)] * 4), corners=st.booleans(),
      region=st.one_of(st.none(), st.integers(-2, 4), st.lists(st.integers(-1, 3), max_size=3).map(tuple)),
      q=st.integers(0, 3))  # fmt: skip
def test_samplings_that_make_no_sense_are_refused(
    numbers: tuple[int, ...], corners: bool, region: int | tuple[int, ...] | None, q: int
) -> None:
    widths = region if isinstance(region, tuple) else (1 if region is None else region,)
    good = all(each >= 0 for each in numbers) and all(each >= 1 for each in widths)
    if not (good and (corners or any(numbers))):
        with pytest.raises(UserError, match="expected|ask for"):
            Sampling(corners, *numbers, local_region=region)
        return
    plan = Sampling(corners, *numbers, local_region=region)
    assert plan.points(q) == corners * 2**q + sum(numbers)
    if isinstance(region, tuple) and len(region) != q:
        with pytest.raises(UserError, match="learned columns"):
            plan.check(q)
