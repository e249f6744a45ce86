"""Permutations: the layer that is one, and quicksort from half-permutations."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.functional import one_hot

from ash import Anneal, SparseLayer, UserError
from ash.hypernets import MLPHypernetwork, SetHypernetwork
from ash.sorting import PermutationWiring, Quicksort, RankHypernetwork, log_mass, places, standardised

KERNELS = {"gaussian": 0.5, "student_t": 1.0, "logistic": 0.3}


def drawn(*shape: int) -> Tensor:
    """Keys in float64, for gradients."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def source(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_permutation(matrix: Tensor) -> bool:
    """Whether every matrix of a batch has one 1 in each row and column, and zeros."""
    ones = torch.ones(matrix.shape[:-1], dtype=matrix.dtype)
    binary = ((matrix == 0) | (matrix == 1)).all()
    return bool(binary) and torch.equal(matrix.sum(1), ones) and torch.equal(matrix.sum(2), ones)


# --- orders and masses -------------------------------------------------------------------------------------------


def test_places_are_the_inverse_of_a_stable_argsort() -> None:
    keys = torch.tensor([[3.0, 1.0, 2.0, 1.0]])
    assert places(keys).tolist() == [[3, 0, 2, 1]]
    many = torch.randint(0, 4, (20, 9)).float()
    assert torch.equal(many.gather(1, places(many).argsort(1)), many.sort(1).values)


def test_standardised_keys_have_mean_0_and_deviation_1_over_the_batch_and_keep_their_order() -> None:
    keys = 5 + 3 * torch.randn(40, 6)
    unit = standardised(keys)
    assert unit.mean().abs() < 1e-5
    assert abs(float(unit.square().mean()) - 1) < 1e-4
    assert torch.equal(places(unit), places(keys))


def test_standardised_keys_that_are_all_equal_stay_finite() -> None:
    assert torch.equal(standardised(torch.full((3, 4), 7.0)), torch.zeros(3, 4))


@pytest.mark.parametrize("kernel", KERNELS)
def test_log_mass_is_the_distribution_function_and_stays_finite_far_out(kernel: str) -> None:
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    expected = {
        "gaussian": torch.distributions.Normal(0.0, 1.0).cdf(x),
        "student_t": torch.distributions.Cauchy(0.0, 1.0).cdf(x),
        "logistic": torch.sigmoid(x),
    }[kernel]
    assert torch.allclose(log_mass(kernel, x).exp(), expected, atol=1e-12)
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    log_mass(kernel, far).sum().backward()
    assert torch.isfinite(log_mass(kernel, far)).all()
    assert far.grad is not None and torch.isfinite(far.grad).all()
    assert gradcheck(partial(log_mass, kernel), drawn(7))


def test_an_unknown_kernel_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown kernel of keys 'cauchy'.*student_t"):
        Quicksort(4, kernel="cauchy")
    with pytest.raises(UserError, match="unknown kernel"):
        RankHypernetwork((4,), 4, 1, kernel="t")


# --- soft ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_narrow_comparisons_emit_the_rank(kernel: str) -> None:
    keys = torch.randn(5, 7)
    raw = RankHypernetwork((7,), 7, 1, kernel=kernel, scale=1e-7)(keys)
    assert torch.allclose(raw.squeeze(-1), places(keys) - 3.0, atol=1e-3)


def test_soft_ranks_are_equivariant_and_centred() -> None:
    keys, order = torch.randn(4, 6), torch.randperm(6)
    ranks = RankHypernetwork((6,), 6, 1)
    assert torch.allclose(ranks(keys[:, order]), ranks(keys)[:, order], atol=1e-6)
    assert torch.allclose(ranks(keys).sum(1), torch.zeros(4, 1), atol=1e-5)


def test_log_shares_of_ranks_compare_with_the_places_beside_the_target() -> None:
    keys, target = torch.tensor([[0.3, -1.0, 0.5]]), torch.tensor([[1, 0, 2]])
    ranks = RankHypernetwork((3,), 3, 1, kernel="logistic", scale=0.5)
    logs = ranks.log_shares(keys, target)
    below, above = (torch.sigmoid(torch.tensor(d) / 0.5).log() for d in (1.3, 0.2))
    assert torch.allclose(logs, torch.stack([(below + above) / 2, below, above]).unsqueeze(0), atol=1e-6)


