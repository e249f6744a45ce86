"""`SparseConv2d` in the place of `nn.Conv2d`, against `nn.Conv2d` itself."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ash import (
    DenseGradient,
    GaussianWiring,
    HyperWiring,
    MLPHypernetwork,
    SparseConv2d,
    SparseWeight,
    StaticWiring,
    TopKWiring,
    UserError,
    Wiring,
    count,
)
from ash.layers.conv import crossover
from ash.layers.unfold import Fold, Unfold, Window, unfold

BACKENDS = ("auto", "dense", "torch")
double = torch.float64
static = partial(StaticWiring, density=0.4)
QUIET = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
"""For tests that call `nn.Conv2d`, which says so once."""


class Selected(StaticWiring):
    """A static wiring that hands over a candidate tensor, as a top-k wiring does."""

    def __init__(self, *shapes: Any, dtype: torch.dtype | None = None):
        super().__init__(*shapes, density=0.4, dtype=dtype)
        self.candidate = nn.Parameter(super().rounded().to_dense().detach() + 0.1)

    def rounded(self) -> SparseWeight:
        values = self.candidate[tuple(self.indices.unbind(-1))]
        return replace(super().rounded(), values=values, candidate=self.candidate)


def twin(layer: SparseConv2d) -> nn.Conv2d:
    """The dense convolution with the weight that the layer has in evaluation."""
    dense = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
        dtype=double,
    )
    with torch.no_grad():
        weight = layer.wiring.rounded()
        assert weight is not None
        dense.weight.copy_(weight.to_dense())
        if layer.bias is not None and dense.bias is not None:
            dense.bias.copy_(layer.bias)
    return dense


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and gradients of a fixed sum of it by the input and by the bias or weight."""
    x = x.detach().requires_grad_()
    y = module(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad, y


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def options(draw: Any) -> dict[str, Any]:
    """Any options of a convolution that fit a picture of 8 × 7."""
    groups = draw(st.integers(1, 2))
    stride = draw(pairs)
    paddings = [st.just("valid"), st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2))]
    paddings += [st.just("same")] if stride == (1, 1) else []
    return {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": draw(st.one_of(st.integers(1, 3), pairs)),
        "stride": stride,
        "padding": draw(st.one_of(paddings)),
        "dilation": draw(st.one_of(st.integers(1, 3), pairs)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }


@QUIET
@settings(max_examples=60)
@given(options(), st.sampled_from(BACKENDS), st.sampled_from([(2,), (), (1,)]))
def test_all_options_against_the_dense_convolution(given: dict[str, Any], backend: str, lead: tuple[int, ...]) -> None:
    backend = "auto" if given["groups"] > 1 else backend
    layer = SparseConv2d(**given, dtype=double, wiring=static, backend=backend)
    dense = twin(layer)
    x = torch.randn(*lead, given["in_channels"], 8, 7, dtype=double)
    (y, dx, _), (expected, dx_expected, _) = gradients(layer, x), gradients(dense, x)
    assert y.shape == expected.shape
    assert torch.allclose(y, expected) and torch.allclose(dx, dx_expected)
    kept = layer.wiring.indices.unbind(-1)
    assert layer.wiring.values.grad is not None and dense.weight.grad is not None
    assert torch.allclose(layer.wiring.values.grad, dense.weight.grad[kept])
    if layer.bias is not None and dense.bias is not None:
        assert layer.bias.grad is not None and torch.allclose(layer.bias.grad, dense.bias.grad)


def test_the_signature_is_that_of_nn_conv2d() -> None:
    own = list(inspect.signature(SparseConv2d).parameters.values())
    model = list(inspect.signature(nn.Conv2d).parameters.values())
    assert [(p.name, p.default) for p in own[: len(model)]] == [(p.name, p.default) for p in model]
    assert all(p.kind == p.KEYWORD_ONLY for p in own[len(model) :])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [StaticWiring, GaussianWiring])
