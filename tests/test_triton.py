"""Triton's kernels, run by its interpreter or on a GPU, against the same draws stored and the dense oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ash import Context, Everything, IndexTuples, Sampling, SparseWeight, Template, contract, growth
from ash.backends import get_backend
from ash.backends.triton import csr, launch, points, serving, top, weight
from ash.backends.triton.weight import FusedWeight, fuse
from ash.checks import UserError
from ash.growth import Factors
from ash.jit.tuples import quantiles
from ash.kernels import get_kernel
from ash.sampling import generator_from
from experiments import benchmark_gpu, benchmark_gpu_layers, benchmark_gpu_search
from experiments.benchmark_case import Case

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(not INTERPRETED and DEVICE.type == "cpu", reason="no GPU; set TRITON_INTERPRET=1"),
]
B = 2
CASES: dict[str, dict[str, Any]] = {
    "a matrix": {},
    "a Gaussian": {"kernel": "gaussian", "columns": 2},
    "a general power": {"kernel": "student_t(2.5)"},
    "rank 4": {"out": (2, 3), "ins": (2, 2), "k": 3, "sampling": Sampling(global_samples=1, local_samples=1)},
    "outputs fixed": {"out": (2, 3), "ins": (4, 5), "template": Template.per_output((2, 3), (4, 5), 1), "k": 6},
    "sizes of one": {"out": (1, 3), "ins": (1,)},
    "windows": {"sampling": Sampling(local_samples=3, local_region=(2, 4))},
    "large columns": {"out": (1 << 17,), "ins": (6,), "sampling": Sampling(corners=False)},
}
CHUNKED = ("a Gaussian", "a general power", "outputs fixed")
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small blocks, several a program, and the interpreter in place of a GPU."""
    monkeypatch.setattr(launch, "TUPLES", 4)
    monkeypatch.setattr(launch, "LEAST", 1)
    monkeypatch.setattr(launch, "POINTS", 256)
    for module in (weight, top, csr):
        monkeypatch.setattr(module, "serves", lambda *tensors: True)
    serving.interpreted.cache_clear()
    yield
    serving.interpreted.cache_clear()


Learned = tuple[Tensor, Tensor, Tensor]


def make(
    out: tuple[int, ...] = (5,),
    ins: tuple[int, ...] = (6,),
    k: int = 6,
    template: Template | None = None,
    kernel: str = "student_t",
    columns: int = 1,
    sampling: Sampling | None = None,
    b: int | None = None,
    context: str = "tuple",
    dtype: torch.dtype = torch.float32,
) -> tuple[FusedWeight, Learned]:
    """A draw of k tuples, or for each of b instances, and what it has learned."""
    template = Template(len(out) + len(ins)) if template is None else template
    sizes, batch = template.sizes((*out, *ins)), () if b is None else (b,)
    means = torch.rand(*batch, k, len(sizes), dtype=torch.float64) * (torch.tensor(sizes, dtype=torch.float64) - 1)
    anchors = means.round().long()
    scales, values = 0.5 + torch.rand(*batch, k, columns), torch.randn(*batch, k)
    learned = tuple(part.to(DEVICE, dtype).requires_grad_() for part in (means - anchors, scales, values))
    tuples = IndexTuples(anchors.to(DEVICE), *learned)
    fixed = template.indices if template.columns else torch.zeros(k, 0, dtype=torch.int64)
    drawn = fuse(
        tuples, fixed.to(DEVICE), out, ins, sampling=sampling or Sampling(), kernel=get_kernel(kernel),
        context=Context(context, chunk_size=4), template=template, admissible=Everything((*out, *ins)),
        generator=generator_from(5, DEVICE),
    )  # fmt: skip
    assert drawn is not None
    return drawn, learned  # type: ignore[return-value]


def stored(drawn: SparseWeight) -> SparseWeight:
    return SparseWeight(drawn.indices, drawn.values, drawn.out_shape, drawn.in_shape)