def test_pairs_of_features_are_compared_by_a_learned_odd_function() -> None:
    ranks = RankHypernetwork((5, 3), 5, 1, hidden=6).double()
    x, target = drawn(2, 5, 3), torch.stack([torch.randperm(5) for _ in range(2)])
    order = torch.randperm(5)
    assert torch.allclose(ranks(x[:, order]), ranks(x)[:, order])
    assert torch.allclose(ranks(x).sum(1), torch.zeros(2, 1, dtype=torch.float64), atol=1e-9)
    assert gradcheck(lambda each: ranks.log_shares(each, target), x)
    assert gradcheck(ranks, x)
    assert ranks.look is not None

    def above(i: int, j: int) -> Tensor:
        pair = torch.cat([x[0, i], x[0, j]]), torch.cat([x[0, j], x[0, i]])
        return log_mass("student_t", ranks.look(pair[0]) - ranks.look(pair[1]))  # type: ignore[misc]

    first, second, third = target[0].argsort()[:3].tolist()
    logs = ranks.log_shares(x, target)[0]
    assert torch.allclose(logs[first], above(second, first))
    assert torch.allclose(logs[second], (above(second, first) + above(third, second)) / 2)


def test_sampled_places_join_the_two_beside_the_target() -> None:
    keys, target = drawn(3, 6), torch.stack([torch.randperm(6) for _ in range(3)])
    ranks = RankHypernetwork((6,), 6, 1)
    near = ranks.log_shares(keys, target)
    assert torch.equal(ranks.log_shares(keys, target, 4, source()), ranks.log_shares(keys, target, 4, source()))
    assert not torch.equal(ranks.log_shares(keys, target, 4, source()), near)
    assert gradcheck(lambda k: ranks.log_shares(k, target, 4, source()), keys)
    many = ranks.log_shares(keys, target, 20_000, source())
    ordered = keys.gather(1, target.argsort(1))
    side = (target.unsqueeze(-1) - torch.arange(6)).sign()
    each = log_mass("student_t", (keys.unsqueeze(-1) - ordered.unsqueeze(1)) * side)
    others = side != 0
    assert torch.allclose(many, (each * others).sum(-1) / 5, atol=0.05)


def test_a_schedule_narrows_the_comparisons() -> None:
    ranks = RankHypernetwork((4,), 4, 1, scale=Anneal(1.0, 1e-6, 10))
    keys = torch.randn(2, 4)
    before = ranks(keys)
    ranks.step.fill_(10)
    assert torch.allclose(ranks(keys).squeeze(-1), places(keys) - 1.5, atol=1e-3)
    assert not torch.allclose(before, ranks(keys), atol=0.1)


def test_the_right_target_has_the_larger_share() -> None:
    keys = torch.randn(50, 8)
    right, wrong = places(keys), places(-keys)
    for method in (RankHypernetwork((8,), 8, 1, scale=0.1), Quicksort(8, scale=0.1)):
        assert (method.log_shares(keys, right).sum(1) > method.log_shares(keys, wrong).sum(1)).all()


# --- the permutation layer -----------------------------------------------------------------------------------------


def hypernetwork(kind: str, width: int) -> nn.Module:
    if kind == "mlp":
        return MLPHypernetwork((5,), 5, width, hidden=(8,), gain=3.0)
    return SetHypernetwork((5,), 5, width, dim=8, heads=2, layers=1, gain=3.0)


@pytest.mark.parametrize("kind", ["mlp", "set"])
@pytest.mark.parametrize("template", ["inputs", "outputs", "none"])
def test_any_hypernetwork_gives_a_permutation_in_evaluation(template: str, kind: str) -> None:
    network = hypernetwork(kind, 2 if template == "none" else 1)
    wiring = PermutationWiring(5, hypernetwork=network, template=template).eval()
    x = torch.randn(30, 5)
    assert is_permutation(wiring(x).to_dense())
    assert torch.equal(wiring.rounded_indices(x), wiring(x).indices)


def test_equal_means_still_give_a_permutation() -> None:
    layer = SparseLayer(6, 6, bias=False, wiring=PermutationWiring(6)).eval()
    keys = torch.randint(0, 3, (20, 6)).float()
    assert torch.equal(layer(keys), keys.sort(1).values)


