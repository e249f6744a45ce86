"""`Codebook`: choices by hand, their frequencies, the gradient straight through, in free wirings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ash import Anneal, Codebook, Factors, GaussianWiring, Sampling, SparseLinear, UserError, clear_state


def drawn(codebook: Codebook, logits: Tensor, seed: int = 0, step: int = 0) -> Tensor:
    values: Tensor = codebook(logits, torch.Generator().manual_seed(seed), step)
    return values


def test_scalars_start_evenly() -> None:
    assert Codebook(3, spread=2.0).scalars.tolist() == [-2.0, 0.0, 2.0]
    assert Codebook(1).scalars.tolist() == [1.0]
    wiring = GaussianWiring(4, 100, 16, values=Codebook(2))
    assert wiring.codebook is not None
    assert wiring.codebook.scalars.tolist() == pytest.approx([-0.5, 0.5])


def test_the_largest_logit_wins_without_a_draw() -> None:
    codebook = Codebook(3, spread=1.0)
    logits = torch.tensor([[0.0, 1.0, -1.0], [3.0, 0.0, 2.0], [0.0, 0.0, 0.1]])
    assert codebook(logits).tolist() == [0.0, -1.0, 1.0]
    assert codebook.choice(logits).tolist() == [1, 0, 2]


def test_draws_are_hard_and_as_frequent_as_the_softmax() -> None:
    codebook = Codebook(3, spread=1.0, temperature=0.7)
    logits = torch.tensor([0.5, 0.0, -1.0])
    values = drawn(codebook, logits.expand(20_000, 3)).detach()
    shares = torch.stack([(values - scalar).abs() < 1e-6 for scalar in (-1.0, 0.0, 1.0)]).float().mean(1)
    assert torch.allclose(shares, logits.softmax(0), atol=0.02)
    assert float(shares.sum()) == pytest.approx(1.0)


def test_a_generator_decides() -> None:
    codebook, logits = Codebook(4), torch.randn(50, 4)
    assert torch.equal(drawn(codebook, logits, 1), drawn(codebook, logits, 1))
    assert not torch.equal(drawn(codebook, logits, 1), drawn(codebook, logits, 2))


def test_the_gradient_is_that_of_the_soft_mixture() -> None:
    codebook = Codebook(3, temperature=Anneal(2.0, 0.5, 4), noise=False).double()
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for step, temperature in ((0, 2.0), (4, 0.5)):
        factor = torch.linspace(-1, 2, 5, dtype=torch.float64)
        actual = torch.autograd.grad((drawn(codebook, logits, step=step) * factor).sum(), logits)[0]
        soft = (logits / temperature).softmax(-1) @ codebook.scalars.detach()
        assert torch.allclose(actual, torch.autograd.grad((soft * factor).sum(), logits)[0])


def test_a_scalar_receives_the_gradient_of_those_that_chose_it() -> None:
    codebook = Codebook(2)
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    for values in (codebook(logits), drawn(Codebook(2, noise=False), logits)):
        assert values.shape == (3,)
    (codebook(logits) * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert codebook.scalars.grad is not None
    assert codebook.scalars.grad.tolist() == [11.0, 100.0]


def test_a_free_wiring_holds_scalars_of_the_codebook() -> None:
    codebook = Codebook(4)
    layer = SparseLinear(8, 8, wiring=lambda o, i: GaussianWiring(o, i, 12, values=codebook))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(16, 8)).sub(1).square().sum().backward()
        optimizer.step()
    assert layer.wiring.codes.grad.abs().sum() > 0
    assert codebook.scalars.grad is not None
    values = layer.eval().wiring().values
    assert torch.isin(values, codebook.scalars).all()
    assert torch.equal(values, codebook.scalars[codebook.choice(layer.wiring.codes)])


def test_a_frozen_wiring_goes_on_choosing() -> None:
    wiring = GaussianWiring(8, 8, 12, values=Codebook(4))
    wiring.freeze()
    one, other = wiring(), wiring()
    assert torch.equal(one.indices, other.indices)
    assert not torch.equal(one.values, other.values)
    one.values.square().sum().backward()
    assert wiring.codes is not None
    assert wiring.codes.grad is not None


def test_the_state_of_moved_tuples_is_cleared_and_that_of_the_scalars_stays() -> None:
    layer = SparseLinear(8, 8, wiring=lambda o, i: GaussianWiring(o, i, 12, values=Codebook(4)))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.randn(16, 8)).sub(1).square().sum().backward()
    optimizer.step()
    clear_state(optimizer, layer.wiring, torch.tensor([3, 11]))
    state = optimizer.state[layer.wiring.codes]["exp_avg"]
    assert (state[[3, 11]] == 0).all()
    assert (state[:3] != 0).any()
    assert (optimizer.state[layer.wiring.codebook.scalars]["exp_avg"] != 0).any()


def test_proposals_are_large_in_either_direction() -> None:
    options = {"values": Codebook(3), "sampling": Sampling(guided_samples=1)}
    layer = SparseLinear(6, 6, False, wiring=lambda o, i: GaussianWiring(o, i, 4, **options))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    x = torch.eye(6)
    y = layer(x)
    gradient = 2 * y.detach() + torch.zeros(6, 6).index_put((torch.tensor([2]), torch.tensor([5])), torch.tensor(50.0))
    y.backward(gradient)  # more weight from input 2 to output 5 would raise the loss
    optimizer.step()
    layer.wiring.settle()
    assert [5, 2] in layer.wiring.search.proposals.tolist()


def test_one_codebook_for_two_wirings() -> None:
    codebook = Codebook(3)
    model = torch.nn.Sequential(
        SparseLinear(5, 6, wiring=lambda o, i: GaussianWiring(o, i, 7, values=codebook)),
        SparseLinear(6, 4, wiring=lambda o, i: GaussianWiring(o, i, 7, values=codebook)),
    )
    model(torch.randn(3, 5)).square().sum().backward()
    assert codebook.scalars.grad is not None
    assert sum(parameter is codebook.scalars for parameter in model.parameters()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "a codebook of size 0; expected at least 1 scalar"),
        ({"size": 3, "spread": 0.0}, "spread=0.0"),
        ({"size": 3, "temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Codebook(**options)  # type: ignore[arg-type]


def test_what_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"logits of shape \(2, 4\) for a codebook of 3"):
        Codebook(3)(torch.zeros(2, 4))
    wiring = GaussianWiring(4, 4, 3, values=Codebook(2))
    with pytest.raises(UserError, match="no values to load"):
        wiring.load_dense(torch.zeros(4, 4))
    with pytest.raises(UserError, match="a rescue needs learned values"):
        wiring.rewire(Factors(torch.randn(2, 4), torch.randn(2, 4)))
