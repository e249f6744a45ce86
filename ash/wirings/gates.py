"""`GateWiring`: every entry has a gate between closed and open, learned by backpropagation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ash.checks import choose, positive, require
from ash.memory import at_most, need, numbers
from ash.pattern import CSRPattern, ravel
from ash.sampling import generator_from, new_seed
from ash.template import Admissible
from ash.weight import SparseWeight
from ash.wirings.base import RewireReport, Wiring, entries_from, fan_in_uniform, version

GateInit = float | Tensor | Callable[[Tensor], Tensor]

_VALUES = {"learned": True, "ones": False}


@dataclass(frozen=True)
class SigmoidGate:
    """gate = sigmoid(logit)."""

    half: float = 0.0
    """The logit whose gate is one half."""

    def gate(self, logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The gates in evaluation."""
        return logits.sigmoid()

    def draw(self, logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The gates in training."""
        return self.gate(logits)

    def cost(self, logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """How open each gate is, from 0 up: what a sparsity term adds up."""
        return self.gate(logits)


@dataclass(frozen=True)
class LinearGate(SigmoidGate):
    """gate = logit, without bounds: the ablation."""

    half: float = 0.5

    def gate(self, logits: Tensor) -> Tensor:
        return logits

    def cost(self, logits: Tensor) -> Tensor:
        return logits.abs()


@dataclass(frozen=True)
class HardConcreteGate(SigmoidGate):
    """A random gate that is exactly 0 or exactly 1 with some probability, and deterministic in evaluation.

    Training: clamp(sigmoid((log u − log(1 − u) + logit) / beta)·(zeta − gamma) + gamma, 0, 1) with u uniform, drawn
    once for a forward pass. Evaluation: clamp(sigmoid(logit)·(zeta − gamma) + gamma, 0, 1). `cost` is the probability
    that a gate is not 0, so that their sum is the expected L0 norm.

    Raises `UserError` unless beta > 0 and gamma < 0 < 1 < zeta.

    Source: Louizos, Welling and Kingma, Learning Sparse Neural Networks through L0 Regularization, arXiv 1712.01312,
    section 2.2 and equations 10 to 13.
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        require(
            self.gamma < 0 and self.zeta > 1,
            f"gamma={self.gamma}, zeta={self.zeta}; expected gamma < 0 and zeta > 1, so that gates can close and open.",
        )

    def _stretch(self, soft: Tensor) -> Tensor:
        return (soft * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def gate(self, logits: Tensor) -> Tensor:
        return self._stretch(logits.sigmoid())

    def draw(self, logits: Tensor) -> Tensor:
        generator = generator_from(new_seed(logits.device), logits.device)
        u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        u = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps)
        return self._stretch(((u.log() - (-u).log1p() + logits) / self.beta).sigmoid())

    def cost(self, logits: Tensor) -> Tensor:
        return (logits - self.beta * math.log(-self.gamma / self.zeta)).sigmoid()


_GATES = {"sigmoid": SigmoidGate(), "linear": LinearGate(), "hard_concrete": HardConcreteGate()}


class GateWiring(Wiring):
    """Entries that are weighed by gates: weight = gate, or gate × value.

    Args:
        out_shape, in_shape, admissible: as in `Wiring`.
        k: number of entries, drawn once, or `density`, their share of the admissible ones; by default all of these.
        gate: `"sigmoid"`, `"linear"` (no sigmoid), `"hard_concrete"` or a `HardConcreteGate` with parameters of its
            own.
        values: `"learned"`, or `"ones"`: the gate is the weight, as for the connections of a graph of layers.
        init: the logits at the start: a number, a tensor `(k,)` or of the weight tensor's shape, or a function from
            the entries `(k, r)` to logits `(k,)`. By default every gate is 0.5.
        init_std: standard deviation of normal noise around `init`.
        threshold: in evaluation, entries with |gate| up to this are left out.
        generator: for entries, logits and values; torch's default one otherwise. Draws of a forward pass come from
            the default generator of the device, as dropout's do.

    Attributes:
        indices: `(k, r)` int64 buffer. alive: `(k,)` bool buffer, the entries that no pruning has removed.
        logits: `(k,)` parameter. values: `(k,)` parameter, or a buffer of ones.

    Raises `UserError` for options that do not fit.

    Source: the blog post on 'Differentiable Architecture', layers connected by weights sigmoid(w) (`values="ones"`).
    Departures: a sparsity term (`ash.gate_penalty`), hard-concrete gates, pruning, and gates of any weight tensor.
    """

    indices: Tensor
    alive: Tensor
    values: Tensor
    inference_tensors = ("values", "indices")

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        density: float | None = None,
        gate: str | SigmoidGate = "sigmoid",
        values: str = "learned",
        init: GateInit | None = None,
        init_std: float = 0.0,
        threshold: float = 0.0,
        admissible: Admissible | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(out_shape, in_shape, admissible)
        self.gate = gate if isinstance(gate, SigmoidGate) else choose("gate", gate, _GATES)
        self.learned_values = choose("value scheme", values, _VALUES)
        self.init = self.gate.half if init is None else init
        positive("init_std", init_std, zero=True)
        positive("threshold", threshold, zero=True)
        self.init_std, self.threshold = init_std, threshold
        source = generator_from(new_seed(torch.device("cpu"), generator), torch.device("cpu"))
        every = k is None and density is None
        count = self.admissible.count() if every else entries_from(k, density, self.admissible)
        each = 2 * numbers(dtype) + 8 * (2 * self.rank + 3)
        what = f"GateWiring {self.out_shape} x {self.in_shape} with {count:,} gates"
        need(what, count * each, device, lambda free: f"at most k={at_most(free / each)} would fit")
        self.register_buffer("indices", self.admissible.distinct(count, source).to(device))
        self.register_buffer("alive", torch.ones(count, dtype=torch.bool, device=device))
        self.logits = nn.Parameter(torch.zeros(count, device=device, dtype=dtype))
        ones = torch.ones(count, device=device, dtype=dtype)
        if self.learned_values:
            self.values = nn.Parameter(ones)
        else:
            self.register_buffer("values", ones)
        self._known: tuple[Tensor, Tensor, int, Tensor, Tensor, CSRPattern | None] | None = None
        self.reset_parameters(source)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Logits and values as at the start, every entry alive.

        Values are such that the *weights* are uniform in ±1/√(fan-in), at gates of their mean size.
        """
        self.alive.fill_(True)
        start = self._initial_logits()
        noise = torch.randn(start.shape, generator=generator, dtype=torch.float64) * self.init_std
        self.logits.copy_(start + noise.to(start))
        self.values.fill_(1.0)
        if self.learned_values:
            rows = ravel(self.indices[:, : len(self.out_shape)], self.out_shape)
            size = self.gate.gate(self.logits).abs().mean().clamp(min=0.1)
            self.values.copy_(fan_in_uniform(rows.cpu(), generator).to(size) / size)

    def _initial_logits(self) -> Float[Tensor, " k"]:
        init, k = self.init, len(self.indices)
        if callable(init) and not isinstance(init, Tensor):
            init = init(self.indices)
        start = torch.as_tensor(init, dtype=self.logits.dtype, device=self.logits.device)
        if start.shape == self.shape:
            start = start[tuple(self.indices.unbind(-1))]
        require(
            start.dim() == 0 or tuple(start.shape) == (k,),
            f"initial logits of shape {tuple(start.shape)}; expected a number, ({k},) or {self.shape}.",
        )
        require(bool(torch.isfinite(start).all()), "initial logits that are NaN or infinite; expected finite numbers.")
        return start.expand(k)

    # --- gates -----------------------------------------------------------------------------------------

    def gates(self) -> Float[Tensor, " n"]:
        """The gates in evaluation of the entries that are alive, `entries()`; differentiable."""
        return self.gate.gate(self.logits[self.alive])

    def entries(self) -> Int64[Tensor, "n r"]:
        """The entries that are alive."""
        return self.indices[self.alive]

    def costs(self) -> Float[Tensor, " n"]:
        """How open each gate that is alive is: the gate, |gate| if linear, P(gate ≠ 0) if hard-concrete."""
        return self.gate.cost(self.logits[self.alive])

    @torch.no_grad()
    def prune(self, threshold: float) -> RewireReport:
        """Remove for good the entries with |gate| up to `threshold`; what remains keeps its gate and goes on learning.

        Returns a report whose `moved` are the numbers of the removed entries: their optimizer state can be cleared
        by `ash.clear_state(optimizer, wiring, report.moved)`. Raises `UserError` for a threshold below 0.
        """
        positive("threshold", threshold, zero=True)
        gone = self.alive & (self.gate.gate(self.logits).abs() <= threshold)
        self.alive &= ~gone
        return RewireReport(moved=gone.nonzero().squeeze(-1))

    # --- the weight ------------------------------------------------------------------------------------

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        """The entries that are alive in training, at gates that are drawn where they are random; see `rounded`."""
        return self._weight(self.alive, self.gate.draw) if self.training else self.rounded()

    def rounded(self) -> SparseWeight:
        """The weight in evaluation: deterministic gates, those up to the threshold left out."""
        return self._weight(self._open(), self.gate.gate)

    def _open(self) -> Bool[Tensor, " k"]:
        """The entries of the evaluated weight."""
        with torch.no_grad():
            return self.alive & (self.gate.gate(self.logits).abs() > self.threshold)

    def _weight(self, kept: Bool[Tensor, " k"], gate: Callable[[Tensor], Tensor]) -> SparseWeight:
        """The kept entries; their numbers and their CSR structure stay known as long as they are the same."""
        known = self._known
        key = (self.indices, version(self.indices))
        if known is None or known[1] is not key[0] or known[2] != key[1] or not torch.equal(known[0], kept):
            with torch.inference_mode(False):  # what is known serves training too
                numbers = kept.clone().nonzero().squeeze(-1)
                known = (kept.clone(), *key, numbers, self.indices[numbers], None)
        _, _, _, numbers, indices, pattern = known
        whole = len(numbers) == len(kept)
        logits, values = (t if whole else t[numbers] for t in (self.logits, self.values))
        weighed = gate(logits) * values if self.learned_values else gate(logits)
        weight = SparseWeight(indices, weighed, self.out_shape, self.in_shape, pattern)
        self._known = (*known[:5], weight.pattern)
        return weight

    def stored_entries(self) -> int:
        return int(self._open().sum())

    @torch.no_grad()
    def load_dense(self, weight: Tensor) -> None:
        """Take values at which the evaluated weight is a dense tensor's; those of closed gates take it as it is.

        Raises `UserError` for a tensor of another shape, and where the values are ones.
        """
        if not self.learned_values:
            return super().load_dense(weight)
        require(weight.shape == self.shape, f"a weight of shape {tuple(weight.shape)}; expected {self.shape}.")
        found = weight[tuple(self.indices.to(weight.device).unbind(-1))].to(self.values)
        gates = self.gate.gate(self.logits)
        self.values.copy_(torch.where(gates == 0, found, found / torch.where(gates == 0, 1.0, gates)))
        return None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gate={self.gate!r}, gates={int(self.alive.sum())}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}
