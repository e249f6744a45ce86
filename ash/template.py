"""Templates (which index columns are fixed) and admissible sets (which entries may exist)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ash.checks import require
from ash.pattern import ravel, unravel


class Template:
    """Some index columns of each tuple are fixed, the others are learned.

    Args:
        rank: r, the rank of the weight tensor.
        columns: the fixed columns, of 0 … r − 1 (output columns first).
        indices: `(k, len(columns))`, the fixed indices of each tuple.

    Raises `UserError` for columns out of range or given twice, and for indices of another shape.
    """

    def __init__(self, rank: int, columns: Sequence[int] = (), indices: Tensor | None = None):
        self.rank = rank
        self.columns = tuple(columns)
        good = len(set(self.columns)) == len(self.columns) and all(0 <= c < rank for c in self.columns)
        require(good, f"fixed columns {self.columns} of a weight tensor of rank {rank}; expected different "
                      f"columns from 0 to {rank - 1}.")  # fmt: skip
        self.learned = tuple(c for c in range(rank) if c not in self.columns)
        given = torch.zeros(0, 0, dtype=torch.int64) if indices is None else torch.as_tensor(indices)
        require(
            given.dim() == 2 and given.shape[1] == len(self.columns) and not given.is_floating_point(),
            f"fixed indices of shape {tuple(given.shape)} and type {given.dtype} for the columns {self.columns}; "
            f"expected integers of shape (k, {len(self.columns)}).",
        )
        require(
            not self.columns or len(given) > 0,
            f"no fixed indices for the columns {self.columns}; expected k >= 1 rows.",
        )
        self.indices = given.long()

    @classmethod
    def per_output(cls, out_shape: Sequence[int], in_shape: Sequence[int], each: int) -> Template:
        """`each` tuples for every output position; their inputs are learned. One each: a permutation's rows."""
        ids = torch.arange(math.prod(out_shape)).repeat_interleave(each)
        return cls(len(out_shape) + len(in_shape), range(len(out_shape)), unravel(ids, out_shape))

    @classmethod
    def per_input(cls, out_shape: Sequence[int], in_shape: Sequence[int], each: int) -> Template:
        """`each` tuples for every input position; their outputs are learned."""
        ids = torch.arange(math.prod(in_shape)).repeat_interleave(each)
        rank = len(out_shape) + len(in_shape)
        return cls(rank, range(len(out_shape), rank), unravel(ids, in_shape))

    @property
    def k(self) -> int | None:
        """How many tuples the template is for; None where nothing is fixed."""
        return len(self.indices) if self.columns else None

    def check(self, shape: Sequence[int]) -> None:
        """Raise `UserError` unless the fixed indices lie in a tensor of `shape`."""
        require(len(shape) == self.rank, f"a template of rank {self.rank} for a weight tensor of shape "
                                         f"{tuple(shape)}; expected the same rank.")  # fmt: skip
        sizes = torch.tensor([shape[c] for c in self.columns], dtype=torch.int64)
        bad = ((self.indices < 0) | (self.indices >= sizes)).nonzero()
        if len(bad):
            i, j = bad[0].tolist()
            column = self.columns[j]
            require(False, f"tuple {i} fixes column {column} at {int(self.indices[i, j])}; expected 0 to "
                           f"{shape[column] - 1} in a weight tensor of shape {tuple(shape)}.")  # fmt: skip

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the learned columns."""
        return tuple(shape[c] for c in self.learned)

    def fill(self, points: Int64[Tensor, "*b k m q"], fixed: Int64[Tensor, "k f"]) -> Int64[Tensor, "*b k m r"]:
        """Points in the learned columns, completed by the tuples' fixed columns."""
        if not self.columns:
            return points
        full = points.new_empty(*points.shape[:-1], self.rank)
        full[..., list(self.learned)] = points
        full[..., list(self.columns)] = fixed.unsqueeze(-2)
        return full

    def __repr__(self) -> str:
        return f"Template(rank={self.rank}, columns={self.columns}, k={self.k})"


