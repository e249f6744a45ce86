"""One suite for every wiring, in every variant: entries, sums, copies, evaluation, seeds, gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ash import (
    Boxes,
    Context,
    DSRWiring,
    GaussianWiring,
    Mask,
    RigLWiring,
    Sampling,
    SETWiring,
    SNFSWiring,
    SourceBeforeTarget,
    SparseLayer,
    SparseWeight,
    StaticWiring,
    Template,
    UserError,
    Wiring,
    contract,
)

OUT, IN = (6,), (6,)
gaussian = partial(GaussianWiring, OUT, IN, dtype=torch.float64)
static = partial(StaticWiring, OUT, IN, dtype=torch.float64)
UPPER = torch.triu(torch.ones(6, 6), 1).bool()
TARGETS = Template(2, (0,), torch.arange(1, 6).repeat_interleave(2)[:, None])

STATIC: dict[str, Callable[[], Wiring]] = {
    "k": partial(static, 9),
    "density": partial(static, density=0.5),
    "given entries": partial(static, indices=torch.tensor([[5, 0], [0, 5], [2, 2]])),
    "admissible": partial(static, 10, admissible=SourceBeforeTarget(6)),
    "all entries": partial(static, density=1.0),
    "rank 5": partial(StaticWiring, (2, 3), (2, 1, 4), 11, dtype=torch.float64),
}

GAUSSIAN: dict[str, Callable[[], Wiring]] = {
    "defaults": partial(gaussian, 7),
    "one tuple": partial(gaussian, 1),
    "gaussian": partial(gaussian, 7, kernel="gaussian", context="all"),
    "student_t(3)": partial(gaussian, 7, kernel="student_t(3)", context="all"),
    "chunks": partial(gaussian, 7, context=Context("chunk", 3)),
    "chunks in order": partial(gaussian, 7, context=Context("chunk", 3, shuffle=False)),
    "ones": partial(gaussian, 7, values="ones"),
    "scale per column": partial(gaussian, 7, scale_per_column=True),
    "direct": partial(gaussian, 7, means="direct"),
    "sigmoid": partial(gaussian, 7, means="sigmoid"),
    "template": partial(gaussian, template=Template.per_output(OUT, IN, 2), context="all"),
    "nothing to learn": partial(gaussian, template=Template(2, (0, 1), torch.tensor([[0, 1], [5, 2]]))),
    "admissible": partial(gaussian, 7, admissible=SourceBeforeTarget(6)),
    "mask": partial(gaussian, 7, admissible=Mask(UPPER), context="all"),
    "boxes": partial(gaussian, 7, admissible=Boxes((6, 6), torch.tensor([[1, 2]]), torch.tensor([[2, 2]]))),
    "admissible template": partial(gaussian, admissible=SourceBeforeTarget(6), template=TARGETS),
    "subset": partial(gaussian, 7, subset=0.5),
    "per instance": partial(gaussian, 7, per_instance=True, context="all"),
    "subset per instance": partial(gaussian, 7, per_instance=True, subset=0.4, context=Context("chunk", 2)),
    "guided": partial(gaussian, 7, sampling=Sampling(guided_samples=2)),
    "windows": partial(gaussian, 7, sampling=Sampling(local_region=(2, 9), local_samples=3)),
    "no corners": partial(gaussian, 7, sampling=Sampling(corners=False), admissible=SourceBeforeTarget(6)),
    "rank 5": partial(GaussianWiring, (2, 3), (2, 1, 4), 7, dtype=torch.float64, context="all"),
    "a row": partial(GaussianWiring, 1, 9, 3, dtype=torch.float64),
    "one entry": partial(GaussianWiring, 1, 1, 2, dtype=torch.float64, context="all"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "make" in metafunc.fixturenames and metafunc.cls is not None:
        metafunc.parametrize("make", metafunc.cls.variants.values(), ids=metafunc.cls.variants)


def inputs(wiring: Wiring, b: int = 4) -> Tensor:
    return torch.randn(b, *wiring.in_shape, dtype=torch.float64)


def layer_of(wiring: Wiring, backend: str = "auto") -> SparseLayer:
    layer = SparseLayer(wiring.in_shape, wiring.out_shape, wiring=wiring, backend=backend)
    return layer.double()


def seeded(wiring: Wiring, x: Tensor, seed: int = 3) -> SparseWeight:
    torch.manual_seed(seed)
    return wiring(x)


def train(layer: SparseLayer, steps: int = 3, through: str = "plainly") -> list[Tensor]:
    """A few steps of gradient descent on random targets; the parameters afterwards."""
    torch.manual_seed(11)
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        x = torch.randn(4, *layer.in_shape, dtype=torch.float64, requires_grad=True)
        optimizer.zero_grad()
        y = layer(x) if through == "plainly" else checkpoint(layer, x, use_reentrant=through == "reentrant")
        (y - torch.randn_like(y)).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in layer.parameters()]


class WiringSuite:
    variants: dict[str, Callable[[], Wiring]]

    def test_entries_lie_in_the_tensor_and_are_admissible(self, make: Callable[[], Wiring]) -> None:
        wiring = make()
        for _ in range(5):
            weight = wiring(inputs(wiring)).check()
            assert weight.out_shape == wiring.out_shape
            assert weight.in_shape == wiring.in_shape
            assert wiring.admissible.contains(weight.indices)[weight.values != 0].all()

    def test_the_sum_of_the_values_is_conserved(self, make: Callable[[], Wiring]) -> None:
        wiring = make()
        total = wiring.values.sum()
        for mode in (True, False):
            weight = wiring.train(mode)(inputs(wiring))
            assert torch.allclose(weight.values.sum(-1), total)
            assert torch.allclose(weight.to_dense().flatten(-len(wiring.shape)).sum(-1), total)

    def test_sizes_never_depend_on_the_draw(self, make: Callable[[], Wiring]) -> None:
        wiring = make()
        sizes = {tuple(wiring(inputs(wiring)).indices.shape) for _ in range(5)}
        assert len(sizes) == 1

    def test_evaluation_draws_nothing(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        before = torch.get_rng_state()
        one, other = wiring(), wiring()
        assert torch.equal(torch.get_rng_state(), before)
        assert one.indices.shape == (wiring.stored_entries(), wiring.rank)
        assert torch.equal(one.to_dense(), other.to_dense())
        assert torch.equal(one.values, wiring.values)
        assert wiring.admissible.contains(one.indices).all()

    def test_evaluation_keeps_the_csr_structure(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        kept = wiring().pattern
        assert wiring().pattern is kept
        with torch.no_grad():
            for parameter in wiring.parameters():
                parameter.mul_(0.5).add_(2.0)
        weight = wiring()
        assert torch.equal(weight.pattern.col.double(), weight.pattern.arrange(weight.col_ids.double()))
        assert torch.equal(weight.pattern.row.double(), weight.pattern.arrange(weight.row_ids.double()))

    def test_gradients_in_evaluation(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        x = inputs(wiring).requires_grad_()
        for backend in ("torch", "dense"):
            y = contract(wiring(), x, backend)
            factor = torch.ones_like(y)
            actual = torch.autograd.grad(y, x, factor)[0]
            dense = wiring().to_dense().detach()
            assert torch.allclose(actual[0], dense.sum(tuple(range(len(wiring.out_shape)))))

    def test_training_works_after_an_evaluation_in_inference_mode(self, make: Callable[[], Wiring]) -> None:
        layer = layer_of(make(), "torch")
        with torch.inference_mode():
            layer.eval()(inputs(layer.wiring))
        y = layer.train()(inputs(layer.wiring).requires_grad_())
        y.sum().backward()
        layer.eval()(inputs(layer.wiring).requires_grad_()).sum().backward()
        assert layer.bias is not None
        assert layer.bias.grad is not None

    def test_a_seed_gives_a_draw(self, make: Callable[[], Wiring]) -> None:
        wiring = make()
        x = inputs(wiring)
        one, other = seeded(wiring, x), seeded(wiring, x)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.values, other.values)

    def test_state_dict_round_trip(self, make: Callable[[], Wiring]) -> None:
        torch.manual_seed(1)
        layer = layer_of(make())
        train(layer)
        torch.manual_seed(2)
        other = layer_of(make())
        other.load_state_dict(layer.state_dict())
        x = inputs(layer.wiring)
        assert torch.equal(layer.eval()(x), other.eval()(x))
        one, two = (seeded(each.train().wiring, x) for each in (layer, other))
        assert torch.equal(one.indices, two.indices)
        assert torch.equal(one.values, two.values)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    @pytest.mark.parametrize("steps", [0, 2])
    def test_copies(self, make: Callable[[], Wiring], way: Callable[[SparseLayer], SparseLayer], steps: int) -> None:
        layer = layer_of(make())
        train(layer, steps)
        other = way(layer)
        x = inputs(layer.wiring)
        assert torch.equal(layer(x.clone()) * 0, other(x) * 0)
        assert all(torch.equal(one, two) for one, two in zip(train(layer), train(other), strict=True))
        states = layer.state_dict(), other.state_dict()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        with torch.no_grad():
            other.wiring.values.fill_(99.0)
        assert not (layer.wiring.values == 99.0).any()

    @pytest.mark.parametrize("through", ["reentrant", "not reentrant"])
    def test_activation_checkpointing_changes_nothing(self, make: Callable[[], Wiring], through: str) -> None:
        torch.manual_seed(5)
        layer = layer_of(make(), "torch")
        other = copy.deepcopy(layer)
        for one, two in zip(train(layer), train(other, through=through), strict=True):
            assert torch.equal(one, two)

    def test_the_layer_is_the_dense_oracle(self, make: Callable[[], Wiring]) -> None:
        layer = layer_of(make(), "torch")
        leaves = [p for p in layer.parameters() if p.requires_grad]
        x = inputs(layer.wiring).requires_grad_()
        found = []
        for layer.backend in ("torch", "dense"):
            torch.manual_seed(0)
            y = layer(x)
            factor = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
            gradients = torch.autograd.grad((y * factor).sum(), [x, *leaves], allow_unused=True)
            found.append((y, *gradients))
        for one, other in zip(*found, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other)

    def test_loading_a_dense_weight(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        dense = torch.randn(wiring.shape, dtype=torch.float64)
        if not isinstance(wiring.values, torch.nn.Parameter):
            with pytest.raises(UserError, match="no values to load"):
                wiring.load_dense(dense)
            return
        wiring.load_dense(dense)
        weight = wiring()
        assert torch.equal(weight.values, dense[tuple(weight.indices.unbind(-1))])
        with pytest.raises(UserError, match="expected"):
            wiring.load_dense(dense.unsqueeze(0))

    def test_reset(self, make: Callable[[], Wiring]) -> None:
        layer, states = layer_of(make()), []
        for _ in range(2):
            train(layer)
            torch.manual_seed(1)
            layer.reset_parameters()
            states.append({name: value.clone() for name, value in layer.state_dict().items()})
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    def test_repr_names_the_shape_and_the_entries(self, make: Callable[[], Wiring]) -> None:
        wiring = make()
        text = repr(wiring)
        assert f"{wiring.out_shape} x {wiring.in_shape}" in text
        assert f"entries={wiring.stored_entries()}" in text

    def test_another_type(self, make: Callable[[], Wiring]) -> None:
        layer = layer_of(make()).float()
        y = layer(inputs(layer.wiring).float())
        y.sum().backward()
        assert y.dtype == torch.float32
        assert layer.eval()(inputs(layer.wiring).float()).dtype == torch.float32


DYNAMIC: dict[str, Callable[[], Wiring]] = {
    "set": partial(SETWiring, OUT, IN, 9, dtype=torch.float64),
    "rigl": partial(RigLWiring, OUT, IN, 9, dtype=torch.float64, admissible=SourceBeforeTarget(6)),
    "rigl, saliency": partial(RigLWiring, OUT, IN, 9, dtype=torch.float64, drop="saliency"),
    "snfs": partial(SNFSWiring, (2, 3), (2, 1, 4), 11, dtype=torch.float64, capacity=11),
    "dsr": partial(DSRWiring, OUT, IN, density=1.0, dtype=torch.float64),
}


class TestStatic(WiringSuite):
    variants = STATIC


class TestDynamic(WiringSuite):
    variants = DYNAMIC


class TestGaussian(WiringSuite):
    variants = GAUSSIAN


kinds = pytest.mark.parametrize("kind", [StaticWiring, GaussianWiring, RigLWiring])


@kinds
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 4), {}, "out_shape=0"),
        ((4, (2, 0)), {}, "in_shape="),
        ((4, ()), {}, "at least one dimension"),
        ((4, ["a"]), {}, "expected an int or a sequence of ints|in_shape"),
        ((2**32, 2**32), {"k": 3}, "at most 2\\^63 - 1"),
        ((4, 4, 0), {}, "k=0; expected at least 1"),
        ((4, 4, -3), {}, "k=-3"),
        ((4, 4, 3), {"density": 0.5}, "give one of them"),
        ((4, 4), {"density": 0.0}, "density=0.0"),
        ((4, 4), {"density": 1.5}, "density=1.5"),
        ((4, 4), {"density": float("nan")}, "density=nan"),
        ((4, 4), {"admissible": SourceBeforeTarget(5)}, "expected \\(4, 4\\)"),
        ((1, 1), {"admissible": SourceBeforeTarget(1)}, "leaves no entry"),
    ],
)
def test_bad_shapes_and_counts(
    kind: type[Wiring], arguments: tuple[object, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((UserError, TypeCheckError), match=message):
        kind(*arguments, **options)


@kinds
def test_density_counts_admissible_entries(kind: type[Wiring]) -> None:
    assert kind(10, 10).stored_entries() == 10
    assert kind(10, 10, density=0.2).stored_entries() == 20
    assert kind(10, 10, density=1e-9).stored_entries() == 1
    assert kind(10, 10, density=0.2, admissible=SourceBeforeTarget(10)).stored_entries() == 9


@kinds
def test_values_start_with_the_fan_in_of_the_stored_entries(kind: type[Wiring]) -> None:
    wiring = kind(200, 200, 4000)
    rows = wiring.eval()().row_ids
    bound = torch.bincount(rows, minlength=200)[rows].rsqrt()
    ratio = wiring.values.detach() / bound
    assert ratio.abs().max() <= 1
    assert abs(ratio.mean()) < 0.05
    assert ratio.std() == pytest.approx(1 / 3**0.5, rel=0.05)


@kinds
def test_a_generator_decides(kind: type[Wiring]) -> None:
    one, other = (kind(9, 9, generator=torch.Generator().manual_seed(1)).eval()() for _ in range(2))
    assert torch.equal(one.to_dense(), other.to_dense())
    torch.manual_seed(4)
    first = kind(9, 9).eval()()
    torch.manual_seed(4)
    assert torch.equal(first.to_dense(), kind(9, 9).eval()().to_dense())


@kinds
def test_made_in_inference_mode(kind: type[Wiring]) -> None:
    with torch.inference_mode():
        wiring = kind(5, 5).eval()
        assert torch.equal(wiring().to_dense(), wiring().to_dense())
        y = contract(wiring(), torch.eye(5), "torch")
    with torch.no_grad():
        assert torch.equal(y, wiring().to_dense().t())


def test_static_entries_differ_and_stay() -> None:
    wiring = StaticWiring(8, 8, 60)
    before = wiring.indices.clone()
    train(layer_of(wiring))
    assert torch.equal(wiring.indices, before)
    assert len(before.unique(dim=0)) == 60


def test_static_entries_that_were_exchanged() -> None:
    wiring = StaticWiring(4, 4, indices=torch.tensor([[0, 0], [1, 1]]))
    wiring()
    wiring.indices[0] = torch.tensor([3, 2])
    assert contract(wiring(), torch.eye(4), "torch")[2, 3] == wiring.values[0]
    wiring.indices = torch.tensor([[2, 3], [1, 1]])
    assert contract(wiring(), torch.eye(4), "torch")[3, 2] == wiring.values[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": torch.tensor([[0, 4]])}, r"entry \[0, 4\]"),
        ({"indices": torch.tensor([[0, -1]])}, r"entry \[0, -1\]"),
        ({"indices": torch.tensor([[0, 0, 0]])}, r"expected int64 \(k, 2\)"),
        ({"indices": torch.tensor([[0, 1]]), "k": 2}, "k=2 with 1 indices"),
        ({"indices": torch.tensor([[0, 1]]), "admissible": SourceBeforeTarget(4)}, "indices outside"),
        ({"k": 17}, "17 different entries of 16"),
    ],
)
def test_bad_static_entries(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StaticWiring(4, 4, **options)


def test_a_weight_over_pairs_of_nodes_is_made_from_its_entries_alone() -> None:
    """50,000² outputs: neither the first values nor the weight hold anything as long."""
    n = 50_000
    wiring = StaticWiring((n, n), (n, n), k=10)
    assert wiring().values.shape == (10,)
    assert wiring.values.abs().max() <= 1
