"""Reconstruction terms and scale penalties, against their dense meaning and by finite differences."""

from functools import partial

import pytest
import torch
from torch import nn

from ash import (
    Codebook,
    GaussianWiring,
    HyperWiring,
    IndexTuples,
    MLPHypernetwork,
    SparseLayer,
    StaticWiring,
    UserError,
    contract,
)
from ash.losses import Reconstruction, reconstruction_loss, scale_penalty

HYPER = partial(HyperWiring, k=5, hypernetwork=partial(MLPHypernetwork, hidden=(8,)))
WIRINGS = {
    "free": partial(GaussianWiring, k=5),
    "per instance": partial(GaussianWiring, k=5, per_instance=True),
    "static": partial(StaticWiring, k=5),
    "adaptive": HYPER,
    "codebook": partial(HYPER, values=Codebook(3)),
}


def drawn(layer: SparseLayer, seed: int, x: torch.Tensor) -> torch.Tensor:
    """The dense weight that the layer draws right after the seed, `(b, *out_shape, *in_shape)`."""
    torch.manual_seed(seed)
    dense = layer.wiring(x).to_dense()
    rank = len(layer.in_shape) + len(layer.out_shape)
    return dense if dense.dim() > rank else dense.expand(len(x), *dense.shape)


@pytest.mark.parametrize("name", WIRINGS)
def test_term_is_that_of_the_dense_weight_of_the_same_draw(name):
    layer = SparseLayer((3, 4), (6,), wiring=WIRINGS[name])
    model, x = Reconstruction(layer), torch.randn(7, 3, 4)
    with torch.no_grad():
        model.bias.normal_()
    weight = drawn(layer, 5, x)
    torch.manual_seed(5)
    y = model(x)
    expected_y = torch.einsum("bohw,bhw->bo", weight, x) + layer.bias
    back = torch.einsum("bohw,bo->bhw", weight, expected_y) + model.bias
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(model.loss, (back - x).square().mean())


def test_extra_dimensions_and_decode():
    layer = SparseLayer(4, 6, wiring=WIRINGS["adaptive"](6, 4, condition_shape=(2,)))
    model = Reconstruction(layer, decode=torch.relu, bias=False)
    x, seen = torch.randn(7, 4, 3), torch.randn(7, 2)
    weight = drawn(layer, 5, seen)
    torch.manual_seed(5)
    y = model(x, seen)
    back = torch.einsum("boi,boe->bie", weight, y.relu())
    assert model.bias is None
    torch.testing.assert_close(model.loss, (back - x).square().mean())


def test_the_layer_works_as_without_it():
    layer = SparseLayer(4, 6, wiring=WIRINGS["adaptive"])
    model, x = Reconstruction(layer), torch.randn(7, 4)
    torch.manual_seed(3)
    alone = layer(x)
    torch.manual_seed(3)
    assert torch.equal(model(x), alone)
    model.eval()
    assert torch.equal(model(x), layer(x)) and model.loss is None


def test_gradients_by_finite_differences():
    wiring = HyperWiring(3, 4, 5, hypernetwork=partial(MLPHypernetwork, hidden=(6,)), dtype=torch.float64)
    model = Reconstruction(SparseLayer(4, 3, wiring=wiring, dtype=torch.float64)).double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(2, 4, dtype=torch.float64)

    def loss(*_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        model(x)
        return reconstruction_loss(model)

    assert torch.autograd.gradcheck(loss, tuple(parameters))


def test_terms_of_a_model_add_up_and_every_layer_learns():
    first, second = (Reconstruction(SparseLayer(6, 6, wiring=WIRINGS["free"])) for _ in range(2))
    model = nn.Sequential(first, nn.ReLU(), second)
    model(torch.randn(9, 6))
    total = reconstruction_loss(model)
    torch.testing.assert_close(total, first.loss + second.loss)
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in first.parameters())
    assert all(p.grad is not None for p in second.parameters())


def test_an_autoencoder_of_one_layer_learns():
    torch.manual_seed(0)
    model = Reconstruction(SparseLayer(8, 8, wiring=partial(GaussianWiring, k=24)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        model(torch.randn(64, 8))
        loss = reconstruction_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_what_cannot_be_reconstructed_is_refused():
    with pytest.raises(UserError, match="Linear"):
        Reconstruction(nn.Linear(3, 3))
    with pytest.raises(UserError, match="no Reconstruction"):
        reconstruction_loss(nn.Linear(3, 3))
    model = Reconstruction(SparseLayer(4, 6, wiring=WIRINGS["free"]))
    with pytest.raises(UserError, match="without a loss"):
        reconstruction_loss(model)
    model.eval()
    model(torch.randn(2, 4))
    with pytest.raises(UserError, match="1 of 1"):
        reconstruction_loss(model)


def tuples(scales: torch.Tensor) -> IndexTuples:
    """Tuples with the given scales `(*b, k, 1)`."""
    means = torch.zeros(*scales.shape[:-1], 2, dtype=scales.dtype)
    return IndexTuples.from_means(means, scales, means[..., 0])


def test_penalty_by_hand():
    scales = torch.tensor([[0.1], [0.5], [4.0]])
    log = torch.log
    low = log(torch.tensor(5.0)).square() / 3
    high = log(torch.tensor(2.0)).square() / 3
    torch.testing.assert_close(scale_penalty(tuples(scales), least=0.5), low)
    torch.testing.assert_close(scale_penalty(tuples(scales), most=2.0), high)
    torch.testing.assert_close(scale_penalty(tuples(scales), least=0.5, most=2.0), low + high)
    assert scale_penalty(tuples(scales), least=0.1, most=4.0) < 1e-12


@pytest.mark.parametrize("bounds", [{"least": 0.7}, {"most": 0.6}, {"least": 0.5, "most": 0.9}])
def test_penalty_gradients(bounds):
    scales = torch.rand(2, 5, 1, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: scale_penalty(tuples(s), **bounds), (scales,))


def test_penalty_widens_what_is_narrow_and_narrows_what_is_wide():
    wiring = HyperWiring(6, 6, 8, hypernetwork=partial(MLPHypernetwork, hidden=(8,)), scale=1.0)
    x = torch.randn(4, 6)
    narrow, wide = (torch.autograd.grad(scale_penalty(wiring.tuples(x), **bound), wiring.offset)[0][:, 2]
                    for bound in ({"least": 3.0}, {"most": 0.3}))  # fmt: skip
    assert (narrow < 0).all() and (wide > 0).all()


def test_no_tuples_have_no_penalty():
    assert scale_penalty(tuples(torch.ones(0, 1)), most=1.0) == 0


def test_penalty_refuses_bounds_that_do_not_fit():
    some = tuples(torch.ones(3, 1))
    for bounds, text in (({}, "without bounds"), ({"least": 0.0}, "least=0.0"), ({"least": 2.0, "most": 1.0}, "above")):
        with pytest.raises(UserError, match=text):
            scale_penalty(some, **bounds)


def test_transposed_contraction_gives_back_by_a_permutation():
    model = Reconstruction(SparseLayer(3, 3, bias=False, wiring=partial(StaticWiring, indices=torch.tensor(
        [[0, 2], [1, 0], [2, 1]]))), bias=False)  # fmt: skip
    with torch.no_grad():
        model.layer.wiring.values.fill_(1.0)
    x = torch.randn(5, 3)
    y = model(x)
    torch.testing.assert_close(contract(model.layer.wiring().transpose(), y), x)
    assert reconstruction_loss(model) < 1e-10
