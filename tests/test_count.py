"""`ash.count`: small cases worked out by hand, and agreement with the inference form itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ash import GaussianWiring, Sampling, SparseLayer, SparseLinear, StaticWiring, UserError
from ash.count import Count, count


def test_a_sparse_layer_stores_a_value_and_an_index_for_every_tuple() -> None:
    layer = SparseLinear(6, 4, wiring=GaussianWiring(4, 6, k=5))
    found = count(layer)
    assert (found.values, found.indices, found.stored_numbers) == (5, 5, 10)
    assert (found.index_bytes, found.row_pointers, found.biases) == (20, 5, 4)
    assert (found.flops, found.dense_weights, found.share) == (10, 24, 10 / 24)


def test_fixed_values_and_collided_tuples_count_as_stored() -> None:
    wiring = GaussianWiring(4, 6, k=5, values="ones", positions=torch.ones(5, 2))
    assert len(wiring.rounded_indices().unique(dim=0)) == 1
    assert count(wiring).stored_numbers == 10


def test_training_numbers_are_what_the_inference_form_can_do_without() -> None:
    wiring = GaussianWiring(4, 6, k=5)
    rest = [each.numel() for name, each in wiring.state_dict().items() if name != "values"]
    assert count(wiring).training_numbers == sum(rest)
    wiring(torch.ones(1, 6))
    assert count(wiring).training_numbers == sum(rest)
    guided = GaussianWiring(4, 6, k=5, sampling=Sampling(guided_samples=3))
    assert count(guided).training_numbers - count(wiring).training_numbers == 3 * 5 * wiring.rank
    assert count(StaticWiring(4, 6, k=5)).training_numbers == 0


@given(
    out_shape=st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple),
    in_shape=st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple),
    k=st.integers(1, 9),
)
def test_agrees_with_the_inference_form(
    out_shape: tuple[int, ...], in_shape: tuple[int, ...], k: int
) -> None:
    wiring = GaussianWiring(out_shape, in_shape, k=k)
    weight = wiring.eval()()
    found = count(SparseLayer(in_shape, out_shape, wiring=wiring))
    assert found.values == weight.values.numel()
    assert found.indices == weight.pattern.col.numel()
    assert found.index_bytes == weight.pattern.col.numel() * weight.pattern.col.element_size()
    assert found.row_pointers == weight.pattern.crow.numel()
    assert found.dense_weights == weight.to_dense().numel()


def test_large_dimensions_need_eight_bytes() -> None:
    small, large = (GaussianWiring(3, size, k=7) for size in (2**31 - 1, 2**31))
    assert (count(small).index_bytes, count(large).index_bytes) == (28, 56)
    assert count(large).stored_numbers == 14


@pytest.mark.parametrize(
    ("module", "values", "biases", "flops"),
    [
        (nn.Linear(6, 4), 24, 4, 48),
        (nn.Linear(6, 4, bias=False), 24, 0, 48),
        (nn.Conv2d(4, 6, 3, groups=2), 6 * 2 * 9, 6, 2 * 6 * 2 * 9),
        (nn.ConvTranspose1d(4, 6, 5), 4 * 6 * 5, 6, 2 * 4 * 6 * 5),
        (nn.BatchNorm1d(5), 5, 5, 0),
        (nn.Embedding(7, 3), 21, 0, 0),
    ],
)
def test_dense_modules_count_their_weights_without_indices(
    module: nn.Module, values: int, biases: int, flops: int
) -> None:
    found = count(module)
    assert (found.values, found.biases, found.flops) == (values, biases, flops)
    assert (found.stored_numbers, found.dense_weights) == (values, values)
    assert (found.indices, found.index_bytes, found.row_pointers, found.training_numbers) == (0, 0, 0, 0)


def test_a_model_is_the_sum_of_its_layers() -> None:
    hidden = SparseLinear(8, 6, wiring=StaticWiring(6, 8, k=11))
    model = nn.Sequential(nn.Sequential(hidden, nn.ReLU()), nn.Linear(6, 2))
    found = count(model)
    assert [(each.name, each.kind) for each in found.layers] == [
        ("0.0", "SparseLinear(StaticWiring)"),
        ("1", "Linear"),
    ]
    assert found.stored_numbers == 22 + 12
    assert found.flops == 22 + 24
    assert found.biases == 6 + 2
    assert found.dense_weights == 48 + 12


def test_what_layers_share_is_stored_once_and_computed_twice() -> None:
    wiring = StaticWiring(5, 5, k=7)
    sparse = nn.Sequential(*(SparseLinear(5, 5, bias=False, wiring=wiring) for _ in range(2)))
    assert (count(sparse).stored_numbers, count(sparse).flops) == (14, 28)
    dense = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    dense[1].weight = dense[0].weight
    assert (count(dense).stored_numbers, count(dense).flops) == (25, 100)


def test_a_model_without_parameters() -> None:
    found = count(nn.ReLU())
    assert (found.layers, found.stored_numbers) == ((), 0)
    assert math.isnan(found.share)
    assert str(found).splitlines()[-1].split()[0] == "total"


def test_a_lazy_module_is_refused_until_it_has_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(UserError, match=r"0: a LazyLinear without shapes yet; run one batch"):
        count(model)
    model(torch.ones(1, 3))
    assert count(model).stored_numbers == 12


def test_the_table_is_aligned_and_names_layers_and_sums() -> None:
    model = nn.Sequential(SparseLinear(90, 40, wiring=StaticWiring(40, 90, k=1234)), nn.Linear(40, 2))
    head, rule, *rows = str(count(model)).splitlines()
    assert set(rule) == {"-"}
    assert [row.split()[0] for row in rows] == ["0", "1", "total"]
    assert "2,468" in rows[0]
    assert "2,548" in rows[2]
    assert {len(line) for line in rows} == {len(head)} == {len(rule)}
    assert isinstance(count(model), Count)
