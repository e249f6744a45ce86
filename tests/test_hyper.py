"""`HyperWiring`: the suite of every wiring, then what is its own: emission, offsets, steps, conditions, errors."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from test_wirings import IN, OUT, TARGETS, WiringSuite, inputs, layer_of, train
from test_wirings import pytest_generate_tests as pytest_generate_tests
from torch import Tensor, nn

from ash import (
    Anneal,
    Codebook,
    Context,
    ConvHypernetwork,
    GaussianWiring,
    HyperWiring,
    MLPHypernetwork,
    Sampling,
    SetHypernetwork,
    SourceBeforeTarget,
    SparseLayer,
    SparseLinear,
    Template,
    UserError,
    Wiring,
    contract,
    count,
    diagnose,
    parameter_groups,
    plot,
)

mlp = partial(MLPHypernetwork, hidden=(5,), gain=1.0)
hyper = partial(HyperWiring, OUT, IN, hypernetwork=mlp, dtype=torch.float64)

HYPER: dict[str, Callable[[], Wiring]] = {
    "defaults": partial(hyper, 7),
    "one tuple": partial(hyper, 1),
    "gaussian, all": partial(hyper, 7, kernel="gaussian", context="all"),
    "chunks": partial(hyper, 7, context=Context("chunk", 3)),
    "ones": partial(hyper, 7, values="ones"),
    "shared values": partial(hyper, 7, values="shared", scales="shared"),
    "scheduled": partial(hyper, 7, scales="scheduled", scale=Anneal(2.0, 0.2, 5)),
    "codebook": partial(hyper, 7, values=Codebook(3, noise=False)),
    "shared codes": partial(hyper, 7, values=Codebook(3, noise=False), share_codes=True),
    "stretched": partial(hyper, 7, means="stretched"),
    "direct": partial(hyper, 7, means="direct"),
    "template": partial(hyper, template=Template.per_output(OUT, IN, 2), context="all"),
    "nothing to learn": partial(hyper, template=Template(2, (0, 1), torch.tensor([[0, 1], [5, 2]]))),
    "admissible": partial(hyper, 7, admissible=SourceBeforeTarget(6)),
    "admissible template": partial(hyper, admissible=SourceBeforeTarget(6), template=TARGETS),
    "subset": partial(hyper, 7, subset=0.4),
    "guided points are uniform": partial(hyper, 7, sampling=Sampling(guided_samples=2, kept_samples=1)),
    "rank 5": partial(HyperWiring, (2, 3), (2, 1, 4), 7, hypernetwork=mlp, dtype=torch.float64, context="all"),
    "a row": partial(HyperWiring, 1, 9, 3, hypernetwork=mlp, dtype=torch.float64),
    "in chunks": partial(hyper, 7, hypernetwork=partial(mlp, chunk=3)),
    "a set": partial(hyper, 12, hypernetwork=partial(SetHypernetwork, dim=8, heads=2), values="shared"),
    "pictures": partial(
        HyperWiring, 3, (4, 6), 7, dtype=torch.float64, hypernetwork=partial(ConvHypernetwork, view=2, hidden=5)
    ),
    "fixed offset": partial(hyper, 7, free=False),
}


class TestHyper(WiringSuite):
    variants = HYPER

    def test_the_sum_of_the_values_is_conserved(self, make: Callable[[], Wiring]) -> None:
        wiring, drawn = made(make), torch.Generator()
        x = inputs(wiring)
        if wiring.codebook is None:
            total = wiring.tuples(x, drawn).values.sum(-1)
            for mode in (True, False):
                weight = wiring.train(mode)(x)
                assert torch.allclose(weight.values.sum(-1), total)
                assert torch.allclose(weight.to_dense().flatten(1).sum(-1), total)

    def test_evaluation_draws_nothing(self, make: Callable[[], Wiring]) -> None:
        wiring = made(make).eval()
        x, before = inputs(wiring), torch.get_rng_state()
        one, other = wiring(x), wiring(x)
        assert torch.equal(torch.get_rng_state(), before)
        assert one.indices.shape == (4, wiring.stored_entries(), wiring.rank)
        assert torch.equal(one.to_dense(), other.to_dense())
        assert torch.equal(one.indices, wiring.rounded_indices(x))
        assert wiring.admissible.contains(one.indices).all()

    def test_evaluation_keeps_the_csr_structure(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        with pytest.raises(UserError, match="no single CSR structure"):
            _ = wiring(inputs(wiring)).pattern

    def test_gradients_in_evaluation(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        x = inputs(wiring).requires_grad_()
        for backend in ("torch", "dense"):
            weight = wiring(x.detach())
            y = contract(weight, x, backend)
            actual = torch.autograd.grad(y, x, torch.ones_like(y))[0]
            dense = weight.to_dense().detach()
            assert torch.allclose(actual, dense.sum(tuple(range(1, 1 + len(wiring.out_shape)))))

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    @pytest.mark.parametrize("steps", [0, 2])
    def test_copies(self, make: Callable[[], Wiring], way: Callable[[SparseLayer], SparseLayer], steps: int) -> None:
        layer = layer_of(make())
        train(layer, steps)
        other = way(layer)
        assert all(torch.equal(one, two) for one, two in zip(train(layer), train(other), strict=True))
        states = layer.state_dict(), other.state_dict()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        with torch.no_grad():
            other.wiring.offset.fill_(99.0)
        assert not (layer.wiring.offset == 99.0).any()

    def test_loading_a_dense_weight(self, make: Callable[[], Wiring]) -> None:
        wiring = make()
        with pytest.raises(UserError, match="no values to load"):
            wiring.load_dense(torch.zeros(wiring.shape))


def made(make: Callable[[], Wiring]) -> HyperWiring:
    wiring = make()
    assert isinstance(wiring, HyperWiring)
    return wiring


# --- where it starts -------------------------------------------------------------------------------------


def silent(k: int, width: int) -> nn.Module:
    """A hypernetwork that emits zeros."""

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(k, width))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.expand(len(x), -1, -1)

    return Silent()


@pytest.mark.parametrize("means", ["sigmoid", "stretched", "direct"])
def test_the_offset_holds_the_given_positions_and_scale(means: str) -> None:
    positions = torch.tensor([[0.4, 8.7], [3.0, 0.2], [2.6, 5.0]])
    wiring = HyperWiring(5, 10, 3, hypernetwork=silent(3, 4), positions=positions, means=means, scale=1.5)
    tuples = wiring.tuples(torch.randn(2, 10))
    assert torch.allclose(tuples.means[1], positions.double(), atol=1e-3)
    assert torch.allclose(tuples.scales, torch.full((2, 3, 1), 1.5))
    assert torch.equal(wiring.eval()(torch.randn(2, 10)).indices[0], positions.round().long())


def test_means_spread_over_the_tensor_and_scales_are_proportional_to_it() -> None:
    wiring = HyperWiring(64, 256, 500, hypernetwork=partial(MLPHypernetwork, gain=1e-6))
    means = wiring.tuples(torch.randn(1, 256)).means.detach()[0] / torch.tensor([63.0, 255.0])
    assert (means.mean(0) - 0.5).abs().max() < 0.06
    assert (means.std(0) - 12**-0.5).abs().max() < 0.03
    scale = float(wiring.tuples(torch.randn(1, 256)).scales.detach()[0, 0, 0])
    assert scale == pytest.approx(math.sqrt(64 * 256) / 8, rel=1e-3)


@pytest.mark.parametrize("network", [MLPHypernetwork, partial(SetHypernetwork, dim=16)])
def test_what_is_emitted_starts_small(network: Callable[..., nn.Module]) -> None:
    emitted = network((40,), 80, 3, gain=0.1)(torch.randn(64, 40))
    assert emitted.shape == (64, 80, 3)
    assert 0.01 < float(emitted.detach().std()) < 0.2


@pytest.mark.parametrize("values", ["emitted", "shared"])
def test_values_start_with_the_fan_in(values: str) -> None:
    wiring = HyperWiring(50, 200, 5000, hypernetwork=partial(MLPHypernetwork, hidden=(3,), gain=1e-6), values=values)
    found = wiring.tuples(torch.randn(1, 200)).values
    assert wiring.value_unit == pytest.approx(0.1)
    assert 0.095 < float(found.detach().abs().max()) <= 0.1001
    assert float(found.detach().std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("means", ["sigmoid", "stretched", "direct"])
def test_it_can_start_from_a_pretrained_free_wiring(means: str) -> None:
    free = GaussianWiring(5, 9, 8)
    train(SparseLayer(9, 5, wiring=free).double())
    wiring = HyperWiring(5, 9, 8, hypernetwork=silent(8, 4), means=means).double()
    wiring.start_from(free.tuples())
    own, given = wiring.tuples(torch.randn(1, 9).double()), free.tuples()
    assert torch.allclose(own.means[0], given.means, atol=1e-2)
    assert torch.allclose(own.scales[0], given.scales)
    assert torch.equal(own.values[0], given.values)
    with pytest.raises(UserError, match=r"tuples of shape \(8, 2\).* expected \(7, 2\)"):
        HyperWiring(5, 9, 7, hypernetwork=mlp).start_from(given)


def test_a_generator_decides() -> None:
    one, other = (
        HyperWiring(9, 9, 5, hypernetwork=silent(5, 4), generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(one.offset, other.offset)


# --- emission --------------------------------------------------------------------------------------------


def test_each_instance_has_a_weight_of_its_own_by_hand() -> None:
    """Two tuples on a 3 × 4 tensor, direct means: the raw numbers are read off the input."""

    class Reader(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 2, 3)

    wiring = HyperWiring(
        3, 4, 2, hypernetwork=Reader(), condition_shape=6, means="direct", positions=torch.zeros(2, 2),
        scales="scheduled", scale=0.01, free=False, kernel="gaussian",
    )  # fmt: skip
    with torch.no_grad():
        wiring.offset.zero_()
    unit = wiring.value_unit
    condition = torch.tensor([[0, 1, 2, 2, 3, -1], [1.2, 0.1, 5, 9.0, -4.0, 1]])
    layer = SparseLayer(4, 3, bias=False, wiring=wiring).eval()
    x = torch.tensor([[1.0, 10, 100, 1000], [1.0, 10, 100, 1000]])
    expected = torch.tensor([[20.0, 0, -1000], [0, 5, 1]]) * unit
    assert torch.allclose(layer(x, condition), expected)
    assert torch.allclose(layer.train()(x, condition)[0], expected[0])  # at its entries a narrow tuple is alone


def test_gradients_reach_the_hypernetwork_and_pass_gradcheck() -> None:
    torch.manual_seed(2)
    wiring = hyper(3, sampling=Sampling(global_samples=0, local_samples=0), scale=0.8)
    x = inputs(wiring, 2)

    def dense(offset: Tensor, *weights: Tensor) -> Tensor:
        names = ["offset", *(f"hypernetwork.{n}" for n, _ in wiring.hypernetwork.named_parameters())]
        given = dict(zip(names, (offset, *weights), strict=True))
        weight = torch.func.functional_call(wiring, given, (x,))
        return weight.to_dense()

    parameters = [wiring.offset, *wiring.hypernetwork.parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(dense, leaves, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("means", ["sigmoid", "stretched", "direct"])
def test_positions_far_out_keep_their_precision(means: str) -> None:
    size, where = 10**7 + 1, torch.tensor([[9_999_990.25]])
    wiring = HyperWiring(
        1, size, 1, hypernetwork=silent(1, 3), condition_shape=2, means=means, positions=where,
        template=Template(2, (0,), torch.zeros(1, 1, dtype=torch.int64)),
    )  # fmt: skip
    found = wiring.tuples(torch.zeros(1, 2))
    limit = 1e-3 if means == "direct" else 1e3  # the raw number of a sigmoid itself is a float32
    assert abs(float(found.means.detach()) - float(where.double())) < limit
    assert 0 <= int(wiring.rounded_indices(torch.zeros(1, 2))[0, 0, 1]) < size


def test_direct_means_come_back_from_beyond_the_border() -> None:
    wiring = HyperWiring(4, 4, 1, hypernetwork=silent(1, 2), means="direct", positions=torch.tensor([[3.0, 0.0]]),
                         values="ones", scales="scheduled")  # fmt: skip
    with torch.no_grad():
        wiring.offset.copy_(torch.tensor([[5.0, -5.0]]))
    tuples = wiring.tuples(torch.randn(1, 4))
    assert torch.equal(tuples.means, torch.tensor([[[3.5, -0.5]]], dtype=torch.float64))
    for sign, moves in ((1.0, [True, False]), (-1.0, [False, True])):
        wiring.zero_grad()
        (sign * wiring.tuples(torch.randn(1, 4)).residuals.sum()).backward()
        grad = wiring.offset.grad
        assert grad is not None
        assert (grad[0] != 0).tolist() == moves


def test_a_set_is_equivariant() -> None:
    wiring = HyperWiring(5, 5, hypernetwork=SetHypernetwork((5,), 10, 2, dim=8, heads=2, gain=1.0), values="ones",
                         template=Template.per_input((5,), (5,), 2)).eval()  # fmt: skip
    assert wiring.offset.shape == (2, 2)
    x, order = torch.randn(3, 5), torch.randperm(5)
    one, other = wiring.tuples(x).means.detach(), wiring.tuples(x[:, order]).means.detach()
    assert torch.allclose(one.unflatten(1, (5, 2))[:, order], other.unflatten(1, (5, 2)), atol=1e-5)
    assert float(one.std(1).max()) > 1e-3


def test_chunks_keep_the_head_small() -> None:
    whole, chunked = (MLPHypernetwork((6,), 1000, 4, hidden=(16,), chunk=c) for c in (None, 10))
    assert chunked.head.weight.shape == (40, 16)
    assert chunked(torch.randn(2, 6)).shape == whole(torch.randn(2, 6)).shape == (2, 1000, 4)
    assert float(chunked(torch.randn(2, 6)).detach().unflatten(1, (100, 10)).std(1).max()) > 0


def test_a_view_is_an_average() -> None:
    picture = torch.arange(32.0).reshape(1, 4, 8)
    network = MLPHypernetwork((4, 8), 2, 3, view=4, hidden=(7,))
    assert network.view is not None
    assert network.view.shape == (1, 1, 2)
    assert network.view(picture).flatten().tolist() == [picture[..., :4].mean(), picture[..., 4:].mean()]
    network = ConvHypernetwork((3, 4, 8), 5, 3, view=2)
    assert network(torch.randn(2, 3, 4, 8)).shape == (2, 5, 3)


def test_codebook_values_are_hard_in_training_and_evaluation() -> None:
    codebook = Codebook(3)
    layer = SparseLayer(6, 6, wiring=HyperWiring(6, 6, 8, hypernetwork=mlp, values=codebook, context="tuple",
                                                 sampling=Sampling(global_samples=0, local_samples=0)))  # fmt: skip
    for mode in (True, False):
        totals = layer.train(mode).wiring(torch.randn(4, 6)).values
        totals = totals.unflatten(-1, (8, -1)).sum(-1)
        assert torch.isclose(totals.unsqueeze(-1), codebook.scalars.detach(), atol=1e-5).any(-1).all()
    layer.train()(torch.randn(4, 6)).square().sum().backward()
    assert codebook.scalars.grad is not None
    assert layer.wiring.offset.grad is not None
    assert layer.wiring.offset.grad[:, 3:].abs().sum() > 0


# --- steps, groups, sizes --------------------------------------------------------------------------------


def test_steps_are_those_of_the_optimizer() -> None:
    layer = SparseLinear(6, 6, wiring=partial(HyperWiring, k=4, hypernetwork=mlp, scales="scheduled",
                                              scale=Anneal(2.0, 0.5, 2, "linear")))  # fmt: skip
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    scales = []
    for _ in range(3):
        for _ in range(2):  # accumulated
            layer(torch.randn(3, 6)).square().sum().backward()
        scales.append(float(layer.wiring.tuples(torch.randn(1, 6)).scales.flatten()[0]))
        optimizer.step()
        optimizer.zero_grad()
    layer.state_dict()
    assert int(layer.wiring.step) == 3
    assert scales == pytest.approx([2.0, 1.25, 0.5])


def test_steps_without_a_free_offset() -> None:
    layer = SparseLinear(6, 6, wiring=partial(HyperWiring, k=4, hypernetwork=mlp, free=False))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        layer(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
    layer.eval()(torch.randn(3, 6))
    assert int(layer.wiring.step) == 2


def test_parameter_groups() -> None:
    layer = SparseLinear(6, 6, wiring=partial(HyperWiring, k=4, hypernetwork=mlp, values=Codebook(2)))
    groups = {group["name"]: group for group in parameter_groups(layer, weight_decay=0.1)}
    assert [len(group["params"]) for group in groups.values()] == [1, 1, 5]
    assert groups["offsets"]["params"][0] is layer.wiring.offset
    assert groups["offsets"]["weight_decay"] == 0.0
    assert groups["values"]["weight_decay"] == groups["other"]["weight_decay"] == 0.1


def test_sizes_are_reported() -> None:
    layer = SparseLinear(100, 50, wiring=partial(HyperWiring, k=20, hypernetwork=partial(mlp, hidden=(8,))))
    report = layer.wiring.size_report()
    learned = 100 * 8 + 8 + 8 * 80 + 80
    assert (report.emitted, report.hypernetwork, report.offset, report.dense) == (80, learned, 80, 5000)
    assert "62.5 to 1" in str(report)
    size = count(layer)
    assert size.values == learned + 80
    assert size.indices == 0
    assert size.flops == 2 * (100 * 8 + 8 * 80 + 20)
    assert "without tuples of its own" in repr(diagnose(layer).layers[0])


def test_a_frame_of_an_instance() -> None:
    wiring = HyperWiring(5, 7, 4, hypernetwork=mlp)
    x = torch.randn(7)
    frame = plot.frame_of(wiring, 3, x=x, points=True)
    assert frame.means == pytest.approx(wiring.tuples(x[None]).means[0].detach().numpy())
    assert frame.points.shape == (4 * 8, 2)
    with pytest.raises(UserError, match="without an instance"):
        plot.frame_of(wiring, 3)


# --- errors ----------------------------------------------------------------------------------------------


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 3, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hypernetwork": Wrong()}, r"emits \(2, 3, 5\).* \(2, 4, 4\) for k=4 .*rank 2: 2 means, 1 log scale, 1 value"),
        ({"hypernetwork": Wrong(), "values": Codebook(6), "scales": "shared"}, r"\(2, 4, 8\).*2 means, 6 logits"),
        ({"hypernetwork": lambda *_: 3}, "a hypernetwork of type int"),
        ({"hypernetwork": mlp, "values": "learned"}, "unknown value scheme 'learned'"),
        ({"hypernetwork": mlp, "scales": "none"}, "unknown scale scheme"),
        ({"hypernetwork": mlp, "means": "anchored"}, "unknown way to emit means"),
        ({"hypernetwork": mlp, "positions": torch.zeros(3, 2)}, "positions"),
        ({"hypernetwork": mlp, "positions": torch.full((4, 2), torch.nan)}, "positions that are NaN or infinite"),
        ({"hypernetwork": mlp, "template": Template(2, (0, 1), torch.zeros(4, 2).long()), "values": "ones",
          "scales": "scheduled"}, "nothing to emit"),
        ({"hypernetwork": mlp, "free": False, "values": "shared"}, "free=False"),
        ({"hypernetwork": partial(SetHypernetwork, dim=8)}, "k=4 tuples for 6 elements"),
        ({"hypernetwork": partial(SetHypernetwork, dim=8, heads=3), "k": 6}, "dim=8 for 3 heads"),
        ({"hypernetwork": partial(MLPHypernetwork, view=2)}, "expected pictures"),
        ({"hypernetwork": partial(MLPHypernetwork, hidden=())}, r"hidden=\(\)"),
        ({"hypernetwork": partial(MLPHypernetwork, chunk=0)}, "chunk=0"),
        ({"hypernetwork": partial(ConvHypernetwork, channels=())}, r"channels=\(\)"),
        ({"hypernetwork": mlp, "scale": -1.0}, "scale=-1.0"),
        ({"hypernetwork": mlp, "condition_shape": 5}, r"a condition of shape \(2, 6\); expected \(b, 5\)"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, TypeCheckError), match=message):
        HyperWiring(6, 6, **{"k": 4} | options)(torch.randn(2, 6))


def test_a_view_that_does_not_divide() -> None:
    with pytest.raises(UserError, match="view=3 of pictures of 28 x 28"):
        HyperWiring(10, (28, 28), 4, hypernetwork=partial(ConvHypernetwork, view=3))


def test_no_input() -> None:
    with pytest.raises(UserError, match="without an input"):
        hyper(4)()


def test_a_codebook_below_one() -> None:
    with pytest.raises(UserError, match="a codebook of size 0"):
        Codebook(0)


def test_what_overflows_is_named_with_the_layer_and_the_step() -> None:
    wiring = hyper(4)
    layer = layer_of(wiring)
    train(layer, 2)
    y = layer(inputs(wiring))
    with pytest.raises(UserError, match=r"gradients of what HyperWiring\(\(6,\) x \(6,\).* at step 2"):
        (y * torch.inf).sum().backward()
    with torch.no_grad():
        next(wiring.hypernetwork.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="input numbers of HyperWiring.* NaN or infinite"):
        layer(inputs(wiring))
