"""`ash.freeze`: the inference form computes what the model computes in evaluation, and holds nothing else."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ash import (
    Codebook,
    GateWiring,
    GaussianWiring,
    HyperWiring,
    LayerGraph,
    MLPHypernetwork,
    NodeGraph,
    RigLWiring,
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    SparseWeight,
    StaticWiring,
    TopKWiring,
    UserError,
    count,
    freeze,
)
from ash.convert.freeze import DenseConv2d, DenseLinear
from ash.layers.frozen import FrozenLayer
from ash.wirings.frozen import FrozenWiring

static = partial(StaticWiring, density=0.3)
gaussian = partial(GaussianWiring, density=0.3)
hyper = partial(HyperWiring, k=9, hypernetwork=partial(MLPHypernetwork, hidden=(4,)))
KINDS: dict[str, Callable[..., Any]] = {
    "static": static,
    "gaussian": gaussian,
    "instances": partial(GaussianWiring, density=0.3, per_instance=True),
    "codebook": lambda o, i, **more: GaussianWiring(o, i, density=0.3, values=Codebook(3), **more),
    "top_k": partial(TopKWiring, density=0.3),
    "rigl": partial(RigLWiring, density=0.3),
    "gate": GateWiring,
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
FORMS: list[dict[str, str] | None] = [None, {"0": "csr", "4": "csr", "6": "csr"}]
FORMS.append(dict.fromkeys(("0", "4", "6"), "dense"))
FORMS.append({"0": "csr", "4": "condensed", "6": "condensed"})


def net(kind: Callable[..., Any] = static) -> nn.Sequential:
    """A convolution, a batch norm, a layer of rank 3 and a linear layer, in use for a step."""
    layers = [SparseConv2d(2, 6, 3, padding=1, wiring=kind), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 2))]
    layers += [SparseLayer((6, 2, 2), (2, 4), wiring=kind), nn.Flatten(), SparseLinear(8, 3, wiring=kind)]
    model = nn.Sequential(*layers)
    model(torch.randn(8, 2, 5, 5)).square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return model


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-6, rtol=1e-6)


@each_kind
@pytest.mark.parametrize("how", ["density", "measured", "csr", "dense", "condensed"])
def test_outputs_and_gradients_by_the_input(kind: Callable[..., Any], how: str) -> None:
    model = net(kind)
    x = torch.randn(4, 2, 5, 5, requires_grad=True)
    forms = {"csr": FORMS[1], "dense": FORMS[2], "condensed": FORMS[3]}.get(how)
    frozen = freeze(model, x.detach() if how == "measured" else None, forms=forms)
    assert model.training and not frozen.training
    model.eval()
    y = frozen(x)
    assert close(y, model(x))
    dx, expected = (torch.autograd.grad(each(x).square().sum(), x)[0] for each in (frozen, model))
    assert close(dx, expected)
    assert close(freeze(frozen)(x), y)


@each_kind
@pytest.mark.parametrize("forms", [FORMS[1], FORMS[3]], ids=["csr", "condensed"])
def test_nothing_is_kept_that_only_training_needs(kind: Callable[..., Any], forms: Any) -> None:
    frozen = freeze(net(kind), forms=forms)
    assert not any(p.requires_grad for p in frozen.parameters())
    wirings = [each for each in frozen.modules() if isinstance(each, FrozenWiring)]
    assert len(wirings) == 3
    kept = {name.rpartition(".")[2] for name in frozen.state_dict() if "wiring" in name}
    assert kept == {"values", "positions"}
    assert count(frozen).training_numbers == 0
    for wiring in wirings:
        assert (wiring.positions[1:] > wiring.positions[:-1]).all()


def test_dense_forms_are_dense_modules() -> None:
    model = net()
    frozen = freeze(model, forms=FORMS[2])
    assert [type(frozen[i]) for i in (0, 4, 6)] == [DenseConv2d, FrozenLayer, DenseLinear]
    assert frozen.forms == FORMS[2]
    assert torch.equal(frozen[6].weight, model[6].wiring().to_dense())
    assert torch.equal(frozen[6](torch.ones(8), torch.ones(3)), frozen[6](torch.ones(8)))


def test_the_faster_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def seconds(call: Callable[[], Tensor]) -> float:
        calls.append(tuple(call().shape))
        return [3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 3.0, 1.0][len(calls) - 1]  # csr, dense, condensed of each layer

    monkeypatch.setattr("ash.convert.freeze._seconds", seconds)
    frozen = freeze(net(), torch.randn(4, 2, 5, 5))
    assert frozen.forms == {"0": "dense", "4": "csr", "6": "condensed"}
    assert calls == [(4, 6, 5, 5)] * 2 + [(4, 2, 4)] * 3 + [(4, 3)] * 3


def test_without_an_example_the_density_decides() -> None:
    full, thin = (SparseLinear(40, 40, wiring=partial(StaticWiring, density=d)) for d in (0.2, 0.05))
    assert freeze(nn.Sequential(full, thin)).forms == {"0": "dense", "1": "csr"}
    wide = SparseConv2d(8, 256, 3, wiring=partial(StaticWiring, density=0.03))
    grouped = SparseConv2d(8, 256, 3, groups=2, wiring=partial(StaticWiring, density=0.03))
    assert freeze(nn.Sequential(wide, grouped)).forms == {"0": "csr", "1": "dense"}
    assert freeze(thin).forms == {"": "csr"}


def test_what_the_example_does_not_reach_goes_by_density() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = SparseLinear(4, 3, wiring=static), SparseLinear(5, 3, wiring=static)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            y: Tensor = self.used(x) * scale
            return y

    frozen = freeze(Half(), (torch.randn(2, 4), 2.0))
    assert set(frozen.forms) == {"used", "idle"} and frozen.forms["idle"] == "dense"


@pytest.mark.parametrize("forms", FORMS[1:])
def test_a_state_dict_loads_with_another_number_of_entries(forms: Any) -> None:
    one, other = (freeze(net(partial(StaticWiring, density=d)), forms=forms) for d in (0.2, 0.4))
    x = torch.randn(4, 2, 5, 5)
    other(x)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("forms", FORMS[1:])
def test_pickles_and_saves(forms: Any) -> None:
    frozen, x = freeze(net(), forms=forms), torch.randn(4, 2, 5, 5)
    frozen(x)
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(frozen)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), frozen(x))
        assert other.forms == forms


def test_inference_mode_first_and_gradients_later() -> None:
    frozen, x = freeze(net(), forms=FORMS[1]), torch.randn(4, 2, 5, 5)
    with torch.inference_mode():
        first = frozen(x)
    y = frozen(x.requires_grad_())
    assert torch.equal(first, y)
    y.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    half = frozen.to(torch.float64)
    assert close(half(x.double()).float(), y)


def test_adaptive_wirings_stay_adaptive() -> None:
    model = nn.Sequential(SparseLinear(6, 5, wiring=static), SparseLinear(5, 4, wiring=hyper))
    model(torch.randn(3, 6)).sum().backward()
    frozen = freeze(model, torch.randn(3, 6))
    assert isinstance(frozen[1].wiring, HyperWiring) and set(frozen.forms) == {"0"}
    x = torch.randn(3, 6)
    assert close(frozen(x), model.eval()(x))


def test_shared_layers_and_wirings_stay_shared() -> None:
    wiring = StaticWiring(4, 4, k=5)
    layer = SparseLinear(4, 4, wiring=wiring)
    model = nn.Sequential(layer, SparseLinear(4, 4, wiring=wiring), layer)
    frozen = freeze(model, forms={"0": "dense", "1": "csr"})
    assert frozen[0] is frozen[2]
    x = torch.randn(3, 4)
    assert close(frozen(x), model(x))
    frozen = freeze(model, forms={"0": "csr", "1": "csr"})
    assert frozen[0].wiring is frozen[1].wiring


class Host(nn.Module):
    """A host that freeze knows nothing of."""

    def __init__(self, wiring: nn.Module):
        super().__init__()
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        weight: SparseWeight = self.wiring(x)
        return weight.to_dense().sum() * x


class Own(Host):
    """A host that says itself what its inference form is."""

    def frozen(self) -> nn.Module:
        return Host(FrozenWiring(self.wiring.rounded()))


@pytest.mark.parametrize("kind", [Host, Own])
def test_other_hosts(kind: type[Host]) -> None:
    model = nn.Sequential(kind(gaussian((4,), (3,))), nn.Linear(2, 2)).eval()
    frozen = freeze(model, torch.ones(2))
    assert type(frozen[0]) is Host and isinstance(frozen[0].wiring, FrozenWiring)
    assert close(frozen(torch.ones(2)), model(torch.ones(2)))
    adaptive = freeze(Own(hyper((4,), (3,))))
    assert type(adaptive) is Own


@pytest.mark.parametrize("kind", [gaussian, partial(TopKWiring, density=0.3)])
@pytest.mark.parametrize("dynamics", ["static", "discrete"])
def test_node_graphs(kind: Callable[..., Any], dynamics: str) -> None:
    graph = NodeGraph(4, (5, 5) if dynamics == "static" else 10, 3, wiring=kind, dynamics=dynamics)
    model = nn.Sequential(SparseConv2d(2, 4, 3, wiring=static), graph).eval()
    x = torch.randn(3, 2, 6, 6)
    frozen = freeze(model, x)
    assert type(frozen[1]) is not NodeGraph and set(frozen.forms) == {"0"}
    assert close(frozen(x), model(x))
    assert count(frozen).training_numbers == 0
    adaptive = freeze(NodeGraph(4, 5, 3, wiring=partial(hyper, condition_shape=(4, 6, 6))))
    assert type(adaptive) is NodeGraph


@pytest.mark.parametrize("merge", ["concat", "max"])
def test_layer_graphs(merge: str) -> None:
    layers = [lambda shape: SparseConv2d(shape[0], 4, 3, padding=1, wiring=static) for _ in range(3)]
    graph = LayerGraph(layers, (2, 6, 6), merge=merge, wiring=partial(GateWiring, values="ones"), fill_maps=True)
    x = torch.randn(3, 2, 6, 6)
    frozen = freeze(graph.eval(), x)
    assert isinstance(frozen.wiring, FrozenWiring) and len(frozen.forms) == 3
    assert close(frozen(x), graph(x))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=9))
def test_entries_are_stored_once_and_add_up(entries: list[tuple[int, int, int]]) -> None:
    weight = SparseWeight(torch.tensor(entries), torch.randn(len(entries), dtype=torch.float64), (3,), (2, 2))
    frozen = FrozenWiring(weight)
    assert frozen.stored_entries() == len(set(entries))
    assert torch.allclose(frozen().to_dense(), weight.to_dense())
    assert frozen().to_dense() is frozen(torch.zeros(1)).to_dense()
    frozen.values.mul_(2)
    assert torch.allclose(frozen().to_dense(), 2 * weight.to_dense())


def test_frozen_layers_check_their_input() -> None:
    for form in ("csr", "dense", "condensed"):
        layer = freeze(SparseLinear(2, 2, wiring=partial(StaticWiring, k=2)), forms={"": form})
        with pytest.raises(UserError, match="1 of 2 input numbers"):
            layer(torch.tensor([1.0, float("nan")]))
        layer.check_input = False
        assert layer(torch.tensor([1.0, float("nan")])).shape == (2,)


def test_bad_forms() -> None:
    with pytest.raises(UserError, match="forms for '7'; expected names of sparse layers: '0', '4', '6'"):
        freeze(net(), forms={"7": "csr"})
    with pytest.raises(UserError, match="unknown form 'coo'"):
        freeze(net(), forms={"0": "coo"})
    with pytest.raises(UserError, match="form 'condensed' of a convolution; expected 'csr' or 'dense'"):
        freeze(net(), forms={"0": "condensed"})
    with pytest.raises(UserError, match="expected names of sparse layers: none"):
        freeze(nn.Linear(2, 2), forms={"": "csr"})


class _Fresh(nn.Module):
    """Its inference form is made of new modules."""

    def frozen(self) -> nn.Module:
        return nn.Sequential(*(nn.Identity() for _ in range(2000)))


def test_what_is_made_anew_is_not_taken_for_what_is_gone() -> None:
    """New modules may get the ids of those that were replaced before them."""
    layers = [SparseLinear(3, 3, wiring=static) for _ in range(20)]
    frozen = freeze(nn.Sequential(*layers, _Fresh()))
    assert all(type(each) is nn.Identity for each in frozen[-1])
