"""Draws of tuples, per instance or shared, that the tests compare with their own points and weights, stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ash import Context, Everything, IndexTuples, Sampling, SparseWeight, Template
from ash.drawn import draw_weight
from ash.kernels import Kernel, get_kernel
from ash.sampling import generator_from

CPU = torch.device("cpu")
B = 3
CASES: dict[str, dict[str, Any]] = {
    "a matrix": {},
    "a Gaussian": {"kernel": "gaussian"},
    "a general power": {"kernel": "student_t(2.5)"},
    "rank 4": {"out": (3, 4), "ins": (2, 5), "k": 7},
    "one column": {"out": (4,), "ins": (1,), "template": Template(2, [1], torch.zeros(6, 1).long()), "k": 6},
    "outputs fixed": {"out": (2, 3), "ins": (4, 5), "template": Template.per_output((2, 3), (4, 5), 2), "k": 12},
    "inputs fixed": {"template": Template.per_input((5,), (6,), 1), "k": 6},
    "sizes of one": {"out": (1, 3), "ins": (4, 1)},
    "more tuples than a block": {"k": 150},
    "a scale for each column": {"columns": 2},
    "windows": {"sampling": Sampling(local_samples=3, local_region=(2, 4))},
    "no corners": {"sampling": Sampling(corners=False, global_samples=3, guided_samples=2, kept_samples=1)},
    "large columns": {"out": (1 << 17,), "ins": (6,)},
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def make(
    out: tuple[int, ...] = (5,),
    ins: tuple[int, ...] = (6,),
    k: int = 9,
    template: Template | None = None,
    kernel: str | Kernel = "student_t",
    columns: int = 1,
    sampling: Sampling | None = None,
    dtype: torch.dtype = torch.float64,
    b: int | None = B,
    **options: Any,
) -> tuple[Callable[[tuple[Tensor, Tensor, Tensor]], Any], tuple[Tensor, Tensor, Tensor]]:
    """(means, scales, values) → a draw, always the same; and such tuples, with gradients. b None: shared ones."""
    template = Template(len(out) + len(ins)) if template is None else template
    sizes = template.sizes((*out, *ins))
    lead = (k,) if b is None else (b, k)
    means = torch.rand(*lead, len(sizes), dtype=torch.float64) * (torch.tensor(sizes, dtype=torch.float64) - 1)
    learned = (means.to(dtype), 0.5 + torch.rand(*lead, columns, dtype=dtype), torch.randn(lead, dtype=dtype))
    anchors = means.round().long()
    fixed = template.indices if template.columns else torch.zeros(k, 0, dtype=torch.int64)

    def draw(parts: tuple[Tensor, Tensor, Tensor]) -> Any:
        tuples = IndexTuples(anchors, parts[0] - anchors.to(dtype), *parts[1:])
        given: dict[str, Any] = {"context": Context("tuple"), "admissible": Everything((*out, *ins)), **options}
        return draw_weight(
            tuples, fixed, out, ins, sampling=sampling or Sampling(), kernel=get_kernel(kernel), template=template,
            generator=generator_from(5, CPU), **given,
        )  # fmt: skip

    for part in learned:
        part.requires_grad_()
    return draw, learned


def stored(weight: SparseWeight) -> SparseWeight:
    return SparseWeight(weight.indices, weight.values, weight.out_shape, weight.in_shape)


def inputs(weight: SparseWeight, extra: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, *weight.in_shape, *extra, dtype=dtype, requires_grad=True)
