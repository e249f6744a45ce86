"""How far a batch of sparse tensors is from another: a loss over stored entries, and scores over edges.

Neither holds anything of the size of the tensors: the cost is that of sorting the stored entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ash.checks import positive, require
from ash.sparse_batch import SparseBatch


class EdgeScores(NamedTuple):
    """How many edges are right, over all tensors of a batch together; each from 0 to 1, and 1 of no cases.

    Attributes:
        precision: share of the predicted edges that the target has.
        recall: share of the target's edges that are predicted.
        f1: their harmonic mean, 2 · hits / (predicted + wanted).
        exact: share of the tensors with neither a missed nor a spurious edge.
    """

    precision: float
    recall: float
    f1: float
    exact: float


def sparse_loss(
    prediction: SparseBatch,
    target: SparseBatch,
    *,
    matched: float = 1.0,
    missed: float = 1.0,
    spurious: float = 1.0,
) -> Float[Tensor, ""]:
    """Squared errors over the entries that are stored, per entry of the target and channel.

    Entries at the same position are added up first. Then, with p the prediction and t the target:

        matched · Σ (p − t)²  over positions that both store
        + missed · Σ t²       over those of the target alone
        + spurious · Σ p²     over those of the prediction alone,

    divided by the number of the target's positions (at least 1) and of channels. With equal weights that is the
    squared error of the dense tensors.

    A missed entry gives the prediction no gradient: nothing is stored there that could have one, and a position is
    an integer. It raises the loss all the same, so that losses compare. What moves a prediction's positions is that
    points are sampled around and beyond them in training: a wiring's points that fall on missing entries are matched
    ones, and draw their tuples near; those that fall elsewhere are spurious, and repel them.

    Args:
        prediction, target: batches of the same sizes and channels; gradients reach the values of both.

    Raises `UserError` for batches that differ in sizes or channels, and for weights below 0.
    """
    for name, weight in (("matched", matched), ("missed", missed), ("spurious", spurious)):
        positive(name, weight, zero=True)
    prediction, target = prediction.coalesce(), target.coalesce()
    place, found = _find(prediction, target)
    p, t = _channels(prediction), _channels(target)
    alone = torch.ones(len(t), dtype=torch.bool, device=t.device)
    alone[place[found]] = False
    errors = matched * (p[found] - t[place[found]]).square().sum()
    errors = errors + missed * t[alone].square().sum() + spurious * p[~found].square().sum()
    return errors / (max(1, len(t)) * max(1, t.shape[1]))


def edge_scores(prediction: SparseBatch, target: SparseBatch, threshold: float = 0.5) -> EdgeScores:
    """Precision, recall, F1 and the share of exact tensors; an edge is an entry whose |value| ≥ threshold.

    Entries at the same position are added up first. Give the prediction of a layer in evaluation, where positions
    are rounded. Raises `UserError` for batches that differ in sizes, values with channels, and a threshold that is
    not above 0.
    """
    positive("threshold", threshold)
    given = (prediction.values.dim(), target.values.dim())
    require(given == (1, 1), f"values of {given} dimensions; expected one number for an edge; select a channel.")
    prediction, target = (_edges(batch, threshold) for batch in (prediction, target))
    place, found = _find(prediction, target)
    wrong = torch.zeros(len(target), dtype=torch.bool, device=found.device)
    wrong[prediction.instance[~found]] = True
    hit = torch.zeros(target.entries, dtype=torch.bool, device=found.device)
    hit[place[found]] = True
    wrong[target.instance[~hit]] = True
    hits, predicted, wanted = int(hit.sum()), prediction.entries, target.entries
    right = len(target) - int(wrong.sum())
    return EdgeScores(
        _share(hits, predicted), _share(hits, wanted), _share(2 * hits, predicted + wanted), _share(right, len(target))
    )


def _edges(batch: SparseBatch, threshold: float) -> SparseBatch:
    whole = batch.coalesce()
    return whole.select(whole.values.detach().abs() >= threshold)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _find(prediction: SparseBatch, target: SparseBatch) -> tuple[Int64[Tensor, " n"], Bool[Tensor, " n"]]:
    """Of each entry of a coalesced prediction: where the coalesced target stores its position, and whether it does."""
    require(
        torch.equal(prediction.sizes, target.sizes) and prediction.values.shape[1:] == target.values.shape[1:],
        f"a prediction of {_describe(prediction)}; expected the target's {_describe(target)}.",
    )
    place = torch.searchsorted(target.ids, prediction.ids)
    if not target.entries:
        return place, torch.zeros_like(place, dtype=torch.bool)
    found = target.ids[place.clamp(max=target.entries - 1)] == prediction.ids
    return place, found


def _describe(batch: SparseBatch) -> str:
    sizes, more = batch.sizes[:3].tolist(), ", …" if len(batch) > 3 else ""
    shown = ", ".join(map(str, sizes))
    return f"{len(batch)} tensors of sizes {shown}{more} and channels {tuple(batch.values.shape[1:])}"


def _channels(batch: SparseBatch) -> Float[Tensor, "n c"]:
    return batch.values.unsqueeze(-1).flatten(1)
