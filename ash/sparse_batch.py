"""`SparseBatch`: a batch of sparse tensors, such as graphs of different sizes, that a layer takes and gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ash.checks import TORCH_SPARSE_HINT, UserError, choose, optional, require
from ash.edge_index import EdgeIndex
from ash.pattern import pointers, ravel

if TYPE_CHECKING:
    import scipy.sparse

DUPLICATES = {"sum": True, "refuse": False}


@dataclass(frozen=True, eq=False)
class SparseBatch:
    """The n stored entries of b sparse tensors of rank r, one tensor after the other.

    A graph is a tensor of rank 2, its adjacency matrix: an edge from node u to node v is the entry (u, v). Entries
    at the same position add up. Nothing here costs more than the entries and the sizes that are stored.

    Attributes:
        instance: `(n,)`, int64, the tensor of the batch that an entry belongs to; never decreasing.
        indices: `(n, r)`, int64.
        values: `(n, *extra)`; gradients pass through them. Extra dimensions are channels of an entry.
        sizes: `(b, r)`, int64: the shape of each tensor, which may differ.

    Raises `UserError` where the parts do not fit. Their contents are not looked at, which would slow every step;
    `check()` does it.
    """

    instance: Int64[Tensor, " n"]
    indices: Int64[Tensor, "n r"]
    values: Float[Tensor, "n ..."]
    sizes: Int64[Tensor, "b r"]

    def __post_init__(self) -> None:
        n, r = len(self.instance), self.sizes.shape[-1]
        fits = self.instance.dim() == 1 and self.indices.shape == (n, r) and self.values.shape[:1] == (n,)
        require(
            fits and self.sizes.dim() == 2,
            f"instance {tuple(self.instance.shape)}, indices {tuple(self.indices.shape)}, values "
            f"{tuple(self.values.shape)} and sizes {tuple(self.sizes.shape)}; expected (n,), (n, r), (n, …), (b, r).",
        )
        whole = {part.dtype for part in (self.instance, self.indices, self.sizes)} == {torch.int64}
        if not (whole and self.values.is_floating_point()):
            kinds = (self.instance.dtype, self.indices.dtype, self.sizes.dtype, self.values.dtype)
            raise UserError(f"instance, indices, sizes and values of {', '.join(map(str, kinds))}; expected "
                            "torch.int64, and floating-point values.")  # fmt: skip

    def __len__(self) -> int:
        """b, the number of tensors."""
        return len(self.sizes)

    @property
    def rank(self) -> int:
        """r, the rank of every tensor."""
        return self.sizes.shape[1]

    @property
    def entries(self) -> int:
        """n, the number of stored entries of all tensors."""
        return len(self.instance)

    @cached_property
    def starts(self) -> Int64[Tensor, " ends"]:
        """`(b + 1,)`: the entries of tensor i are those from starts[i] up to starts[i + 1]."""
        return pointers(self.instance, len(self))

    @cached_property
    def offsets(self) -> Int64[Tensor, " ends"]:
        """`(b + 1,)`: how many positions the tensors before tensor i have together."""
        ends = self.sizes.new_zeros(len(self) + 1)
        ends[1:] = self.sizes.prod(1).cumsum(0)
        return ends

    @cached_property
    def ids(self) -> Int64[Tensor, " n"]:
        """A number for every entry, the same for two entries only where tensor and position are the same."""
        return self.ids_of(self.instance, self.indices)

    def ids_of(self, instance: Int64[Tensor, "*n"], indices: Int64[Tensor, "*n r"]) -> Int64[Tensor, "*n"]:
        """The numbers of any positions in these tensors, in the order of tensors and then of positions (C order)."""
        columns = indices.unbind(-1)
        if len(self) == 1:
            return ravel(indices, self.sizes[0].tolist())
        ids = columns[0]
        for column, sizes in zip(columns[1:], self.sizes.t()[1:].contiguous(), strict=True):
            ids = torch.addcmul(column, ids, sizes[instance])
        return ids + self.offsets[instance]

    def check(self, duplicates: str = "sum") -> SparseBatch:
        """This batch, after a look at its contents.

        Args:
            duplicates: `"sum"` accepts entries at the same position; `"refuse"` does not.

        Raises `UserError` for a size below 1, more positions than int64 counts, an index outside its tensor, an
        instance outside the batch or out of order, and values that are NaN or infinite.
        """
        self._check_sizes()
        b = len(self)
        inside = ((self.instance >= 0) & (self.instance < b)).all()
        ordered = bool(inside) and bool((self.instance[1:] >= self.instance[:-1]).all())
        require(ordered, f"instances out of order, or not in 0 … {b - 1}; expected them sorted, each below {b}.")
        bad = ((self.indices < 0) | (self.indices >= self.sizes[self.instance])).any(-1)
        self._refuse(bad, "expected 0 <= index < size")
        self._refuse(~torch.isfinite(self._channels()).all(-1), "expected finite values")
        if not choose("treatment of duplicates", duplicates, DUPLICATES):
            order = self.ids.argsort(stable=True)
            again = torch.zeros_like(bad)
            again[order[1:]] = self.ids[order[1:]] == self.ids[order[:-1]]
            self._refuse(again, "expected every position once; call coalesce() to add them up")
        return self

    def _check_sizes(self) -> None:
        require(bool((self.sizes >= 1).all()), f"sizes {self.sizes.tolist()}; expected sizes of at least 1.")
        positions = sum(math.prod(sizes) for sizes in self.sizes.tolist())
        require(
            positions <= 2**63 - 1,
            f"{positions:.3e} positions in a batch; expected at most 2^63 - 1, so that one fits an int64; use fewer "
            "or smaller tensors.",
        )

    def _refuse(self, bad: Bool[Tensor, " n"], expected: str) -> None:
        """Raise `UserError` with the first bad entry, if there is one."""
        if not bool(bad.any()):
            return
        i = int(bad.nonzero()[0])
        which = int(self.instance[i])
        require(
            False,
            f"{int(bad.sum())} of {self.entries} entries do not serve, such as {self.indices[i].tolist()} with value "
            f"{self.values[i].tolist()} of tensor {which}, of shape {self.sizes[which].tolist()}; {expected}.",
        )

    def _channels(self) -> Float[Tensor, "n c"]:
        return self.values.unsqueeze(-1).flatten(1)

    def coalesce(self) -> SparseBatch:
        """The same tensors with every position stored once, sorted; differentiable. Itself, where they are so."""
        if bool((self.ids[1:] > self.ids[:-1]).all()):
            return self
        ids, order = torch.sort(self.ids, stable=True)
        new = torch.ones_like(ids, dtype=torch.bool)
        torch.ne(ids[1:], ids[:-1], out=new[1:])
        place = torch.empty_like(order).scatter_(0, order, new.cumsum(0).sub_(1))
        starts = new.nonzero().squeeze(1)
        values = self.values.new_zeros(len(starts), *self.values.shape[1:]).index_add(0, place, self.values)
        first = order[starts]
        found = replace(self, instance=self.instance[first], indices=self.indices.index_select(0, first), values=values)
        return found._knowing(ids=ids[starts], offsets=self.offsets)

    def select(self, keep: Tensor) -> SparseBatch:
        """Some entries: a mask `(n,)`, or their numbers in ascending order."""
        return replace(self, instance=self.instance[keep], indices=self.indices[keep], values=self.values[keep])

    def nonzero(self) -> SparseBatch:
        """The entries whose value is not 0 (in any channel)."""
        return self.select((self._channels() != 0).any(-1))

    def with_values(self, values: Float[Tensor, "n ..."]) -> SparseBatch:
        """The same positions with other values."""
        names = ("starts", "offsets", "ids")
        return replace(self, values=values)._knowing(**{name: vars(self)[name] for name in names if name in vars(self)})

    def _knowing(self, **known: Tensor) -> SparseBatch:
        """This batch, with what is computed when it is first asked for given already."""
        vars(self).update(known)
        return self

    def permute(self, *order: int) -> SparseBatch:
        """The dimensions of every tensor in another order: `permute(1, 0)` turns all edges round."""
        require(sorted(order) == list(range(self.rank)), f"permute{order}; expected an order of {self.rank} numbers.")
        return replace(self, indices=self.indices[:, list(order)], sizes=self.sizes[:, list(order)])

    def to(self, target: torch.device | str | torch.dtype) -> SparseBatch:
        """The batch on another device, or with values of another dtype."""
        if isinstance(target, torch.dtype):
            return replace(self, values=self.values.to(target))
        moved = (part.to(target) for part in (self.instance, self.indices, self.values, self.sizes))
        return SparseBatch(*moved)

    def __getitem__(self, i: int) -> SparseBatch:
        """Tensor i, as a batch of one."""
        require(-len(self) <= i < len(self), f"tensor {i} of a batch of {len(self)}; expected a number below.")
        part = slice(int(self.starts[i % len(self)]), int(self.starts[i % len(self) + 1]))
        nought = torch.zeros_like(self.instance[part])
        return SparseBatch(nought, self.indices[part], self.values[part], self.sizes[i % len(self)][None])

    def __iter__(self) -> Iterator[SparseBatch]:
        """The tensors, each as a batch of one."""
        return (self[i] for i in range(len(self)))

    def to_dense(self) -> Float[Tensor, "b ..."]:
        """`(b, *largest sizes, *extra)`, 0 outside of smaller tensors. Holds every position: for small tensors."""
        shape = self.sizes.max(0).values.tolist() if len(self) else [0] * self.rank
        dense = self.values.new_zeros(len(self), *shape, *self.values.shape[1:])
        places = (self.instance, *self.indices.unbind(-1))
        return dense.index_put(places, self.values, accumulate=True)

    def to_coo(self) -> Tensor:
        """A torch COO tensor `(b, *largest sizes, *extra)`, uncoalesced; differentiable by the values."""
        shape = self.sizes.max(0).values.tolist() if len(self) else [0] * self.rank
        indices = torch.cat([self.instance.unsqueeze(0), self.indices.t()])
        size = (len(self), *shape, *self.values.shape[1:])
        return torch.sparse_coo_tensor(indices, self.values, size, check_invariants=False)

    def to_csr(self) -> list[Tensor]:
        """A torch CSR matrix of each matrix, every position once; differentiable by the values."""
        return [
            torch.sparse_csr_tensor(
                pointers(one.indices[:, 0].contiguous(), int(one.sizes[0, 0])),
                one.indices[:, 1].contiguous(),
                one.values,
                (*one.sizes[0].tolist(), *one.values.shape[1:]),
                check_invariants=False,
            )
            for one in self._matrices()
        ]

    def to_scipy(self) -> list[scipy.sparse.csr_matrix]:
        """A scipy CSR matrix of each matrix, every position once; without gradients."""
        import scipy.sparse

        found = []
        for one in self._matrices(channels=False):
            place = tuple(column.cpu().numpy() for column in one.indices.unbind(1))
            values = one.values.detach().cpu().numpy()
            found.append(scipy.sparse.csr_matrix((values, place), shape=tuple(one.sizes[0].tolist())))
        return found

    def to_torch_sparse(self) -> list[Any]:
        """A `torch_sparse.SparseTensor` of each matrix, every position once; differentiable by the values."""
        package = optional("torch_sparse", TORCH_SPARSE_HINT)
        found = []
        for one in self._matrices():
            row, col = (column.contiguous() for column in one.indices.unbind(1))
            sizes = tuple(one.sizes[0].tolist())
            found.append(package.SparseTensor(row=row, col=col, value=one.values, sparse_sizes=sizes, is_sorted=True))
        return found

    def to_edge_index(self) -> EdgeIndex:
        """The graphs as PyTorch Geometric holds them; `SparseBatch.from_edge_index(*x.to_edge_index())` is x."""
        square = self.rank == 2 and bool((self.sizes[:, 0] == self.sizes[:, 1]).all())
        require(square, f"tensors of shapes {self.sizes[:3].tolist()}, …; expected square matrices, which are graphs.")
        nodes = self.sizes[:, 0]
        first = nodes.cumsum(0) - nodes
        edges = (self.indices + first[self.instance].unsqueeze(1)).t()
        batch = torch.arange(len(self), device=nodes.device).repeat_interleave(nodes)
        return EdgeIndex(edges, len(batch), self.values, batch)

    def _matrices(self, channels: bool = True) -> Iterator[SparseBatch]:
        """The tensors one by one, coalesced. Raises `UserError` unless they are matrices."""
        require(self.rank == 2, f"tensors of rank {self.rank}; expected matrices, of rank 2; to_coo() takes any rank.")
        extra = tuple(self.values.shape[1:])
        require(channels or not extra, f"entries with channels {extra}; expected one number each; take one channel.")
        return iter(self.coalesce())

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_nodes: int,
        values: Float[Tensor, "n ..."] | None = None,
        batch: Tensor | None = None,
    ) -> SparseBatch:
        """Graphs given as PyTorch Geometric holds them; see `EdgeIndex` for the arguments and what is refused."""
        return cls(*EdgeIndex(edge_index, num_nodes, values, batch).entries())

    @classmethod
    def from_entries(
        cls, indices: Sequence[Tensor], values: Sequence[Tensor] | None, sizes: Sequence[Sequence[int]]
    ) -> SparseBatch:
        """A batch of tensors given one by one.

        Args:
            indices: `(n_i, r)` of each tensor. values: `(n_i, *extra)`; ones if None. sizes: the shape of each.

        Raises `UserError` for different ranks, and for no tensor.
        """
        ranks = sorted({len(size) for size in sizes})
        _check_ranks(ranks)
        fits = len(indices) == len(sizes) and all(part.shape[1:] in ((), (ranks[0],)) for part in indices if len(part))
        require(
            fits,
            f"indices {[tuple(part.shape) for part in indices][:3]} for {len(sizes)} tensors of rank {ranks[0]}; "
            f"expected (entries, {ranks[0]}) for each tensor.",
        )
        counts = torch.tensor([len(part) for part in indices])
        whole = torch.cat([part.reshape(len(part), len(sizes[0])) for part in indices]).long()
        instance = torch.arange(len(counts)).repeat_interleave(counts).to(whole.device)
        found = torch.ones(len(whole), device=whole.device) if values is None else torch.cat(list(values))
        return cls(instance, whole, found, torch.tensor([list(s) for s in sizes], device=whole.device))

    @classmethod
    def cat(cls, batches: Sequence[SparseBatch]) -> SparseBatch:
        """One batch of all tensors of several. Raises `UserError` for different ranks or channels, and for no batch."""
        _check_ranks(sorted({batch.rank for batch in batches}))
        extra = sorted({tuple(batch.values.shape[1:]) for batch in batches})
        require(len(extra) == 1, f"entries with channels {extra} in one batch; expected the same for all.")
        shift, instances = 0, []
        for batch in batches:
            instances.append(batch.instance + shift)
            shift += len(batch)
        parts = zip(*[(batch.indices, batch.values, batch.sizes) for batch in batches], strict=True)
        return cls(torch.cat(instances), *(torch.cat(part) for part in parts))


def _check_ranks(ranks: Sequence[int]) -> None:
    require(len(ranks) == 1, f"tensors of ranks {ranks} in one batch; expected one rank, and at least one tensor.")
