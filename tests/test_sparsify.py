"""`sparsify`: what is replaced and what stays, what is kept, and what it says of models it cannot take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ash import RigLWiring, SparseConv2d, SparseLinear, StaticWiring, UserError
from ash.convert.sparsify import WIRINGS, Summary, sparsify
from ash.distributions import LayerSize, allot
from ash.wirings.choice import TopKBudget
from ash.wirings.top_k import TopKWiring


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 3)
    )


X = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def density_of(model: nn.Module) -> dict[str, int]:
    kinds = (SparseLinear, SparseConv2d)
    return {name: each.wiring.stored_entries() for name, each in model.named_modules() if isinstance(each, kinds)}


@pytest.mark.parametrize("wiring", sorted(WIRINGS))
def test_every_wiring_by_name_learns_in_place(wiring: str) -> None:
    model = small()
    assert sparsify(model, wiring, density=0.3) is model
    assert {type(each).__name__ for each in model} == {
        "SparseConv2d", "BatchNorm2d", "ReLU", "Flatten", "SparseLinear"}  # fmt: skip
    sizes = {"0": LayerSize(4, 2, (3, 3)), "4": LayerSize(10, 64), "5": LayerSize(3, 10)}
    assert density_of(model) == allot(sizes, 0.3, "erk")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    model(X).square().sum().backward()
    optimizer.step()
    changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert sum(changed) >= 6
    assert model.eval()(X).shape == (5, 3)


def test_everything_kept_is_the_same_model() -> None:
    model = small().eval()
    expected = model(X)
    for wiring in ("static", "top_k"):
        assert torch.allclose(sparsify(small().eval(), wiring, density=1.0)(X), expected, atol=1e-6)


def test_weights_at_the_entries_and_biases_are_kept() -> None:
    dense, model = small(), sparsify(small(), StaticWiring, density=0.2)
    for i in (0, 4, 5):
        weight, tensor = model[i].wiring().to_dense(), dense[i].weight
        assert torch.equal(weight, torch.where(weight != 0, tensor, 0.0))
        assert torch.equal(model[i].bias, dense[i].bias)


def test_top_k_prunes_by_magnitude() -> None:
    dense, model = small(), sparsify(small(), TopKWiring, density=0.25, distribution="uniform")
    size = dense[4].weight.detach().abs().flatten()
    expected = size >= size.topk(160).values.min()
    assert torch.equal(model[4].wiring().to_dense().flatten() != 0, expected)


def test_a_budget_over_the_whole_model() -> None:
    dense, budget = small(), TopKBudget(0.1)
    model = sparsify(small(), functools.partial(TopKWiring, budget=budget), density=None)
    whole = torch.cat([dense[i].weight.detach().abs().flatten() for i in (0, 4, 5)])
    border = whole.topk(round(0.1 * len(whole))).values.min()
    assert density_of(model) == {str(i): int((dense[i].weight.abs() >= border).sum()) for i in (0, 4, 5)}


@pytest.mark.parametrize(
    ("skip", "stay"),
    [
        ("0", ["0"]),
        ("[45]", ["4", "5"]),
        (nn.Conv2d, ["0"]),
        (lambda name, layer: layer.weight.numel() < 100, ["0", "5"]),
        (["5", nn.Conv2d], ["0", "5"]),
    ],
)
def test_skipped_layers_stay_and_do_not_count(skip: Any, stay: list[str]) -> None:
    model = sparsify(small(), "static", density=0.5, distribution="uniform", skip=skip)
    expected = {"0": 36, "4": 320, "5": 15}
    assert density_of(model) == {name: count for name, count in expected.items() if name not in stay}
    assert all(type(model.get_submodule(name)) in (nn.Linear, nn.Conv2d) for name in stay)


def test_a_layer_itself_comes_back_as_another() -> None:
    layer = sparsify(nn.Linear(6, 4, bias=False), "static", density=0.5)
    assert isinstance(layer, SparseLinear)
    assert layer.bias is None
    assert layer.wiring.stored_entries() == 12


def test_mode_type_and_frozen_parameters_are_kept() -> None:
    model = small().double().eval()
    model[4].weight.requires_grad_(False)
    model[5].bias.requires_grad_(False)
    sparsify(model, RigLWiring)
    assert not model[0].training
    assert model[0].wiring.values.dtype == torch.float64
    assert not model[4].wiring.values.requires_grad
    assert model[4].bias.requires_grad
    assert model[5].wiring.values.requires_grad
    assert not model[5].bias.requires_grad


def test_the_summary_says_what_was_replaced_and_what_stays() -> None:
    found: list[Summary] = []
    model = nn.ModuleDict({"body": small(), "names": nn.Embedding(7, 5)})
    sparsify(model, "static", density=0.5, distribution="uniform", skip="body.5", report=found.append)
    assert str(found[0]).splitlines() == [
        "layer        was        note     weights  entries  density",
        "----------------------------------------------------------",
        "body.0       Conv2d                   72       36      0.5",
        "body.4       Linear                  640      320      0.5",
        "body.5       Linear     skipped       30       30        1",
        "names        Embedding  dense         35       35        1",
        "made sparse                          712      356      0.5",
    ]


# --- models that read the weights of their parts ---------------------------------------------------------


def test_attention_stays_whole() -> None:
    """The output layer of attention is a subclass of nn.Linear whose weight attention itself reads."""
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True))
    found: list[Summary] = []
    sparsify(model, "static", report=found.append)
    assert [(each.name, each.note) for each in found[0].layers] == [
        ("0", ""), ("1", "dense"), ("1.out_proj", "a subclass")]  # fmt: skip
    x = torch.randn(3, 5, 8)
    assert model[1](x, x, x)[0].shape == x.shape


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_transformer_runs_in_training_and_in_evaluation() -> None:
    """Its fused path for inference would read dense weights of the layers that are replaced."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        expected = model.eval()(x)
        sparsify(model, "static", density=1.0)
        assert isinstance(model.layers[1].linear2, SparseLinear)
        for mode in (True, False):
            assert torch.allclose(model.train(mode)(x), expected, atol=1e-5)


