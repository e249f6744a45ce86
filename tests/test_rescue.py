"""Rescue: merging, moving and parting, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ash import Codebook, Factors, GaussianWiring, Rescue, Template, UserError

N = 6


def wiring(positions: list[list[float]], values: list[float], scale: float = 0.1) -> GaussianWiring:
    made = GaussianWiring(
        N, N, len(positions), scale=scale, scale_floor=0.05, positions=torch.tensor(positions, dtype=torch.float64)
    )
    with torch.no_grad():
        made.values.copy_(torch.tensor(values))
    return made


def gradient(**entries: float) -> Factors:
    """A gradient that is zero but for entries named r<row>c<column>."""
    dense = torch.zeros(N, N)
    for name, value in entries.items():
        dense[int(name[1]), int(name[3])] = value
    return Factors(torch.eye(N), dense.t())


def test_the_helper_makes_the_gradient_it_says() -> None:
    assert gradient(r1c2=3.0).dense()[1, 2] == 3.0
    assert gradient(r1c2=3.0).dense().abs().sum() == 3.0


def test_two_at_one_entry_become_one_and_the_other_goes_where_the_gradient_is_largest() -> None:
    made = wiring([[1, 1], [1.1, 0.9], [3, 4]], [0.5, 0.7, 1.0])
    before = made.eval()().to_dense()
    report = made.rewire(gradient(r5c0=-2.0, r2c2=1.0, r3c4=9.0))
    assert report.moved.tolist() == [0] and report.merged == 1 and report.moves == 1
    assert made.rounded_indices().tolist() == [[5, 0], [1, 1], [3, 4]]
    assert torch.allclose(made.values.detach(), torch.tensor([0.0, 1.2, 1.0]))
    assert torch.allclose(made().to_dense(), before), "a merger does not change the rounded weight"


def test_an_idle_tuple_moves_and_starts_at_nothing() -> None:
    made = wiring([[0, 0], [2, 2], [4, 4]], [1.0, 0.01, -1.0])
    report = made.rewire(gradient(r3c1=0.5))
    assert report.moved.tolist() == [1] and report.merged == 0
    assert made.rounded_indices()[1].tolist() == [3, 1]
    assert made.values[1] == 0 and float(made.scales()[1].detach()) == pytest.approx(1.0)


def test_a_tuple_between_two_entries_is_set_on_one() -> None:
    made = wiring([[0, 0.4], [2, 2.1], [4, 4]], [1.0, 1.0, 1.0])
    report = made.rewire(gradient(r3c1=0.5))
    assert report.moved.tolist() == [0]
    assert made.tuples().means[0].tolist() == [0.0, 0.0]
    assert made.tuples().means[1].tolist() == pytest.approx([2.0, 2.1])


def test_wide_tuples_are_neither_merged_nor_parted() -> None:
    made = wiring([[1, 1], [1.1, 0.9], [3, 3.4]], [0.5, 0.7, 1.0], scale=2.0)
    assert made.rewire(gradient(r5c0=-2.0)).moves == 0


def test_nothing_to_do_changes_nothing() -> None:
    made = wiring([[0, 0], [2, 2]], [1.0, -1.0])
    kept = {name: value.clone() for name, value in made.state_dict().items()}
    assert made.rewire(gradient(r3c1=0.5)).moves == 0
    assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items())


def test_a_rescue_is_no_optimizer_step() -> None:
    made = wiring([[0, 0], [2, 2]], [1.0, 0.001])
    made.rewire(gradient(r3c1=0.5))
    made.train()()
    assert int(made.step) == 0


def ones(positions: list[list[float]], scales: list[float]) -> GaussianWiring:
    where = torch.tensor(positions, dtype=torch.float64)
    made = GaussianWiring(N, N, len(positions), values="ones", scale_floor=0.05, positions=where)
    with torch.no_grad():
        made.log_scale.copy_(torch.tensor(scales).log().unsqueeze(-1))
    return made


def test_of_two_ones_at_one_entry_the_wider_goes_where_the_loss_asks_for_weight() -> None:
    made = ones([[1, 1], [1.1, 0.9], [3, 4]], [0.1, 0.5, 2.0])
    report = made.rewire(gradient(r1c1=2.0, r3c4=0.9, r5c0=-2.0, r2c2=-1.5), Rescue(most=0.5))
    assert report.moved.tolist() == [1] and report.merged == 0
    assert made.rounded_indices().tolist() == [[1, 1], [5, 0], [3, 4]]
    assert made.scales().flatten().tolist() == pytest.approx([0.1, 1.0, 2.0])


def test_misplaced_ones_leave_their_entry_as_far_as_others_are_wanted() -> None:
    """Two at an entry that wants none, gradient 4, and one alone, 2; one entry is wanted, another hardly."""
    made = ones([[1, 1], [1, 1], [3, 4], [0, 5]], [0.1, 0.1, 2.0, 0.3])
    report = made.rewire(gradient(r1c1=4.0, r3c4=2.0, r5c0=-2.0, r2c2=-0.9), Rescue(most=1.0))
    assert report.moves == 1
    assert sorted(made.rounded_indices().tolist()).count([5, 0]) == 1
    assert made.rounded_indices()[3].tolist() == [0, 5]


def test_nothing_is_moved_while_too_many_ones_are_misplaced() -> None:
    made = ones([[1, 1], [3, 4], [0, 5], [2, 2]], [1.0] * 4)
    score = gradient(r1c1=2.0, r3c4=2.0, r5c0=-2.0, r2c5=-2.0)
    assert made.rewire(score, Rescue(most=0.49)).moves == 0
    assert made.rewire(score, Rescue(most=0.5)).moves == 2
    assert sorted(made.rounded_indices().tolist()) == [[0, 5], [2, 2], [2, 5], [5, 0]]


@pytest.mark.parametrize("option", ["most", "idle", "narrow", "straddle", "scale"])
def test_options_are_checked(option: str) -> None:
    with pytest.raises(UserError, match=option):
        Rescue(**{option: -1.0})


def test_codebooks_and_templates_are_refused() -> None:
    with pytest.raises(UserError, match="learned values, or ones"):
        GaussianWiring(N, N, 3, values=Codebook(2)).rewire(gradient())
    with pytest.raises(UserError, match="template"):
        GaussianWiring(N, N, template=Template.per_output((N,), (N,), 1)).rewire(gradient())


def test_moves_are_found_among_admissible_entries_alone() -> None:
    from ash import SourceBeforeTarget

    made = GaussianWiring(N, N, 2, scale=0.1, admissible=SourceBeforeTarget(N))
    with torch.no_grad():
        made.values.copy_(torch.tensor([1.0, 0.0]))
    made.rewire(gradient(r0c5=9.0, r5c0=1.0))
    entry: Tensor = made.rounded_indices()[1]
    assert bool(made.admissible.contains(entry))