class Admissible(ABC):
    """Which entries of a weight tensor may exist; points outside get no share.

    `shape` is the whole tensor's. `everything` is True where no entry is excluded.
    """

    shape: tuple[int, ...]
    everything: bool = False

    @abstractmethod
    def count(self) -> int:
        """Required. How many entries may exist."""

    @abstractmethod
    def contains(self, points: Int64[Tensor, "*n r"]) -> Bool[Tensor, "*n"]:
        """Required. Whether each point may exist."""

    @abstractmethod
    def nearest(self, positions: Float64[Tensor, "*n r"], fixed: Sequence[int] = ()) -> Int64[Tensor, "*n r"]:
        """Required. The admissible entry nearest to each position among those that share its `fixed` columns.

        Where there is none, an inadmissible entry comes back; `check` finds these when a wiring is made.
        """

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Int64[Tensor, "n r"]:
        """Required. `count` admissible entries, uniform and with replacement."""

    def check(self) -> None:
        """Raise `UserError` if no entry may exist."""
        require(self.count() > 0, f"{self!r} leaves no entry of a weight tensor of shape {self.shape}; allow some.")

    def distinct(self, count: int, generator: torch.Generator) -> Int64[Tensor, "n r"]:
        """`count` different admissible entries, uniform, in C order. Raises `UserError` where there are fewer."""
        total = self.count()
        require(count <= total, f"{count} different entries of {total} admissible ones; ask for at most {total}.")
        if not count:
            return torch.zeros(0, len(self.shape), dtype=torch.int64)
        if 4 * count > total and math.prod(self.shape) <= 2**26:
            ids = self._enumerate()
        else:
            ids = ravel(self.draw(count, generator), self.shape).unique()
            while len(ids) < count:
                missing, rest = count - len(ids), total - len(ids)
                more = self.draw(missing * total // rest + 16, generator)  # one in total / rest is new
                ids = torch.cat([ids, ravel(more, self.shape)]).unique()
        keep = torch.randperm(len(ids), generator=generator)[:count]
        return unravel(ids[keep].sort().values, self.shape)

    def _enumerate(self) -> Tensor:
        ids = torch.arange(math.prod(self.shape))
        return ids if self.everything else ids[self.contains(unravel(ids, self.shape))]


def _pin(entries: Tensor, positions: Tensor, fixed: Sequence[int]) -> Tensor:
    """The entries with their fixed columns as given, also where nothing admissible shares them."""
    columns = list(fixed)
    entries[..., columns] = positions[..., columns].round().long()
    return entries


class Boxes(Admissible):
    """A union of disjoint boxes of indices.

    Args:
        shape: the weight tensor's.
        lows, highs: `(boxes, r)`, the first and last index of every box (inclusive).
    """

    def __init__(self, shape: Sequence[int], lows: Tensor, highs: Tensor):
        self.shape = tuple(shape)
        self.lows, self.highs = torch.as_tensor(lows).long(), torch.as_tensor(highs).long()
        r = len(self.shape)
        good = self.lows.shape == self.highs.shape and self.lows.dim() == 2 and self.lows.shape[1] == r
        require(good, f"boxes of shapes {tuple(self.lows.shape)} and {tuple(self.highs.shape)}; expected (boxes, {r}).")
        inside = (self.lows >= 0).all() and (self.highs < torch.tensor(self.shape)).all()
        require(bool(inside), f"boxes that reach out of the weight tensor of shape {self.shape}; clip them.")
        keep = (self.lows <= self.highs).all(-1)
        self.lows, self.highs = self.lows[keep], self.highs[keep]
        apart = (self.lows[:, None] > self.highs).any(-1) | (self.highs[:, None] < self.lows).any(-1)
        apart.fill_diagonal_(True)
        require(bool(apart.all()), "boxes that overlap; expected disjoint ones, so that entries count once.")
        self.volumes = (self.highs - self.lows + 1).double().prod(-1)

    def count(self) -> int:
        sides = (self.highs - self.lows + 1).tolist()
        return sum(math.prod(side) for side in sides)

    def contains(self, points: Tensor) -> Tensor:
        result = torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
        for low, high in zip(self.lows.to(points.device), self.highs.to(points.device), strict=True):
            result |= ((points >= low) & (points <= high)).all(-1)
        return result

    def nearest(self, positions: Tensor, fixed: Sequence[int] = ()) -> Tensor:
        best = torch.full(positions.shape[:-1], torch.inf, dtype=positions.dtype, device=positions.device)
        result = positions.round().long()
        weight = torch.ones(len(self.shape), dtype=positions.dtype, device=positions.device)
        weight[list(fixed)] = 1e30
        for low, high in zip(self.lows.to(positions.device), self.highs.to(positions.device), strict=True):
            entry = torch.minimum(torch.maximum(positions.round().long(), low), high)
            distance = ((entry - positions).square() * weight).sum(-1)
            closer = distance < best
            best = torch.where(closer, distance, best)
            result = torch.where(closer.unsqueeze(-1), entry, result)
        return _pin(result, positions, fixed)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        if not count:
            return torch.zeros(0, len(self.shape), dtype=torch.int64)
        box = torch.multinomial(self.volumes, count, replacement=True, generator=generator)
        low, side = self.lows, self.highs - self.lows + 1
        low, side = (low, side) if len(low) == 1 else (low[box], side[box])
        uniform = torch.rand(count, len(self.shape), dtype=torch.float64, generator=generator)
        return uniform.mul_(side).long().clamp_(max=side - 1).add_(low)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.lows)} boxes in {self.shape})"


