"""RigL of the benchmark: a sparse layer with a Rewirer beside a dense weight with a mask, the same method.

A step is forward, backward and SGD with momentum; where `every` says so, a rewiring follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ash import Rewirer, RigLWiring, SparseLinear
from experiments.benchmark_case import Case, Layer, Part, Plan, Step, train_step
from experiments.benchmark_report import Row, single

FRACTION, LR, MOMENTUM = 0.3, 0.01, 0.9
SIZE, BATCH, STEPS, TOLERANCE = 96, 32, 6, 1e-3
"""Of the small problem on which the two are compared."""
SIZES = {8192: (64, 0.01)}
"""Batch and density of RigL's layer, by size."""
PERIOD = 100
"""Steps to a rewiring, where its time is spread over them."""
TIME, MEMORY = 1 / 10, 1 / 15
"""Bars of time and memory over the masked one's."""
WORDS = {"rigl": "RigL", "masked_rigl": "masked-dense RigL"}


def _never(every: int) -> int:
    return every or 1 << 40


def sparse_layer(n: int, density: float) -> SparseLinear:
    """n × n with a `RigLWiring`."""
    return SparseLinear(n, n, wiring=partial(RigLWiring, density=density))


def sparse_step(layer: SparseLinear, every: int) -> Callable[[Tensor, Tensor], object]:
    """(x, gradient of the output) -> one training step; `every` 0: no rewiring."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR, momentum=MOMENTUM)
    rewirer = Rewirer(layer, optimizer, every=_never(every), end=1 << 50, fraction=lambda _: FRACTION)

    def step(x: Tensor, g: Tensor) -> None:
        optimizer.zero_grad()
        layer(x).backward(g)
        optimizer.step()
        rewirer.step()

    return step


class MaskedLinear(nn.Module):
    """A dense weight, zero where a mask is; as published implementations simulate sparsity."""

    def __init__(self, n: int, density: float):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(n, n)), nn.Parameter(torch.zeros(n))
        self.mask = torch.zeros(n * n, dtype=torch.bool)
        places = RigLWiring(n, n, density=density).ids()
        self.mask[places] = True
        with torch.no_grad():
            self.weight.flatten()[places] = torch.randn(len(places)) / (n * density) ** 0.5
        self.mask = self.mask.reshape(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    @torch.no_grad()
    def rewire(self, momentum: Tensor) -> None:
        """Drop the smallest weights and grow the largest entries of the whole gradient, by `torch.topk`."""
        assert self.weight.grad is not None
        mask, weight, score = self.mask.flatten(), self.weight.flatten(), self.weight.grad.abs_().flatten()
        active = mask.nonzero().squeeze(-1)
        count = round(FRACTION * len(active))
        dropped = active[weight[active].abs().topk(count, largest=False).indices]
        score[active] = -1.0
        grown = score.topk(count).indices
        mask[dropped], mask[grown] = False, True
        weight[dropped] = 0.0
        momentum.flatten()[torch.cat([dropped, grown])] = 0.0


def masked_step(layer: MaskedLinear, every: int) -> Callable[[Tensor, Tensor], object]:
    """The same of the dense weight: its gradient is masked before the optimizer sees it."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR, momentum=MOMENTUM)
    steps = 0

    def step(x: Tensor, g: Tensor) -> None:
        nonlocal steps
        steps += 1
        optimizer.zero_grad()
        layer(x).backward(g)
        assert layer.weight.grad is not None
        if steps % _never(every):
            layer.weight.grad.mul_(layer.mask)
            optimizer.step()
            return
        whole = layer.weight.grad
        layer.weight.grad = whole * layer.mask
        optimizer.step()
        layer.weight.grad = whole
        layer.rewire(optimizer.state[layer.weight]["momentum_buffer"])

    return step


def check_rigl() -> float:
    """Both train on the same data, rewired every other step: the largest relative difference of their weights."""
    layer, rival = sparse_layer(SIZE, 0.1), MaskedLinear(SIZE, 0.1)
    assert isinstance(layer.wiring, RigLWiring) and layer.bias is not None
    with torch.no_grad():
        rival.weight.copy_(layer.wiring().to_dense())
        rival.bias.copy_(layer.bias)
        rival.mask.zero_().view(-1)[layer.wiring.ids()] = True
    ours, theirs = sparse_step(layer, 2), masked_step(rival, 2)
    before = layer.wiring.ids()
    for _ in range(STEPS):
        x, g = torch.randn(BATCH, SIZE), torch.randn(BATCH, SIZE)
        ours(x, g)
        theirs(x, g)
    assert not torch.equal(layer.wiring.ids(), before), "no entry moved"
    found = layer.wiring().to_dense().detach()
    error = float((found - rival.weight.detach()).abs().max() / rival.weight.detach().abs().max())
    assert error <= TOLERANCE, f"RigL's weights are off by {error:.1e} of the masked ones"
    return error


def plan(quick: bool) -> Plan:
    """RigL's layer and the masked one: a step, a step with a rewiring, memory; and the ratio of a step."""
    found: Plan = []
    for n, (batch, density) in ({128: (8, 0.05)} if quick else SIZES).items():
        for layer, words in WORDS.items():
            what = f"{words} {n:,}², {1 - density:.0%} sparse"
            case = Case(layer, "seconds", n, batch=batch, density=density)
            found += [
                (Row(f"{layer}_{n}_seconds", what, "seconds"), case),
                (Row(f"{layer}_{n}_rewiring_seconds", f"{what}, with a rewiring", "seconds"), replace(case, every=1)),
                (Row(f"{layer}_{n}_bytes", what, "bytes"), replace(case, figure="bytes", every=2)),
            ]
        case = Case("rigl", "ratio", n, batch=batch, density=density, rival="masked_rigl")
        found.append((Row(f"rigl_{n}_masked", f"a step, RigL / masked-dense RigL {n:,}²", "ratio", TIME), case))
    return found


def ratios(rows: Sequence[Row], quick: bool) -> list[Row]:
    """Memory of RigL's layer over the masked one's, and time where every `PERIOD`-th step is followed by a rewiring."""
    medians = {row.name: row.median for row in rows if row.shown and row.median}
    found = []
    for n in (128,) if quick else SIZES:
        own, rival = (medians.get(f"{layer}_{n}_bytes") for layer in WORDS)
        if own and rival:
            what = f"memory, RigL / masked-dense RigL {n:,}²"
            found.append(single(f"rigl_{n}_memory", what, own / rival, None if quick else MEMORY))
        ours, theirs = (_amortised(medians, f"{layer}_{n}") for layer in WORDS)
        if ours and theirs:
            what = f"a step with a rewiring after each {PERIOD}th, RigL / masked-dense RigL {n:,}²"
            found.append(single(f"rigl_{n}_amortised", what, ours / theirs, None if quick else TIME))
    return found


def _amortised(medians: dict[str, float], name: str) -> float | None:
    plain, rewiring = medians.get(f"{name}_seconds"), medians.get(f"{name}_rewiring_seconds")
    return None if plain is None or rewiring is None else (plain * (PERIOD - 1) + rewiring) / PERIOD


def _sparse(case: Case) -> Step:
    return train_step(sparse_step(sparse_layer(case.size, case.density), case.every), case)


def _masked(case: Case) -> Step:
    return train_step(masked_step(MaskedLinear(case.size, case.density), case.every), case)


PART = Part(
    layers={
        "rigl": Layer(_sparse, lambda case: check_rigl(), {"masked_rigl": _masked}),
        "masked_rigl": Layer(_masked, lambda case: None),
    },
    plan=plan,
    derived=ratios,
)
