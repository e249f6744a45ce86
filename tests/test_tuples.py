"""Index tuples: precision of the means, rounding, shapes."""

import pytest
import torch
from jaxtyping import TypeCheckError

from ash import IndexTuples, UserError


def make(means: list[list[float]], scale: float = 1.0, dtype: torch.dtype = torch.float32) -> IndexTuples:
    where = torch.tensor(means, dtype=torch.float64)
    return IndexTuples.from_means(where.to(dtype), torch.full((len(means), 1), scale), torch.ones(len(means)))


def test_from_means_splits_into_nearest_anchor_and_residual() -> None:
    tuples = make([[2.25, 3.75], [0.0, 9.5]])
    assert tuples.anchors.tolist() == [[2, 4], [0, 10]]
    assert tuples.residuals.tolist() == [[0.25, -0.25], [0.0, -0.5]]
    assert tuples.means.tolist() == [[2.25, 3.75], [0.0, 9.5]]
    assert tuples.k == 2


def test_gradients_reach_the_means_through_the_residuals() -> None:
    means = torch.tensor([[1.2, 3.4]], requires_grad=True)
    IndexTuples.from_means(means, torch.ones(1, 1), torch.ones(1)).residuals.sum().backward()
    assert means.grad is not None
    assert means.grad.tolist() == [[1.0, 1.0]]


def test_a_mean_keeps_its_precision_at_large_positions() -> None:
    tuples = IndexTuples(torch.tensor([[10_000_019]]), torch.tensor([[0.125001]]), torch.ones(1, 1), torch.ones(1))
    assert tuples.means.item() == pytest.approx(10_000_019.125001, abs=1e-7)
    assert tuples.rounded((2**30,)).item() == 10_000_019


def test_rounded_is_nearest_and_inside_the_tensor() -> None:
    tuples = make([[-3.0, 1.4], [7.0, 4.6], [2.6, 9.0]])
    assert tuples.rounded((6, 5)).tolist() == [[0, 1], [5, 4], [3, 4]]


def test_rounded_knows_an_anchor_that_is_not_the_nearest() -> None:
    tuples = IndexTuples(torch.tensor([[3]]), torch.tensor([[2.7]]), torch.ones(1, 1), torch.ones(1))
    assert tuples.rounded((10,)).item() == 6


def test_rounded_without_learned_columns() -> None:
    tuples = IndexTuples(torch.zeros(4, 0, dtype=torch.int64), torch.zeros(4, 0), torch.ones(4, 1), torch.ones(4))
    assert tuples.rounded(()).shape == (4, 0)
    assert tuples.rounded(()).dtype == torch.int64


@pytest.mark.parametrize("batch", [(), (3,)])
def test_take_picks_the_same_tuples_for_every_instance(batch: tuple[int, ...]) -> None:
    tuples = IndexTuples.from_means(torch.rand(*batch, 5, 2) * 9, torch.rand(*batch, 5, 1), torch.randn(*batch, 5))
    some = tuples.take(torch.tensor([4, 1]))
    for name in ("anchors", "residuals", "scales"):
        assert torch.equal(getattr(some, name), getattr(tuples, name)[..., [4, 1], :])
    assert torch.equal(some.values, tuples.values[..., [4, 1]])


def test_scales_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"scales of shape \(4, 2\) for 3 learned columns"):
        IndexTuples.from_means(torch.rand(4, 3), torch.ones(4, 2), torch.ones(4))


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises((UserError, TypeCheckError), match="do not fit|values"):  # the live shape check comes first
        IndexTuples.from_means(torch.rand(4, 3), torch.ones(4, 1), torch.ones(5))
