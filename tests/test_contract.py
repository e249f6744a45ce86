"""One suite for every backend: y = W · x against the dense tensor, values, first and second derivatives."""

from __future__ import annotations

import importlib.util
import sys

import problems
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ash import SparseBatch, SparseWeight, UserError, contract, jit, pattern
from ash import contract as contract_function
from ash.backends import choose_backend, compiled, get_backend, instances
from ash.backends import torch as torch_backend
from ash.checks import BackendUnavailable

SHAPES = {
    "1x1": ((4,), (5,)),
    "2x1": ((2, 3), (4,)),
    "2x2": ((2, 3), (4, 2)),
    "1x3": ((3,), (2, 1, 4)),
    "ones": ((1,), (1,)),
    "one output": ((1, 1), (6,)),
    "one input": ((6,), (1,)),
}
Shape = tuple[int, ...]
each_shape = pytest.mark.parametrize(("out_shape", "in_shape"), SHAPES.values(), ids=SHAPES)


def draw(out_shape: Shape, in_shape: Shape, n: int = 9, b: int | None = None, size: float = 1.0) -> SparseWeight:
    """Random entries in random order, duplicates among them."""
    lead = (n,) if b is None else (b, n)
    indices = torch.stack([torch.randint(0, s, lead) for s in (*out_shape, *in_shape)], -1)
    values = (size * torch.randn(lead, dtype=torch.float64)).requires_grad_()
    return SparseWeight(indices, values, out_shape, in_shape)


def inputs(in_shape: Shape, b: int = 3, extra: Shape = ()) -> Tensor:
    return torch.randn(b, *in_shape, *extra, dtype=torch.float64, requires_grad=True)


def expected(weight: SparseWeight, x: Tensor) -> Tensor:
    dense, r = weight.to_dense(), len(weight.out_shape)
    if not weight.per_instance:
        return problems.matmul(dense, x, r)
    return torch.cat([problems.matmul(one, each[None], r) for one, each in zip(dense, x, strict=True)])


def with_values(weight: SparseWeight, values: Tensor) -> SparseWeight:
    return SparseWeight(weight.indices, values, weight.out_shape, weight.in_shape)


def check(weight: SparseWeight, x: Tensor, backend: str) -> None:
    """Value and first derivatives."""
    found, wanted = contract(weight, x, backend), expected(weight, x)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted)
    factor = torch.randn_like(wanted)
    leaves = (weight.values, x)
    actual = torch.autograd.grad((found * factor).sum(), leaves, materialize_grads=True)
    target = torch.autograd.grad((wanted * factor).sum(), leaves, materialize_grads=True)
    for one, other in zip(actual, target, strict=True):
        assert torch.allclose(one, other)


