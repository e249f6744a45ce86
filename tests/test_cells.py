"""Shares by cells against the whole table in float64, values and gradients."""

import math
from dataclasses import dataclass

import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ash import Context, GaussianWiring, Sampling, SparseLinear, UserError, cells, jit, trees, walks
from ash.cells import cell_weights
from ash.kernels import Gaussian, Kernel, get_kernel
from ash.nodes import nodes
from ash.trees import grow_tree
from ash.walks import Cloud

NU = {"gaussian": None, "student_t": 1.0, "student_t(3)": 3.0, "student_t(1.5)": 1.5}
WAYS = ["torch", *(["compiled"] if jit.available() else [])]


@dataclass
class Case:
    """c contexts of t tuples and p points each; positions below `size`."""

    points: Tensor
    alive: Tensor
    anchors: Tensor
    residuals: Tensor
    scales: Tensor
    values: Tensor
    groups: tuple[Tensor, Tensor] | None
    size: int

    @property
    def learned(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.residuals, self.scales, self.values

    def found(self, name: str, always: bool = True) -> Tensor | None:
        return cell_weights(
            always, get_kernel(name), self.points, self.alive, self.anchors, *self.learned, self.groups, self.size
        )

    def expected(self, name: str) -> Tensor:
        means = self.anchors.double() + self.residuals.double()
        return problems.point_weights(self.points, self.alive, means, self.scales, self.values, NU[name], self.groups)


def make(
    shape: tuple[int, int, int],
    q: int = 2,
    *,
    size: int = 500,
    scales: tuple[float, float] = (0.5, 5.0),
    per_column: bool = False,
    dead: bool = False,
    grouped: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Half of the points near tuples, half anywhere; scales between two bounds, evenly in their logarithm."""
    c, t, p = shape
    anchors = torch.randint(0, size, (c, t, q))
    points = torch.randint(0, size, (c, p, q))
    near = torch.arange(p // 2) % t
    points[:, : len(near)] = anchors[:, near] + torch.randint(-2, 3, (c, len(near), q))
    points = points.clamp(0, size - 1)
    low, high = (math.log(scale) for scale in scales)
    sigma = (low + (high - low) * torch.rand(c, t, q if per_column else 1)).exp().to(dtype)
    alive = torch.rand(c, p) > 0.4 if dead else torch.ones(c, p, dtype=torch.bool)
    alive[:, :2] = True
    groups = None
    if grouped:
        groups = 5 * torch.arange(p).remainder(2).expand(c, p), 5 * torch.arange(t).remainder(2).expand(c, t)
    residuals = (torch.rand(c, t, q, dtype=dtype) - 0.5).requires_grad_()
    values = torch.randn(c, t, dtype=dtype).requires_grad_()
    return Case(points, alive, anchors, residuals, sigma.requires_grad_(), values, groups, size)


def use(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels for work of any size, in two threads, or none."""
    monkeypatch.setattr(jit, "LEAST_POINTS", 0 if way == "compiled" else 1 << 60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


each_way = pytest.mark.parametrize("way", WAYS)


def compare(case: Case, name: str, tolerance: float = 1e-5) -> None:
    """Values and gradients, relative to the largest, and these to what a tuple of the smallest scale may have."""
    found, expected = case.found(name), case.expected(name)
    assert found is not None
    assert found.dtype == case.values.dtype
    assert (found[~case.alive] == 0).all()
    factor = torch.rand_like(expected) - 0.5
    actual = torch.autograd.grad((found * factor.to(found.dtype)).sum(), case.learned)
    due = torch.autograd.grad((expected * factor).sum(), case.learned)
    natural = float(case.values.detach().abs().max() / case.scales.detach().min())
    assert float((found - expected).detach().abs().max()) <= tolerance * float(expected.detach().abs().max())
    for one, other in zip(actual, due, strict=True):
        assert float((one - other).abs().max()) <= tolerance * max(natural, float(other.abs().max()))


@each_way
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(sorted(NU)),
    q=st.integers(1, 4),
    shape=st.sampled_from([(1, 1, 7), (1, 30, 400), (3, 4, 90), (2, 2, 2), (5, 1, 60)]),
    size=st.sampled_from([3, 40, 3000]),
    scales=st.sampled_from([(0.3, 0.6), (0.5, 100.0), (1000.0, 2000.0)]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_cells_give_the_table(way, seed, name, q, shape, size, scales, flags) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(seed)
    per_column, dead, grouped = flags
    with pytest.MonkeyPatch.context() as patch:
        use(way, patch)
        compare(make(shape, q, size=size, scales=scales, per_column=per_column, dead=dead, grouped=grouped), name)


@each_way
@pytest.mark.parametrize("name", ["gaussian", "student_t", "student_t(3)"])
@pytest.mark.parametrize("scales", [(0.3, 2.0), (0.3, 300.0)], ids=["narrow", "mixed"])
def test_many_points(way: str, name: str, scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, monkeypatch)
    torch.manual_seed(0)
    compare(make((1, 200, 2000), size=3000, scales=scales), name)


@each_way
@pytest.mark.parametrize("name", ["gaussian", "student_t"])
@pytest.mark.parametrize("size", [(1 << 24) - 1, 10**9], ids=str)
def test_positions_keep_their_precision(way: str, name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, monkeypatch)
    torch.manual_seed(0)
    compare(make((2, 20, 200), size=size), name)


@each_way
@pytest.mark.parametrize("name", ["gaussian", "student_t", "student_t(3)"])
@pytest.mark.parametrize("sigma", [1e-20, 1e-8, 1e-3, 1e6])
def test_no_scale_gives_a_nan(way: str, name: str, sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, monkeypatch)
    case = make((2, 9, 100), size=10**6, scales=(sigma, sigma), dead=True)
    found = case.found(name)
    assert found is not None
    assert torch.allclose(found.sum(-1), case.values.sum(-1), atol=1e-4)
    for gradient in torch.autograd.grad((found * torch.randn_like(found)).sum(), case.learned):
        assert gradient.isfinite().all()


@each_way
@pytest.mark.parametrize("name", ["gaussian", "student_t"])
def test_float64_is_exact(way: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, monkeypatch)
    compare(make((1, 60, 900), dtype=torch.float64), name, 1e-11)


@each_way
@pytest.mark.parametrize("name", ["gaussian", "student_t"])
def test_gradcheck(way: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, monkeypatch)
    monkeypatch.setattr(cells, "LEAF", 2)
    case = make((2, 2, 6), size=5, per_column=True, grouped=True, dtype=torch.float64)

    def weights(residuals: Tensor, scales: Tensor, values: Tensor) -> Tensor | None:
        parts = case.points, case.alive, case.anchors, residuals, scales, values, case.groups
        return cell_weights(True, get_kernel(name), *parts, 5)

    assert torch.autograd.gradcheck(weights, case.learned)


@each_way
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, monkeypatch)
    compare(make((1, 10, 100), dtype=dtype), "student_t", 2e-2)


@each_way
def test_a_far_point_has_no_share_of_a_gaussian_unless_all_are_far(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """σ = 1: beside a point at its mean, one at 20 has exp(−200); beside one at 19 it has 1/(1 + exp(19.5))."""
    use(way, monkeypatch)
    monkeypatch.setattr(cells, "LEAF", 1)
    case = make((1, 1, 3), 1, size=1000, scales=(1.0, 1.0))
    case.anchors[:] = 100
    with torch.no_grad():
        case.residuals.zero_()
        case.values.fill_(1.0)
    case.points[0, :, 0] = torch.tensor([100, 120, 900])
    found = case.found("gaussian")
    assert found is not None
    assert found.tolist() == [[1.0, 0.0, 0.0]]
    case.points[0, :, 0] = torch.tensor([119, 120, 900])
    found = case.found("gaussian")
    assert found is not None
    share = 1 / (1 + math.exp(19.5))
    assert torch.allclose(found[0].double(), torch.tensor([1 - share, share, 0.0]).double(), rtol=1e-5)


@each_way
@pytest.mark.parametrize("name", ["gaussian", "student_t"])
def test_narrow_tuples_see_few_sources(way: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most an eighth of the points. In plain torch a source costs as much as 40 entries of the table."""
    use(way, monkeypatch)
    seen, whole = [], cells._pays

    def watch(cloud: Cloud, compiled: bool) -> bool:
        seen.append(cells._mean_sources(cloud) if compiled else walks.mean_sources(cloud))
        return whole(cloud, compiled)

    monkeypatch.setattr(cells, "_pays", watch)
    case = make((1, 1000, 8000), size=10_000, scales=(0.5, 1.0))
    found = case.found(name, always=False)
    assert 1 < seen[0] < 8000 / 8
    assert (found is not None) == (name == "student_t" and way == "compiled" or seen[0] * cells.COSTS[way] < 8000)
    assert found is not None or way == "torch"


def test_the_table_is_taken_where_it_costs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables; without compiled kernels wide tuples; a wide Gaussian, which sees all points."""
    use("torch", monkeypatch)
    assert make((1, 100, 800)).found("gaussian", always=False) is None
    assert make((1, 1000, 8000), scales=(200.0, 300.0)).found("student_t", always=False) is None
    if "compiled" in WAYS:
        use("compiled", monkeypatch)
        assert make((1, 1000, 8000), scales=(200.0, 300.0)).found("gaussian", always=False) is None
        assert make((1, 1000, 8000), scales=(200.0, 300.0)).found("student_t", always=False) is not None


def test_a_layer_by_cells_is_the_layer_by_the_table() -> None:
    torch.manual_seed(0)
    wiring = GaussianWiring(300, 300, 200, context="all", sampling=Sampling(kept_samples=1), scale=2.0)
    layer, x, found = SparseLinear(300, 300, wiring=wiring), torch.randn(8, 300), []
    for shares in ("cells", "table"):
        wiring.context = Context("all", shares=shares)
        torch.manual_seed(1)
        layer.zero_grad()
        y = layer(x)
        y.square().sum().backward()
        found.append([y.detach(), *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(other.abs().max()))


class Own(Kernel):
    def log_density(self, u: Tensor, q: int) -> Tensor:
        return -u

    def slope(self, u: Tensor, q: int) -> float:
        return -1.0


def test_kernels_of_ones_own_go_by_the_table() -> None:
    wiring = GaussianWiring(6, 6, 5, kernel=Own(), context=Context("all", shares="cells"))
    with pytest.raises(UserError, match="shares='cells' with the kernel.*expected a gaussian or student_t"):
        wiring()
    wiring.context = Context("all")
    assert torch.allclose(wiring().values.sum(), wiring.values.sum())
    assert not cells.fits(Own(), torch.zeros(1, 5, 2))
    assert not cells.fits(Gaussian(), torch.zeros(1, 5, 0))


# --- trees and nodes -----------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 200),
    q=st.integers(1, 5),
    c=st.integers(1, 4),
    size=st.sampled_from([1, 7, 1000, 2**40]),
    leaf=st.integers(1, 9),
)
def test_a_tree_holds_every_point_once_in_boxes(seed: int, n: int, q: int, c: int, size: int, leaf: int) -> None:
    torch.manual_seed(seed)
    points, context = torch.randint(-size, size, (n, q)), torch.randint(0, c, (n,))
    tree = grow_tree(points, context, c, leaf, torch.float64)
    assert sorted(tree.order.tolist()) == list(range(n))
    assert torch.equal(tree.where.t().long(), points[tree.order])
    for i in range(len(tree.first)):
        own = tree.where[:, tree.first[i] : tree.last[i]].t()
        assert i < c or len(own)
        assert ((own - tree.middle[i]).abs() <= tree.half[i]).all()
        if (left := int(tree.child[i])) >= 0:
            assert tree.first[left] == tree.first[i]
            assert tree.last[left] == tree.first[left + 1]
            assert tree.last[left + 1] == tree.last[i]
        elif size < 2**20:
            assert len(own) <= leaf or len(own.unique(dim=0)) == 1
    for i in range(c):
        assert (context[tree.order[tree.first[i] : tree.last[i]]] == i).all()
    assert int((tree.last - tree.first)[:c].sum()) == n


@pytest.mark.parametrize("q", [1, 2, 3, 4, 7])
def test_nodes_reproduce_polynomials(q: int) -> None:
    """Of degree p − 1 in every column: of the highest order directly, of the lower ones by its charges."""
    own = nodes(q, torch.float64)
    top = int(own.orders[-1])
    x, g = 2 * torch.rand(20, q).double() - 1, torch.randn(20).double()
    chebyshev = torch.cos(torch.arange(top) * torch.arccos(x).unsqueeze(-1)) @ own.basis
    product = chebyshev[:, 0]
    for j in range(1, q):
        product = (product.unsqueeze(-1) * chebyshev[:, j].unsqueeze(1)).flatten(1)
    charges = own.all((g @ product)[None])[0]
    for p, begin, end in zip(own.orders, own.starts[:-1], own.starts[1:], strict=True):
        power = torch.randint(0, int(p), (q,))
        at_nodes = (own.grid[:, begin:end].t() ** power).prod(-1)
        assert torch.allclose(charges[begin:end] @ at_nodes, g @ (x**power).prod(-1))
    sums = torch.randn(1, len(charges)).double()
    assert torch.allclose((own.all((g @ product)[None]) * sums).sum(), (own.highest(sums) @ product.t() * g).sum())


def test_deep_trees_fit_the_kernels_stack() -> None:
    assert 2 * trees.BITS <= 128