def test_from_conv_with_all_entries_is_the_convolution(kind: Callable[..., Wiring], groups: int) -> None:
    conv = nn.Conv2d(4, 6, (3, 2), 2, (1, 0), groups=groups, padding_mode="circular", dtype=double).eval()
    everywhere = torch.cartesian_prod(*(torch.arange(n) for n in conv.weight.shape))
    where = {"indices": everywhere} if kind is StaticWiring else {"positions": everywhere, "k": len(everywhere)}
    layer = SparseConv2d.from_conv(conv, partial(kind, **where))
    x = torch.randn(3, 4, 7, 6, dtype=double)
    assert torch.allclose(layer(x), conv(x))
    assert not layer.training
    with torch.no_grad():
        conv.weight.zero_()
    assert not torch.allclose(layer(x), conv(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_channels_last_stays(backend: str, kernel: int) -> None:
    layer = SparseConv2d(4, 6, kernel, 2, 1, wiring=static, backend=backend)
    x = torch.randn(3, 4, 8, 8)
    plain, last = layer(x), layer(x.contiguous(memory_format=torch.channels_last))
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert torch.allclose(plain, last, atol=1e-6)
    assert torch.allclose(layer(x.transpose(2, 3).contiguous().transpose(2, 3)), plain, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [Selected, partial(TopKWiring, density=0.4)])
@pytest.mark.parametrize("last", [False, True])
def test_a_candidate_gets_the_gradient_of_the_dense_kernel(backend: str, kind: Any, last: bool) -> None:
    layer = SparseConv2d(3, 4, 3, padding=1, dtype=double, wiring=kind, backend=backend)
    if last:
        layer = layer.to(memory_format=torch.channels_last)
    dense, x = twin(layer), torch.randn(2, 3, 5, 5, dtype=double)
    (y, dx, _), (expected, dx_expected, _) = gradients(layer, x), gradients(dense, x)
    assert torch.allclose(y, expected) and torch.allclose(dx, dx_expected)
    candidate = layer.wiring.candidate
    assert torch.allclose(candidate.grad, dense.weight.grad)
    assert isinstance(layer.wiring, TopKWiring) or layer.wiring.values.grad is None
    with torch.no_grad():
        assert torch.allclose(layer(x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_collecting_wiring_gets_the_dense_gradient_of_all_passes(backend: str) -> None:
    layer = SparseConv2d(3, 4, 3, dtype=double, wiring=static, backend=backend)
    layer.wiring.collecting = True
    dense, x = twin(layer), torch.randn(2, 3, 5, 5, dtype=double)
    for part in x.split(1):
        layer(part).square().sum().backward()
    dense(x).square().sum().backward()
    score = layer.wiring.collected()
    assert isinstance(score, DenseGradient) and dense.weight.grad is not None
    assert (score.out_shape, score.in_shape) == ((4,), (3, 3, 3))
    assert torch.allclose(score.dense(), dense.weight.grad)


def test_a_gaussian_draw_is_one_convolution_with_it() -> None:
    layer = SparseConv2d(3, 4, 3, dtype=double, wiring=partial(GaussianWiring, k=9))
    x = torch.randn(2, 3, 6, 6, dtype=double)
    torch.manual_seed(5)
    y = layer(x)
    torch.manual_seed(5)
    weight = layer.wiring()
    assert torch.allclose(y, nn.functional.conv2d(x, weight.to_dense(), layer.bias))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    assert torch.allclose(layer.eval()(x), twin(layer)(x))


@QUIET
@settings(max_examples=20)
@given(options(), st.integers(0, 3))
def test_a_kernel_for_each_instance(given: dict[str, Any], b: int) -> None:
    wiring = partial(GaussianWiring, k=5, per_instance=True)
    layer = SparseConv2d(**given, dtype=double, wiring=wiring)
    x = torch.randn(b, given["in_channels"], 8, 7, dtype=double)
    torch.manual_seed(5)
    y = layer(x)
    torch.manual_seed(5)
    weight = layer.wiring(x)
    dense = twin(layer)
    expected = []
    for i in range(b):
        dense.weight.data = weight.instance(i).to_dense().detach()
        expected.append(dense(x[i]))
    assert y.shape == (b, *dense(torch.zeros_like(torch.empty(1, *x.shape[1:], dtype=double))).shape[1:])
    assert b == 0 or torch.allclose(y, torch.stack(expected))


def test_a_hypernetwork_sees_the_picture_or_a_condition() -> None:
    make = partial(HyperWiring, k=8, hypernetwork=partial(MLPHypernetwork, hidden=(5,)))
    layer = SparseConv2d(3, 4, 3, padding="same", wiring=partial(make, condition_shape=(3, 6, 6))).eval()
    x = torch.randn(5, 3, 6, 6)
    y = layer(x)
    weight = layer.wiring(x)
    alone = [nn.functional.conv2d(x[i], weight.instance(i).to_dense(), layer.bias, padding=1) for i in range(5)]
    assert torch.allclose(y, torch.stack(alone), atol=1e-5)
    assert torch.allclose(layer(x[0]), y[0], atol=1e-5)
    y.square().sum().backward()
    assert all(p.grad is not None for p in layer.wiring.hypernetwork.parameters())
    told = SparseConv2d(3, 4, 3, wiring=partial(make, condition_shape=2)).eval()
    seen = torch.randn(5, 2)
    assert not torch.equal(told(x, seen), told(x, -seen))
    assert torch.allclose(told(x[1], seen[1]), told(x, seen)[1], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_and_autocast(backend: str, dtype: torch.dtype) -> None:
    layer = SparseConv2d(3, 4, 3, dtype=dtype, wiring=static, backend=backend)
    x = torch.randn(2, 3, 5, 5, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == dtype for p in layer.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nn.Sequential(nn.Conv2d(3, 3, 1), SparseConv2d(3, 4, 3, wiring=static, backend=backend))(x.float()).sum()


def test_the_backend_is_chosen_by_density(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("ash.layers.conv.contract", lambda *_: calls.append("unfolded") or torch.zeros(256 * 16))
    sparse = SparseConv2d(8, 256, 3, padding=1, wiring=partial(StaticWiring, density=0.03))
    fuller = SparseConv2d(8, 256, 3, padding=1, wiring=partial(StaticWiring, density=0.08))
    x = torch.randn(1, 8, 4, 4)
    fuller(x)
    assert calls == []
    sparse(x)
    assert calls == ["unfolded"]


def test_the_crossover_falls_with_the_output_channels() -> None:
    assert crossover(16, 9) == 0
    assert 0 < crossover(128, 9) < crossover(512, 9) < crossover(16, 1)


@pytest.mark.parametrize("window", [Window((2, 3), (1, 2), (1, 1)), Window((2, 2), (2, 1), (2, 3))])
def test_unfolding_is_closed_under_differentiation(window: Window) -> None:
    x = torch.randn(1, 2, 4, 5, dtype=double, requires_grad=True)
    columns = unfold(x, window)
    by_torch = nn.functional.unfold(x.transpose(0, 1), window.kernel, window.dilation, 0, window.stride)
    own = columns.permute(3, 0, 1, 2, 4, 5).reshape(by_torch.shape)
    assert torch.equal(own, by_torch)
    assert torch.autograd.gradcheck(lambda x: Unfold.apply(x, window), (x,))
    assert torch.autograd.gradgradcheck(lambda x: Unfold.apply(x, window).square(), (x,))
    part = columns.detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda c: Fold.apply(c, window, (4, 5)).square(), (part,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend: str) -> None:
    layer = SparseConv2d(2, 3, 2, dtype=double, wiring=static, backend=backend)
    x = torch.randn(2, 2, 4, 3, dtype=double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), (x,))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_state(way: Callable[[nn.Module], nn.Module]) -> None:
    layer, other = (SparseConv2d(3, 4, 3, wiring=static) for _ in range(2))
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(way(layer)(x), layer(x))
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_reset_parameters() -> None:
    layer = SparseConv2d(3, 4, 3, wiring=static)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(100.0)
    layer.reset_parameters()
    assert layer.bias is not None
    assert layer.bias.abs().max() <= (4 / layer.wiring.stored_entries()) ** 0.5
    assert layer.wiring.values.abs().max() <= 1


def test_what_it_counts() -> None:
    found = count(SparseConv2d(4, 6, 3, groups=2, wiring=partial(StaticWiring, k=20)))
    assert (found.stored_numbers, found.flops, found.biases, found.dense_weights) == (40, 40, 6, 6 * 2 * 9)
    layer = SparseConv2d(4, 6, 3, 2, padding=1, wiring=partial(StaticWiring, k=20))
    assert count(layer, torch.zeros(2, 4, 8, 6)).flops == 40 * 4 * 3


def test_repr() -> None:
    text = repr(SparseConv2d(4, 6, 3, padding=1, bias=False))
    assert text.startswith("SparseConv2d(\n  4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False\n")
    assert "groups=2, padding_mode='reflect'" in repr(SparseConv2d(4, 6, 3, groups=2, padding_mode="reflect"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel_size": 0}, r"kernel_size=0; expected an int or two of them"),
        ({"kernel_size": (3, 0)}, r"kernel_size=\(3, 0\)"),
        ({"stride": 0}, "stride=0"),
        ({"padding": -1}, "padding=-1; .* at least 0"),
        ({"padding": "full"}, "unknown padding 'full'; expected one of 'same', 'valid'"),
        ({"padding": "same", "stride": 2}, r"padding='same' with stride=\(2, 2\); expected stride 1"),
        ({"padding_mode": "mirror"}, "unknown padding mode 'mirror'"),
        ({"groups": 3}, "groups=3 for 4 input and 6 output channels"),
        ({"groups": 2, "backend": "torch"}, "backend 'torch' with groups=2"),
        ({"backend": "tensor"}, "unknown backend 'tensor'"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"wiring": StaticWiring((6,), (4, 3), 3)}, r"expected \(6,\) x \(4, 3, 3\)"),
    ],
)
def test_bad_layers(given: dict[str, Any], message: str) -> None:
    standard = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    with pytest.raises(UserError, match=message):
        SparseConv2d(**{**standard, **given})


@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_bad_inputs(backend: str) -> None:
    layer = SparseConv2d(4, 6, 3, wiring=static, backend=backend)
    for shape in [(2, 3, 8, 8), (4, 8), (1, 2, 4, 8, 8)]:
        with pytest.raises(UserError, match=r"expected \(b, 4, h, w\) or \(4, h, w\)"):
            layer(torch.zeros(shape))
    with pytest.raises(UserError, match="too small"):
        layer(torch.zeros(1, 4, 2, 8))
    for mode in ("reflect", "circular"):
        with pytest.raises(UserError, match="expected a picture larger than its margins"):
            SparseConv2d(4, 6, 3, padding=5, padding_mode=mode, wiring=static, backend=backend)(torch.zeros(1, 4, 4, 8))
    with pytest.raises(UserError, match=r"1 of 256 input numbers of SparseConv2d\(4, 6.*NaN or infinite"):
        layer(torch.zeros(1, 4, 8, 8).index_put((torch.tensor(0),) * 4, torch.tensor(float("nan"))))