def test_layers_with_hooks_and_other_weights_stay() -> None:
    model = small()
    model[4] = nn.utils.parametrizations.weight_norm(model[4])
    model[5].register_forward_hook(lambda *_: None)
    found: list[Summary] = []
    sparsify(model, "static", report=found.append)
    assert [layer.name for layer in found[0].replaced] == ["0"]
    assert model(X).shape == (5, 3)


# --- bad input --------------------------------------------------------------------------------------------


def tied() -> nn.Module:
    model = nn.ModuleDict({"names": nn.Embedding(7, 5), "head": nn.Linear(5, 7), "other": nn.Linear(5, 5)})
    model["head"].weight = model["names"].weight
    return model


def twice() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (small, {"density": 0.0}, "density=0.0; expected a number above 0 and at most 1"),
        (small, {"density": 1.5}, "density=1.5; expected a number above 0 and at most 1"),
        (small, {"distribution": "erdos"}, "unknown distribution 'erdos'; expected one of 'er', 'erk', 'uniform'"),
        (small, {"wiring": "rigel"}, "unknown wiring 'rigel'; expected one of .*Did you mean 'rigl'"),
        (small, {"wiring": StaticWiring(4, 4)}, "StaticWiring object; expected a name, a class or a factory"),
        (small, {"wiring": functools.partial(StaticWiring, density=0.3)}, "give one of them"),
        (small, {"skip": "fc*"}, r"skip='fc\*' fits no module; expected a pattern of names such as '0', '4', '5'"),
        (small, {"skip": [nn.Linear, "0"]}, r"no layer of Sequential .* These stay: 0 \(skipped\), 4 \(skipped\)"),
        (lambda: nn.Sequential(nn.ReLU()), {}, "no layer of Sequential to make sparse; expected an nn.Linear"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), {}, "0 has no shapes yet; run one batch first"),
        (tied, {}, r"names.weight and head.weight are one shared \(tied\) parameter"),
        (twice, {}, r"0.weight and 2.weight are one shared \(tied\) parameter"),
    ],
)
def test_bad_input_leaves_the_model_alone(
    make: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    model = make()
    before = list(model.named_modules())
    with pytest.raises(UserError, match=message):
        sparsify(model, **{"wiring": "static", **options})
    assert all(one[1] is other[1] for one, other in zip(model.named_modules(), before, strict=True))


def test_tied_layers_may_be_skipped() -> None:
    model = sparsify(tied(), "static", skip="head")
    assert isinstance(model["other"], SparseLinear)
    assert model["head"].weight is model["names"].weight
