"""`ash.diagnose`: wirings whose idle tuples are known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ash import (
    GaussianWiring,
    Mask,
    Sampling,
    SparseLinear,
    SparseWeight,
    StaticWiring,
    Template,
    UserError,
    Wiring,
)
from ash.diagnose import LayerDiagnosis, diagnose

POSITIONS = [[1.0, 1.0], [1.2, 0.9], [5.0, 5.0], [3.0, 3.0]]


def gaussian(
    scale: float = 1.0, positions: object = POSITIONS, kernel: str = "gaussian", **given: object
) -> GaussianWiring:
    means = torch.as_tensor(positions)
    return GaussianWiring(
        8, 8, k=len(means), kernel=kernel, positions=means, scale=scale, scale_floor=1e-3, **given
    )


def only(model: nn.Module, **given: float) -> LayerDiagnosis:
    (layer,) = diagnose(model, **given).layers
    return layer


def test_tuples_that_round_to_one_entry_have_collided() -> None:
    assert only(gaussian()).collided.tolist() == [0, 1]
    assert len(only(gaussian(positions=[[1.0, 1.0], [1.0, 2.0]])).collided) == 0


def test_small_values_are_dead() -> None:
    wiring = gaussian()
    with torch.no_grad():
        wiring.values.copy_(torch.tensor([1.0, -1.0, 0.0, 0.05]))
    assert only(wiring).dead.tolist() == [2]
    assert only(wiring, dead=0.2).dead.tolist() == [2, 3]
    assert only(wiring, dead=0).dead.tolist() == [2]
    with torch.no_grad():
        wiring.values.zero_()
    assert only(wiring).dead.tolist() == [0, 1, 2, 3]
    assert len(only(gaussian(values="ones")).dead) == 0


def test_tuples_much_narrower_than_an_index_are_frozen() -> None:
    assert only(gaussian(scale=0.05)).frozen.tolist() == [0, 1, 2, 3]
    assert len(only(gaussian(scale=0.5)).frozen) == 0
    assert len(only(gaussian(scale=0.05, kernel="student_t")).frozen) == 0


def test_a_tuple_half_way_between_entries_is_not_frozen() -> None:
    assert only(gaussian(scale=0.01, positions=[[2.5, 2.5], [2.5, 4.0], [2.0, 4.0]])).frozen.tolist() == [2]


@pytest.mark.parametrize("kernel", ["gaussian", "student_t"])
def test_frozen_tuples_are_those_whose_means_get_no_gradient(kernel: str) -> None:
    k = 60
    wiring = gaussian(0.2, torch.rand(k, 2) * 7, kernel, sampling=Sampling(True, 0, 0))
    with torch.no_grad():
        wiring.log_scale.uniform_(-4, -1)
    weight = wiring()
    (weight.values * torch.randn(weight.values.shape)).sum().backward()
    slope = wiring.means.offset.grad.abs().amax(-1) / wiring.values.detach().abs()
    frozen = torch.zeros(k, dtype=torch.bool).index_fill(0, only(wiring).frozen, True)
    assert bool((slope[frozen] < 1e-4).all())
    assert bool((slope[~frozen] > 0).all())
    assert bool(frozen.any()) == (kernel == "gaussian")


def test_a_frozen_wiring_is_frozen_whatever_its_scales() -> None:
    wiring = gaussian()
    wiring.freeze()
    assert only(wiring).frozen.tolist() == [0, 1, 2, 3]


def test_templates_and_admissible_sets() -> None:
    fixed = Template.per_output((8,), (8,), 1)
    narrow = GaussianWiring(8, 8, template=fixed, kernel="gaussian", scale=0.05, scale_floor=0.01,
                            positions=torch.arange(8.0)[:, None])  # fmt: skip
    assert only(narrow).frozen.tolist() == list(range(8))
    entries = torch.zeros(8, 8, dtype=torch.bool)
    entries[[1, 4, 4], [1, 4, 5]] = True
    wide = gaussian(2.0, [[1.2, 1.2], [4.0, 4.3]], admissible=Mask(entries))
    assert only(wide).frozen.tolist() == [0]  # of its four corners one alone is admissible


def test_static_entries_cannot_move_and_may_collide() -> None:
    wiring = StaticWiring(4, 4, indices=torch.tensor([[0, 0], [1, 2], [1, 2], [3, 3]]))
    with torch.no_grad():
        wiring.values.copy_(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    found = only(wiring)
    assert (found.collided.tolist(), found.dead.tolist()) == ([1, 2], [3])
    assert found.frozen.tolist() == [0, 1, 2, 3]


class Adaptive(Wiring):
    """A wiring whose weight depends on the input."""

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        assert x is not None
        raise NotImplementedError

    def stored_entries(self) -> int:
        return 3


def test_a_wiring_without_tuples_of_its_own_says_so() -> None:
    diagnosis = diagnose(nn.Sequential(SparseLinear(4, 4, wiring=Adaptive(4, 4))))
    assert diagnosis.layers[0].entries is None
    assert "none of its own" in str(diagnosis)
    assert "without tuples of its own" in repr(diagnosis)


def test_layers_are_named_after_their_hosts_and_shared_wirings_listed_once() -> None:
    shared = gaussian()
    model = nn.Sequential(SparseLinear(8, 8, wiring=shared), nn.ReLU(), SparseLinear(8, 8, wiring=shared),
                          SparseLinear(8, 3, wiring=StaticWiring))  # fmt: skip
    assert [(each.name, each.kind, each.entries) for each in diagnose(model).layers] == [
        ("0", "GaussianWiring", 4),
        ("3", "StaticWiring", 2),
    ]
    assert [each.name for each in diagnose(model[0]).layers] == [""]


def test_the_table_and_the_repr_tell_the_counts() -> None:
    diagnosis = diagnose(nn.Sequential(SparseLinear(8, 8, wiring=gaussian(scale=0.05))))
    head, _, row = str(diagnosis).splitlines()
    assert head.split() == ["layer", "wiring", "tuples", "collided", "dead", "frozen"]
    assert row.split()[:4] == ["0", "GaussianWiring", "4", "2"]
    assert row.split()[-1] == "4"
    assert repr(diagnosis).startswith("Diagnosis(0: GaussianWiring of 4, 2 collided")
    assert "tensor" not in repr(diagnosis)


def test_a_model_without_sparse_layers() -> None:
    diagnosis = diagnose(nn.Linear(2, 2))
    assert diagnosis.layers == ()
    assert str(diagnosis) == "no sparse layer"


def test_nothing_changes() -> None:
    layer = SparseLinear(8, 8, wiring=gaussian())
    layer(torch.randn(2, 8)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    before = copy.deepcopy(dict(layer.named_parameters()) | dict(layer.named_buffers()))
    drawn = torch.get_rng_state()
    diagnose(layer)
    assert layer.training
    assert torch.equal(drawn, torch.get_rng_state())
    for name, value in (dict(layer.named_parameters()) | dict(layer.named_buffers())).items():
        assert torch.equal(value, before[name]), name


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(UserError, match="dead=-1"):
        diagnose(nn.Linear(2, 2), dead=-1)
