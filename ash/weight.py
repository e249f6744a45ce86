"""`SparseWeight`: the integer entries of a weight tensor and their values, which every host reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.checks import TORCH_SPARSE_HINT, UserError, optional, require, shape
from ash.memory import need
from ash.pattern import CSRPattern, ravel, unravel

if TYPE_CHECKING:
    import scipy.sparse


class StraightThrough(torch.autograd.Function):
    """A dense tensor made of some entries of a candidate tensor, which receives the whole gradient."""

    @staticmethod
    def forward(ctx: Any, selected: Tensor, candidate: Tensor) -> Tensor:
        return selected.view_as(selected)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """n stored entries of a weight tensor of rank r; entries at the same position add up.

    Attributes:
        indices: `(n, r)` or, with a weight per instance, `(b, n, r)`, int64; output columns first.
        values: `(n,)` or `(b, n)`; gradients pass through them only.
        out_shape, in_shape: the two halves of the tensor's shape.
        candidate: `(*out_shape, *in_shape)`, a dense tensor of which the entries are a selection. Where there is one,
            it receives the whole gradient of the weight, also at entries that do not exist ("to but not through"),
            and `values` receive none. Shared weights only.

    Raises `UserError` where the parts do not fit. Positions are not checked against the shape, which
    would slow every step; `check()` does it.
    """

    indices: Int64[Tensor, "*b n r"]
    values: Float[Tensor, "*b n"]
    out_shape: tuple[int, ...]
    in_shape: tuple[int, ...]
    cached_pattern: CSRPattern | None = field(default=None, repr=False)
    candidate: Float[Tensor, "..."] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        r = len(self.out_shape) + len(self.in_shape)
        require(
            self.indices.shape == (*self.values.shape, r) and self.values.dim() in (1, 2),
            f"indices {tuple(self.indices.shape)} and values {tuple(self.values.shape)} for a weight tensor of rank "
            f"{r}; expected (n, {r}) and (n,), or (b, n, {r}) and (b, n).",
        )
        if self.indices.dtype != torch.int64 or not self.values.is_floating_point():
            kinds = f"indices of {self.indices.dtype} and values of {self.values.dtype}"
            raise UserError(f"{kinds}; expected torch.int64, and floating-point numbers.")
        if self.candidate is not None:
            fits = self.candidate.shape == self.shape and not self.per_instance
            kind = "weight per instance" if self.per_instance else "weight"
            require(fits, f"a candidate tensor for a {kind} of shape {self.shape}; expected one of that shape, for a "
                          "shared weight.")  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor, output dimensions first."""
        return (*self.out_shape, *self.in_shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(outputs, inputs), both flattened."""
        return math.prod(self.out_shape), math.prod(self.in_shape)

    @property
    def per_instance(self) -> bool:
        """Whether there is one weight for each instance of the batch."""
        return self.values.dim() == 2

    @property
    def entries(self) -> int:
        """n, stored entries (of an instance)."""
        return self.values.shape[-1]

    @cached_property
    def row_ids(self) -> Int64[Tensor, "*b n"]:
        """Flattened output position of every entry."""
        return ravel(self.indices[..., : len(self.out_shape)], self.out_shape)

    @cached_property
    def col_ids(self) -> Int64[Tensor, "*b n"]:
        """Flattened input position of every entry."""
        return ravel(self.indices[..., len(self.out_shape) :], self.in_shape)

    @cached_property
    def pattern(self) -> CSRPattern:
        """CSR structure of a shared weight; computed once per weight."""
        require(not self.per_instance, "a weight per instance has no single CSR structure; take one instance first.")
        if self.cached_pattern is not None:
            return self.cached_pattern
        return CSRPattern(self.row_ids, self.col_ids, self.matrix_shape)

    def arranged(self) -> Float[Tensor, " n"]:
        """The values in the order of `pattern`'s CSR arrays, with their gradients."""
        return self.pattern.arrange(self.values)

    def check(self) -> SparseWeight:
        """This weight, after making sure that every position lies inside the tensor."""
        sizes = torch.tensor(self.shape, device=self.indices.device)
        bad = ((self.indices < 0) | (self.indices >= sizes)).any(-1)
        if bool(bad.any()):
            first = self.indices[bad][0].tolist()
            require(False, f"entry {first} of a weight tensor of shape {self.shape}; expected 0 <= index < size.")
        return self

    def instance(self, i: int) -> SparseWeight:
        """The weight of instance i; a shared weight is its own for every i."""
        if not self.per_instance:
            return self
        return SparseWeight(self.indices[i], self.values[i], self.out_shape, self.in_shape)

    def transpose(self) -> SparseWeight:
        """The tensor with outputs and inputs exchanged."""
        r = len(self.out_shape)
        indices = torch.cat([self.indices[..., r:], self.indices[..., :r]], dim=-1)
        order = (*range(r, len(self.shape)), *range(r))
        candidate = None if self.candidate is None else self.candidate.permute(order)
        return SparseWeight(indices, self.values, self.in_shape, self.out_shape, None, candidate)

    def coalesce(self) -> SparseWeight:
        """The same tensor with every position stored once, in C order (shared weights only)."""
        require(not self.per_instance, "coalesce needs a shared weight; take one instance first.")
        ids, place = torch.unique(ravel(self.indices, self.shape), return_inverse=True)
        values = self.values.new_zeros(ids.numel()).index_add(0, place, self.values)
        return SparseWeight(unravel(ids, self.shape), values, self.out_shape, self.in_shape, None, self.candidate)

    def rows(self, block: slice) -> SparseWeight:
        """The entries whose first output index lies in `block`, as a weight of that many outputs.

        For hosts that evaluate block by block. Shared weights only; the step of the slice must be 1.
        """
        require(not self.per_instance, "rows needs a shared weight; take one instance first.")
        start, stop, step = block.indices(self.out_shape[0])
        require(step == 1 and stop > start, f"rows({block}); expected a non-empty slice with step 1.")
        first = self.indices[:, 0]
        keep = ((first >= start) & (first < stop)).nonzero().squeeze(-1)
        indices = self.indices[keep].clone()
        indices[:, 0] -= start
        candidate = None if self.candidate is None else self.candidate[start:stop]
        shape = (stop - start, *self.out_shape[1:])
        return SparseWeight(indices, self.values[keep], shape, self.in_shape, None, candidate)

    def to_dense(self) -> Float[Tensor, "..."]:
        """The tensor itself, `(*out_shape, *in_shape)`, with a leading b for a weight per instance."""
        if self.candidate is not None:
            plain = replace(self, values=self.values.detach(), candidate=None)
            dense: Tensor = StraightThrough.apply(plain.to_dense(), self.candidate)
            return dense
        batch = self.values.shape[:-1]
        size = math.prod(self.shape)
        whole = math.prod(batch) * size * self.values.element_size()
        need("a dense form", whole, self.values.device, lambda _: f"{self!r} takes less as it is: use its entries")
        ids = ravel(self.indices, self.shape)
        if self.per_instance:
            ids = ids + size * torch.arange(batch[0], device=ids.device).unsqueeze(-1)
        flat = self.values.new_zeros(math.prod(batch) * size)
        return flat.index_add(0, ids.flatten(), self.values.flatten()).reshape(*batch, *self.shape)

    def to_coo(self) -> Tensor:
        """A torch COO tensor of the whole shape; uncoalesced; a weight per instance gets a leading b."""
        if not self.per_instance:
            return torch.sparse_coo_tensor(self.indices.t(), self.values, self.shape, check_invariants=False)
        b, n = self.values.shape
        which = torch.arange(b, device=self.indices.device).repeat_interleave(n).unsqueeze(0)
        indices = torch.cat([which, self.indices.flatten(0, 1).t()])
        return torch.sparse_coo_tensor(indices, self.values.flatten(), (b, *self.shape), check_invariants=False)

    def to_csr(self) -> Tensor:
        """A torch CSR matrix (outputs × inputs, flattened); every position once."""
        whole = self.coalesce()
        pattern = whole.pattern
        values = pattern.arrange(whole.values)
        return torch.sparse_csr_tensor(pattern.crow, pattern.col, values, self.matrix_shape, check_invariants=False)

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """A scipy CSR matrix (outputs × inputs, flattened) without gradients."""
        import scipy.sparse

        whole = self.coalesce()
        place = (whole.row_ids.cpu().numpy(), whole.col_ids.cpu().numpy())
        return scipy.sparse.csr_matrix((whole.values.detach().cpu().numpy(), place), shape=self.matrix_shape)

    def to_torch_sparse(self) -> Any:
        """A `torch_sparse.SparseTensor` (outputs × inputs, flattened), differentiable by the values."""
        whole = self.coalesce()
        return optional("torch_sparse", TORCH_SPARSE_HINT).SparseTensor(
            row=whole.row_ids.contiguous(),
            col=whole.col_ids.contiguous(),
            value=whole.values,
            sparse_sizes=self.matrix_shape,
            is_sorted=True,
        )

    @classmethod
    def from_dense(cls, weight: Tensor, out_rank: int) -> SparseWeight:
        """The non-zero entries of a dense tensor whose first `out_rank` dimensions are outputs."""
        sizes = shape("weight.shape", tuple(weight.shape))
        indices = weight.detach().nonzero()
        return cls(indices, weight[tuple(indices.unbind(-1))], sizes[:out_rank], sizes[out_rank:])
