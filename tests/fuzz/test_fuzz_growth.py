"""Largest entries of gradients, dropping, growing and sharing out, against enumeration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fuzzing import FULL, SEEDS, Shape, attempt, fuzz, shapes
from hypothesis import strategies as st
from torch import Tensor

from ash import (
    DenseGradient,
    DSRWiring,
    Everything,
    Factors,
    LayerSize,
    Mask,
    RigLWiring,
    Score,
    SETWiring,
    SNFSWiring,
    UserError,
    allot,
    growth,
    norms,
)
from ash.growth import lean_sum
from ash.ids import among, ascending, merged
from ash.pattern import ravel
from ash.wirings.drop_grow import distribute, grow_random, merged_order

pytestmark = pytest.mark.nightly
ORDERS = st.sampled_from(["largest", "positive", "negative"])
NUMBERS = st.sampled_from(["normal", "few", "zeros", "one row", "huge"])


def numbers(shape: Shape, kind: str, dtype: torch.dtype) -> Tensor:
    """Normal ones; few different ones, so that many are equal; none but zeros; of one row; of very different sizes."""
    x = torch.randn(shape, dtype=torch.float64)
    if kind == "few":
        x = x.round()
    elif kind == "zeros":
        x = torch.zeros_like(x)
    elif kind == "one row" and len(x):
        x[1:] = 0
    elif kind == "huge":
        x = x * 10.0 ** torch.randint(-9, 9, shape)
    return x.to(dtype)


def score_of(
    b: int, out_shape: Shape, in_shape: Shape, kinds: tuple[str, str], held: bool, dtype: torch.dtype
) -> Score:
    factors = Factors(numbers((b, *in_shape), kinds[0], dtype), numbers((b, *out_shape), kinds[1], dtype))
    return DenseGradient(factors.dense(), len(out_shape)) if held else factors


@fuzz(
    1500, seed=SEEDS, out_shape=shapes(2, 12), in_shape=shapes(2, 12), b=st.integers(1, 4),
    kinds=st.tuples(NUMBERS, NUMBERS), held=st.booleans(), dtype=FULL, n=st.integers(1, 60), by=ORDERS,
    masked=st.booleans(), gone=st.integers(0, 20), some_rows=st.booleans(), tiny=st.booleans(),
)  # fmt: skip
def test_the_largest_entries_are_found(
    seed: int, out_shape: Shape, in_shape: Shape, b: int, kinds: tuple[str, str], held: bool, dtype: torch.dtype,
    n: int, by: str, masked: bool, gone: int, some_rows: bool, tiny: bool,
) -> None:  # fmt: skip
    """Exactly those of the enumerated gradient, but for entries that rounding makes as large."""
    score = score_of(b, out_shape, in_shape, kinds, held, dtype)
    size = math.prod(score.shape)
    admissible = Mask(torch.rand(score.shape) < 0.6) if masked else Everything(score.shape)
    exclude = torch.randint(0, size, (gone,)) if gone else None
    rows = torch.randperm(math.prod(out_shape))[: max(1, math.prod(out_shape) // 2)] if some_rows else None
    counts = torch.ones(size, dtype=torch.bool)
    if masked:
        counts &= admissible.mask.flatten()
    if exclude is not None:
        counts[exclude] = False
    if rows is not None:
        counts &= torch.isin(torch.arange(size) // math.prod(in_shape), rows)
    with pytest.MonkeyPatch.context() as patch:
        if tiny:
            patch.setattr(growth, "FEW", 4)
            patch.setattr(growth, "BLOCK", 16)
            patch.setattr(norms, "TILE", 4)
        found = score.places(n, exclude, admissible, by, rows)
    dense = score.dense().flatten().double()
    key = {"largest": dense.abs(), "positive": dense, "negative": -dense}[by]
    wanted = key[counts].sort(descending=True).values[:n]
    assert len(found) == min(n, int(counts.sum())) == len(found.unique())
    assert bool(counts[found].all())
    slack = 1e-6 * float(dense.abs().max()) * (1 if dtype == torch.float32 else 1e-6)
    assert torch.allclose(key[found].sort(descending=True).values, wanted, rtol=1e-5, atol=slack)


@fuzz(500, seed=SEEDS, out_shape=shapes(2), in_shape=shapes(2),
      parts=st.lists(st.integers(0, 3), min_size=1, max_size=3), by=st.floats(-3, 3), held=st.booleans(),
      n=st.integers(0, 9))  # fmt: skip
def test_scores_add_up(
    seed: int, out_shape: Shape, in_shape: Shape, parts: list[int], by: float, held: bool, n: int
) -> None:
    r = len(out_shape)
    whole: Score | None = None
    wanted = torch.zeros(*out_shape, *in_shape, dtype=torch.float64)
    for b in parts:
        x, g = torch.randn(b, *in_shape, dtype=torch.float64), torch.randn(b, *out_shape, dtype=torch.float64)
        fresh: Score = Factors(x, g)
        own = torch.einsum("bo,bi->oi", g.flatten(1), x.flatten(1)).reshape(wanted.shape)
        fresh = DenseGradient(own, r) if held else fresh
        whole, wanted = (fresh, own) if whole is None else (lean_sum(whole, fresh, by), by * wanted + own)
    assert whole is not None and whole.is_finite()
    indices = torch.stack([torch.randint(0, s, (n,)) for s in whole.shape], -1)
    assert torch.allclose(whole.dense(), wanted) and torch.allclose(whole.scaled(2.0).dense(), 2 * wanted)
    assert torch.allclose(whole.at(indices), wanted[tuple(indices.unbind(-1))])
    assert torch.allclose(whole.kept().dense(), wanted)


@fuzz(500, seed=SEEDS, n=st.integers(0, 20), m=st.integers(0, 20), largest=st.integers(1, 60))
def test_sets_of_positions(seed: int, n: int, m: int, largest: int) -> None:
    one, other = torch.randint(0, largest, (n,)), torch.randint(0, largest, (m,))
    rising = ascending(one)
    assert rising.tolist() == sorted(set(one.tolist()))
    assert among(other, rising).tolist() == [each in set(one.tolist()) for each in other.tolist()]
    fresh = ascending(other[~among(other, rising)])
    assert merged(rising, fresh).tolist() == sorted({*one.tolist(), *other.tolist()})
    keys = rising.clone()
    moved = torch.randperm(len(keys))[: min(m, len(keys))]
    keys[moved] = largest + torch.randperm(max(1, len(moved)))[: len(moved)]
    assert bool((keys[merged_order(keys, moved)].diff() > 0).all())


@fuzz(400, seed=SEEDS, shape=shapes(2, 8, 2), share=st.floats(0, 1), n=st.integers(0, 40), masked=st.booleans())
def test_random_growth_takes_what_is_free(seed: int, shape: Shape, share: float, n: int, masked: bool) -> None:
    size = math.prod(shape)
    allowed = torch.rand(shape) < 0.7 if masked else torch.ones(shape, dtype=torch.bool)
    admissible = Mask(allowed) if masked else Everything(shape)
    used = (allowed & (torch.rand(shape) < share)).flatten().nonzero().squeeze(-1)
    n = min(n, int(allowed.sum()) - len(used))
    found = grow_random(n, used, admissible, torch.Generator().manual_seed(seed))
    assert len(found.unique()) == n and not bool(torch.isin(found, used).any())
    assert bool(allowed.flatten()[found].all()) and bool((found < size).all())


@fuzz(400, total=st.integers(0, 60), limits=st.lists(st.integers(0, 20), min_size=1, max_size=6), seed=SEEDS,
      zero=st.booleans())  # fmt: skip
def test_entries_are_divided_among_layers(total: int, limits: list[int], seed: int, zero: bool) -> None:
    claims = [0.0] * len(limits) if zero else torch.rand(len(limits)).tolist()
    given = distribute(total, claims, limits)
    assert sum(given) == min(total, sum(limits))
    assert all(0 <= each <= limit for each, limit in zip(given, limits, strict=True))


@fuzz(500, layers=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.sampled_from([(), (3, 3), (1,)])),
                           max_size=5),
      density=st.one_of(st.floats(0, 1), st.sampled_from([-0.1, 1.5, float("nan"), float("inf")])),
      distribution=st.sampled_from(["uniform", "er", "erk", "er_k"]), dense=st.booleans())  # fmt: skip
def test_densities_of_layers(
    layers: list[tuple[int, int, Shape]], density: float, distribution: str, dense: bool
) -> None:
    sizes = {str(i): LayerSize(*each) for i, each in enumerate(layers)}
    kept = ["0"] if dense else []
    found, refusal = attempt(lambda: allot(sizes, density, distribution, kept))
    if refusal is not None:
        bad = not 0 < density <= 1 or not layers or distribution == "er_k"
        assert bad or (dense and "dense leaves" in refusal)
        return
    assert all(1 <= found[name] <= sizes[name].weights for name in sizes)
    total = round(density * sum(each.weights for each in sizes.values()))
    least = sum(sizes[name].weights if name in kept else 1 for name in sizes)
    assert sum(found.values()) == max(total, least)


KINDS: dict[str, Any] = {"set": SETWiring, "rigl": RigLWiring, "snfs": SNFSWiring, "dsr": DSRWiring}


@fuzz(900, seed=SEEDS, kind=st.sampled_from(sorted(KINDS)), out_shape=shapes(2, 5), in_shape=shapes(2, 5),
      density=st.floats(0.01, 1), fraction=st.one_of(st.floats(0, 1), st.sampled_from([-0.1, 1.1, float("nan")])),
      drop=st.sampled_from(["magnitude", "dead_first", "saliency", "random"]),
      start=st.sampled_from(["zero", "fan_in"]),
      numbers_kind=NUMBERS, masked=st.booleans(), room=st.integers(0, 5), times=st.integers(1, 3))  # fmt: skip
def test_rewiring_keeps_entries_different_and_admissible(
    seed: int, kind: str, out_shape: Shape, in_shape: Shape, density: float, fraction: float, drop: str, start: str,
    numbers_kind: str, masked: bool, room: int, times: int,
) -> None:  # fmt: skip
    shape = (*out_shape, *in_shape)
    mask = torch.rand(shape) < 0.7
    mask.view(-1)[0] = True
    admissible = Mask(mask) if masked else Everything(shape)
    count = max(1, round(density * admissible.count()))
    wiring = KINDS[kind](
        out_shape, in_shape, count, admissible=admissible, drop=drop, start=start,
        capacity=min(count + room, admissible.count()),
    )  # fmt: skip
    source = torch.Generator().manual_seed(seed)
    for _ in range(times):
        score = score_of(2, out_shape, in_shape, (numbers_kind, "normal"), False, torch.float32)
        before, k = set(wiring.ids().tolist()), wiring.stored_entries()
        if not 0 <= fraction <= 1 and kind != "dsr":
            with pytest.raises(UserError, match="fraction"):
                wiring.rewire(score, fraction, source)
            return
        report = wiring.rewire(score, fraction, source)
        weight = wiring().check()
        ids = ravel(weight.indices, shape).tolist()
        assert len(ids) == len(set(ids)) == wiring.stored_entries() == k
        assert bool(admissible.contains(weight.indices).all())
        assert report.moves == len(set(ids) - before) and bool((report.moved < k).all())