def test_the_layer_sorts_keys_and_payload_in_evaluation() -> None:
    wiring = PermutationWiring(7).eval()
    keys, payload = torch.randn(4, 7), torch.randn(4, 7, 3, 2)
    order = keys.argsort(1)
    layer = SparseLayer(7, 7, bias=False, wiring=wiring)
    assert torch.equal(layer(keys), keys.sort(1).values)
    expected = payload.gather(1, order[..., None, None].expand_as(payload))
    assert torch.equal(layer.wiring(keys).to_dense() @ payload.flatten(2), expected.flatten(2))


def test_in_training_each_tuple_spreads_one_and_gradients_reach_the_keys() -> None:
    wiring = PermutationWiring(5, hypernetwork=partial(RankHypernetwork, scale=0.5), scale=0.7)
    keys = torch.randn(3, 5, requires_grad=True)
    dense = wiring(keys).to_dense()
    assert torch.allclose(dense.sum(1), torch.ones(3, 5), atol=1e-6)
    (dense * torch.randn(3, 5, 5)).sum().backward()
    assert keys.grad is not None and (keys.grad != 0).all()


def test_a_descent_on_the_sorted_list_alone_learns_an_order() -> None:
    """Keys of six elements start the wrong way round; the reverse loss turns them."""
    wiring = PermutationWiring(6, scale=0.5)
    keys = torch.linspace(0.5, -0.5, 6).unsqueeze(0).requires_grad_()
    x = torch.arange(6.0).unsqueeze(0)
    optimizer = torch.optim.Adam([keys], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        back = (wiring(keys).to_dense().transpose(1, 2) @ x.unsqueeze(-1)).squeeze(-1)
        (back - x).abs().sum().backward()
        optimizer.step()
    assert torch.equal(places(keys.detach()), torch.arange(6).unsqueeze(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4, "template": "rows"}, "unknown template of a permutation 'rows'"),
        ({"n": 4, "template": "outputs"}, "without a hypernetwork"),
        ({"n": 0}, "n=0; expected at least 1"),
        ({"n": 4, "condition_shape": (3,)}, r"elements of shape \(3,\) for k=4"),
    ],
)
def test_permutation_wirings_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PermutationWiring(**options)  # type: ignore[arg-type]


# --- quicksort ------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(depth=st.integers(1, 5), b=st.integers(1, 4), values=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_evaluation_is_the_stable_sort(depth: int, b: int, values: int, seed: int) -> None:
    n = 2**depth
    keys = torch.randint(0, values, (b, n), generator=source(seed)).float()
    sorter = Quicksort(n).eval()
    assert torch.equal(sorter.sort(keys), keys.sort(dim=1).values)
    payload = torch.arange(n).float().expand(b, n)
    assert torch.equal(sorter.sort(keys, payload).long(), keys.argsort(dim=1, stable=True))
    assert is_permutation(sorter(keys).product().to_dense())
    assert sorter(keys).product().values.shape == (b, n)


