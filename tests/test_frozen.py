"""Frozen layers: the three forms by hand, when they are made anew, and as graphs that are exported or compiled."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from ash import SparseConv2d, SparseLayer, SparseLinear, SparseWeight, StaticWiring, freeze, jit
from ash.backends import condensed as condensed_backend
from ash.backends.condensed import condense, condensed_linear
from ash.backends.torch import csr_linear
from ash.layers.frozen import PRODUCTS, FrozenLinear
from ash.wirings.frozen import FrozenWiring

static = partial(StaticWiring, density=0.3)
each_form = pytest.mark.parametrize("form", list(PRODUCTS))


@pytest.fixture
def plain() -> Iterator[None]:
    """Without the checks of shapes and types at every call: a tracer would have to see through them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


traced = pytest.mark.usefixtures("plain")


def mlp() -> nn.Module:
    """One layer in each form."""
    sizes, forms = (12, 10, 8, 6), ("csr", "condensed", "dense")
    layers = [SparseLinear(i, o, wiring=static) for i, o in zip(sizes[:-1], sizes[1:], strict=True)]
    return freeze(nn.Sequential(*layers), forms={str(i): form for i, form in enumerate(forms)})


def tensors(form: str) -> nn.Module:
    """A layer of rank 3 in a form."""
    return freeze(SparseLayer((3, 4), (5,), wiring=static), forms={"": form})


def by_hand() -> SparseWeight:
    """[[0, 2, 3], [0, 0, 0], [5, 0, 0]]."""
    return SparseWeight(torch.tensor([[2, 0], [0, 1], [0, 2]]), torch.tensor([5.0, 2.0, 3.0]), (3,), (3,))


def test_condensed_tables_by_hand() -> None:
    index, values = condense(by_hand())
    assert values.tolist() == [[2, 3], [0, 0], [5, 0]]
    assert index[0].tolist() == [1, 2] and index[2, 0] == 0
    assert index.min() >= 0 and index.max() < 3
    empty, none = condense(SparseWeight(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0), (3,), (3,)))
    assert empty.shape == none.shape == (3, 0)
    assert condensed_linear(torch.ones(2, 3), empty, none).tolist() == [[0.0] * 3] * 2


@each_form
def test_products_by_hand(form: str) -> None:
    product = PRODUCTS[form](FrozenWiring(by_hand()))
    assert product(torch.tensor([[1.0, 10.0, 100.0]])).tolist() == [[320.0, 0.0, 5.0]]
    assert not product.state_dict()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("b", [0, 1, 4, 7])
def test_condensed_products(monkeypatch: pytest.MonkeyPatch, compiled: bool, dtype: torch.dtype, b: int) -> None:
    monkeypatch.setattr(jit, "LEAST_POINTS", 0 if compiled else 1 << 30)
    monkeypatch.setattr(condensed_backend, "GATHER_BLOCK", 50)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    index, values = torch.randint(20, (33, 5), dtype=torch.int32), torch.randn(33, 5, dtype=dtype)
    x = torch.randn(20, b, dtype=dtype).t()
    dense = torch.zeros(33, 20, dtype=torch.float64).scatter_add(1, index.long(), values.double())
    found = condensed_linear(x, index, values)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), x.double() @ dense.t(), atol=200 * torch.finfo(dtype).eps)


def test_condensed_gradients() -> None:
    index, values = torch.randint(4, (5, 3)), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: condensed_linear(x, index, v), (x, values))


@traced
def test_the_operator_of_graphs_is_well_made() -> None:
    pattern = by_hand().pattern
    for b in (1, 5):
        x = torch.randn(b, 3, dtype=torch.float64, requires_grad=True)
        values = torch.randn(3, dtype=torch.float64, requires_grad=True)
        arguments = (x, values, pattern.crow, pattern.col)
        assert set(torch.library.opcheck(csr_linear.overload, arguments).values()) == {"SUCCESS"}
        assert torch.autograd.gradgradcheck(lambda x, v: csr_linear(x, v, pattern.crow, pattern.col), (x, values))


