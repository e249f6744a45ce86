"""Fused kernels on a GPU in the benchmark; needs one. Bandwidth is that of a copy in the same process.

- `gpu_free_…`: a free layer of 1,000,000 tuples of 8 points on 1,000,000 × 1,000,000, batch 64, context `tuple`;
  `gpu_chunk_…`: the same with chunks of 64; `gpu_instance_…`: 16,384 tuples drawn for each of 256 instances,
  784 → 4,096.
  The batch lies along the columns of x, as the kernels take it; `gpu_layer_…`: row by row, with the transpositions
  that this takes.
  `copy`: a forward pass over a copy of the bytes that it moves (points × batch × 4 × 2, and the parameters once);
  `step_copy`: a whole step, whose backward pass moves three numbers a point and instance, over a copy of its bytes;
  `unfused`: a step over one that stores points and weights, in torch; `memory`: what a step takes besides input,
  output and gradients, over the same of that; `graph`: a forward pass captured as a CUDA graph, over one that is not.
- `gpu_growth_…`: the 2,621,440 largest entries of 262,144 × 262,144, batch 256, with tiles in tf32, bf16 or ieee.
- `gpu_csr_…`: own CSR product and SDDMM over cuSPARSE's; 1,048,576² with 8 entries a row, batch 64.
- `gpu_identity_N_…`: the identity of N from examples, by `python -m experiments identity`; `seconds` until exact,
  `bytes` at the peak of the GPU; of the largest the share of entries found in the time that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ash.backends.triton import top
from experiments.benchmark_case import Case, Layer, Part, Plan, Step
from experiments.benchmark_gpu_identity import LIMIT, identity
from experiments.benchmark_gpu_layers import (
    check,
    forward_copy,
    forward_step,
    graph_step,
    layer_step,
    memory,
    step_copy,
    train_step,
    unfused_step,
)
from experiments.benchmark_gpu_search import check_csr, check_growth, csr_step, cusparse_step, growth_step
from experiments.benchmark_report import Row

FREE, BATCH, EACH, INSTANCES = 1_000_000, 64, 16_384, 256
SIDE, GROWTH_BATCH = 262_144, 256
SHARE, FASTER, SMALLER, GROWTH = 2.0, 1 / 10, 1 / 20, 3.0
"""Bars: over a copy, over the unfused step's time and memory, seconds of growth."""
EXACT, SECONDS, BYTES, FAR = 65_536, 600.0, 4e9, 1_000_000
"""Of the identity that has to be exact, with its bars; and of the one that goes as far as it gets."""
WARM = {"size": 4096, "batch": 64}
FORWARD: Mapping[str, Callable[[Case], Step]] = {"copy": forward_copy}
TRAINING = {"step_copy": step_copy, "unfused": unfused_step}
KINDS = {"gpu_free": "free layer of 10^6 tuples on 10^6²", "gpu_chunk": "the same, chunks of 64",
         "gpu_instance": "a weight for each of 256 instances, 784 → 4,096"}  # fmt: skip


def _layers() -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    for name in KINDS:
        warm = {**WARM, "size": 256} if name == "gpu_instance" else WARM
        found[f"{name}_forward"] = Layer(forward_step, check, {**FORWARD, "plain": forward_step}, warm)
        found[f"{name}_step"] = Layer(train_step, check, TRAINING, warm)
        found[f"{name}_memory"] = Layer(train_step, check, measure=memory)
    found["gpu_free_graph"] = Layer(graph_step, check, {"plain": forward_step}, WARM)
    found["gpu_layer"] = Layer(layer_step, check, FORWARD, WARM)
    found["gpu_growth"] = Layer(growth_step, check_growth, warm={"size": 4096, "batch": 32})
    found["gpu_csr_matmul"] = Layer(csr_step, check_csr, {"cusparse": cusparse_step}, WARM)
    found["gpu_csr_sddmm"] = Layer(csr_step, check_csr, {"cusparse": cusparse_step}, WARM)
    found["gpu_identity"] = Layer(train_step, lambda case: None, measure=identity)
    return found