class Everything(Boxes):
    """All entries of a weight tensor of `shape`."""

    everything = True

    def __init__(self, shape: Sequence[int]):
        super().__init__(shape, torch.zeros(1, len(shape)), torch.tensor([list(shape)]) - 1)

    def contains(self, points: Tensor) -> Tensor:
        return torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)

    def __repr__(self) -> str:
        return f"Everything({self.shape})"


def block_structure(sizes: Sequence[int]) -> Boxes:
    """Nodes in blocks of the given sizes; an entry (target, source) needs its source in an earlier block."""
    ends = torch.tensor(list(sizes)).cumsum(0).tolist()
    starts = [e - s for e, s in zip(ends, sizes, strict=True)]
    lows = [[starts[i], 0] for i in range(1, len(ends))]
    highs = [[ends[i] - 1, starts[i] - 1] for i in range(1, len(ends))]
    return Boxes((ends[-1], ends[-1]), torch.tensor(lows).reshape(-1, 2), torch.tensor(highs).reshape(-1, 2))


class SourceBeforeTarget(Admissible):
    """Entries (target, source) of an n × n matrix with source < target: an acyclic graph."""

    def __init__(self, n: int):
        self.n, self.shape = n, (n, n)

    def count(self) -> int:
        return self.n * (self.n - 1) // 2

    def contains(self, points: Tensor) -> Tensor:
        return points[..., 1] < points[..., 0]

    def nearest(self, positions: Tensor, fixed: Sequence[int] = ()) -> Tensor:
        entry = positions.round().long().clamp(0, self.n - 1)
        target, source = entry.unbind(-1)
        if 0 in fixed and 1 in fixed:
            return entry
        if 0 in fixed:
            return torch.stack([target, torch.minimum(source, target - 1).clamp(min=0)], -1)
        if 1 in fixed:
            return torch.stack([torch.maximum(target, source + 1).clamp(max=self.n - 1), source], -1)
        middle = ((positions.sum(-1) + 1) / 2).round().long().clamp(1, self.n - 1)
        projected = torch.stack([middle, middle - 1], -1)
        return torch.where((source < target).unsqueeze(-1), entry, projected)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        first = torch.randint(0, self.n, (count,), generator=generator)
        other = torch.randint(0, self.n - 1, (count,), generator=generator)
        other += (other >= first).long()
        return torch.stack([torch.maximum(first, other), torch.minimum(first, other)], -1)

    def __repr__(self) -> str:
        return f"SourceBeforeTarget({self.n})"


class Mask(Admissible):
    """The entries where a boolean tensor of the weight's shape is True. For tensors small enough to hold."""

    def __init__(self, mask: Tensor):
        self.mask = mask.detach().cpu().bool()
        self.shape = tuple(mask.shape)
        self.entries = self.mask.nonzero()

    def count(self) -> int:
        return len(self.entries)

    def contains(self, points: Tensor) -> Tensor:
        return self.mask.to(points.device)[tuple(points.unbind(-1))]

    def nearest(self, positions: Tensor, fixed: Sequence[int] = ()) -> Tensor:
        entries = self.entries.to(positions.device)
        weight = torch.ones(len(self.shape), dtype=positions.dtype, device=positions.device)
        weight[list(fixed)] = 1e30
        flat = positions.reshape(-1, len(self.shape))
        step = max(1, 2**20 // max(1, len(entries)))
        found = [entries[((part[:, None] - entries).square() * weight).sum(-1).argmin(-1)] for part in flat.split(step)]
        return _pin(torch.cat(found).reshape(positions.shape), positions, fixed)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.entries[torch.randint(0, len(self.entries), (count,), generator=generator)]

    def __repr__(self) -> str:
        return f"Mask({self.shape}, {len(self.entries)} entries)"
