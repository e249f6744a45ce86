"""Whole models: made sparse, trained and rewired, diagnosed, counted, stripped and frozen; the outputs stay."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from fuzzing import SEEDS, Shape, attempt, fuzz
from hypothesis import strategies as st
from torch import nn

from ash import (
    Anneal,
    Codebook,
    GateWiring,
    GaussianWiring,
    IndexTuples,
    Rescue,
    Rewirer,
    SparseConv2d,
    SparseLinear,
    StaticWiring,
    TopKWiring,
    UserError,
    block_structure,
    count,
    diagnose,
    freeze,
    gate_penalty,
    parameter_groups,
    scale_penalty,
    sparsify,
    strip_dead_units,
)
from ash.template import Boxes, Everything, Mask, SourceBeforeTarget, Template

pytestmark = pytest.mark.nightly
KINDS = st.sampled_from(["static", "gaussian", "top_k", "set", "rigl", "snfs", "dsr", "gate", "dense"])
NAN = float("nan")


def perceptron(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def train(model: nn.Module, inputs: int, rewirer: Rewirer | None, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, inputs, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        if rewirer is not None:
            event = rewirer.step()
            assert event is None or event.moved >= 0


@fuzz(500, seed=SEEDS, kind=KINDS, sizes=st.lists(st.integers(1, 8), min_size=2, max_size=4),
      density=st.one_of(st.floats(0.01, 1), st.sampled_from([0.0, 1.5, NAN])),
      distribution=st.sampled_from(["uniform", "er", "erk", "even"]), every=st.integers(0, 3), end=st.integers(0, 6),
      fraction=st.one_of(st.floats(0, 1), st.sampled_from([-0.5, 1.5, NAN])), average=st.integers(0, 3),
      adam=st.booleans(), rescue=st.booleans())  # fmt: skip
def test_models_that_are_trained_and_rewired(
    seed: int, kind: str, sizes: list[int], density: float, distribution: str, every: int, end: int, fraction: float,
    average: int, adam: bool, rescue: bool,
) -> None:  # fmt: skip
    model, refusal = attempt(lambda: sparsify(perceptron(sizes), kind, density=density, distribution=distribution))
    if refusal is not None:
        assert not 0 < density <= 1 or distribution == "even" or kind == "dense"
        return
    make: Any = torch.optim.Adam if adam else partial(torch.optim.SGD, momentum=0.9)
    optimizer = make(parameter_groups(model, lr=0.01), lr=0.01)
    options = {"every": every, "end": end, "fraction": fraction, "average_over": average}
    rewirer, refusal = attempt(lambda: Rewirer(model, optimizer, **options, rescue=Rescue() if rescue else None))
    if refusal is not None:
        assert every < 1 or end < every or not 0 <= fraction <= 1 or not 1 <= average <= every
        return
    hosts = [each for each in model.modules() if isinstance(each, SparseLinear)]
    before = sum(each.wiring.stored_entries() for each in hosts)
    train(model, sizes[0], rewirer, optimizer, 6)
    assert kind in ("gate", "gaussian") or sum(each.wiring.stored_entries() for each in hosts) == before
    model.eval()
    for host in hosts:
        weight = host.wiring().check()
        assert kind == "gaussian" or weight.coalesce().entries == weight.entries
    x = torch.randn(3, sizes[0], dtype=torch.float64)
    wanted = model(x)
    assert count(model).values > 0 and len(str(diagnose(model))) > 0
    for other in (freeze(model), strip_dead_units(model), freeze(strip_dead_units(model))):
        assert torch.allclose(other(x), wanted, atol=1e-9)
    rewirer.close()


@fuzz(250, seed=SEEDS, sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4), densities=st.floats(0.02, 0.6),
      form=st.sampled_from(["csr", "condensed", "dense", "coo"]), wiring=st.sampled_from(["static", "top", "gate"]),
      b=st.integers(0, 3), bias=st.booleans())  # fmt: skip
def test_frozen_and_stripped_models_give_the_same(
    seed: int, sizes: list[int], densities: float, form: str, wiring: str, b: int, bias: bool
) -> None:
    make = partial({"static": StaticWiring, "top": TopKWiring, "gate": GateWiring}[wiring], density=densities)
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [SparseLinear(before, after, bias, wiring=make), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double().eval()
    x = torch.randn(b, sizes[0], dtype=torch.float64)
    wanted = model(x)
    if form == "coo":
        with pytest.raises(UserError, match="unknown form"):
            freeze(model, forms={"0": form})
        return
    frozen = freeze(model, forms={name: form for name, each in model.named_modules() if isinstance(each, SparseLinear)})
    assert torch.allclose(frozen(x), wanted, atol=1e-12)
    small = strip_dead_units(model)
    assert torch.allclose(small(x), wanted, atol=1e-12)
    assert count(small).values <= count(model).values


@fuzz(150, seed=SEEDS, channels=st.lists(st.integers(1, 4), min_size=2, max_size=3), density=st.floats(0.05, 0.9),
      form=st.sampled_from(["csr", "dense"]), padding=st.integers(0, 1), b=st.integers(1, 2))  # fmt: skip
def test_frozen_and_stripped_convolutions_give_the_same(
    seed: int, channels: list[int], density: float, form: str, padding: int, b: int
) -> None:
    make = partial(StaticWiring, density=density)
    layers: list[nn.Module] = []
    for before, after in zip(channels, channels[1:], strict=False):
        layers += [SparseConv2d(before, after, 2, padding=padding, wiring=make), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers).double()
    model(torch.randn(4, channels[0], 6, 6, dtype=torch.float64))
    model.eval()
    x = torch.randn(b, channels[0], 6, 6, dtype=torch.float64)
    wanted = model(x)
    names = {name: form for name, each in model.named_modules() if isinstance(each, SparseConv2d)}
    for other in (freeze(model, forms=names), strip_dead_units(model), freeze(strip_dead_units(model))):
        assert torch.allclose(other(x), wanted, atol=1e-9)


@fuzz(400, size=st.integers(-1, 5), k=st.integers(0, 6), b=st.sampled_from([None, 0, 2]), noise=st.booleans(),
      temperature=st.sampled_from([1.0, 1e-9, 50.0, 0.0, -1.0, NAN]), spread=st.sampled_from([None, 1.0, 0.0, NAN]),
      drawn=st.booleans(), seed=SEEDS, far=st.booleans())  # fmt: skip
def test_codebooks(
    size: int, k: int, b: int | None, noise: bool, temperature: float, spread: float | None, drawn: bool, seed: int,
    far: bool,
) -> None:  # fmt: skip
    codebook, refusal = attempt(lambda: Codebook(size, temperature=temperature, spread=spread, noise=noise))
    if refusal is not None:
        assert size < 1 or not temperature > 0 or (spread is not None and not spread > 0)
        return
    lead = (k,) if b is None else (b, k)
    logits = (torch.randn(*lead, size) * (1e30 if far else 1)).requires_grad_()
    values = codebook(logits, torch.Generator().manual_seed(seed) if drawn else None)
    assert values.shape == lead
    nearest = (values.detach().unsqueeze(-1) - codebook.scalars.detach()).abs().amin(-1)
    assert bool((nearest <= 1e-5).all())
    values.sum().backward()
    assert logits.grad is None or bool(torch.isfinite(logits.grad).all())


@fuzz(500, start=st.floats(-10, 10), end=st.floats(-10, 10), steps=st.integers(-1, 50), step=st.integers(0, 100),
      shape=st.sampled_from(["geometric", "linear", "cosine", "cubic", "straight"]))  # fmt: skip
def test_schedules(start: float, end: float, steps: int, step: int, shape: str) -> None:
    bad = steps < 1 or shape == "straight" or (shape == "geometric" and min(start, end) <= 0)
    if bad:
        with pytest.raises(UserError, match="expected"):
            Anneal(start, end, steps, shape)
        return
    found = Anneal(start, end, steps, shape)
    low, high = min(start, end), max(start, end)
    slack = 1e-9 * max(1.0, abs(low), abs(high))
    assert low - slack <= found(step) <= high + slack
    assert found(0) == pytest.approx(start) and found(steps + step) == pytest.approx(end)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Shape, list[list[int]], list[list[int]]]:
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
    count = draw(st.integers(0, 3))
    ends = st.tuples(*[st.integers(-1, 5) for _ in shape]).map(list)
    return shape, [draw(ends) for _ in range(count)], [draw(ends) for _ in range(count)]


@fuzz(600, seed=SEEDS, given_boxes=boxes(), n=st.integers(0, 8), fixed=st.integers(0, 7))
def test_boxes_are_the_union_of_their_entries(
    seed: int, given_boxes: tuple[Shape, list[list[int]], list[list[int]]], n: int, fixed: int
) -> None:
    shape, lows, highs = given_boxes
    corners = [torch.tensor(each).reshape(-1, len(shape)) for each in (lows, highs)]
    mask, twice = torch.zeros(shape, dtype=torch.int64), False
    outside = any(low < 0 for box in lows for low in box)
    outside |= any(high >= size for box in highs for high, size in zip(box, shape, strict=True))
    if not outside:
        for low, high in zip(lows, highs, strict=True):
            mask[tuple(slice(a, z + 1) for a, z in zip(low, high, strict=True))] += 1
        twice = bool((mask > 1).any())
    if outside or twice:
        with pytest.raises(UserError, match="boxes that"):
            Boxes(shape, *corners)
        return
    found, reference = Boxes(shape, *corners), Mask(mask.bool())
    assert found.count() == int(mask.sum())
    every = torch.ones(shape).nonzero()
    assert torch.equal(found.contains(every), mask.bool().flatten())
    if not found.count():
        with pytest.raises(UserError, match="leaves no entry"):
            found.check()
        return
    source = torch.Generator().manual_seed(seed)
    assert bool(found.contains(found.draw(n, source)).all())
    assert len(found.distinct(min(n, found.count()), source).unique(dim=0)) == min(n, found.count())
    columns = [c for c in range(len(shape)) if fixed >> c & 1]
    positions = torch.rand(n, len(shape), dtype=torch.float64) * (torch.tensor(shape) - 1)
    positions[:, columns] = positions[:, columns].round()
    one, other = found.nearest(positions, columns), reference.nearest(positions, columns)
    reached = reference.contains(other)
    assert bool(found.contains(one)[reached].all())
    apart = [(each - positions).square().sum(-1) for each in (one, other)]
    assert torch.allclose(apart[0][reached], apart[1][reached])


@fuzz(300, n=st.integers(1, 7), count_=st.integers(0, 30), seed=SEEDS,
      kind=st.sampled_from(["before", "blocks", "all"]))  # fmt: skip
def test_drawing_different_entries(n: int, count_: int, seed: int, kind: str) -> None:
    allowed = {"before": SourceBeforeTarget(n), "blocks": block_structure([n, 2, 1]), "all": Everything((n, 2))}[kind]
    source = torch.Generator().manual_seed(seed)
    if count_ > allowed.count():
        with pytest.raises(UserError, match="ask for at most"):
            allowed.distinct(count_, source)
        return
    found = allowed.distinct(count_, source)
    assert len(found.unique(dim=0)) == count_ and bool(allowed.contains(found).all())


@fuzz(300, seed=SEEDS, rank=st.integers(1, 4), columns=st.lists(st.integers(-1, 4), max_size=3),
      k=st.integers(0, 4), index=st.integers(-2, 5))  # fmt: skip
def test_templates(seed: int, rank: int, columns: list[int], k: int, index: int) -> None:
    shape = (4,) * rank
    indices = torch.randint(0, 4, (k, len(columns)))
    if columns and k:
        indices[0, 0] = index
    bad = len(set(columns)) < len(columns) or any(not 0 <= c < rank for c in columns) or (columns and not k)
    if bad:
        with pytest.raises(UserError, match="fixed|no fixed"):
            Template(rank, columns, indices)
        return
    template = Template(rank, columns, indices)
    if columns and not 0 <= index < 4:
        with pytest.raises(UserError, match="fixes column"):
            template.check(shape)
        return
    template.check(shape)
    points = torch.randint(0, 4, (k, 3, rank - len(columns)))
    full = template.fill(points, indices)
    assert torch.equal(full[..., list(template.learned)], points)
    assert torch.equal(full[..., list(columns)], indices.unsqueeze(1).expand(-1, 3, -1))


@fuzz(300, k=st.integers(0, 5), least=st.one_of(st.none(), st.sampled_from([0.0, -1.0, 0.5, 2.0, NAN])),
      most=st.one_of(st.none(), st.sampled_from([0.0, 1.0, 4.0, NAN])), seed=SEEDS, gates=st.booleans())  # fmt: skip
def test_penalties(k: int, least: float | None, most: float | None, seed: int, gates: bool) -> None:
    scales = (4 * torch.rand(k, 1, dtype=torch.float64) + 0.1).requires_grad_()
    tuples = IndexTuples(torch.zeros(k, 2).long(), torch.zeros(k, 2).double(), scales, torch.zeros(k).double())
    bounds = [each for each in (least, most) if each is not None]
    if not bounds or not all(each > 0 for each in bounds) or (len(bounds) == 2 and least > most):
        with pytest.raises(UserError, match="expected|give"):
            scale_penalty(tuples, least=least, most=most)
        return
    found = scale_penalty(tuples, least=least, most=most)
    wanted = [max(0, math.log(least or s) - math.log(s)) ** 2 + max(0, math.log(s) - math.log(most or s)) ** 2
              for s in scales.flatten().tolist()]  # fmt: skip
    assert found.item() == pytest.approx(sum(wanted) / len(wanted) if wanted else 0.0)
    layer = SparseLinear(4, 4, wiring=GateWiring if gates else GaussianWiring)
    if gates:
        assert 0 <= gate_penalty(layer).item() <= 1
    else:
        with pytest.raises(UserError, match="no GateWiring"):
            gate_penalty(layer)