class SharedSuite:
    """What every backend does for a weight that all instances share."""

    backend: str
    second_derivatives = True

    @each_shape
    @pytest.mark.parametrize("extra", [(), (3,), (2, 1, 2)], ids=str)
    @pytest.mark.parametrize("n", [0, 1, 9])
    def test_values_and_gradients(self, out_shape: Shape, in_shape: Shape, extra: Shape, n: int) -> None:
        check(draw(out_shape, in_shape, n), inputs(in_shape, extra=extra), self.backend)

    @each_shape
    def test_derivatives_by_differences(self, out_shape: Shape, in_shape: Shape) -> None:
        weight, x = draw(out_shape, in_shape, 5), inputs(in_shape, 2, (2,))

        def product(values: Tensor, x: Tensor) -> Tensor:
            return contract(with_values(weight, values), x, self.backend)

        assert gradcheck(product, (weight.values, x))
        if self.second_derivatives:
            assert gradgradcheck(product, (weight.values, x))

    @each_shape
    @pytest.mark.parametrize(("extra", "b", "n"), [((), 3, 9), ((2, 3), 2, 9), ((), 0, 9), ((), 2, 0)], ids=str)
    def test_a_bias(self, out_shape: Shape, in_shape: Shape, extra: Shape, b: int, n: int) -> None:
        weight, x = draw(out_shape, in_shape, n), inputs(in_shape, b, extra)
        bias = torch.randn(out_shape, dtype=torch.float64, requires_grad=True)
        found = contract(weight, x, self.backend, bias=bias)
        wanted = expected(weight, x) + bias.reshape(*out_shape, *[1] * len(extra))
        assert found.shape == wanted.shape and torch.allclose(found, wanted)
        factor, leaves = torch.randn_like(wanted), (weight.values, x, bias)
        actual = torch.autograd.grad((found * factor).sum(), leaves, materialize_grads=True)
        target = torch.autograd.grad((wanted * factor).sum(), leaves, materialize_grads=True)
        assert all(torch.allclose(one, other) for one, other in zip(actual, target, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_bias_of_another_type(self, dtype: torch.dtype) -> None:
        weight, x = draw((5,), (4,)), inputs((4,)).detach().to(dtype)
        bias = torch.randn(5, dtype=torch.float32)
        found = contract(weight, x, self.backend, bias=bias)
        assert found.dtype == dtype
        assert torch.allclose(found.double(), expected(weight, x.double()) + bias.double(), rtol=2e-2, atol=2e-2)

    def test_int64_structures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pattern, "INT32_MAX", 0)
        weight = draw((2, 3), (4,))
        assert weight.pattern.crow.dtype == torch.int64
        check(weight, inputs((4,)), self.backend)

    @pytest.mark.parametrize("n", [19, 21])
    def test_one_position_may_stand_many_times(self, n: int) -> None:
        indices = torch.tensor([[1, 2]]).repeat(n, 1)
        values = torch.randn(n, dtype=torch.float64, requires_grad=True)
        check(SparseWeight(indices, values, (4,), (5,)), inputs((5,)), self.backend)

    def test_inputs_in_any_memory_order(self) -> None:
        x = torch.randn(4, 3, 2, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
        check(draw((2,), (3,)), x, self.backend)
        check(draw((2,), (3,)), torch.randn(1, 1, 1).double().expand(2, 3, 4).requires_grad_(), self.backend)

    def test_an_empty_batch(self) -> None:
        check(draw((2,), (3,)), inputs((3,), 0), self.backend)
        check(draw((2,), (3,)), inputs((3,), 2, (0,)), self.backend)

    @pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
    def test_gradients_only_where_they_are_needed(self, needed: tuple[bool, bool]) -> None:
        weight, x = draw((2,), (3,)), inputs((3,))
        leaves = [leaf.detach().requires_grad_(on) for leaf, on in zip((weight.values, x), needed, strict=True)]
        y = contract(with_values(weight, leaves[0]), leaves[1], self.backend)
        assert y.requires_grad == any(needed)
        if any(needed):
            y.sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == list(needed)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("whole", [False, True], ids=["input alone", "values too"])
    def test_other_types(self, dtype: torch.dtype, whole: bool) -> None:
        weight, x = draw((4,), (5,)), inputs((5,))
        values = weight.values.detach().to(dtype if whole else torch.float32).requires_grad_()
        low = x.detach().to(dtype).requires_grad_()
        y = contract(with_values(weight, values), low, self.backend)
        assert y.dtype == dtype
        assert torch.allclose(y.double(), expected(weight, x), atol=30 * torch.finfo(dtype).eps)
        y.sum().backward()
        assert values.grad is not None
        assert low.grad is not None
        assert (values.grad.dtype, low.grad.dtype) == (values.dtype, dtype)
        target = torch.autograd.grad(expected(weight, x).sum(), x)[0]
        assert torch.allclose(low.grad.double(), target, atol=30 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("task", [problems.identity(6), problems.permutation(6), problems.sparse_matrix(5, 6, 9)])
    def test_tasks_with_known_answers(self, task: Tensor) -> None:
        x = torch.randn(4, 6)
        assert torch.allclose(contract(SparseWeight.from_dense(task, 1), x, self.backend), x @ task.t(), atol=1e-6)


class InstanceSuite:
    """What a backend does for a weight per instance."""

    backend: str

    @each_shape
    @pytest.mark.parametrize("extra", [(), (2, 2)], ids=str)
    @pytest.mark.parametrize("n", [0, 9])
    def test_instances(self, out_shape: Shape, in_shape: Shape, extra: Shape, n: int) -> None:
        check(draw(out_shape, in_shape, n, b=3), inputs(in_shape, extra=extra), self.backend)

    @pytest.mark.parametrize("extra", [(), (2,)], ids=str)
    def test_a_bias_of_instances(self, extra: Shape) -> None:
        weight, x, bias = draw((2, 3), (4,), b=3), inputs((4,), extra=extra), torch.randn(2, 3, dtype=torch.float64)
        found = contract(weight, x, self.backend, bias=bias)
        assert torch.allclose(found, expected(weight, x) + bias.reshape(2, 3, *[1] * len(extra)))

    def test_derivatives_of_instances_by_differences(self) -> None:
        weight, x = draw((2,), (2, 2), 4, b=2), inputs((2, 2), 2)

        def product(values: Tensor, x: Tensor) -> Tensor:
            return contract(with_values(weight, values), x, self.backend)

        assert gradcheck(product, (weight.values, x))
        assert gradgradcheck(product, (weight.values, x))

    def test_instances_of_an_empty_batch_and_of_no_extra_positions(self) -> None:
        check(draw((4,), (5,), b=3), inputs((5,), 3, (0,)), self.backend)
        weight, x = draw((4,), (5,), b=0), inputs((5,), 0)
        y = contract(weight, x, self.backend)
        assert y.shape == (0, 4)
        y.sum().backward()
        assert weight.values.grad is not None and weight.values.grad.shape == (0, 9)

    def test_instances_in_any_memory_order(self) -> None:
        x = torch.randn(4, 3, 2, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
        check(draw((2,), (3,), b=2), x, self.backend)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_instances_of_half_precision(self, dtype: torch.dtype) -> None:
        weight, x = draw((4,), (5,), b=3), inputs((5,))
        y = contract(with_values(weight, weight.values.float()), x.to(dtype), self.backend)
        assert y.dtype == dtype
        assert torch.allclose(y.double(), expected(weight, x), atol=30 * torch.finfo(dtype).eps)

    def test_as_many_weights_as_instances(self) -> None:
        with pytest.raises(UserError, match="3 weights .* for a batch of 2"):
            contract(draw((4,), (5,), b=3), inputs((5,), 2), self.backend)


class TestDense(SharedSuite, InstanceSuite):
    backend = "dense"


class TestTorch(SharedSuite, InstanceSuite):
    backend = "torch"


class TestAuto(InstanceSuite):
    backend = "auto"

    @pytest.mark.parametrize("n", [1, 12])
    def test_the_choice_changes_nothing(self, n: int) -> None:
        check(draw((4,), (5,), n), inputs((5,)), self.backend)


class TestGather(SharedSuite):
    """The torch backend as it runs where there is no MKL."""

    backend = "torch"

    @pytest.fixture(autouse=True)
    def _without_mkl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_backend, "native", False)


class TestGatherInBlocks(TestGather):
    @pytest.fixture(autouse=True)
    def _tiny_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_backend, "GATHER_BLOCK", 7)


@pytest.mark.skipif(not compiled.available(), reason="numba is not installed")
class TestCompiled(SharedSuite):
    """The torch backend with the compiled kernels wherever they can run, in two threads."""

    backend = "torch"

    @pytest.fixture(autouse=True)
    def _for_every_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "LEAST_BATCH", 1)
        monkeypatch.setattr(compiled, "LEAST_WORK", 0)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


class TestInstancesInBlocks(InstanceSuite):
    backend = "torch"

    @pytest.fixture(autouse=True)
    def _tiny_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(instances, "GATHER_BLOCK", 14)


@pytest.mark.skipif(not jit.available(), reason="numba is not installed")
class TestInstancesCompiled(InstanceSuite):
    """The product of a weight per instance with the compiled kernels at every size, in two threads."""

    backend = "torch"

    @pytest.fixture(autouse=True)
    def _for_every_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jit, "LEAST_POINTS", 0)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def torch_sparse_runs() -> bool:
    try:
        return importlib.util.find_spec("torch_sparse") is not None and get_backend("torch_sparse") is not None
    except (BackendUnavailable, OSError):
        return False