def _kind_plan(name: str, case: Case, barred: bool) -> Plan:
    """The figures of a kind of layer."""
    words, ratio = KINDS[name], partial(_with, case, figure="ratio")
    bar = {key: value if barred else None for key, value in
           {"copy": SHARE, "unfused": FASTER, "memory": SMALLER}.items()}  # fmt: skip
    return [
        (Row(f"{name}_copy", f"{words}: forward pass, over a copy of its bytes", "ratio", bar["copy"]),
         ratio(layer=f"{name}_forward", rival="copy")),
        (Row(f"{name}_seconds", f"{words}: step", "seconds"), _with(case, layer=f"{name}_step")),
        (Row(f"{name}_step_copy", f"{words}: step, over a copy of its bytes", "ratio"),
         ratio(layer=f"{name}_step", rival="step_copy")),
        (Row(f"{name}_unfused", f"{words}: step, over the unfused one's", "ratio", bar["unfused"]),
         ratio(layer=f"{name}_step", rival="unfused")),
        (Row(f"{name}_memory", f"{words}: working memory over the unfused step's", "ratio", bar["memory"]),
         ratio(layer=f"{name}_memory")),
    ]  # fmt: skip


def _with(case: Case, **changes: Any) -> Case:
    return Case(**{**vars(case), **changes})


def gpu_plan(quick: bool) -> Plan:
    """Every figure of the suite with its case."""
    free = Case("gpu_free", size=2048 if quick else FREE, batch=BATCH, context="tuple")
    each = Case("gpu_instance", size=256 if quick else EACH, batch=8 if quick else INSTANCES, context="tuple")
    grow = Case("gpu_growth", size=8192 if quick else SIDE, batch=GROWTH_BATCH)
    plan = [*_kind_plan("gpu_free", free, True), *_kind_plan("gpu_instance", each, True)]
    plan += _kind_plan("gpu_chunk", free, False)
    plan += [
        (Row("gpu_layer_copy", "free layer, batch row by row: forward pass, over a copy of its bytes", "ratio"),
         _with(free, layer="gpu_layer", figure="ratio", rival="copy")),
        (Row("gpu_free_graph", "free layer: captured forward pass, over one that is not", "ratio"),
         _with(free, layer="gpu_free_graph", figure="ratio", rival="plain")),
    ]  # fmt: skip
    for precision in top.PRECISIONS:
        words = f"{10 * grow.size:,} largest of {grow.size:,}², batch {grow.batch}, tiles in {precision}"
        bar = GROWTH if precision == top.precision else None
        plan.append((Row(f"gpu_growth_{precision}_seconds", words, "seconds", bar), _with(grow, rival=precision)))
    for name in ("matmul", "sddmm"):
        row = Row(f"gpu_csr_{name}", f"own CSR {name}, over cuSPARSE's", "ratio")
        matrix = Case(f"gpu_csr_{name}", "ratio", size=2048 if quick else 1 << 20, rival="cusparse")
        plan.append((row, matrix))
    return plan if quick else [*plan, *_identity_plan()]


def _identity_plan() -> Plan:
    exact = Case("gpu_identity", size=EXACT, batch=256, context="tuple", most=20_000)
    return [
        (Row(f"gpu_identity_{EXACT}_seconds", f"identity of {EXACT:,}: until exact", "seconds", SECONDS), exact),
        (Row(f"gpu_identity_{EXACT}_bytes", f"identity of {EXACT:,}: peak of the GPU", "bytes", BYTES),
         _with(exact, figure="bytes")),
        (Row(f"gpu_identity_{FAR}_share", f"identity of {FAR:,}: share found in {LIMIT} s", "ratio"),
         _with(exact, figure="ratio", size=FAR, batch=64)),
    ]  # fmt: skip


PART = Part(_layers(), gpu_plan, suite="gpu")
