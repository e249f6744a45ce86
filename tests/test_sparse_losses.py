"""The loss and the scores of sparse outputs, against their dense formulas and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ash import EdgeScores, SparseBatch, UserError, edge_scores, sparse_loss


def graph(*edges: tuple[int, int, float], nodes: int = 3) -> SparseBatch:
    indices = torch.tensor([edge[:2] for edge in edges], dtype=torch.int64).reshape(-1, 2)
    return SparseBatch.from_entries([indices], [torch.tensor([e[2] for e in edges]).float()], [(nodes, nodes)])


def draw(generator: torch.Generator, entries: int, channels: tuple[int, ...] = ()) -> SparseBatch:
    """Entries of three graphs of 2, 3 and 4 nodes; some lie at the same position."""
    sizes = torch.tensor([[2, 2], [3, 3], [4, 4]])
    instance = torch.randint(3, (entries,), generator=generator).sort().values
    indices = (torch.rand(entries, 2, generator=generator) * sizes[instance]).long()
    values = torch.randn(entries, *channels, generator=generator, dtype=torch.float64)
    return SparseBatch(instance, indices, values, sizes)


def stored(batch: SparseBatch) -> torch.Tensor:
    """Which positions of the dense tensors are stored."""
    return batch.with_values(torch.ones(batch.entries)).to_dense() > 0


def dense_loss(p: SparseBatch, t: SparseBatch, weights: tuple[float, float, float]) -> torch.Tensor:
    both, errors = (stored(p), stored(t)), (p.to_dense() - t.to_dense()).square()
    errors = errors.unsqueeze(-1).flatten(3).mean(-1)
    masks = (both[0] & both[1], both[1] & ~both[0], both[0] & ~both[1])
    total = sum(weight * errors[mask].sum() for weight, mask in zip(weights, masks, strict=True))
    return total / max(1, int(both[1].sum()))


def test_a_loss_by_hand():
    target = graph((0, 1, 1.0), (1, 2, 2.0))
    prediction = graph((0, 1, 0.25), (0, 1, 0.25), (2, 0, 3.0))
    # matched 0.5² at (0, 1); missed 2² at (1, 2); spurious 3² at (2, 0); over two entries of the target
    assert sparse_loss(prediction, target).item() == (0.25 + 4 + 9) / 2
    assert sparse_loss(prediction, target, matched=2.0, missed=0.5, spurious=0.0).item() == (0.5 + 2) / 2
    assert sparse_loss(target, target).item() == 0


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 12), st.integers(0, 12), st.sampled_from([(), (2,), (2, 3)]))
def test_the_loss_is_the_dense_one(seed: int, n: int, m: int, channels: tuple[int, ...]):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = draw(generator, n, channels), draw(generator, m, channels)
    weights = (1.5, 0.5, 2.0)
    found = sparse_loss(prediction, target, matched=1.5, missed=0.5, spurious=2.0)
    torch.testing.assert_close(found, dense_loss(prediction, target, weights).to(found.dtype))


@pytest.mark.parametrize("channels", [(), (2,)])
def test_gradients(channels: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    prediction, target = draw(generator, 9, channels), draw(generator, 7, channels)

    def loss(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sparse_loss(prediction.with_values(p), target.with_values(t), matched=1.5, spurious=0.5)

    assert gradcheck(loss, [batch.values.clone().requires_grad_() for batch in (prediction, target)])


def test_a_missed_entry_gives_the_prediction_no_gradient_and_a_point_on_it_does():
    target, values = graph((0, 1, 1.0)), torch.zeros(1, requires_grad=True)
    sparse_loss(graph((2, 2, 0.0)).with_values(values), target).backward()
    assert values.grad.tolist() == [0]
    sparse_loss(graph((0, 1, 0.0)).with_values(values), target).backward()
    assert values.grad.tolist() == [-2]


def test_graphs_without_edges_have_a_loss_and_scores():
    nothing = graph()
    assert sparse_loss(nothing, nothing).item() == 0
    assert sparse_loss(graph((0, 0, 2.0)), nothing).item() == 4
    assert sparse_loss(nothing, graph((0, 0, 2.0))).item() == 4
    assert edge_scores(nothing, nothing) == (1, 1, 1, 1)
    assert edge_scores(graph((0, 0, 1.0)), nothing) == (0, 1, 0, 0)
    assert edge_scores(nothing, graph((0, 0, 1.0))) == (1, 0, 0, 0)


def test_no_graph_at_all():
    empty = SparseBatch(torch.zeros(0).long(), torch.zeros(0, 2).long(), torch.zeros(0), torch.zeros(0, 2).long())
    assert sparse_loss(empty, empty).item() == 0
    assert edge_scores(empty, empty) == (1, 1, 1, 1)


def test_scores_by_hand():
    first = graph((0, 1, 1.0), (1, 2, 1.0), (2, 0, -1.0))
    second = graph((1, 1, 1.0), nodes=2)
    # Of the first graph's three edges one is found in two halves, one by a negative value; (1, 2) is missed and
    # (0, 0) spurious; (2, 2) is too small to be an edge.
    guess = graph((0, 1, 0.25), (2, 0, -0.75), (0, 0, 0.5), (2, 2, 0.4), (0, 1, 0.25))
    scores = edge_scores(SparseBatch.cat([guess, second]), SparseBatch.cat([first, second]))
    assert scores == EdgeScores(precision=3 / 4, recall=3 / 4, f1=3 / 4, exact=1 / 2)
    assert edge_scores(guess, first, threshold=0.3).precision == 2 / 4


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 12), st.integers(0, 12))
def test_the_scores_are_the_dense_ones(seed: int, n: int, m: int):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = draw(generator, n), draw(generator, m)
    p, t = (batch.to_dense().abs() >= 0.5 for batch in (prediction, target))
    hits, wrong = int((p & t).sum()), (p != t).flatten(1).any(1)
    scores = edge_scores(prediction, target)
    assert scores.precision == (hits / int(p.sum()) if p.any() else 1)
    assert scores.recall == (hits / int(t.sum()) if t.any() else 1)
    assert scores.f1 == (2 * hits / int(p.sum() + t.sum()) if (p | t).any() else 1)
    assert scores.exact == pytest.approx(1 - float(wrong.double().mean()))


def test_an_error_in_one_of_two_graphs_leaves_the_other_exact():
    right, left = graph((0, 1, 1.0)), graph((1, 0, 1.0))
    one, other = SparseBatch.cat([right, left]), SparseBatch.cat([right, right])
    assert edge_scores(one, other).exact == 0.5


@pytest.mark.parametrize("judge", [sparse_loss, edge_scores])
def test_batches_that_do_not_fit_are_refused(judge):
    with pytest.raises(UserError, match=r"1 tensors of sizes \[3, 3\].*expected the target's 1 tensors of sizes \[2"):
        judge(graph((0, 1, 1.0)), graph((0, 1, 1.0), nodes=2))
    one, wide = graph((0, 1, 1.0)), graph((0, 1, 1.0)).with_values(torch.ones(1, 2))
    with pytest.raises(UserError, match=r"channels \(2,\)|dimensions"):
        judge(wide, one)


def test_weights_and_thresholds_that_do_not_serve_are_refused():
    with pytest.raises(UserError, match="spurious=-1"):
        sparse_loss(graph(), graph(), spurious=-1.0)
    with pytest.raises(UserError, match="threshold=0"):
        edge_scores(graph(), graph(), threshold=0.0)