def test_payloads_of_any_shape_are_sorted_by_the_keys() -> None:
    keys, payload = torch.randn(3, 8), torch.randn(3, 8, 2, 5)
    order = keys.argsort(1)
    expected = payload.gather(1, order[..., None, None].expand_as(payload))
    assert torch.equal(Quicksort(8).eval().sort(keys, payload), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_training_is_the_product_of_the_dense_splits(kernel: str) -> None:
    keys, x = torch.randn(3, 8), torch.randn(3, 8, 4)
    halves = Quicksort(8, kernel=kernel)(keys)
    dense = torch.eye(8).expand(3, 8, 8)
    for split in halves.splits:
        dense = split.to_dense() @ dense
    assert torch.allclose(halves.product().to_dense(), dense, atol=1e-6)
    assert torch.allclose(halves(x), dense @ x, atol=1e-5)
    assert torch.allclose(dense.sum(1), torch.ones(3, 8), atol=1e-5)


def test_a_split_sends_each_element_into_both_halves_of_its_bucket_and_each_place_gets_two() -> None:
    sorter, n = Quicksort(16), 16
    for level, split in enumerate(sorter(torch.randn(5, n)).splits):
        size = n >> level
        outputs = split.indices[..., 0].reshape(5, n, 2)
        inputs = split.indices[..., 1].reshape(5, n, 2)
        assert torch.equal(outputs // size, inputs // size)
        half = outputs % size // (size // 2)
        assert (half.sum(-1) == 1).all()
        counts = one_hot(outputs.flatten(1), n).sum(1)
        assert torch.equal(counts, torch.full((5, n), 2))


def test_the_share_of_the_upper_half_is_the_mass_above_the_pivot() -> None:
    keys = torch.tensor([[0.0, 3.0, 1.0, -2.0]])
    split = Quicksort(4, kernel="logistic", scale=2.0)(keys).splits[0]
    upper = torch.where(split.indices[0, :, 0] >= 2, split.values[0], 0.0).reshape(4, 2).sum(1)
    assert torch.allclose(upper, torch.sigmoid((keys[0] - 0.5) / 2.0))


def test_sampled_places_depend_on_the_generator_alone() -> None:
    keys, sorter = torch.randn(2, 16), Quicksort(16)
    first, again, other = (sorter(keys, source(seed)).splits[0].indices for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_the_shares(kernel: str) -> None:
    sorter, keys, x = Quicksort(8, kernel=kernel, scale=0.7), drawn(2, 8), drawn(2, 8, 3)
    target = torch.stack([torch.randperm(8) for _ in range(2)])
    assert gradcheck(lambda k, p: sorter(k, source())(p), (keys, x))
    assert gradcheck(lambda k: sorter(k, source()).product().values, keys)
    assert gradcheck(lambda k: sorter.log_shares(k, target), keys)


def test_log_shares_are_those_of_the_halves_on_the_way_to_the_target() -> None:
    keys, scale = torch.randn(3, 8, dtype=torch.float64), 0.4
    target = torch.stack([torch.randperm(8) for _ in range(3)])
    found = Quicksort(8, scale=scale).log_shares(keys, target)
    for i in range(3):
        for j in range(8):
            place, total = int(target[i, j]), 0.0
            for size in (8, 4, 2):
                mates = keys[i][target[i] // size == place // size].sort().values
                pivot = float(mates[size // 2 - 1 : size // 2 + 1].mean())
                sign = 1 if place % size >= size // 2 else -1
                total += math.log(0.5 + math.atan(sign * (float(keys[i, j]) - pivot) / scale) / math.pi)
            assert math.isclose(float(found[i, j]), total, rel_tol=1e-9)


def test_a_schedule_makes_the_splits_hard() -> None:
    sorter, keys = Quicksort(4, scale=Anneal(1.0, 1e-7, 5)), torch.randn(3, 4)
    assert not torch.allclose(sorter.sort(keys), keys.sort(1).values, atol=1e-3)
    sorter.step.fill_(5)
    assert torch.allclose(sorter.sort(keys), keys.sort(1).values, atol=1e-4)


def test_keys_learn_an_order_from_their_log_shares() -> None:
    sorter, target = Quicksort(16, scale=0.5), torch.randperm(16).unsqueeze(0)
    keys = torch.zeros(1, 16, requires_grad=True)
    optimizer = torch.optim.Adam([keys], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (-sorter.log_shares(keys, target).mean()).backward()
        optimizer.step()
    assert torch.equal(places(keys.detach()), target)


@pytest.mark.parametrize("n", [0, 1, 3, 6, 12])
def test_sizes_that_are_no_power_of_two(n: int) -> None:
    with pytest.raises(UserError, match=f"quicksort of {n} elements; expected a power of two"):
        Quicksort(n)


@pytest.mark.parametrize("train", [True, False])
def test_an_empty_batch_of_keys(train: bool) -> None:
    sorter, keys = Quicksort(4).train(train), torch.zeros(0, 4)
    assert sorter.sort(keys).shape == (0, 4) and sorter(keys).product().to_dense().shape == (0, 4, 4)
    assert sorter.log_shares(keys, keys.long()).shape == (0, 4)


def test_keys_that_do_not_fit() -> None:
    sorter = Quicksort(4)
    with pytest.raises(UserError, match=r"keys of shape \(2, 5\); expected \(b, 4\)"):
        sorter(torch.randn(2, 5))
    with pytest.raises(UserError, match="NaN or infinite"):
        sorter(torch.tensor([[1.0, math.nan, 0.0, 2.0]]))
    with pytest.raises(UserError, match="expected one place for each key"):
        sorter.log_shares(torch.randn(2, 4), torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"expected \(b, 4\) and \(b, 4\)"):
        RankHypernetwork((4,), 4, 1).log_shares(torch.randn(2, 5), torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(UserError, match="scale=0"):
        Quicksort(4, scale=0.0)
