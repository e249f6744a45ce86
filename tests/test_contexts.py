"""Contexts: who sees which points; the whole spread against plain loops."""

from typing import Any

import problems
import pytest
import torch
from torch import Tensor

from ash import (
    Admissible,
    Context,
    Everything,
    IndexTuples,
    Sampling,
    SourceBeforeTarget,
    Template,
    UserError,
    jit,
)
from ash.contexts import spread
from ash.kernels import get_kernel
from ash.pattern import ravel
from ash.sampling import generator_from, sample_points

CPU = torch.device("cpu")
CONTEXTS = {
    "tuple": Context("tuple"),
    "all": Context("all"),
    "chunks in order": Context("chunk", 3, shuffle=False),
    "shuffled chunks": Context("chunk", 3),
    "a chunk for all": Context("chunk", 50),
    "all by cells": Context("all", shares="cells"),
    "chunks by cells": Context("chunk", 3, shares="cells"),
}


@pytest.fixture(autouse=True, params=["torch", "compiled"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test by torch alone, and by the compiled kernels wherever they can run, in two threads."""
    if request.param == "compiled" and not jit.available():
        pytest.skip("numba is not installed")
    monkeypatch.setattr(jit, "LEAST_POINTS", 0 if request.param == "compiled" else 1 << 60)
    monkeypatch.setattr(jit, "PIECE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


each_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)


def fixed_columns(template: Template, k: int) -> Tensor:
    """(k, f), also where nothing is fixed."""
    return template.indices if template.columns else torch.zeros(k, 0, dtype=torch.int64)


def complete(template: Template, points: Tensor) -> Tensor:
    return template.fill(points, fixed_columns(template, points.shape[-3]))


def members(context: Context, k: int, seed: int) -> list[list[int]]:
    """The tuples of every context."""
    order = context.order(k, generator_from(seed, CPU), CPU)
    if order is None:
        return torch.arange(k).reshape(-1, context.size(k)).tolist()
    return [[i for i in row if i >= 0] for row in order.tolist()]


def plainly(
    tuples: IndexTuples, points: Tensor, full: Tensor, shape: tuple[int, ...], context: Context,
    template: Template, admissible: Admissible, seed: int,
) -> Tensor:  # fmt: skip
    """Context by context: the union of the points, the first copy of each, the whole table in float64."""
    k, m = points.shape[:2]
    weights = torch.zeros(k, m, dtype=torch.float64)
    for some in members(context, k, seed):
        which = torch.tensor(some)
        here = full[which].flatten(0, 1)
        first = torch.tensor(problems.first_copies(ravel(here, shape).tolist()))
        columns = list(template.columns)
        groups = None
        if columns:
            sizes = [shape[c] for c in columns]
            groups = ravel(here[:, columns], sizes)[None], ravel(full[which, 0][:, columns], sizes)[None]
        weights[which] = problems.point_weights(
            points[which].flatten(0, 1)[None],
            (first & admissible.contains(here))[None],
            tuples.means[which][None],
            tuples.scales[which][None],
            tuples.values[which][None],
            1.0,
            groups,
        ).reshape(len(some), m)
    return weights


def compare(shape: tuple[int, ...], k: int, context: Context, template: Template, admissible: Admissible) -> None:
    learned = template.sizes(shape)
    top = torch.tensor(learned, dtype=torch.float64) - 1
    means = (torch.rand(k, len(learned), dtype=torch.float64) * top).requires_grad_()
    tuples = IndexTuples.from_means(means, 1 + torch.rand(k, 1).double(), torch.randn(k).double())
    points = sample_points(tuples, learned, Sampling(), generator_from(1, CPU))
    full = complete(template, points)
    if not admissible.everything:
        place = means.detach().new_zeros(k, len(shape))
        place[:, list(template.learned)] = means.detach()
        place[:, list(template.columns)] = fixed_columns(template, k).double()
        points[:, 0] = admissible.nearest(place, template.columns)[:, list(template.learned)]
        full = complete(template, points)
    found = spread(
        tuples, points, full, shape, kernel=get_kernel("student_t"), context=context, template=template,
        admissible=admissible, generator=generator_from(7, CPU),
    )  # fmt: skip
    expected = plainly(tuples, points, full, shape, context, template, admissible, 7)
    assert torch.allclose(found, expected)
    assert torch.allclose(found.sum(), tuples.values.sum())
    assert (found[~admissible.contains(full)] == 0).all()
    factor = torch.randn_like(expected)
    actual = torch.autograd.grad((found * factor).sum(), means)[0]
    assert torch.allclose(actual, torch.autograd.grad((expected * factor).sum(), means)[0])


@each_context
@pytest.mark.parametrize("k", [1, 3, 7, 12])
def test_spread(context: Context, k: int) -> None:
    compare((4, 5), k, context, Template(2), Everything((4, 5)))


@each_context
def test_spread_with_fixed_columns(context: Context) -> None:
    compare((4, 5), 8, context, Template.per_output((4,), (5,), 2), Everything((4, 5)))
    compare((3, 2, 5), 10, context, Template.per_input((3, 2), (5,), 2), Everything((3, 2, 5)))


@each_context
def test_spread_over_an_admissible_set(context: Context) -> None:
    compare((6, 6), 8, context, Template(2), SourceBeforeTarget(6))
    targets = Template(2, (0,), torch.arange(1, 6).repeat_interleave(2)[:, None])
    compare((6, 6), 10, context, targets, SourceBeforeTarget(6))


@each_context
@pytest.mark.parametrize("fixed", [False, True])
def test_instances_are_apart(context: Context, fixed: bool) -> None:
    """Three instances give what each gives alone: contexts never mix instances."""
    k, shape = 8, (4, 5)
    template = Template.per_output((4,), (5,), 2) if fixed else Template(2)
    q = len(template.learned)
    sizes = torch.tensor(template.sizes(shape)) - 1
    means = torch.rand(3, k, q) * sizes
    tuples = IndexTuples.from_means(means, torch.ones(3, k, 1), torch.randn(3, k))
    points = sample_points(tuples, template.sizes(shape), Sampling(), generator_from(1, CPU))
    options: dict[str, Any] = {"kernel": get_kernel("gaussian"), "context": context, "template": template}

    def weights(tuples: IndexTuples, points: Tensor) -> Tensor:
        full, everything = complete(template, points), Everything(shape)
        return spread(tuples, points, full, shape, admissible=everything, generator=generator_from(7, CPU), **options)

    together = weights(tuples, points)
    for i in range(3):
        alone = IndexTuples(tuples.anchors[i], tuples.residuals[i], tuples.scales[i], tuples.values[i])
        assert torch.allclose(together[i], weights(alone, points[i]), atol=1e-6)


def test_orders() -> None:
    generator = torch.Generator()
    assert Context("tuple").order(7, generator, CPU) is None
    assert Context("all").order(7, generator, CPU) is None
    assert Context("chunk", 3, shuffle=False).order(6, generator, CPU) is None
    padded = Context("chunk", 3, shuffle=False).order(7, generator, CPU)
    assert padded is not None
    assert padded.tolist() == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]


def test_shuffled_chunks_hold_every_tuple_once_and_change() -> None:
    context = Context("chunk", 4)
    one, other = (context.order(10, generator_from(seed, CPU), CPU) for seed in (0, 1))
    assert one is not None
    assert other is not None
    assert sorted(i for i in one.flatten().tolist() if i >= 0) == list(range(10))
    assert not torch.equal(one, other)
    assert torch.equal(one, context.order(10, generator_from(0, CPU), CPU))


def test_sizes() -> None:
    assert Context("tuple").size(9) == 1
    assert Context("all").size(9) == 9
    assert Context("chunk", 4).size(9) == 4
    assert Context("chunk", 40).size(9) == 9


def test_bad_contexts() -> None:
    with pytest.raises(UserError, match="unknown context 'chunks'.*Did you mean 'chunk'"):
        Context("chunks")
    with pytest.raises(UserError, match="chunk_size=0"):
        Context("chunk", 0)
    with pytest.raises(UserError, match="unknown way to find shares 'cell'.*Did you mean 'cells'"):
        Context("all", shares="cell")
