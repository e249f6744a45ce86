"""`Search`: where the next batch's points look for better entries, told by the last batch's gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash.growth import Score
from ash.pattern import ravel
from ash.sampling import Sampling
from ash.template import Admissible, Template


class Search(nn.Module):
    """Proposals from the gradient of the whole weight tensor, and the points that each tuple keeps.

    What a backward pass finds counts from `settle` on, together with the parameters' step and not before:
    activation checkpointing draws the points of a batch again in the midst of its backward pass.

    Args:
        k: number of tuples; 0 where there is nothing to remember (points per instance).
        template: the fixed columns.
        shape: the weight tensor's.
        plan: how many guided and kept points a tuple has.

    Attributes:
        proposals: `(k · guided_samples, r)` int64, the first `count` in use.
        kept: `(k, kept_samples, q)` int64, −1 where nothing is kept yet.
    """

    proposals: Tensor
    count: Tensor
    kept: Tensor

    def __init__(
        self,
        k: int,
        template: Template,
        shape: tuple[int, ...],
        plan: Sampling,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.template, self.shape = template, shape
        kept = (k, plan.kept_samples, len(template.learned))
        proposals = torch.zeros(k * plan.guided_samples, len(shape), dtype=torch.int64, device=device)
        self.register_buffer("proposals", proposals)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("kept", torch.full(kept, -1, dtype=torch.int64, device=device))
        self._score: Score | None = None
        self._found: Tensor | None = None

    @property
    def guides(self) -> bool:
        """Whether there is room for proposals."""
        return len(self.proposals) > 0

    @property
    def keeps(self) -> bool:
        """Whether there is room for points to keep."""
        return self.kept.numel() > 0

    def reset(self) -> None:
        """Forget everything."""
        self.proposals.zero_()
        self.count.zero_()
        self.kept.fill_(-1)
        self._score = self._found = None

    def observe(self, score: Score) -> None:
        """Note the gradient whose largest entries are to become the proposals."""
        self._score = score

    @torch.no_grad()
    def propose(self, entries: Int64[Tensor, "g r"]) -> None:
        """Take up proposals that were found in another way, at once; as many as there is room for."""
        entries = entries[: len(self.proposals)]
        self.proposals[: len(entries)] = entries
        self.count.fill_(len(entries))

    def keep(self, which: Int64[Tensor, " j"], points: Int64[Tensor, "j m q"], wanted: Float[Tensor, "j m"]) -> None:
        """Note the points of the tuples `which` where `wanted` is largest."""
        best = wanted.topk(self.kept.shape[1], dim=-1).indices.unsqueeze(-1)
        if self._found is None:
            self._found = self.kept.clone()
        self._found[which] = points.gather(-2, best.expand(-1, -1, points.shape[-1]))

    def settle(self, admissible: Admissible, by: str) -> None:
        """Take up what was noted; `by` is the order of `Score.top`."""
        if self._score is not None:
            indices, _ = self._score.top(len(self.proposals), admissible=admissible, by=by)
            self.proposals[: len(indices)] = indices
            self.count.fill_(len(indices))
        if self._found is not None:
            self.kept.copy_(self._found)
        self._score = self._found = None

    def guided(self, fixed: Int64[Tensor, "j f"]) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Proposals in the learned columns and, where columns are fixed, which of them suit which tuples."""
        if not self.guides:
            return None, None
        entries, columns = self.proposals[: int(self.count)], list(self.template.columns)
        sizes = [self.shape[c] for c in columns]
        groups = (ravel(entries[:, columns], sizes), ravel(fixed, sizes)) if columns else None
        return entries[:, list(self.template.learned)], groups
