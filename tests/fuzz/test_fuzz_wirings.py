"""Every wiring with any options: refused with a message, or right in training, in evaluation and after some steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fuzzing import ODD, SEEDS, Shape, attempt, each_path, fuzz, options, path, shapes
from hypothesis import strategies as st
from torch import Tensor

from ash import (
    Anneal,
    Boxes,
    Codebook,
    Context,
    DSRWiring,
    GateWiring,
    GaussianWiring,
    HardConcreteGate,
    HyperWiring,
    Mask,
    MLPHypernetwork,
    RigLWiring,
    Sampling,
    SetHypernetwork,
    SETWiring,
    SNFSWiring,
    SparseLayer,
    StaticWiring,
    Template,
    TopKBudget,
    TopKWiring,
    UserError,
    Wiring,
    contract,
)

pytestmark = pytest.mark.nightly
NAN = float("nan")
SIZES = {"k": st.integers(1, 12), "density": st.floats(0.01, 1)}
BAD_SIZES = {"k": [-1, 0, 10**6], "density": [-1.0, 0.0, 2.0, NAN]}
KINDS = ["everything"] * 4 + ["mask", "mask", "box"]


def set_of(kind: str, shape: Shape) -> Any:
    """An admissible set of a weight tensor of that shape; None: everything."""
    if kind == "mask":
        return Mask(torch.rand(shape) < 0.6)
    if kind == "box":
        return Boxes(shape, torch.zeros(1, len(shape)), torch.tensor([[s // 2 if s > 1 else 0 for s in shape]]))
    if kind == "another shape":
        return Mask(torch.ones(7, 7))
    return None if kind == "everything" else Mask(torch.zeros(shape, dtype=torch.bool))


TUPLES = options(
    {
        "kernel": ["student_t", "gaussian", "student_t(3)"],
        "context": ["tuple", "tuple", "all", "chunk", Context("chunk", 2), Context("all", shares="cells")],
        "sampling": [None, Sampling(False, 1, 1, 1, 1), Sampling(local_region=2), Sampling(True, 0, 0, 2, 1),
                     Sampling(True, 9, 9)],
        "scale": [None, 0.3, 1.0, 5.0, 1e-12, 1e9],
        "scale_floor": [0.3, 0.3, 1e-12, Anneal(1.0, 0.1, 3)],
        "scale_ceiling": [None, 1.0, 5.0, 1e9],
        "subset": [None, None, 0.3, 1.0, 1e-9],
        "admissible": KINDS,
    },
    {
        **BAD_SIZES,
        "k": [-1, 0],
        "kernel": ["student_t(0)", "student_t(nan)", "normal", ""],
        "context": ["every"],
        "sampling": [Sampling(True, 0, 2, local_region=(2, 3))],
        "scale": [0.0, -1.0, *ODD],
        "scale_floor": [0.0, -1.0, 1e12, *ODD, Anneal(5.0, 0.1, 3)],
        "scale_ceiling": [0.0, -1.0, 1e-9, *ODD],
        "subset": [0.0, 1.5, NAN],
        "admissible": ["nothing", "another shape"],
    },
    SIZES,
)  # fmt: skip


def maker(
    kind: Any, out_shape: Shape, in_shape: Shape, given: dict[str, Any], template: str = "none"
) -> partial[Wiring]:
    """A wiring of these options, with the admissible set and the template that they name."""
    rank = len(out_shape) + len(in_shape)
    given = {**given, "admissible": set_of(given.get("admissible", "everything"), (*out_shape, *in_shape))}
    if template != "none":
        given = {name: value for name, value in given.items() if name not in SIZES}
        fixed = Template(rank, range(rank), torch.zeros(3, rank).long())
        given["template"] = fixed if template == "fixed" else Template.per_output(out_shape, in_shape, 2)
    return partial(kind, out_shape, in_shape, **given)


TEMPLATES = st.sampled_from(["none", "none", "none", "per output", "fixed"])


def check_wiring(make: Callable[[], Wiring], how: str, sums: bool) -> None:
    """What holds for every wiring, in training, after a few steps and in evaluation."""
    wiring, refusal = attempt(make)
    if refusal is not None:
        assert len(refusal) > 20
        return
    layer = SparseLayer(wiring.in_shape, wiring.out_shape, wiring=wiring, backend="torch").double()
    learned = [p for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=0.05)
    with path(how):
        for _ in range(2):
            x = torch.randn(3, *wiring.in_shape, dtype=torch.float64, requires_grad=True)
            check_draw(layer, x, learned, sums)
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        check_evaluation(layer.eval())


def check_draw(layer: SparseLayer, x: Tensor, learned: list[Tensor], sums: bool) -> None:
    """The sparse product is the dense one, with the same gradients, and every entry may exist."""
    found = []
    for backend in ("torch", "dense"):
        layer.backend = backend
        torch.manual_seed(3)
        y = layer(x)
        factor = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        found.append((y, *torch.autograd.grad((y * factor).sum(), [x, *learned], allow_unused=True)))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-7)
    torch.manual_seed(3)
    weight = layer.wiring(x).check()
    assert bool(layer.wiring.admissible.contains(weight.indices)[weight.values != 0].all())
    if sums and getattr(layer.wiring, "codebook", None) is None:
        torch.manual_seed(3)
        own = layer.wiring.tuples(x).values if isinstance(layer.wiring, HyperWiring) else layer.wiring.values
        assert torch.allclose(weight.values.sum(-1), own.sum(-1), atol=1e-6)


def check_evaluation(layer: SparseLayer) -> None:
    """Nothing is drawn; as many entries as are counted; none that may not exist."""
    wiring, x = layer.wiring, torch.randn(2, *layer.wiring.in_shape, dtype=torch.float64)
    before = torch.get_rng_state()
    weight = wiring(x).check()
    assert torch.equal(torch.get_rng_state(), before)
    assert weight.entries == wiring.stored_entries()
    assert bool(wiring.admissible.contains(weight.indices).all())
    assert torch.allclose(contract(weight, x, "torch"), contract(weight, x, "dense"))
    assert torch.equal(layer(x), layer(x))


@fuzz(700, seed=SEEDS, out_shape=shapes(2, 5), in_shape=shapes(2, 5), given=TUPLES, template=TEMPLATES,
      own=options({"means": ["anchored", "direct", "sigmoid"], "values": ["learned", "ones", "codebook"],
                   "per_instance": [False, True], "scale_per_column": [False, True], "scale_decay": [0.0, 0.1]},
                  {"means": ["free"], "values": ["none"], "scale_decay": [-1.0, NAN]}), how=each_path)  # fmt: skip
def test_gaussian_wirings(
    seed: int, out_shape: Shape, in_shape: Shape, given: dict[str, Any], template: str, own: dict[str, Any], how: str
) -> None:
    values: Any = Codebook(3) if own["values"] == "codebook" else own["values"]
    make = maker(GaussianWiring, out_shape, in_shape, given | own | {"values": values}, template)
    check_wiring(make, how, sums=True)


@fuzz(350, seed=SEEDS, out_shape=shapes(2, 5), in_shape=shapes(1, 5), given=TUPLES, template=TEMPLATES,
      own=options({"scales": ["emitted", "shared", "scheduled"], "means": ["sigmoid", "stretched", "direct"],
                   "values": ["emitted", "shared", "ones", "codebook"]},
                  {"free": [False], "means": ["free"], "values": ["none"], "scales": ["none"]}),
      sets=st.booleans(), how=each_path)  # fmt: skip
def test_adaptive_wirings(
    seed: int, out_shape: Shape, in_shape: Shape, given: dict[str, Any], template: str, own: dict[str, Any], sets: bool,
    how: str,
) -> None:  # fmt: skip
    network: Any = partial(SetHypernetwork, dim=4, heads=2, layers=1) if sets else partial(MLPHypernetwork, hidden=(4,))
    values: Any = Codebook(3, noise=False) if own["values"] == "codebook" else own["values"]
    if sets and "k" in given:
        given = {**given, "k": given["k"] * in_shape[0]}
    given = given | own | {"values": values, "hypernetwork": network}
    check_wiring(maker(HyperWiring, out_shape, in_shape, given, template), how, sums=True)


STORED: dict[str, Any] = {
    "static": StaticWiring, "set": SETWiring, "rigl": RigLWiring, "snfs": SNFSWiring, "dsr": DSRWiring,
}  # fmt: skip


@fuzz(300, seed=SEEDS, kind=st.sampled_from(sorted(STORED)), out_shape=shapes(2, 5), in_shape=shapes(2, 5),
      given=options({"admissible": KINDS}, {**BAD_SIZES, "admissible": ["nothing", "another shape"]}, SIZES),
      how=each_path)  # fmt: skip
def test_stored_wirings(
    seed: int, kind: str, out_shape: Shape, in_shape: Shape, given: dict[str, Any], how: str
) -> None:
    check_wiring(maker(STORED[kind], out_shape, in_shape, given), how, sums=False)


CANDIDATES = options(
    {"update": [True, True, False], "dropout": [None, None, 0.0, 0.5, 1.0], "per_output": [False, False, True],
     "admissible": KINDS},
    {**BAD_SIZES, "dropout": [-0.1, 1.1, NAN], "budget": [0.0, -1.0, 2.0, NAN], "n_of_m": [(3, 2), (0, 1), (-1, 0)],
     "admissible": ["nothing", "another shape"]},
    {**SIZES, "budget": [0.3, 1.0], "n_of_m": [(1, 2), (2, 4), (1, 1)]},
)  # fmt: skip


@fuzz(400, seed=SEEDS, out_shape=shapes(2, 5), in_shape=shapes(2, 6), given=CANDIDATES, annealed=st.booleans(),
      how=each_path)  # fmt: skip
def test_largest_candidates(
    seed: int, out_shape: Shape, in_shape: Shape, given: dict[str, Any], annealed: bool, how: str
) -> None:
    if annealed and "density" in given and given["density"] > 0:
        given = {**given, "density": Anneal(1.0, given["density"], 2, "cubic")}

    def make() -> Wiring:
        budget = {"budget": TopKBudget(given["budget"])} if "budget" in given else {}
        return maker(TopKWiring, out_shape, in_shape, given | budget)()

    check_wiring(make, how, sums=False)


GATES = options(
    {"gate": ["sigmoid", "linear", "hard_concrete", HardConcreteGate(beta=0.5, gamma=-0.3, zeta=1.2)],
     "values": ["learned", "ones"], "init": [None, 1.5, lambda indices: indices[:, 0].double() - 1],
     "init_std": [0.0, 1.0], "threshold": [0.0, 0.4, 2.0], "admissible": KINDS},
    {**BAD_SIZES, "gate": ["hard"], "values": ["zeros"], "init": [NAN, torch.zeros(77), lambda indices: indices[:1, 0]],
     "init_std": [-1.0, NAN], "threshold": [-0.1, NAN], "admissible": ["nothing", "another shape"]},
    {**SIZES, "update": [None]},
)  # fmt: skip


@fuzz(300, seed=SEEDS, out_shape=shapes(2, 5), in_shape=shapes(2, 5), given=GATES, how=each_path)
def test_gates(seed: int, out_shape: Shape, in_shape: Shape, given: dict[str, Any], how: str) -> None:
    check_wiring(maker(GateWiring, out_shape, in_shape, given), how, sums=False)


@fuzz(300, seed=SEEDS, shape=shapes(3, 6, 2), k=st.integers(1, 6), per_instance=st.booleans(),
      means=st.sampled_from(["anchored", "direct", "sigmoid"]), number=st.sampled_from([*ODD, 1e30, -1e30, 1e-30]),
      which=st.sampled_from(["offset", "scale", "positions"]),
      context=st.sampled_from(["tuple", "all"]), how=each_path)  # fmt: skip
def test_tuples_that_were_thrown_far_off_stay_in_the_tensor(
    seed: int, shape: Shape, k: int, per_instance: bool, means: str, number: float, which: str, context: str, how: str
) -> None:
    """Whatever a diverging optimizer writes, or somebody gives, no point lies outside."""
    given = {"means": means, "context": context, "per_instance": per_instance}
    if which == "positions":
        positions = torch.zeros(k, len(shape), dtype=torch.float64)
        positions[0, 0] = number
        if not math.isfinite(number):
            with pytest.raises(UserError, match="NaN or infinite"):
                GaussianWiring(shape[:1], shape[1:], k, positions=positions, **given)
            return
        wiring = GaussianWiring(shape[:1], shape[1:], k, positions=positions, **given)
    else:
        wiring = GaussianWiring(shape[:1], shape[1:], k, **given)
        with torch.no_grad():
            (wiring.means.offset if which == "offset" else wiring.log_scale)[0] = number
    x = torch.randn(2, *shape[1:])
    with path(how):
        for _ in range(2):
            wiring(x).check()
        wiring.eval()().check()