def inputs(drawn: SparseWeight, extra: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, *drawn.in_shape, *extra, dtype=dtype, device=DEVICE, requires_grad=True)


def check(drawn: FusedWeight, learned: Learned, x: Tensor, within: float = 1e-5) -> None:
    """Output and gradients of the fused product are those of the stored weight."""
    y, wanted = contract(drawn, x), contract(stored(drawn), x, "torch")
    assert y.dtype == x.dtype
    assert torch.allclose(y, wanted, atol=within, rtol=within)
    g = torch.randn_like(y)
    found, due = (torch.autograd.grad(each, (x, *learned), g) for each in (y, wanted))
    for one, other in zip(found, due, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, atol=within * float(other.abs().max()), rtol=within)


@each_case
def test_a_shared_weight_is_multiplied_as_if_it_were_stored(case: dict[str, Any]) -> None:
    drawn, learned = make(**case)
    check(drawn, learned, inputs(drawn))


@each_case
def test_a_weight_per_instance_is_multiplied_as_if_it_were_stored(case: dict[str, Any]) -> None:
    drawn, learned = make(b=B, **case)
    check(drawn, learned, inputs(drawn))


@pytest.mark.parametrize("b", [None, B], ids=["shared", "per instance"])
def test_extra_dimensions_share_the_weight(b: int | None) -> None:
    drawn, learned = make(b=b)
    check(drawn, learned, inputs(drawn, (3,)))


@pytest.mark.parametrize("case", [CASES[name] for name in CHUNKED], ids=CHUNKED)
def test_tuples_of_a_chunk_see_the_union_of_their_points(case: dict[str, Any]) -> None:
    drawn, learned = make(context="chunk", **case)
    check(drawn, learned, inputs(drawn))


def test_chunks_of_a_weight_per_instance() -> None:
    drawn, learned = make(b=B, context="chunk", k=5)
    check(drawn, learned, inputs(drawn))


def test_the_stored_draw_is_dense_weights_own() -> None:
    drawn, _ = make()
    x = inputs(drawn)
    assert torch.allclose(contract(drawn, x), x @ drawn.to_dense().t(), atol=1e-5)


@pytest.mark.parametrize("context", ["tuple", "chunk"])
def test_every_value_is_conserved(context: str) -> None:
    drawn, (_, _, values) = make(b=B, context=context)
    y = contract(drawn, torch.ones(B, *drawn.in_shape, device=DEVICE))
    assert torch.allclose(y.sum(1), values.sum(1), atol=1e-5)


