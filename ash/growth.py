"""Scores: the gradient of a loss by a weight tensor, in factors or dense, and its largest entries."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ash.checks import choose, positive, require
from ash.pattern import ravel, unravel
from ash.template import Admissible

BLOCK = 1 << 18
"""Entries of the gradient computed at a time."""

GRID = 1 << 17
"""Entries from which the height of the n-th is guessed."""

Key = Callable[[Tensor], Tensor]
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
    def _grid(self, size: int) -> tuple[Float[Tensor, " s"], Int64[Tensor, " s"]]:
        """Required. About so many entries, spread over rows and columns: (gradients, flattened positions)."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Required. (first flattened position, some of the gradient from there on), all of it once, in order."""

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
        positive("n", n)
        key = choose("order", by, _KEYS)
        gone = None if exclude is None else _ascending(exclude)
        search = partial(self._search, n, key, gone, admissible)
        ids = search(self._guess(n, key, gone, admissible))
        indices = unravel(ids if len(ids) == n else search(-torch.inf), self.shape)
        return indices, self.at(indices)

    def _search(
        self, n: int, key: Key, gone: Tensor | None, admissible: Admissible | None, bar: float
    ) -> Int64[Tensor, " n"]:
        """Flattened positions of the n entries that come first among those above the bar, in falling order."""
        best: list[Tensor] = []
        ids: list[Tensor] = []
        for start, block in self.blocks():
            score = self._barred(key(block).flatten(), start, gone, admissible)
            found = (score > bar).nonzero().squeeze(-1)
            best.append(score[found])
            ids.append(found.add_(start))
            if sum(map(len, best)) > 2 * n + BLOCK:
                best, ids = _first(best, ids, n)
                bar = float(best[0][-1])
        return _first(best, ids, n)[1][0]

    def _guess(self, n: int, key: Key, gone: Tensor | None, admissible: Admissible | None) -> float:
        """A bar that a little more than n entries should pass, from a grid of some of them; −∞ for small tensors."""
        total = math.prod(self.shape)
        if total <= 4 * BLOCK:
            return -torch.inf
        score, ids = self._grid(GRID)
        score = key(score)
        if gone is not None:
            score[_among(ids, gone)] = -torch.inf
        if admissible is not None and not admissible.everything:
            score[~admissible.contains(unravel(ids, self.shape))] = -torch.inf
        expected = n * len(score) / total
        place = math.ceil(expected + 3 * math.sqrt(expected) + 8)
        return float(score.topk(place).values[-1]) if place <= len(score) else -torch.inf

    def _barred(self, score: Tensor, start: int, gone: Tensor | None, admissible: Admissible | None) -> Tensor:
        """One block of scores, without the entries that do not count."""
        if gone is not None:
            low, high = torch.searchsorted(gone, torch.tensor([start, start + len(score)], device=gone.device))
            score[gone[int(low) : int(high)] - start] = -torch.inf
        if admissible is not None and not admissible.everything:
            ids = torch.arange(start, start + len(score), device=score.device)
            score[~admissible.contains(unravel(ids, self.shape))] = -torch.inf
        return score


class Factors(Score):
    """The gradient of a loss by a weight tensor, dL/dW = Σ_b g_b ⊗ x_b, without the tensor.

    Args:
        x: `(b, *in_shape)`, inputs.
        g: `(b, *out_shape)`, gradients of the loss by the outputs.
    """

    def __init__(self, x: Float[Tensor, " b *in_shape"], g: Float[Tensor, " b *out_shape"]):
        require(x.shape[0] == g.shape[0], f"{x.shape[0]} inputs and {g.shape[0]} gradients; expected as many.")
        self.in_shape, self.out_shape = tuple(x.shape[1:]), tuple(g.shape[1:])
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
        """The gradient itself, `(*out_shape, *in_shape)`."""
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

    def _grid(self, size: int) -> tuple[Tensor, Tensor]:
        rows, cols = _lines((self.g.shape[1], self.x.shape[1]), size, self.x.device)
        score = self.g[:, rows].t() @ self.x[:, cols]
        return score.flatten(), (rows[:, None] * self.x.shape[1] + cols).flatten()

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        width = self.x.shape[1]
        step = max(1, BLOCK // max(1, width))
        gt = self.g.t()
        for row in range(0, gt.shape[0], step):
            rows = gt[row : row + step]
            if width <= BLOCK:
                yield row * width, rows @ self.x
                continue
            for col in range(0, width, BLOCK):
                yield row * width + col, rows @ self.x[:, col : col + BLOCK]


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

    def _grid(self, size: int) -> tuple[Tensor, Tensor]:
        height, width = math.prod(self.out_shape), math.prod(self.in_shape)
        rows, cols = _lines((height, width), size, self.gradient.device)
        ids = (rows[:, None] * width + cols).flatten()
        return self.gradient.reshape(-1)[ids], ids

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        for number, block in enumerate(self.gradient.flatten().split(BLOCK)):
            yield number * BLOCK, block.clone()  # a search writes to it


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


def _first(best: list[Tensor], ids: list[Tensor], n: int) -> tuple[list[Tensor], list[Tensor]]:
    """Of scores and positions in pieces the n that come first, in one piece, in falling order."""
    scores = torch.cat(best)
    values, order = torch.topk(scores, min(n, len(scores)))
    return [values], [torch.cat(ids)[order]]


def _ascending(ids: Int64[Tensor, " n"]) -> Int64[Tensor, " m"]:
    """The ids in order, each once; those that are come back as they are."""
    return ids if bool((ids[1:] > ids[:-1]).all()) else ids.unique()


def _among(ids: Int64[Tensor, " n"], some: Int64[Tensor, " m"]) -> Bool[Tensor, " n"]:
    """Which ids are among some that ascend."""
    if not len(some):
        return torch.zeros_like(ids, dtype=torch.bool)
    return some[torch.searchsorted(some, ids).clamp_(max=len(some) - 1)] == ids


def _lines(sizes: tuple[int, int], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns whose crossings are about `count` entries, spread evenly."""
    share = math.sqrt(min(1.0, count / math.prod(sizes)))
    rows, cols = (torch.linspace(0, n - 1, max(2, round(n * share)), device=device).long().unique() for n in sizes)
    return rows, cols
