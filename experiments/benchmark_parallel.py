"""Training by two processes in the benchmark: the time of a sample over that of one process.

`parallel_gaussian`: 100,000 tuples of 8 points on 16,384 × 16,384; `parallel_rigl`: 16,384 × 16,384 at 99.9 % sparsity,
with a rewiring after every hundredth step; `parallel_hyper`: the adaptive layer 784 → 256, 1,024 tuples. Each of two
processes trains on a batch of its own, by `ash.data_parallel` over gloo, with SGD; the one process that they are
compared with trains on one such batch. All have one thread. So the pair sees twice the samples in a step; the row
is the time of a sample over that of the one process: 0.5 is ideal, and 1 / 1.7 the bar. Each process has 256 samples:
what is exchanged does not grow with them. With 64, steps of 50 and 20 ms wait 8 ms for each other (0.63 and 0.65).

Before, two processes train small layers for a few steps: what they share (parameters, means, anchors, topology) has
to be the same on both to the last bit.

What is exchanged follows the stored entries, not the weight tensor: the gradients of the values, means and scales
(1.6 MB for 100,000 tuples), and at a rewiring the factors of the gradient, inputs and output gradients of a batch.
Each rank draws its own points, from its own seed: gradients of two draws are averaged as those of two samples are,
which estimates the same gradient with less noise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from ash import GaussianWiring, Rewirer, RigLWiring, SparseLinear, data_parallel, parameter_groups, ranks
from experiments.benchmark_case import Case, Layer, Part, Plan, Step
from experiments.benchmark_hyper import INPUTS, OUTPUTS, adaptive
from experiments.benchmark_report import Row
from experiments.measure import spread

SIZE, TUPLES, DENSITY, INSTANCE = 16_384, 100_000, 0.001, 1024
"""Of the layers: rows and columns, tuples of the free one, density of RigL's, tuples of the adaptive one."""
BATCHES = dict.fromkeys(("gaussian", "rigl", "hyper"), 256)
"""Of each process."""
BAR = 1 / 1.7
EVERY = 100
"""Steps between rewirings."""
ROUNDS, WARM = 5, 3
"""Blocks of steps that are timed, and steps before them."""
SECONDS = 4.0
"""Of a block of steps, about."""
WAIT = timedelta(seconds=300)
KINDS = tuple(BATCHES)

Loop = tuple[nn.Module, Step]


def training(kind: str, case: Case, parallel: bool) -> Loop:
    """A layer, and a step of its training on a batch of this process's own."""
    n = case.size
    layer = _layer(kind, n, case.density)
    model = data_parallel(layer, gradient_as_bucket_view=True) if parallel else layer
    optimizer = torch.optim.SGD(parameter_groups(layer, lr=1e-3, mean_lr=1e-3, scale_lr=1e-3), momentum=0.9)
    rewirer = Rewirer(layer, optimizer, every=case.every, end=1 << 50) if kind == "rigl" else None
    x, target = (torch.randn(case.batch, size) for size in ((INPUTS, OUTPUTS) if kind == "hyper" else (n, n)))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
        if rewirer is not None:
            rewirer.step()

    return layer, step


def _layer(kind: str, n: int, density: float) -> nn.Module:
    if kind == "hyper":
        return adaptive(min(n, INSTANCE), bias=True)
    if kind == "rigl":
        return SparseLinear(n, n, wiring=partial(RigLWiring, density=density))
    k = max(1, round(TUPLES * n / SIZE))
    return SparseLinear(n, n, wiring=GaussianWiring(n, n, k))


# --- two processes -----------------------------------------------------------------------------------------


def _meet(rank: int, folder: str, task: Callable[[], Any]) -> None:
    """What a rank does: it meets the other, and writes what the task gives."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=WAIT)
    torch.manual_seed(rank)
    torch.save(task(), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_two(task: Callable[[], Any]) -> list[Any]:
    """What a task gives in each of two processes that know each other."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        ranks = [context.Process(target=_meet, args=(rank, folder, task)) for rank in range(2)]
        for each in ranks:
            each.start()
        for each in ranks:
            each.join()
        if any(each.exitcode for each in ranks):
            raise RuntimeError(f"ranks ended with exit statuses {[each.exitcode for each in ranks]}")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def trained_state(kind: str, case: Case, steps: int) -> dict[str, Tensor]:
    """Parameters and buffers of a layer after some steps, made and trained as a rank."""
    layer, step = training(kind, case, parallel=True)
    for _ in range(steps):
        step()
    return {name: value for name, value in layer.state_dict().items() if isinstance(value, Tensor)}


def check_ranks(kind: str) -> float:
    """Two ranks train a small layer: fails unless all of it is the same on both, and has changed; 0.0 otherwise."""
    case = Case(f"parallel_{kind}", size=48, batch=8, density=0.1, every=2)
    one, other = in_two(partial(trained_state, kind, case, 5))
    different = [name for name, value in one.items() if not torch.equal(value, other[name])]
    if different:
        raise AssertionError(f"after five steps ranks differ in {', '.join(different)}")
    return 0.0


# --- what is measured --------------------------------------------------------------------------------------


def _rounds(kind: str, case: Case) -> list[tuple[float, float]]:
    """Seconds of blocks of steps: of rank 0 alone, while the other waits, and of both; they alternate."""
    alone, together = (training(kind, case, parallel)[1] for parallel in (False, True))

    def single() -> None:
        with patch.object(ranks, "distributed", lambda: False):  # its rewirings wait for nobody
            alone()

    begun = time.perf_counter()
    for _ in range(WARM):
        together()
    count = torch.tensor(max(1, round(WARM * case.budget / (time.perf_counter() - begun))))
    dist.broadcast(count, 0)
    steps = -(-int(count) // case.every) * case.every if kind == "rigl" else int(count)
    return [(_block(single, steps * (dist.get_rank() == 0)), _block(together, steps)) for _ in range(case.most)]


def _block(step: Step, steps: int) -> float:
    dist.barrier()
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    dist.barrier()
    return time.perf_counter() - begun


def measure(case: Case, kind: str) -> dict[str, Any]:
    """Time of a sample in two processes over that in one, by blocks of steps that followed each other."""
    rounds = in_two(partial(_rounds, kind, case))[0]
    return spread([together / (2 * alone) for alone, together in rounds])


def plan(quick: bool) -> Plan:
    """A row for every kind of layer."""
    words = {
        "gaussian": f"{TUPLES:,} tuples on {SIZE:,}²",
        "rigl": f"RigL {SIZE:,}², {1 - DENSITY:.1%} sparse",
        "hyper": f"adaptive {INPUTS} → {OUTPUTS}, {INSTANCE:,} tuples",
    }
    own: dict[str, Any] = {"size": 64, "every": 2} if quick else {"size": SIZE, "every": EVERY, "budget": SECONDS}
    return [
        (
            Row(f"parallel_{kind}", f"{words[kind]}: time of a sample, two processes / one", "ratio", BAR),
            Case(f"parallel_{kind}", "ratio", batch=BATCHES[kind], density=DENSITY, most=ROUNDS, **own),
        )
        for kind in KINDS
    ]


def _of(kind: str) -> Layer:
    return Layer(lambda case: training(kind, case, False)[1], lambda case: check_ranks(kind),
                 measure=partial(measure, kind=kind))  # fmt: skip


PART = Part(layers={f"parallel_{kind}": _of(kind) for kind in KINDS}, plan=plan, suite="scale")