@each_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_memory_order_and_empty_batches(form: str, dtype: torch.dtype) -> None:
    layer = tensors(form)
    x = torch.randn(2, 4, 3, 6).transpose(1, 2)
    found = layer(x.to(dtype))
    assert found.dtype == dtype and found.shape == (2, 5, 6)
    assert torch.allclose(found.float(), layer(x), atol=0.1 if dtype == torch.bfloat16 else 1e-5)
    assert layer(x[:0].to(dtype)).shape == (0, 5, 6) and layer(x[..., :0]).shape == (2, 5, 0)


@each_form
def test_forms_follow_their_wiring(form: str) -> None:
    """Values that are written to, other types, other entries."""
    layer, x = tensors(form), torch.randn(2, 3, 4)
    before = layer(x) - layer.bias
    layer.wiring.values.mul_(2)
    assert torch.allclose(layer(x) - layer.bias, 2 * before, atol=1e-6)
    assert torch.allclose(layer.double()(x.double()).float() - layer.bias.float(), 2 * before, atol=1e-5)
    other = tensors(form)
    layer.load_state_dict(other.state_dict())
    assert torch.allclose(layer(x.double()).float(), other(x), atol=1e-5)


def exported(model: nn.Module, x: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1, max=1000)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},))


@traced
def test_an_exported_model_at_any_batch_size() -> None:
    model = mlp()
    graph = exported(model, torch.randn(3, 12)).module()
    for b in (1, 3, 40):
        x = torch.randn(b, 12)
        assert torch.allclose(graph(x), model(x), atol=1e-6)


@traced
def test_what_is_exported_is_what_was_loaded() -> None:
    model, other = mlp(), mlp()
    model.load_state_dict(other.state_dict())
    x = torch.randn(2, 12)
    assert torch.allclose(exported(model, x).module()(x), other(x), atol=1e-6)


@traced
@each_form
def test_exported_tensors_with_extra_dimensions(form: str) -> None:
    model, x = tensors(form), torch.randn(4, 3, 4, 2)
    assert torch.allclose(exported(model, x).module()(x), model(x), atol=1e-6)


@traced
@pytest.mark.parametrize("form", ["csr", "dense"])
def test_exported_convolutions(form: str) -> None:
    conv = SparseConv2d(2, 3, 3, padding="same", dilation=2, wiring=static)
    model, x = freeze(conv, forms={"": form}), torch.randn(4, 2, 7, 6)
    graph = exported(model, x).module()
    assert torch.allclose(graph(x[:3]), model(x[:3]), atol=1e-6)


@traced
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_one_graph(backend: str) -> None:
    model = mlp()
    torch._dynamo.reset()
    graph = torch.compile(model, backend=backend, fullgraph=True)
    for b in (2, 5):
        x = torch.randn(b, 12, requires_grad=True)
        found, expected = (each(x) for each in (graph, model))
        assert torch.allclose(found, expected, atol=1e-6)
        (got,), (wanted,) = (torch.autograd.grad(each.square().sum(), x) for each in (found, expected))
        assert torch.allclose(got, wanted, atol=1e-6)


MISSING = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]


@traced
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")  # of the exporter's own making
@pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed")
def test_condensed_and_dense_layers_as_onnx() -> None:
    from onnx.reference import ReferenceEvaluator

    layers = [SparseLinear(12, 10, wiring=static), SparseLinear(10, 8, wiring=static)]
    model = freeze(nn.Sequential(*layers), forms={"0": "condensed", "1": "dense"})
    program = torch.onnx.export(model, (torch.randn(3, 12),), dynamo=True, dynamic_shapes=({0: "batch"},))
    proto, x = program.model_proto, torch.randn(5, 12)
    assert {"Gather", "Mul", "ReduceSum", "Gemm"} <= {node.op_type for node in proto.graph.node}
    (y,) = ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x.numpy()})
    assert torch.allclose(torch.as_tensor(y), model(x), atol=1e-5)


def test_a_layer_shares_what_it_is_made_of() -> None:
    layer = freeze(SparseLinear(4, 3, wiring=static), forms={"": "csr"})
    assert type(layer) is FrozenLinear
    assert layer.product.values is layer.wiring.values
    again = freeze(layer, forms={"": "condensed"})
    x = torch.randn(2, 4)
    assert torch.allclose(again(x), layer(x), atol=1e-6)
