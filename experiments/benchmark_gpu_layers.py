"""Products of free layers on a GPU, for the benchmark: fused, and by way of stored points and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ash import Context, GaussianWiring, Sampling, SparseLinear, SparseWeight, contract
from ash.backends.triton import serving
from experiments.benchmark_case import Case, Step
from experiments.measure import spread

DEVICE = "cuda"
INPUTS, OUTPUTS = 784, 4_096
"""Of the layer with a weight for each instance."""
TOLERANCE = 1e-3
NUMBER, TUPLE_BYTES = 4, 32
"""Bytes of a number; of a tuple's two anchors, residuals, scale and value."""


def synchronous(step: Callable[[], object]) -> Step:
    """The step, done when it returns."""

    def run() -> None:
        step()
        torch.cuda.synchronize()

    return run


@contextmanager
def unfused() -> Iterator[None]:
    """Points and weights are stored, and torch multiplies."""
    serving.enabled = False
    try:
        yield
    finally:
        serving.enabled = True


def make(case: Case) -> tuple[GaussianWiring, Tensor]:
    """The wiring of a case, and its input with the batch along the columns (instances: one by one)."""
    sampling = Sampling(global_samples=2, local_samples=2)
    if case.layer.startswith("gpu_instance"):
        wiring = GaussianWiring(OUTPUTS, INPUTS, case.size, sampling=sampling, per_instance=True, device=DEVICE)
        return wiring, torch.randn(case.batch, INPUTS, 1, device=DEVICE)
    context = Context("chunk" if case.layer.startswith("gpu_chunk") else "tuple")
    wiring = GaussianWiring(case.size, case.size, case.size, context=context, sampling=sampling, device=DEVICE)
    return wiring, torch.randn(1, case.size, case.batch, device=DEVICE)


def forward_step(case: Case) -> Step:
    """A draw and its product, without gradients."""
    wiring, x = make(case)

    @torch.no_grad()
    def step() -> None:
        contract(wiring(x), x)

    return synchronous(step)


def train_step(case: Case) -> Step:
    """A draw, its product, and the gradients of parameters and input."""
    wiring, x = make(case)
    x.requires_grad_()
    g = torch.randn_like(contract(wiring(x), x))

    def step() -> None:
        wiring.zero_grad()
        x.grad = None
        contract(wiring(x), x).backward(g)

    return synchronous(step)


def layer_step(case: Case) -> Step:
    """The forward pass of a `SparseLinear` on a batch that lies row by row."""
    layer = SparseLinear(case.size, case.size, wiring=make(case)[0])
    x = torch.randn(case.batch, case.size, device=DEVICE)

    @torch.no_grad()
    def step() -> None:
        layer(x)

    return synchronous(step)


def bytes_of(case: Case, each: int) -> int:
    """Bytes that `each` numbers a point and instance are, with the parameters once."""
    points = case.size * 8
    return points * case.batch * NUMBER * each + case.size * TUPLE_BYTES


def copy_step(size: int) -> Step:
    """Moves so many bytes through the GPU's memory, half of them read and half written."""
    source = torch.ones(max(1, size // 8), device=DEVICE)
    target = torch.empty_like(source)
    return synchronous(lambda: target.copy_(source))


def forward_copy(case: Case) -> Step:
    return copy_step(bytes_of(case, 2))


def step_copy(case: Case) -> Step:
    return copy_step(bytes_of(case, 5))


def unfused_step(case: Case) -> Step:
    """The same training step by way of stored points and weights."""
    with unfused():
        step = train_step(case)

    def run() -> None:
        with unfused():
            step()

    return run


def graph_step(case: Case) -> Step:
    """The forward pass, captured once and replayed: its seed is drawn anew on the device."""
    step = forward_step(case)
    step()
    graph, (wiring, x) = torch.cuda.CUDAGraph(), make(case)
    with torch.no_grad():
        contract(wiring(x), x)
        with torch.cuda.graph(graph):
            contract(wiring(x), x)
    return synchronous(graph.replay)


def taken(step: Step, case: Case) -> int:
    """Bytes at the peak of a step besides what is held before it, its output and its gradients."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    each = (OUTPUTS + INPUTS) if case.layer.startswith("gpu_instance") else 2 * case.size
    return max(1, torch.cuda.max_memory_allocated() - held - NUMBER * each * case.batch)


def memory(case: Case) -> dict[str, Any]:
    """Working memory of a step over that of the unfused one; gradients of the parameters are left from before."""
    fused, plain_ = taken(train_step(case), case), taken(unfused_step(case), case)
    return spread([fused / plain_])


def check(case: Case) -> float:
    """Largest relative error of output and gradients against the same draw, stored; fails above `TOLERANCE`."""
    small = {"size": 64, "batch": 8}
    wiring, x = make(Case(case.layer, **small))  # type: ignore[arg-type]
    x.requires_grad_()
    drawn = wiring(x)
    stored = SparseWeight(drawn.indices, drawn.values, drawn.out_shape, drawn.in_shape)
    y, wanted = contract(drawn, x), contract(stored, x, "dense")
    g, to = torch.randn_like(y), [x, *wiring.parameters()]
    pairs = zip(*(torch.autograd.grad(each, to, g, retain_graph=True) for each in (y, wanted)), strict=True)
    error = max(float((a - b).norm() / b.norm()) for a, b in [(y.detach(), wanted.detach()), *pairs])
    if not error <= TOLERANCE:
        raise ArithmeticError(f"{case.layer}: relative error {error:.1e} against the stored draw")
    return error
