"""`ash.strip_dead_units`: the same outputs from fewer units, to a fixed point; small nets made by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ash import (
    GaussianWiring,
    HyperWiring,
    MLPHypernetwork,
    SparseConv2d,
    SparseLinear,
    StaticWiring,
    TopKWiring,
    count,
    freeze,
    strip_dead_units,
)
from ash.convert.strip import Stripped
from ash.wirings.frozen import FrozenWiring

double = torch.float64


def sparse(out: int, size: int, entries: list[tuple[int, int]], bias: bool = True) -> SparseLinear:
    """A layer with these entries (output, input)."""
    indices = torch.tensor(entries, dtype=torch.int64).reshape(-1, 2)
    return SparseLinear(size, out, bias, dtype=double, wiring=StaticWiring(out, size, indices=indices, dtype=double))


def stripped(model: nn.Module) -> tuple[nn.Module, Stripped]:
    reports: list[Stripped] = []
    return strip_dead_units(model, report=reports.append), reports[0]


def check(model: nn.Module, *inputs: Tensor) -> tuple[nn.Module, Stripped]:
    """Strip; the outputs are the same, the model is as it was, and a second call removes nothing."""
    before = {name: each.clone() for name, each in model.state_dict().items()}
    small, found = stripped(model)
    assert small.training == model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    modes = [each.training for each in model.modules()]
    y, expected = small.eval()(*inputs), model.eval()(*inputs)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert y.shape == expected.shape and torch.allclose(y, expected, atol=1e-6, rtol=1e-6)
    again, rest = stripped(small)
    assert rest.removed == 0 and rest.shape == found.shape
    assert torch.allclose(again.eval()(*inputs), y, atol=1e-12)
    return small, found


def test_by_hand() -> None:
    """2-4-3-1: hidden unit 1 has no inputs, 2 no outputs; in the next layer 2 is read by nobody, and 0 feeds it."""
    first = sparse(4, 2, [(0, 0), (2, 1), (3, 0)])
    second = sparse(3, 4, [(0, 0), (0, 1), (1, 3), (1, 1), (2, 0)])
    last = sparse(1, 3, [(0, 0), (0, 1)])
    model = nn.Sequential(first, nn.Tanh(), second, nn.ReLU(), last)
    small, found = check(model, torch.randn(20, 2, dtype=double))
    assert found.shape == "2-2-1" and found.removed == 3
    assert found.unread == {"0": (1,)}
    assert [(each.before, each.after) for each in found.layers] == [(4, 2), (3, 2), (1, 1)]
    assert small[0].wiring.indices.tolist() == [[0, 0], [1, 0]]
    assert small[2].wiring.indices.tolist() == [[0, 0], [1, 1]]
    folded = torch.tanh(first.bias[1]) * second.wiring.values[torch.tensor([1, 3])]
    assert torch.allclose(small[2].bias, second.bias[:2] + folded)
    text = str(found)
    assert "1 inputs are not read" in text and text.count("\n") == 4


def test_what_dies_in_several_rounds() -> None:
    """Nothing reads the last unit of layer 3, which alone reads the last of 2, which alone reads the last of 1."""
    chain = [(0, 0), (1, 1)]
    layers = [sparse(2, 2, chain), sparse(2, 2, chain), sparse(2, 2, chain), sparse(1, 2, [(0, 0)])]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.Sigmoid())))
    _, found = check(model, torch.randn(5, 2, dtype=double))
    assert found.shape == "1-1-1-1"
    forward = [sparse(2, 2, [(0, 0)]), sparse(2, 2, chain), sparse(2, 2, chain), sparse(1, 2, [(0, 0), (0, 1)])]
    model = nn.Sequential(*(part for layer in forward for part in (layer, nn.Sigmoid())))
    small, found = check(model, torch.randn(5, 2, dtype=double))
    assert found.shape == "1-1-1-1"
    value = torch.sigmoid(forward[0].bias[1])
    for layer in forward[1:3]:
        value = torch.sigmoid(layer.wiring.values[1] * value + layer.bias[1])
    assert torch.allclose(small[6].bias, forward[3].bias + forward[3].wiring.values[1] * value)


def test_where_all_die_one_stays_without_connections() -> None:
    model = nn.Sequential(sparse(3, 2, [(0, 0)]), nn.Tanh(), sparse(2, 3, [(0, 1)]), nn.ReLU(), sparse(2, 2, [(1, 0)]))
    small, found = check(model, torch.randn(4, 2, dtype=double))
    assert found.shape == "1-1-2"
    assert [small[i].wiring.stored_entries() for i in (0, 2, 4)] == [0, 0, 0]
    assert found.unread == {"0": (0, 1)}


def test_dense_layers_and_a_bias_where_there_was_none() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.GELU(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[3].weight[:, 2] = 0
    small, found = check(model, torch.randn(6, 3, dtype=double))
    assert found.shape == "2-2" and found.unread == {}
    assert torch.equal(small[0].weight, model[0].weight[[0, 3]])
    assert torch.allclose(small[3].bias, model[3].weight[:, 1] * F.gelu(model[0].bias[1]))
    assert (small[0].out_features, small[3].in_features) == (2, 2)


def test_batch_norm_in_evaluation() -> None:
    norm = nn.BatchNorm1d(4, dtype=double)
    for each in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        each.uniform_(0.5, 2)
    first, last = sparse(4, 3, [(0, 0), (0, 1), (2, 2), (3, 1)], bias=False), sparse(2, 4, [(0, 0), (1, 1), (1, 2)])
    model = nn.Sequential(first, norm, nn.PReLU(4, dtype=double), last).eval()
    small, found = check(model, torch.randn(6, 3, dtype=double))
    assert found.shape == "2-2"
    assert (small[1].num_features, small[2].num_parameters) == (2, 2)
    assert torch.equal(small[1].running_mean, norm.running_mean[[0, 2]])
    assert small.train()(torch.randn(5, 3, dtype=double)).shape == (5, 2)


class Functional(nn.Module):
    """The course of computation is written out, with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = sparse(3, 2, [(0, 0), (1, 1)]), sparse(2, 3, [(0, 0), (1, 2)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.leaky_relu(self.first(x), 0.3).tanh(), 0.1, self.training)
        y: Tensor = self.last(hidden)
        return y


def test_functions_between_layers() -> None:
    _, found = check(Functional(), torch.randn(6, 2, dtype=double))
    assert found.shape == "1-2"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = sparse(3, 3, [(0, 0)]), sparse(3, 3, [(1, 1)])
        self.inner, self.last = sparse(4, 3, [(0, 0)]), sparse(1, 4, [(0, 0)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = y + self.second(y)
        out: Tensor = self.last(torch.relu(self.inner(y)))
        return out


def test_residual_connections_are_left_alone() -> None:
    small, found = check(Residual(), torch.randn(6, 3, dtype=double))
    assert found.shape == "3-3-1-1"
    notes = {each.name: each.note for each in found.layers}
    assert notes["first"] == "its output is used 2 times"
    assert notes["second"] == "feeds add, with others"
    assert notes["inner"] == notes["last"] == ""
    assert found.unread == {"first": (1, 2), "second": (0, 2), "inner": (1, 2)}


class Loop(nn.Module):
    """What it computes depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(sparse(3, 2, [(0, 0)]), nn.ReLU(), sparse(2, 3, [(0, 0), (1, 0)]))

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = self.block(x)
        return x


def test_what_cannot_be_traced_is_left_alone_unless_it_is_inside_a_sequence() -> None:
    _, found = check(Loop(), torch.zeros(2, 2, dtype=double))
    assert all(each.note.startswith("not traced: TraceError") for each in found.layers)
    outer = nn.Sequential(sparse(3, 2, [(0, 0)]), nn.ReLU(), sparse(2, 3, [(0, 0)]), Loop())
    _, found = check(outer, torch.zeros(2, 2, dtype=double))
    assert [(each.name, each.after, each.note) for each in found.layers] == [("0", 1, ""), ("2", 2, "feeds Loop")]


def test_layers_and_wirings_that_are_shared_are_left_alone() -> None:
    layer = sparse(2, 2, [(0, 0)])
    _, found = check(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, 2, dtype=double))
    assert [each.note for each in found.layers] == ["used more than once"]
    one, other = sparse(2, 2, []), sparse(2, 2, [(0, 0)])
    one.wiring = other.wiring
    _, found = check(nn.Sequential(one, nn.ReLU(), other), torch.randn(3, 2, dtype=double))
    assert found.removed == 0 and found.layers[0].note == "used more than once"
    tied = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    tied[2].weight = tied[0].weight
    tied[0].weight.data[1] = 0
    assert check(tied, torch.randn(3, 2, dtype=double))[1].removed == 0


@pytest.mark.parametrize(
    ("between", "note"),
    [(nn.Softmax(-1), "feeds Softmax"), (nn.LayerNorm(3), "feeds LayerNorm"), (nn.Flatten(), "feeds Flatten")],
)
def test_what_mixes_units_is_left_alone(between: nn.Module, note: str) -> None:
    model = nn.Sequential(sparse(3, 2, [(0, 0)]), between.double(), sparse(1, 3, [(0, 0)]))
    _, found = check(model, torch.randn(3, 2, dtype=double))
    assert (found.shape, found.layers[0].note) == ("3-1", note)


def test_what_reads_units_otherwise_is_left_alone() -> None:
    prelu = nn.PReLU(1)
    shared = nn.Sequential(sparse(2, 2, [(0, 0)]), prelu, sparse(2, 2, [(0, 0)]), prelu).double()
    unknown = nn.BatchNorm1d(2, track_running_stats=False)
    normed = nn.Sequential(sparse(2, 2, [(0, 0)]), unknown, sparse(2, 2, [(0, 0)])).double()
    for model, note in ((shared, "feeds PReLU, which is used more than once"), (normed, "feeds BatchNorm1d")):
        _, found = check(model, torch.randn(3, 2, dtype=double))
        assert (found.removed, found.layers[0].note) == (0, note)


def test_adaptive_layers_are_left_alone_and_so_is_what_feeds_them() -> None:
    make = partial(HyperWiring, k=4, hypernetwork=partial(MLPHypernetwork, hidden=(3,)))
    adaptive = SparseLinear(3, 3, wiring=make)
    model = nn.Sequential(SparseLinear(2, 3, wiring=partial(StaticWiring, k=2)), nn.ReLU(), adaptive, nn.Linear(3, 1))
    _, found = check(model, torch.randn(3, 2))
    assert [each.note for each in found.layers] == ["feeds 2, which is adaptive", "is adaptive", ""]
    assert found.removed == 0


@pytest.mark.parametrize("kind", [GaussianWiring, TopKWiring])
def test_other_wirings_keep_their_entries_of_evaluation(kind: Any) -> None:
    layers = [SparseLinear(a, b, wiring=partial(kind, k=5)) for a, b in ((6, 8), (8, 7), (7, 2))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    small, found = check(model, torch.randn(9, 6))
    assert found.removed > 0
    assert all(isinstance(small[i].wiring, StaticWiring) and small[i].wiring.values.requires_grad for i in (0, 2, 4))
    assert count(small).stored_numbers <= 30


def test_frozen_models() -> None:
    model = nn.Sequential(sparse(4, 2, [(0, 0), (2, 1)]), nn.Tanh(), sparse(2, 4, [(0, 0), (0, 1)]))
    small, found = check(freeze(model, forms={"0": "csr", "2": "dense"}), torch.randn(5, 2, dtype=double))
    assert found.shape == "1-2"
    assert isinstance(small[0].wiring, FrozenWiring) and not any(p.requires_grad for p in small.parameters())
    x = torch.ones(1, 2, dtype=double)
    assert torch.allclose(freeze(strip_dead_units(model))(x), model(x))


def conv(out: int, size: int, live: list[tuple[int, int]], **options: Any) -> SparseConv2d:
    """A 3 × 3 convolution in which only these pairs of channels (output, input) are joined."""
    taps = torch.cartesian_prod(torch.arange(3), torch.arange(3))[::2]
    indices = torch.cat([torch.cat([torch.tensor([pair]).expand(len(taps), 2), taps], 1) for pair in live])
    wiring = StaticWiring(out, (size, 3, 3), indices=indices, dtype=double)
    return SparseConv2d(size, out, 3, dtype=double, wiring=wiring, **options)


@pytest.mark.parametrize("options", [{}, {"padding": 1, "padding_mode": "circular"}], ids=str)
def test_channels_of_convolutions(options: dict[str, Any]) -> None:
    norm = nn.BatchNorm2d(4, dtype=double)
    norm.running_mean.uniform_()
    second = nn.Conv2d(4, 3, 3, dtype=double, **options)
    with torch.no_grad():
        second.weight[:, 3] = 0
        second.weight[1] = 0
    first = conv(4, 2, [(0, 0), (2, 0), (3, 0)], padding=1)
    head = [nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3 * (4 if options else 1), 2).double()]
    model = nn.Sequential(first, norm, nn.Tanh(), nn.MaxPool2d(2, 2, 1), second, *head)
    size = 6 if options else 8
    small, found = check(model, torch.randn(5, 2, size, size, dtype=double))
    assert found.shape == "2-2-2"
    assert found.unread == {"0": (1,)}
    assert (small[0].out_channels, small[1].num_features, small[4].in_channels) == (2, 2, 2)
    assert small[-1].in_features == (8 if options else 2)


def test_a_constant_channel_before_a_margin_of_zeros_stays_unless_it_is_zero() -> None:
    for bias, left in ((1.0, 3), (-1.0, 2)):
        first, second = conv(3, 1, [(0, 0), (2, 0)]), conv(2, 3, [(0, 0), (1, 1), (1, 2)], padding="same")
        first.bias.data.fill_(bias)
        model = nn.Sequential(first, nn.ReLU(), second)
        _, found = check(model, torch.randn(2, 1, 7, 7, dtype=double))
        assert found.shape == f"{left}-2"


def test_groups_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 1, 1)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[:, 1] = 0
    _, found = check(model, torch.randn(2, 2, 5, 5, dtype=double))
    assert [each.note for each in found.layers] == ["feeds 1, which has groups", "has groups", ""]


def test_a_layer_alone_and_a_model_without_layers() -> None:
    _, found = check(sparse(3, 2, [(0, 0)]), torch.randn(4, 2, dtype=double))
    assert [(each.name, each.after) for each in found.layers] == [("", 3)]
    assert found.unread == {"": (1,)}
    _, found = check(nn.ReLU(), torch.randn(4))
    assert (found.layers, found.shape) == ((), "")


ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity]


@st.composite
def nets(draw: Any) -> list[tuple[Any, ...]]:
    """For each layer of a perceptron its sizes, entries, whether it is dense, and what follows."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    layers = []
    for size, out in zip(sizes, sizes[1:], strict=False):
        pairs = st.tuples(st.integers(0, out - 1), st.integers(0, size - 1))
        entries = draw(st.lists(pairs, max_size=size * out, unique=True))
        bias, dense, norm = (draw(st.booleans()) for _ in range(3))
        layers.append((out, size, entries, bias, dense, draw(st.sampled_from(ACTIVATIONS)), norm))
    return layers


def make(net: list[tuple[Any, ...]]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for out, size, entries, bias, dense, activation, norm in net:
        layer: nn.Module = sparse(out, size, entries, bias)
        if dense:
            weight = layer.wiring().to_dense().detach()  # type: ignore[operator, union-attr]
            layer = nn.Linear(size, out, bias, dtype=double)
            layer.weight.data = weight
        parts += [layer, activation()]
        if norm:
            parts.append(nn.BatchNorm1d(out, dtype=double))
            parts[-1].running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    return nn.Sequential(*parts)


@settings(max_examples=40)
@given(nets())
def test_random_perceptrons(net: list[tuple[Any, ...]]) -> None:
    model = make(net)
    size = next(each.in_features for each in model if isinstance(each, nn.Linear | SparseLinear))
    small, found = check(model, torch.randn(7, size, dtype=double))
    for before, after in zip(model, small, strict=True):
        if isinstance(before, nn.Linear | SparseLinear):
            assert after.out_features <= before.out_features
    # Nothing dead is left but a layer's only unit, and outputs.
    layers = [each for each in small if isinstance(each, nn.Linear | SparseLinear)]
    weights = [each.weight if isinstance(each, nn.Linear) else each.wiring().to_dense() for each in layers]
    for own, reader in zip(weights, weights[1:], strict=False):
        dead = (own == 0).all(1) | (reader == 0).all(0)
        assert len(own) == 1 or not dead.any()
