"""The hosts `SparseLayer` and `SparseLinear`: the latter in the place of `nn.Linear`."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ash import GaussianWiring, Sampling, SparseLayer, SparseLinear, StaticWiring, UserError, Wiring
from ash.pattern import ravel

static = partial(StaticWiring, density=0.5)
WIRINGS: dict[str, Callable[..., Wiring]] = {
    "static": static,
    "gaussian": partial(GaussianWiring, density=0.5),
    "instances": partial(GaussianWiring, density=0.5, per_instance=True, context="all"),
}
each_wiring = pytest.mark.parametrize("wiring", WIRINGS.values(), ids=WIRINGS)


def test_the_signature_is_that_of_nn_linear() -> None:
    own = list(inspect.signature(SparseLinear).parameters.values())
    model = list(inspect.signature(nn.Linear).parameters.values())
    assert [(p.name, p.default) for p in own[: len(model)]] == [(p.name, p.default) for p in model]
    assert all(p.kind == p.KEYWORD_ONLY for p in own[len(model) :])


@each_wiring
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_leading_dimensions(wiring: Callable[..., Wiring], leading: tuple[int, ...], bias: bool) -> None:
    layer = SparseLinear(6, 4, bias, wiring=wiring)
    x = torch.randn(*leading, 6)
    assert layer(x).shape == (*leading, 4)
    y = layer.eval()(x)
    dense = layer.wiring().to_dense()
    assert torch.allclose(y, nn.functional.linear(x, dense, layer.bias), atol=1e-6)
    assert y.shape == (*leading, 4)


@pytest.mark.parametrize(
    ("in_shape", "out_shape", "extra"),
    [((4,), (3,), ()), ((2, 5), (3,), (7,)), ((3,), (2, 2), (2, 3)), (4, 3, (5,))],
)
@each_wiring
def test_layers_of_any_rank(wiring: Callable[..., Wiring], in_shape: Any, out_shape: Any, extra: Any) -> None:
    layer = SparseLayer(in_shape, out_shape, wiring=wiring)
    x = torch.randn(3, *layer.in_shape, *extra)
    assert layer(x).shape == (3, *layer.out_shape, *extra)
    y = layer.eval()(x)
    dense = layer.wiring().to_dense().reshape(layer.wiring().matrix_shape)
    assert layer.bias is not None
    expected = dense @ x.reshape(3, dense.shape[1], -1) + layer.bias.reshape(-1, 1)
    assert torch.allclose(y, expected.reshape(y.shape), atol=1e-5)


@each_wiring
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_types(wiring: Callable[..., Wiring], dtype: torch.dtype) -> None:
    layer = SparseLinear(6, 4, device="cpu", dtype=dtype, wiring=wiring)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    x = torch.randn(3, 6, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert layer.eval()(x).dtype == dtype


@each_wiring
def test_autocast(wiring: Callable[..., Wiring]) -> None:
    layer = SparseLinear(6, 4, wiring=wiring)
    model = nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(4, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(3, 6))
    y.float().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_repr() -> None:
    text = repr(SparseLinear(6, 4, bias=False))
    assert text.startswith("SparseLinear(\n  in_features=6, out_features=4, bias=False\n  (wiring): GaussianWiring(")
    assert "in_shape=(6, 2), out_shape=(4,), bias=True" in repr(SparseLayer((6, 2), 4))


@each_wiring
def test_reset_parameters(wiring: Callable[..., Wiring]) -> None:
    layer = SparseLinear(9, 8, wiring=wiring)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(100.0)
    layer.reset_parameters()
    assert layer.bias is not None
    bound = 1 / (layer.wiring.stored_entries() / 8) ** 0.5
    assert layer.bias.abs().max() <= bound
    assert layer.wiring.values.abs().max() <= 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["static", "gaussian"])
@pytest.mark.parametrize("ready", [True, False], ids=["a wiring", "a factory"])
def test_from_linear(kind: str, bias: bool, ready: bool) -> None:
    linear = nn.Linear(6, 4, bias, dtype=torch.float64).eval()
    make = partial(WIRINGS[kind], dtype=torch.float64)
    layer = SparseLinear.from_linear(linear, wiring=make((4,), (6,)) if ready else WIRINGS[kind])
    assert not layer.training
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    weight = layer.wiring()
    assert torch.equal(weight.values, linear.weight[tuple(weight.indices.unbind(-1))])
    ids = ravel(weight.indices, weight.shape)
    if len(ids.unique()) == len(ids):
        kept = torch.zeros(24, dtype=torch.float64).index_fill(0, ids, 1.0).reshape(4, 6)
        x = torch.randn(3, 6, dtype=torch.float64)
        assert torch.allclose(layer(x), nn.functional.linear(x, linear.weight * kept, linear.bias))


def test_from_linear_with_all_entries_is_the_linear_layer() -> None:
    linear, x = nn.Linear(6, 4), torch.randn(3, 6)
    assert torch.allclose(SparseLinear.from_linear(linear, partial(StaticWiring, density=1.0))(x), linear(x), atol=1e-6)


def test_from_linear_takes_copies() -> None:
    linear = nn.Linear(6, 4)
    layer = SparseLinear.from_linear(linear, static)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    assert layer.wiring.values.abs().min() > 0
    assert layer.bias is not None
    assert layer.bias.abs().min() > 0


@each_wiring
@pytest.mark.parametrize("way", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(wiring: Callable[..., Wiring], way: Callable[[nn.Module], nn.Module]) -> None:
    layer = SparseLinear(6, 4, wiring=wiring).eval()
    x = torch.randn(3, 6)
    assert torch.equal(way(layer)(x), layer(x))


@each_wiring
def test_state_dict_holds_the_topology(wiring: Callable[..., Wiring]) -> None:
    layer, other = (SparseLinear(9, 8, wiring=wiring).eval() for _ in range(2))
    x = torch.randn(3, 9)
    assert not torch.equal(other(x), layer(x))
    assert all(isinstance(value, Tensor) for value in layer.state_dict().values())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@each_wiring
def test_functional_call(wiring: Callable[..., Wiring]) -> None:
    layer, x = SparseLinear(6, 4, wiring=wiring).eval(), torch.randn(3, 6)
    expected = layer(x)
    doubled = {name: value.detach().clone() for name, value in layer.named_parameters()}
    for name in ("bias", "wiring.values"):
        doubled[name] *= 2
    assert torch.allclose(functional_call(layer, doubled, (x,)), 2 * expected, atol=1e-6)
    assert torch.equal(layer(x), expected)


@each_wiring
def test_in_a_model(wiring: Callable[..., Wiring]) -> None:
    model = nn.Sequential(SparseLinear(6, 8, wiring=wiring), nn.ReLU(), SparseLinear(8, 1, wiring=wiring))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    x = torch.randn(64, 6)
    target = x[:, :1] - x[:, 1:2]
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_ready_wiring_is_used_as_it_is() -> None:
    wiring = StaticWiring(4, 6, 5)
    assert SparseLinear(6, 4, wiring=wiring).wiring is wiring


def test_a_factory_is_called_with_the_shapes() -> None:
    seen: list[Any] = []

    def factory(out_shape: tuple[int, ...], in_shape: tuple[int, ...], **options: Any) -> Wiring:
        seen.append((out_shape, in_shape, options))
        return StaticWiring(out_shape, in_shape, 2, **options)

    SparseLinear(6, 4, wiring=factory)
    SparseLinear(6, 4, dtype=torch.float64, wiring=factory)
    assert seen == [((4,), (6,), {}), ((4,), (6,), {"dtype": torch.float64})]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinite_inputs_name_the_layer(value: float, dtype: torch.dtype) -> None:
    layer = SparseLinear(6, 4, dtype=dtype)
    x = torch.randn(3, 6, dtype=dtype)
    x[1, 2] = value
    with pytest.raises(UserError, match=r"1 of 18 input numbers of SparseLinear\(in_features=6.*NaN or infinite"):
        layer(x)
    layer.check_input = False
    assert not layer(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_inputs_are_fine(dtype: torch.dtype) -> None:
    layer = SparseLinear(6, 4, dtype=dtype)
    x = torch.full((30, 6), torch.finfo(dtype).max / 10, dtype=dtype)
    assert layer(x).shape == (30, 4)


@pytest.mark.parametrize("shape", [(3, 5), (5,), (6, 3), (3, 6, 1)])
def test_inputs_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"an input of shape .* expected \(\*, 6\)"):
        SparseLinear(6, 4)(torch.randn(shape))


@pytest.mark.parametrize("shape", [(3, 2), (2, 5), (3, 5, 2)])
def test_inputs_of_another_shape_for_a_layer(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"expected \(b, 2, 5, …\)"):
        SparseLayer((2, 5), 3)(torch.randn(shape))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((6, 0), {}, "out_shape=0"),
        (
            (6, 4),
            {"wiring": StaticWiring(6, 4, 3)},
            r"a wiring of shape \(6,\) x \(4,\); expected \(4,\) x \(6,\)",
        ),
        (
            (6, 4),
            {"wiring": lambda out_shape, in_shape: nn.Linear(6, 4)},
            "returned a Linear; expected a Wiring",
        ),
        ((6, 4), {"backend": "tensor"}, "unknown backend 'tensor'"),
    ],
)
def test_bad_layers(arguments: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SparseLinear(*arguments, **options)


def test_guided_samples_look_at_extra_dimensions_too() -> None:
    wiring = GaussianWiring((3, 2), (2, 2), 2, sampling=Sampling(guided_samples=2))
    layer = SparseLayer((2, 2), (3, 2), wiring=wiring)
    x, kept = torch.randn(5, 2, 2, 4, 3), []
    y = layer(x)
    y.register_hook(kept.append)
    y.square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1e-4).step()
    wiring.settle()
    gradient = torch.einsum("boprs,bijrs->opij", kept[0], x)
    expected = gradient.abs().flatten().topk(4).indices
    assert set(ravel(wiring.search.proposals, wiring.shape).tolist()) == set(expected.tolist())


FIRST_CALL = """
import torch, ash
layer = ash.SparseLinear(6, 4)
parameters = {name: value.detach() for name, value in layer.named_parameters()}
loss = lambda parameters: torch.func.functional_call(layer, parameters, (torch.ones(2, 6),)).sum()
assert torch.func.grad(loss)(parameters)["bias"].tolist() == [2.0] * 4
layer.eval().wiring().to_csr()
"""


def test_a_first_call_in_a_transform_works_and_warns_of_nothing() -> None:
    command = [sys.executable, "-W", "error", "-c", FIRST_CALL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert (done.returncode, done.stderr) == (0, "")