@pytest.mark.torch_sparse
@pytest.mark.skipif(not torch_sparse_runs(), reason="torch-sparse is not installed")
class TestTorchSparse(SharedSuite):
    backend = "torch_sparse"
    second_derivatives = False  # torch_sparse's backward pass is not differentiable


def csr_arguments(known: bool, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    weight = draw((4,), (5,), 7)
    structure = weight.pattern
    values = structure.arrange(weight.values.detach().to(dtype)).clone().requires_grad_()
    x = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    return values, structure.crow, structure.col, x, *(structure.transposed if known else (None, None, None))


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
TRACED = (*CHECKS, "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("least", [0, 1 << 30], ids=["compiled", "gather"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("e", [1, 3])
def test_operators_of_instances_are_well_made(
    monkeypatch: pytest.MonkeyPatch, least: int, dtype: torch.dtype, e: int
) -> None:
    monkeypatch.setattr(jit, "LEAST_POINTS", least)
    b, n = 2, 9
    rows, cols = torch.randint(4, (b, n)), torch.randint(5, (b, n))
    values, x, g = (
        torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((b, n), (b, 5, e), (b, 4, e))
    )
    for operator, arguments in (
        (instances.instance_matmul, (values, rows, cols, x, 4)),
        (instances.instance_sddmm, (g, x, rows, cols)),
    ):
        assert set(torch.library.opcheck(operator.overload, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("least", [0, 1 << 30], ids=["compiled", "gather"])
@pytest.mark.parametrize(("n", "e"), [(7, 1), (7, 3), (0, 2)])
def test_second_derivatives_of_products_of_instances(
    monkeypatch: pytest.MonkeyPatch, least: int, n: int, e: int
) -> None:
    """Also of the sampled product, with duplicates and non-contiguous operands."""
    monkeypatch.setattr(jit, "LEAST_POINTS", least)
    rows, cols = torch.randint(3, (2, n)), torch.randint(4, (2, n))
    values, x, g = (
        torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((n, 2), (e, 4, 2), (2, 3, e))
    )
    for function, leaves in (
        (lambda v, x: instances.instance_matmul(v.t(), rows, cols, x.permute(2, 1, 0), 3), (values, x)),
        (lambda g, x: instances.instance_sddmm(g, x.permute(2, 1, 0), rows, cols), (g, x)),
    ):
        assert gradcheck(function, leaves)
        assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("native", [False, True], ids=["gather", "MKL"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_are_well_made(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
    """With the transpose at hand the backward pass can be traced too; without, it sorts, which cannot."""
    monkeypatch.setattr(torch_backend, "native", native and torch_backend.native)
    for known, utils in ((True, TRACED), (False, CHECKS)):
        arguments = csr_arguments(known, dtype)
        found = torch.library.opcheck(torch_backend.csr_matmul.overload, arguments, test_utils=utils)
        assert set(found.values()) == {"SUCCESS"}
    _, crow, col, x, *_ = csr_arguments(False, dtype)
    g = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    found = torch.library.opcheck(torch_backend.csr_sddmm.overload, (g, x, crow, col), test_utils=CHECKS)
    assert set(found.values()) == {"SUCCESS"}


def test_the_input_may_fit_in_no_other_way() -> None:
    weight = draw((3,), (2, 4))
    for shape in [(2, 4), (5, 4, 2), (5, 8), (5,), (5, 2, 3, 4)]:
        with pytest.raises(UserError, match=r"expected \(b, 2, 4, …\)"):
            contract(weight, torch.randn(shape))


def test_a_bias_that_does_not_fit() -> None:
    weight = draw((3, 2), (4,))
    for bias in (torch.ones(3), torch.ones(6), torch.ones(2, 3), torch.ones(1)):
        with pytest.raises(UserError, match=r"expected \(3, 2\), the weight's output dimensions"):
            contract(weight, inputs((4,)), bias=bias)
    batch = SparseBatch.from_entries([torch.tensor([[1]])], None, [(4,)])
    with pytest.raises(UserError, match="a bias with a sparse input; expected none"):
        contract(weight, batch, bias=torch.ones(3, 2))


@pytest.mark.usefixtures("unchecked")
def test_an_input_of_whole_numbers_is_refused() -> None:
    """The product would be rounded to whole numbers as well."""
    with pytest.raises(UserError, match="expected floating-point numbers"):
        contract(draw((3,), (4,)), torch.ones(2, 4, dtype=torch.int64))


@pytest.mark.parametrize("b", [None, 3])
def test_an_unknown_backend_lists_the_known_ones(b: int | None) -> None:
    with pytest.raises(UserError, match="'tensor'.*'dense'"):
        contract(draw((4,), (5,), b=b), inputs((5,)), "tensor")


def test_a_missing_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    get_backend.cache_clear()
    monkeypatch.setitem(sys.modules, "torch_sparse", None)
    with pytest.raises(BackendUnavailable, match="pip install .*torch-sparse"):
        contract(draw((4,), (5,)), inputs((5,)), "torch_sparse")


def test_a_backend_on_the_wrong_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton needs a GPU, unless its interpreter runs; where it is missing, the message says what to install."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UserError, match="backend 'triton' for tensors on cpu; it needs a GPU|pip install triton"):
        contract(draw((4,), (5,)), inputs((5,)), "triton")


def test_the_choice_of_a_backend() -> None:
    assert choose_backend(8, 8, 64) == "dense"
    assert choose_backend(256, 256, 3) == "dense"
    assert choose_backend(257, 256, 3) == "torch"
    assert choose_backend(512, 512, 92_000) == "dense"
    assert choose_backend(512, 512, 91_000) == "torch"
    assert choose_backend(1024, 512, 320_000) == "dense"
    assert choose_backend(1024, 512, 310_000) == "torch"
    assert choose_backend(1024, 512, 310_000, 256) == "dense"
    assert choose_backend(1024, 512, 180_000, 256) == "torch"
    assert choose_backend(10**6, 10**6, 10**5) == "torch"


def test_the_choice_is_told_the_columns_of_all_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(sys.modules["ash.contract"], "choose_backend", lambda *sizes: told.append(sizes) or "torch")
    contract(draw((4,), (5, 2), 7), inputs((5, 2), 3, (2, 6)))
    assert told == [(4, 10, 7, 36)]


def test_a_large_weight_is_never_materialised() -> None:
    n = 10**6
    weight = SparseWeight(torch.tensor([[n - 1, 0], [3, n - 1]]), torch.tensor([2.0, 5.0]), (n,), (n,))
    x = torch.zeros(2, n)
    x[:, 0], x[:, -1] = 1.0, torch.tensor([1.0, 10.0])
    y = contract_function(weight, x)
    assert y[:, n - 1].tolist() == [2.0, 2.0]
    assert y[:, 3].tolist() == [5.0, 50.0]
    assert y.count_nonzero() == 4
