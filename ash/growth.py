"""Scores: the gradient of a loss by a weight tensor, in factors or dense, and its largest entries."""

from __future__ import annotations

import copy
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.checks import choose, positive, require
from ash.ids import among, ascending
from ash.largest import Largest
from ash.memory import need
from ash.norms import Block, names, product_blocks
from ash.pattern import ravel, unravel
from ash.template import Admissible

BLOCK = 1 << 18
"""Entries of the gradient computed at a time."""

FEW = 1 << 13
"""Entries up to which all are looked at without a guess."""

GRID, EXPECTED, MOST = 1 << 17, 16, 1 << 22
"""Entries from which the height of the n-th is guessed: so many, but at most an eighth; or, but at most 2n, as many as
hold `EXPECTED` of the n, up to `MOST`."""

Key = Callable[[Tensor], Tensor]
Split = Callable[..., Tensor]
_KEYS: dict[str, Key] = {"largest": torch.Tensor.abs_, "positive": lambda g: g, "negative": torch.Tensor.neg_}


class Score(ABC):
    """The gradient of a loss by a weight tensor, by which entries are dropped and grown.

    Attributes:
        out_shape, in_shape: the two halves of the weight tensor's shape.
    """

    out_shape: tuple[int, ...]
    in_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight tensor, output dimensions first."""
        return (*self.out_shape, *self.in_shape)

    @property
    @abstractmethod
    def _device(self) -> torch.device:
        """Required. Where its numbers are."""

    @abstractmethod
    def __add__(self, other: Score) -> Score:
        """Required. The sum of two gradients of the same kind and shape."""

    @abstractmethod
    def scaled(self, by: float) -> Score:
        """Required. The gradient times a number."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "..."]:
        """Required. The gradient itself, `(*out_shape, *in_shape)`."""

    @abstractmethod
    def at(self, indices: Int64[Tensor, "n r"]) -> Float[Tensor, " n"]:
        """Required. The gradient at some entries."""

    def kept(self) -> Score:
        """The same, safe from what is written later to the tensors that it was made of; by default, itself."""
        return self

    @abstractmethod
    def is_finite(self) -> bool:
        """Required. Whether no number that it is made of is NaN or infinite."""

    @abstractmethod
    def _grid(self, size: int, rows: Int64[Tensor, " o"]) -> tuple[Float[Tensor, " s"], Int64[Tensor, " s"]]:
        """Required. About so many entries, spread over those rows and all columns: (gradients, flattened positions)."""

    @abstractmethod
    def _blocks(self, rows: Int64[Tensor, " o"], bar: Callable[[], float]) -> Iterator[Block]:
        """Required. The gradient's rows with these numbers, block by block, in any order.

        Entries of which no absolute value is above the bar, which rises as blocks are looked at, may be left out.
        """

    def top(
        self,
        n: int,
        exclude: Int64[Tensor, " e"] | None = None,
        admissible: Admissible | None = None,
        by: str = "largest",
    ) -> tuple[Int64[Tensor, "n r"], Float[Tensor, " n"]]:
        """The n entries that come first, with their gradients, in falling order; exact.

        Args:
            exclude: flattened positions that do not count.
            admissible: the entries that count.
            by: `"largest"` in absolute value, or most `"positive"`, or most `"negative"` (where the loss asks
                for more weight).

        Fewer than n come back where fewer count. Memory is proportional to n and the block, never to W.
        """
        indices = unravel(self.places(n, exclude, admissible, by), self.shape)
        return indices, self.at(indices)

    def places(
        self,
        n: int,
        exclude: Int64[Tensor, " e"] | None = None,
        admissible: Admissible | None = None,
        by: str = "largest",
        rows: Int64[Tensor, " o"] | None = None,
    ) -> Int64[Tensor, " n"]:
        """The flattened positions alone of what `top` finds; with `rows`, among those flattened output positions."""
        positive("n", n)
        key = choose("order", by, _KEYS)
        height, width = math.prod(self.out_shape), math.prod(self.in_shape)
        which = torch.arange(height, device=self._device) if rows is None else rows
        counts = self._counts(None if exclude is None else ascending(exclude), admissible)
        search = partial(self._search, n, key, counts, which, len(which) * width)
        ids = search(self._guess(n, key, counts, which, len(which) * width))
        return ids if len(ids) == n else search(-torch.inf)

    def _search(
        self, n: int, key: Key, counts: Callable[[Tensor], Tensor] | None, rows: Tensor, total: int, bar: float
    ) -> Int64[Tensor, " n"]:
        """Flattened positions of the n entries that come first among those above the bar, in falling order."""
        best = Largest(n, bar, counts, total)
        for scores, called in self._blocks(rows, lambda: best.bar):
            best.offer(key(scores).flatten(), called)
        return best.names().to(self._device)

    def _guess(
        self, n: int, key: Key, counts: Callable[[Tensor], Tensor] | None, rows: Tensor, total: int
    ) -> float:
        """A bar that a little more than n entries should pass, from a grid of some of them; −∞ for small tensors."""
        if total <= FEW:
            return -torch.inf
        score, ids = self._grid(max(min(GRID, total // 8), min(EXPECTED * total // n, 2 * n, MOST)), rows)
        expected = n * len(score) / total
        place = math.ceil(expected + 3 * math.sqrt(expected) + 8)
        return _nth(key(score), ids, place, counts)

    def _counts(self, gone: Tensor | None, admissible: Admissible | None) -> Callable[[Tensor], Tensor] | None:
        """Which flattened positions count; None where all do."""
        free = admissible is None or admissible.everything
        if gone is None and free:
            return None

        def counts(ids: Tensor) -> Tensor:
            good = torch.ones_like(ids, dtype=torch.bool) if gone is None else ~among(ids, gone)
            return good if admissible is None or free else good & admissible.contains(unravel(ids, self.shape))

        return counts


class Factors(Score):
    """The gradient of a loss by a weight tensor, dL/dW = Σ_b g_b ⊗ x_b, without the tensor.

    Args:
        x: `(b, *in_shape)`, inputs.
        g: `(b, *out_shape)`, gradients of the loss by the outputs.

    Attributes:
        split: searches for `places` in another way, given the factors without it; None: this process searches all.
    """

    def __init__(self, x: Float[Tensor, " b *in_shape"], g: Float[Tensor, " b *out_shape"]):
        require(x.shape[0] == g.shape[0], f"{x.shape[0]} inputs and {g.shape[0]} gradients; expected as many.")
        self.in_shape, self.out_shape = tuple(x.shape[1:]), tuple(g.shape[1:])
        self.split: Split | None = None
        self._parts: list[tuple[Tensor, Tensor, float]] = [(x.detach().flatten(1), g.detach().flatten(1), 1.0)]

    @property
    def x(self) -> Float[Tensor, "b i"]:
        """Inputs, flattened; of all that was added up, one batch after the other."""
        return self._whole()[0]

    @property
    def g(self) -> Float[Tensor, "b o"]:
        """Gradients by the outputs, flattened."""
        return self._whole()[1]

    def _whole(self) -> tuple[Tensor, Tensor, float]:
        """All parts as one; they are put together once, when they are first looked at."""
        if len(self._parts) > 1 or self._parts[0][2] != 1.0:
            x = torch.cat([x for x, _, _ in self._parts])
            g = torch.cat([g if by == 1.0 else g * by for _, g, by in self._parts])
            self._parts = [(x, g, 1.0)]
        return self._parts[0]

    @property
    def numbers(self) -> int:
        """How many numbers are held."""
        return sum(x.numel() + g.numel() for x, g, _ in self._parts)

    def _of(self, parts: list[tuple[Tensor, Tensor, float]]) -> Factors:
        made = copy.copy(self)
        made._parts = parts
        return made

    def __add__(self, other: Score) -> Factors:
        """The sum of two gradients: their factors, one after the other (accumulation over micro-batches)."""
        same_kind(self, other)
        assert isinstance(other, Factors)
        return self._of([*self._parts, *other._parts])

    def kept(self) -> Factors:
        """With inputs of its own: a training loop may write the next batch over the last one."""
        return self._of([(x.clone(), g, by) for x, g, by in self._parts])

    def scaled(self, by: float) -> Factors:
        return self._of([(x, g, own * by) for x, g, own in self._parts])

    def dense(self) -> Float[Tensor, "..."]:
        """The gradient itself, `(*out_shape, *in_shape)`; raises `UserError` where that does not fit into memory."""
        size = math.prod(self.shape) * self.x.element_size()
        what = f"the dense gradient of a weight {self.out_shape} x {self.in_shape}"
        need(what, size, self._device, lambda _: "the factors fit: use `top`, `at`, or momentum='window' of SNFSWiring")
        return (self.g.t() @ self.x).reshape(self.shape)

    def at(self, indices: Int64[Tensor, "n r"]) -> Float[Tensor, " n"]:
        """The gradient at some entries, from b numbers each."""
        r = len(self.out_shape)
        rows, cols = ravel(indices[:, :r], self.out_shape), ravel(indices[:, r:], self.in_shape)
        gt, xt = self.g.t().contiguous(), self.x.t().contiguous()
        step = max(1, BLOCK // max(1, self.x.shape[0]))
        parts = [(gt[i] * xt[j]).sum(-1) for i, j in zip(rows.split(step), cols.split(step), strict=True)]
        return torch.cat(parts) if parts else self.x.new_zeros(0)

    def is_finite(self) -> bool:
        finite = all(math.isfinite(by) for _, _, by in self._parts)
        return finite and all(_finite(t) for x, g, _ in self._parts for t in (x, g))

    @property
    def _device(self) -> torch.device:
        return self._parts[0][0].device

    def places(
        self,
        n: int,
        exclude: Int64[Tensor, " e"] | None = None,
        admissible: Admissible | None = None,
        by: str = "largest",
        rows: Int64[Tensor, " o"] | None = None,
    ) -> Int64[Tensor, " n"]:
        if self.split is not None:
            own = self._of(self._parts)
            own.split = None
            return self.split(own, n, exclude, admissible, by, rows)
        if self._device.type == "cuda" and rows is None:
            found = importlib.import_module("ash.backends.triton.top").places(self, n, exclude, admissible, by)
            if found is not None:
                return found
        return super().places(n, exclude, admissible, by, rows)

    def _grid(self, size: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        width = self.x.shape[1]
        some, cols = _lines((len(rows), width), size, self.x.device)
        some = rows[some]
        return (self.g[:, some].t() @ self.x[:, cols]).flatten(), (some[:, None] * width + cols).flatten()

    def _blocks(self, rows: Tensor, bar: Callable[[], float]) -> Iterator[Block]:
        return product_blocks(self.g, self.x, rows, bar, BLOCK)


class DenseGradient(Score):
    """The gradient of a weight tensor that is small enough to be held, as hosts that make one hand it over.

    Args:
        gradient: `(*out_shape, *in_shape)`. out_rank: how many of its dimensions are outputs.
    """

    def __init__(self, gradient: Float[Tensor, "..."], out_rank: int):
        sizes = tuple(gradient.shape)
        self.out_shape, self.in_shape = sizes[:out_rank], sizes[out_rank:]
        self.gradient = gradient.detach()

    def __add__(self, other: Score) -> DenseGradient:
        """The sum of two gradients."""
        same_kind(self, other)
        assert isinstance(other, DenseGradient)
        return DenseGradient(self.gradient + other.gradient, len(self.out_shape))

    def scaled(self, by: float) -> DenseGradient:
        return DenseGradient(self.gradient * by, len(self.out_shape))

    def dense(self) -> Float[Tensor, "..."]:
        """The gradient itself."""
        return self.gradient

    def at(self, indices: Int64[Tensor, "n r"]) -> Float[Tensor, " n"]:
        """The gradient at some entries."""
        return self.gradient[tuple(indices.unbind(-1))]

    def is_finite(self) -> bool:
        return _finite(self.gradient)

    @property
    def _device(self) -> torch.device:
        return self.gradient.device

    def _grid(self, size: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        width = math.prod(self.in_shape)
        some, cols = _lines((len(rows), width), size, self.gradient.device)
        ids = (rows[some][:, None] * width + cols).flatten()
        return self.gradient.reshape(-1)[ids], ids

    def _blocks(self, rows: Tensor, bar: Callable[[], float]) -> Iterator[Block]:
        width = math.prod(self.in_shape)
        flat, cols = self.gradient.reshape(-1, width), torch.arange(width, device=self.gradient.device)
        for some in rows.split(max(1, BLOCK // width)):
            for own in cols.split(BLOCK):
                part = flat[some[:, None], own] if len(own) < width else flat[some]
                yield part, partial(names, some * width, own)  # a copy: a search writes to it


def keys(gradients: Float[Tensor, " n"], by: str) -> Float[Tensor, " n"]:
    """What gradients are ordered by, the largest first: `by` as in `Score.top`."""
    return choose("order", by, _KEYS)(gradients.clone())


def same_kind(one: Score, other: Score) -> None:
    """Raise `UserError` unless two scores are of one kind and of the same weight."""
    fits = type(one) is type(other) and (one.out_shape, one.in_shape) == (other.out_shape, other.in_shape)
    require(
        fits,
        f"{type(one).__name__} of a weight {one.out_shape} x {one.in_shape} and {type(other).__name__} of "
        f"{other.out_shape} x {other.in_shape}; expected gradients of one weight, from one host.",
    )


def _finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; one pass, unless the sum overflows."""
    total = float(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())


def lean_sum(before: Score, fresh: Score, decay: float = 1.0) -> Score:
    """decay · before + fresh, held as factors or dense, whichever takes less memory; exact either way.

    To save memory it may write to `before`.
    """
    if isinstance(before, Factors) and isinstance(fresh, Factors):
        total = before.scaled(decay) + fresh
        return total if total.numbers <= math.prod(total.shape) else DenseGradient(total.dense(), len(total.out_shape))
    if isinstance(before, DenseGradient) and isinstance(fresh, Factors):
        flat = before.gradient.view(fresh.g.shape[1], fresh.x.shape[1])
        flat.addmm_(fresh.g.t(), fresh.x, beta=decay)
        return before
    return before.scaled(decay) + fresh


def _nth(score: Tensor, ids: Tensor, place: int, counts: Callable[[Tensor], Tensor] | None) -> float:
    """The score at that place in falling order, of those that count; −∞ where there are fewer."""
    if counts is None:
        return float(score.topk(place).values[-1]) if place <= len(score) else -torch.inf
    for some in (2 * place, len(score)):  # looking up which count is slow: most do
        values, order = score.topk(min(some, len(score)))
        values = values[counts(ids[order])]
        if place <= len(values):
            return float(values[place - 1])
    return -torch.inf


def _lines(sizes: tuple[int, int], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns whose crossings are about `count` entries, spread evenly."""
    share = math.sqrt(min(1.0, count / math.prod(sizes)))
    rows, cols = (torch.linspace(0, n - 1, max(2, round(n * share)), device=device).long().unique() for n in sizes)
    return rows, cols
