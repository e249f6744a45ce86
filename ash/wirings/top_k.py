"""`TopKWiring`: the k largest weights of a dense candidate tensor exist (DNW), and its relatives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ash.checks import require
from ash.memory import at_most, need, numbers
from ash.pattern import CSRPattern, unravel
from ash.sampling import generator_from, new_seed
from ash.schedules import Schedule, at
from ash.template import Admissible
from ash.weight import SparseWeight
from ash.wirings.base import Wiring, entries_from, version
from ash.wirings.choice import NEAR, TopKBudget, equal_shares, largest, largest_per_group


class TopKWiring(Wiring):
    """Discovering neural wirings: every step the entries are the k largest |w| among dense candidates.

    The forward pass and the input's gradient use these entries only; *every* candidate receives the gradient that
    it would have in a dense layer ("to but not through"), so that it may grow until it is chosen.

    Args:
        out_shape, in_shape, admissible: as in `Wiring`. Inadmissible entries never compete, and get no gradient.
        k: number of entries, or `density`: their share of the admissible ones (default 0.1), a number or a schedule
            of the step, which `advance` tells.
        budget: a `TopKBudget` that several wirings share, instead of k and density.
        per_output: as many entries for every output, as far as they are admissible (`regular` in DNW's code).
        n_of_m: (n, m): the n largest of every m consecutive inputs of an output, instead of k and density. The
            inputs, flattened, must be a multiple of m.
        update: False gives gradient to the entries in use only ("DNW without the update"). With a density schedule
            `Anneal(1, density, steps, "cubic")` that is gradual magnitude pruning.
        dropout: targeted dropout: in training, of the entries that are not chosen this share is dropped at random
            and the rest takes part; in evaluation none of them does. Gradient reaches those that take part.
        generator: for the initial candidates, on the CPU; torch's default one otherwise.

    Attributes:
        candidate: `(*out_shape, *in_shape)` parameter. frozen, mask: whether the choice is kept, and the choice then.

    Raises `UserError` for options that do not fit.

    Sources: Wortsman et al. 2019 (arXiv 1906.00586), section 3; Gomez et al. 2019 (targeted dropout); Zhu and Gupta
    2017 (gradual pruning); Mishra et al. 2021 (N:M). Departures: candidates that no use can be made of do not
    compete; targeted dropout keeps signs and drops an exact count, not each weight by its own toss; the initial
    candidates are uniform in ±b with one b for the whole tensor, such that those chosen have the variance of a
    sparse layer's initial values.
    """

    candidate: nn.Parameter
    usable: Tensor | None
    frozen: Tensor
    mask: Tensor
    step: Tensor
    seed: Tensor
    inference_tensors = ()

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        density: float | Schedule | None = None,
        budget: TopKBudget | None = None,
        per_output: bool = False,
        n_of_m: tuple[int, int] | None = None,
        update: bool = True,
        dropout: float | None = None,
        admissible: Admissible | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(out_shape, in_shape, admissible)
        self.budget, self.per_output, self.n_of_m = budget, per_output, n_of_m
        self.dropout, self.update = dropout, update and dropout is None
        self._given_k, self.density = k, density
        self._check_options()
        self._check_memory(device, dtype)
        self.candidate = nn.Parameter(torch.empty(self.shape, device=device, dtype=dtype))
        usable = None if self.admissible.everything else self._usable().to(device)
        self.register_buffer("usable", usable, persistent=False)
        self._register_state(device)
        if budget is not None:
            budget.join(self)
        self.reset_parameters(generator)

    def _check_options(self) -> None:
        ways = {"k": self._given_k, "density": self.density, "budget": self.budget, "n_of_m": self.n_of_m}
        given = [name for name, value in ways.items() if value is not None]
        require(len(given) <= 1, f"{' and '.join(given)} are given; give one of them.")
        grouped = self.per_output and (self.budget is not None or self.n_of_m is not None)
        require(not grouped, "per_output with a budget or n_of_m; expected one of them.")
        p = self.dropout
        require(p is None or 0 <= p <= 1, f"dropout={p}; expected a share from 0 to 1.")
        inputs = math.prod(self.in_shape)
        if self.n_of_m is not None:
            n, m = self.n_of_m
            require(1 <= n <= m, f"n_of_m={self.n_of_m}; expected (n, m) with 1 <= n <= m.")
            require(inputs % m == 0, f"n_of_m={self.n_of_m} for {inputs} inputs; expected a multiple of {m}.")
        elif self.budget is None:
            k, total = self._count_at(0), self.admissible.count()
            require(k <= total, f"k={k} of {total} admissible entries; ask for at most {total}.")

    def _check_memory(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Candidates and mask; where some entries may not exist, a list of all positions besides."""
        each = numbers(dtype) + 1 + (0 if self.admissible.everything else 8 * (self.rank + 2))
        what = f"TopKWiring {self.out_shape} x {self.in_shape}, whose candidates are dense,"
        need(what, math.prod(self.shape) * each, device, lambda free: (
            f"a weight of {at_most(free / each)} positions would fit, or a wiring whose memory follows its entries: "
            "RigLWiring, GaussianWiring"))  # fmt: skip

    def _usable(self) -> Bool[Tensor, "..."]:
        ids = torch.arange(math.prod(self.shape))
        return self.admissible.contains(unravel(ids, self.shape)).reshape(self.shape)

    def _register_state(self, device: torch.device | str | None) -> None:
        flag = torch.zeros((), dtype=torch.bool, device=device)
        self.register_buffer("frozen", flag)
        self.register_buffer("mask", torch.zeros(self.shape, dtype=torch.bool, device=device))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))
        self._bar: float | None = None
        self._kept: tuple[Tensor, Tensor, CSRPattern] | None = None
        self._masked: tuple[Tensor, int, Tensor] | None = None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the candidates anew and give up a choice that was kept."""
        self.seed.fill_(new_seed(torch.device("cpu"), generator))
        for buffer in (self.frozen, self.mask, self.step):
            buffer.zero_()
        self.rewind()

    @torch.no_grad()
    def rewind(self) -> None:
        """Give the candidates their initial values again; a frozen choice stays (the one-shot lottery).

        These are the values of the last `reset_parameters`. For others, say those of a layer that was converted,
        use `load_dense`.
        """
        source = generator_from(int(self.seed), torch.device("cpu"))
        density = self._first_density()
        fan_in = max(1.0, self.admissible.count() / math.prod(self.out_shape))
        bound = 1 / math.sqrt(fan_in * (1 - (1 - density) ** 3))
        drawn = (2 * torch.rand(self.shape, generator=source) - 1) * bound
        self.candidate.copy_(drawn if self.usable is None else drawn.to(self.usable.device) * self.usable)

    def _first_density(self) -> float:
        """The share of the admissible entries that exist at the start."""
        if self.n_of_m is not None:
            return self.n_of_m[0] / self.n_of_m[1]
        if self.budget is not None:
            return at(self.budget.density, 0)
        return self._count_at(0) / self.admissible.count()

    # --- the choice ----------------------------------------------------------------------------------

    def advance(self, step: int) -> None:
        """`step` optimizer steps are done: what a density schedule goes by."""
        self.step.fill_(step)

    def _count_at(self, step: int) -> int:
        density = self.density
        return entries_from(self._given_k, at(density, step) if callable(density) else density, self.admissible)

    @property
    def k(self) -> int:
        """How many entries exist now."""
        if self.budget is not None or self.n_of_m is not None or bool(self.frozen):
            return len(self.chosen())
        return self._count_at(int(self.step) if callable(self.density) else 0)

    def stored_entries(self) -> int:
        return self.k

    @torch.no_grad()
    def scores(self) -> Float[Tensor, " n"]:
        """|w| of every candidate, flattened; −∞ where no entry may exist."""
        score = self.candidate.detach().abs()
        if self.usable is not None:
            score.masked_fill_(~self.usable, -torch.inf)
        return score.flatten()

    @torch.no_grad()
    def chosen(self) -> Int64[Tensor, " n"]:
        """Flattened positions of the entries, ascending."""
        with torch.inference_mode(False):
            if bool(self.frozen):
                return self._from_mask()
            if self.budget is not None:
                return self.budget.chosen(self)
            if self.per_output or self.n_of_m is not None:
                return self._chosen_per_group()
            places, border = largest(self.scores(), self.k, self._bar)
            self._bar = NEAR * border
            return places

    def _chosen_per_group(self) -> Int64[Tensor, " n"]:
        width = math.prod(self.in_shape) if self.n_of_m is None else self.n_of_m[1]
        score = self.scores().reshape(-1, width)
        most = (score > -torch.inf).sum(1)
        counts = equal_shares(self.k, most) if self.n_of_m is None else most.clamp(max=self.n_of_m[0])
        return largest_per_group(score, counts)

    def _from_mask(self) -> Int64[Tensor, " n"]:
        key = (self.mask, version(self.mask))
        if self._masked is None or self._masked[0] is not key[0] or self._masked[1] != key[1]:
            self._masked = (*key, self.mask.flatten().nonzero().squeeze(-1))
        return self._masked[2]

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep the present choice for good; from now on only its values learn (fine-tuning)."""
        places = self.chosen()
        self.mask.zero_().view(-1)[places] = True
        self.frozen.fill_(True)

    # --- one draw ------------------------------------------------------------------------------------

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        """The chosen entries; with targeted dropout, in training, some of the others besides."""
        if self.dropout is not None and self.training and not bool(self.frozen):
            places = self._thinned(self.chosen(), self.dropout)
            indices = unravel(places, self.shape)
            return SparseWeight(indices, self._at(places), self.out_shape, self.in_shape)
        return self.rounded()

    def rounded(self) -> SparseWeight:
        """The chosen entries, as in evaluation; their CSR structure is kept until the choice changes."""
        places = self.chosen()
        with torch.inference_mode(False):
            if self._kept is None or not torch.equal(self._kept[0], places):
                self._kept = self._structure(places)
        _, indices, pattern = self._kept
        if not self.update or bool(self.frozen):
            return SparseWeight(indices, self._at(places), self.out_shape, self.in_shape, pattern)
        candidate = self.candidate if self.usable is None else self.candidate * self.usable
        values = self._at(places).detach()
        return SparseWeight(indices, values, self.out_shape, self.in_shape, pattern, candidate)

    def _structure(self, places: Tensor) -> tuple[Tensor, Tensor, CSRPattern]:
        inputs = math.prod(self.in_shape)
        rows = places.div(inputs, rounding_mode="floor")
        pattern = CSRPattern(rows, places - rows * inputs, (math.prod(self.out_shape), inputs))
        return places, unravel(places, self.shape), pattern

    def _at(self, places: Tensor) -> Tensor:
        return self.candidate.flatten().index_select(0, places)

    @torch.no_grad()
    def _thinned(self, places: Tensor, p: float) -> Int64[Tensor, " n"]:
        """The chosen entries and those of the others that are not dropped."""
        with torch.inference_mode(False):
            device = self.candidate.device
            keep = torch.ones(self.shape, dtype=torch.bool, device=device) if self.usable is None else self.usable
            rest = keep.flatten().clone()
            rest[places] = False
            others = rest.nonzero().squeeze(-1)
            order = torch.randperm(len(others), generator=generator_from(new_seed(device), device), device=device)
            rest[others[order[: round(p * len(others))]]] = False
            rest[places] = True
            return rest.nonzero().squeeze(-1)

    @property
    def values(self) -> Tensor:
        """Values of the entries, `(n,)`, a copy."""
        return self._at(self.chosen())

    @torch.no_grad()
    def load_dense(self, weight: Tensor) -> None:
        """Take all candidates from a dense tensor of the same shape: what exists are its largest entries."""
        require(weight.shape == self.shape, f"a weight of shape {tuple(weight.shape)}; expected {self.shape}.")
        self.candidate.copy_(weight if self.usable is None else weight.to(self.usable.device) * self.usable)

    def extra_repr(self) -> str:
        ways = {"per_output": self.per_output, "n_of_m": self.n_of_m, "budget": self.budget, "dropout": self.dropout}
        own = [f"{name}={value!r}" for name, value in ways.items() if value not in (None, False)]
        own += [] if self.update or self.dropout is not None else ["update=False"]
        return ", ".join([super().extra_repr(), *own])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None, "_masked": None}