def test_tuples_that_instances_share_are_read_once() -> None:
    """Expanded parameters give what copies of them give."""
    drawn, learned = make(k=4)
    own = drawn.tuples
    parts = [part.expand(B, *part.shape) for part in (own.anchors, own.residuals, own.scales, own.values)]
    shared = FusedWeight(IndexTuples(*parts), drawn.plan)
    copies = FusedWeight(IndexTuples(*(part.clone() for part in parts)), drawn.plan)
    x = inputs(drawn)
    y, wanted = contract(shared, x), contract(copies, x)
    assert torch.equal(y, wanted)
    found, due = (torch.autograd.grad(each.sum(), learned) for each in (y, wanted))
    assert all(torch.allclose(one, other) for one, other in zip(found, due, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_of_input(dtype: torch.dtype) -> None:
    """float64 is computed in float64; narrow inputs are added up in float32 and rounded once."""
    drawn, learned = make(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    check(drawn, learned, inputs(drawn, dtype=dtype), {torch.float64: 1e-10}.get(dtype, 2e-2))


def test_inputs_that_do_not_lie_row_by_row() -> None:
    drawn, learned = make()
    x = inputs(drawn).detach().repeat(1, 2)[:, ::2].flip(0).requires_grad_()
    check(drawn, learned, x)


@pytest.mark.parametrize("b", [0, B])
def test_empty_batches_give_empty_outputs(b: int) -> None:
    drawn, (_, _, values) = make()
    x = torch.randn(b, *drawn.in_shape, device=DEVICE)
    y = contract(drawn, x)
    assert y.shape == (b, *drawn.out_shape)
    (found,) = torch.autograd.grad(y.sum(), values)
    assert bool((found == 0).all()) == (b == 0)


def test_gradients_have_derivatives_by_values_and_input() -> None:
    drawn, (_, _, values) = make(dtype=torch.float64, k=3)
    x = inputs(drawn, dtype=torch.float64)
    twice = []
    for each in (drawn, stored(drawn)):
        first = torch.autograd.grad(contract(each, x).square().sum(), (x, values), create_graph=True)
        twice.append(torch.autograd.grad(sum(part.square().sum() for part in first), (x, values)))
    assert all(torch.allclose(one, other) for one, other in zip(*twice, strict=True))


# --- points --------------------------------------------------------------------------------------------


def test_points_are_where_they_should_be() -> None:
    """The nearest corner first; every column's own kind of point; a function of the seed."""
    places = points.Places((40, 1 << 20), (3, 0), (1, 2, 3, 1))
    anchors = torch.tensor([[7, 1000], [0, (1 << 20) - 1]])
    residuals, scales = torch.tensor([[0.4, -0.3], [0.2, 0.1]]), torch.tensor([[2.0], [2.0]])
    seeds = [torch.tensor([number]) for number in (5, 5, 6)]
    first, again, other = (points.draw(anchors, residuals, scales, places, seed) for seed in seeds)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first[:, 0, :4].tolist() == [[7, 7, 8, 8], [1000, 999, 1000, 999]]
    assert first[:, 1, :4].tolist() == [[0, 0, 1, 1], [(1 << 20) - 1] * 4]
    assert first.min() >= 0 and first[0].max() < 40 and first[1].max() < 1 << 20
    local = first[:, :, 6:9]
    assert set(local[0, 0].tolist()) <= {6, 7, 8} and set(local[0, 1].tolist()) <= {0, 1, 2}
    assert (local[1, 0] - 1000).abs().max() <= 8


@pytest.mark.parametrize("size", [1000, 1 << 20, 1 << 31])
def test_points_have_the_laws_that_they_should_have(size: int) -> None:
    places = points.Places((size, size), (0, 0), (0, 1, 1, 0))
    k = 20000
    middle = torch.full((k, 2), size // 2)
    drawn = points.draw(middle, torch.zeros(k, 2), torch.full((k, 1), size / 20), places, torch.tensor([3]))
    uniform, local = (drawn[..., 0].double() + 0.5) / size, (drawn[..., 1] - size // 2).double() * 20 / size
    assert torch.allclose(uniform.mean(1), torch.tensor(0.5).double(), atol=0.01)
    assert torch.allclose(uniform.var(1), torch.tensor(1 / 12).double(), atol=0.003)
    assert torch.allclose(local.mean(1), torch.tensor(0.0).double(), atol=0.03)
    assert torch.allclose(local.var(1), torch.tensor(1.0).double(), atol=0.04)
    assert abs(float(torch.corrcoef(uniform)[0, 1])) < 0.03 and abs(float(torch.corrcoef(local)[0, 1])) < 0.03


def test_the_table_of_quantiles_has_as_many_cells_as_the_kernels_look_up() -> None:
    """The device functions shift by 54 and 22 bits: what is left of 64 and 32 are the 10 that number a cell."""
    assert len(quantiles()) == 2**10 + 1


def test_the_seed_is_not_read_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is captured, replayed, draws with whatever seed lies there."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func is not torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    everything = Everything((5, 6))
    monkeypatch.setattr("test_triton.Everything", lambda shape: everything)
    with Watch():
        drawn, _ = make(k=2)
        contract(drawn, inputs(drawn)).sum().backward()


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": Sampling(global_samples=40)},
        {"context": Context("chunk", chunk_size=200), "k": 200},
        {"sizes": (1 << 32,)},
    ],
    ids=["many points", "large chunks", "long columns"],
)
def test_what_no_kernel_serves_is_drawn_and_stored(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"sampling": Sampling(), "context": Context("tuple"), "sizes": (5,), "k": 3, **change}
    k, out = given["k"], given["sizes"]
    tuples = IndexTuples(torch.zeros(k, 2).long(), torch.zeros(k, 2), torch.ones(k, 1), torch.ones(k))
    drawn = fuse(
        tuples, torch.zeros(k, 0).long(), out, (6,), sampling=given["sampling"], kernel=get_kernel("gaussian"),
        context=given["context"], template=Template(2), admissible=Everything((*out, 6)),
        generator=generator_from(5, torch.device("cpu")),
    )  # fmt: skip
    assert drawn is None


# --- growth --------------------------------------------------------------------------------------------


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor | None]:
    """`search(factors, n, by, gone)`: the search with small tiles, a small grid and little room."""
    monkeypatch.setattr(top, "TILE", {"M": 16, "N": 16, "K": 16, "GROUP": 2})
    monkeypatch.setattr(top, "LEAST", 0)
    monkeypatch.setattr(top, "SAMPLE", 256)
    monkeypatch.setattr(top, "SLACK", 8)
    monkeypatch.setattr(top, "ROOM", 2)

    def run(factors: Factors, n: int, by: str = "largest", gone: Tensor | None = None) -> Tensor | None:
        return top.places(factors, n, gone, None, by)

    return run


def factors(rows: int = 40, cols: int = 50, b: int = 5) -> Factors:
    return Factors(torch.randn(b, cols, device=DEVICE), torch.randn(b, rows, device=DEVICE))


@pytest.mark.parametrize("precision", ["tf32", "bf16", "ieee"])
@pytest.mark.parametrize("by", ["largest", "positive", "negative"])
def test_the_largest_entries_are_found(
    precision: str, by: str, search: Callable[..., Tensor | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "precision", precision)
    made = factors()
    wanted = growth.Score.places(made, 60, by=by)
    found = search(made, 60, by)
    assert found is not None and torch.equal(found, wanted)


def test_excluded_entries_do_not_count(search: Callable[..., Tensor | None]) -> None:
    made = factors()
    gone = growth.Score.places(made, 30)
    found = search(made, 7, "largest", gone)
    assert found is not None and torch.equal(found, growth.Score.places(made, 37)[30:])


def test_a_bar_too_low_or_too_high_is_mended(
    search: Callable[..., Tensor | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many candidates raise it to the n-th best of those that fit, too few lower it."""
    made = factors()
    made.g[:, 13] *= 50
    wanted = growth.Score.places(made, 45)
    guess = top.Search._guess
    for bar in (0.0, 1e9):
        bars = [bar]
        with monkeypatch.context() as patched:
            patched.setattr(
                top.Search, "_guess", lambda self, place, bars=bars: bars.pop() if bars else guess(self, place)
            )
            found = search(made, 45)
        assert not bars
        assert found is not None and torch.equal(found, wanted)


def test_a_search_without_a_bar_is_left_to_others(search: Callable[..., Tensor | None]) -> None:
    """All entries are equal: no bar keeps the candidates few."""
    made = Factors(torch.zeros(3, 40, device=DEVICE), torch.zeros(3, 30, device=DEVICE))
    assert search(made, 5) is None


# --- CSR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_stored_weights_by_own_kernels(dtype: torch.dtype) -> None:
    dense = torch.where(torch.rand(9, 7) < 0.5, torch.randn(9, 7), 0.0).to(DEVICE, dtype)
    dense[4] = 0
    values = SparseWeight.from_dense(dense, 1).values.detach().requires_grad_()
    own = SparseWeight(SparseWeight.from_dense(dense, 1).indices, values, (9,), (7,))
    x = torch.randn(3, 7, device=DEVICE, dtype=dtype, requires_grad=True)
    y = contract(own, x, "triton")
    wanted = contract(own, x, "dense")
    within = {torch.float64: 1e-12, torch.float16: 1e-2}.get(dtype, 1e-5)
    assert torch.allclose(y, wanted, atol=within)
    g = torch.randn_like(y)
    found, due = (torch.autograd.grad(each, (x, values), g) for each in (y, wanted))
    assert all(torch.allclose(one, other, atol=within) for one, other in zip(found, due, strict=True))


def test_the_backend_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ash.backends.triton.backend.interpreted", lambda: False)
    own = SparseWeight.from_dense(torch.eye(3), 1)
    with pytest.raises(UserError, match="'triton' for tensors on cpu; it needs a GPU"):
        get_backend("triton").matmul(own, torch.ones(3, 2))


# --- without a GPU -------------------------------------------------------------------------------------


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """Triton makes machine code for compute capability 9.0 on any machine; nothing spills."""
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script, root = Path(__file__).parent / "triton_compile.py", Path(__file__).parent.parent
    env = {**own, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9 and all(line.endswith("registers") for line in lines)


@pytest.fixture
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's steps where the kernels run here, with wirings that draw by them."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        for module in (benchmark_gpu_layers, benchmark_gpu_search):
            monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(launch, "TUPLES", 64)
    fused = "ash.wirings.stochastic.draw_weight", lambda *a, **b: fuse(*a, **b) if serving.enabled else None
    monkeypatch.setattr(*fused)


@pytest.mark.usefixtures("on_this_machine")
@pytest.mark.parametrize("kind", ["gpu_free", "gpu_instance"])
def test_the_benchmark_compares_layers_with_their_stored_draw(kind: str) -> None:
    assert benchmark_gpu_layers.check(Case(kind)) < 1e-5
    tiny = {"size": 12, "batch": 2, "context": "tuple"}
    steps = benchmark_gpu._layers()[f"{kind}_step"], benchmark_gpu._layers()[f"{kind}_forward"]
    for layer in steps:
        made = [layer.prepare, *(rival for name, rival in layer.rivals.items() if "copy" not in name)]
        for prepare in made:
            prepare(Case(kind, **tiny))()  # type: ignore[arg-type]
    assert serving.enabled


@pytest.mark.usefixtures("on_this_machine", "search")
def test_the_benchmark_compares_growth_and_csr_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_gpu_search, "SMALL", (48, 4, 9))
    monkeypatch.setattr(growth.Factors, "places", lambda self, n: top.places(self, n))
    assert benchmark_gpu_search.check_growth(Case("gpu_growth")) == 0
    crow, kinds = torch.arange(0, 8 * 16 + 1, 8), ("gpu_csr_matmul", "gpu_csr_sddmm")
    for kind in kinds:
        _, found, _, _, _ = benchmark_gpu_search._matrix(Case(kind, size=16, batch=2))
        assert torch.equal(found.long(), crow)
        benchmark_gpu_search.csr_step(Case(kind, size=16, batch=2))()
        benchmark_gpu_search.cusparse_step(Case(kind, size=16, batch=2))()


def test_the_suite_names_what_its_cases_need() -> None:
    """Every figure has a layer and a rival that exist, a name of its own, and those promised have a bar."""
    plan, layers = benchmark_gpu.gpu_plan(False), benchmark_gpu._layers()
    names = [row.name for row, _ in plan]
    assert len(set(names)) == len(names)
    for _, case in plan:
        layer = layers[case.layer]
        assert case.figure != "ratio" or layer.measure is not None or case.rival in layer.rivals
    barred = {row.name for row, _ in plan if row.bar is not None}
    each = {f"gpu_{kind}_{bar}" for kind in ("free", "instance") for bar in ("copy", "unfused", "memory")}
    assert barred == each | {"gpu_growth_tf32_seconds", "gpu_identity_65536_seconds", "gpu_identity_65536_bytes"}
