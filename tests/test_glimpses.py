"""`ash.glimpses` against what it means: reading a picture at a grid around a centre."""

import pytest
import torch
from torch import nn

from ash import Anneal, SparseLayer
from ash.checks import UserError
from ash.glimpses import ConvLocator, Glimpses, HeatMap, glimpse_grid, glimpse_wiring


class Given(nn.Module):
    """A locator that gives the same parameters for every instance."""

    def __init__(self, parameters):
        super().__init__()
        self.parameters_of_glimpses = nn.Parameter(torch.tensor(parameters))

    def forward(self, x):
        return self.parameters_of_glimpses.expand(x.shape[0], -1, -1)


def layer_with(parameters, picture=(12, 15), side=3, **options):
    locator = Given(parameters)
    wiring = glimpse_wiring(picture, len(parameters), side, locator, condition_shape=(1,), **options)
    return SparseLayer(picture, wiring.out_shape, bias=False, wiring=wiring), locator


def test_grid_is_centred_and_row_by_row():
    grid = glimpse_grid(3, 2.0)
    assert grid.tolist() == [[r, c] for r in (-2, 0, 2) for c in (-2, 0, 2)]
    assert torch.equal(glimpse_grid(4).sum(0), torch.zeros(2, dtype=torch.float64))


def test_rounded_glimpses_are_slices_of_the_picture():
    layer, _ = layer_with([[4.0, 6.0], [7.2, 2.9]])
    x = torch.randn(2, 12, 15)
    y = layer.eval()(x, condition=torch.zeros(2, 1))
    assert y.shape == (2, 2, 3, 3)
    assert torch.equal(y[:, 0], x[:, 3:6, 5:8])
    assert torch.equal(y[:, 1], x[:, 6:9, 2:5])


def test_every_instance_is_read_at_its_own_place():
    class Own(nn.Module):
        def forward(self, x):
            return x.unsqueeze(1)

    wiring = glimpse_wiring((9, 9), 1, 3, Own(), condition_shape=(2,))
    layer = SparseLayer((9, 9), (1, 3, 3), bias=False, wiring=wiring).eval()
    x = torch.randn(2, 9, 9)
    y = layer(x, condition=torch.tensor([[1.0, 1.0], [6.0, 4.0]]))
    assert torch.equal(y[0, 0], x[0, :3, :3])
    assert torch.equal(y[1, 0], x[1, 5:8, 3:6])


def test_zoom_multiplies_the_spacing():
    layer, _ = layer_with([[5.0, 7.0, 0.6931472]])
    x = torch.randn(1, 12, 15)
    y = layer.eval()(x, condition=torch.zeros(1, 1))
    assert torch.equal(y[0, 0], x[0, 3:8:2, 5:10:2])


def test_beyond_the_border_the_nearest_pixels_are_read():
    layer, _ = layer_with([[-5.0, 40.0]])
    x = torch.randn(1, 12, 15)
    y = layer.eval()(x, condition=torch.zeros(1, 1))
    assert torch.equal(y, x[:, 0, 14].reshape(1, 1, 1, 1).expand(1, 1, 3, 3))


def test_sampled_glimpses_conserve_a_constant_picture():
    layer, _ = layer_with([[4.3, 6.6]], scale=2.0)
    y = layer.train()(torch.ones(3, 12, 15), condition=torch.zeros(3, 1))
    torch.testing.assert_close(y, torch.ones(3, 1, 3, 3))


def test_gradient_leads_uphill():
    layer, locator = layer_with([[4.3, 6.4]], scale=1.0)
    rows = torch.arange(12.0)[:, None].expand(12, 15)
    layer.train()(rows.unsqueeze(0), condition=torch.zeros(1, 1)).sum().backward()
    down, across = locator.parameters_of_glimpses.grad[0].tolist()
    assert down > 0
    assert abs(across) < down / 4  # a fat tail is not separable


def test_training_moves_a_glimpse_to_the_bright_spot():
    torch.manual_seed(0)
    layer, locator = layer_with([[3.4, 10.3]], picture=(16, 16), side=3, scale=Anneal(3.0, 0.3, 60))
    grid = torch.arange(16.0)
    x = torch.exp(-((grid[:, None] - 9) ** 2 + (grid - 6) ** 2) / 20).unsqueeze(0)
    optimizer = torch.optim.Adam(locator.parameters(), lr=0.2)
    for _ in range(80):
        optimizer.zero_grad()
        (-layer(x, condition=torch.zeros(1, 1)).sum()).backward()
        optimizer.step()
    found = locator.parameters_of_glimpses.detach()[0]
    torch.testing.assert_close(found, torch.tensor([9.0, 6.0]), atol=0.8, rtol=0)
    assert int(layer.wiring.step) >= 79


def test_heat_map_reads_a_hot_cell_and_then_the_next():
    heat = HeatMap(1, (40, 60), 2)
    with torch.no_grad():
        heat.head.weight[0] = 1.0
    features = torch.zeros(1, 1, 4, 6)
    features[0, 0, 1, 4], features[0, 0, 3, 0] = 50.0, 40.0
    centres = heat(features)
    torch.testing.assert_close(centres, torch.tensor([[[14.5, 44.5], [34.5, 4.5]]]))
    assert heat.attention.sum().item() == pytest.approx(1)
    assert heat.scores[0, 0] > heat.scores[0, 1]


def test_heat_map_lies_between_two_neighbours_of_equal_heat():
    heat = HeatMap(1, (40, 40), 1)
    with torch.no_grad():
        heat.head.weight[0] = 1.0
    features = torch.zeros(1, 1, 4, 4)
    features[0, 0, 1, 1] = features[0, 0, 1, 2] = 60.0
    torch.testing.assert_close(heat(features), torch.tensor([[[14.5, 19.5]]]))


def test_heat_map_starts_without_steps_and_has_gradients():
    heat = HeatMap(3, (10, 10), 2)
    assert not heat.head.weight[1:].any()
    features = torch.randn(2, 3, 5, 5, requires_grad=True)
    (heat(features).sum() + heat.scores.sum()).backward()
    assert heat.head.weight.grad.abs().sum() > 0
    assert features.grad.abs().sum() > 0


def test_locator_stays_in_the_picture():
    locator = ConvLocator((10, 10), (40, 80), 3)
    centres = locator(torch.randn(4, 10, 10))
    assert centres.shape == (4, 3, 2)
    assert (centres >= 0).all()
    assert (centres < torch.tensor([40, 80])).all()
    assert locator.features.shape == (4, 24, 5, 5)


def test_a_locator_of_another_shape_is_refused():
    layer, _ = layer_with([[4.0, 6.0]])
    layer.wiring.hypernetwork.glimpses = 2
    with pytest.raises(UserError, match=r"a locator that gives \(1, 1, 2\).*expected \(b, g, 2\)"):
        layer(torch.zeros(1, 12, 15), condition=torch.zeros(1, 1))


@pytest.mark.parametrize(("side", "spacing", "glimpses"), [(13, 1.0, 1), (3, 6.0, 1), (0, 1.0, 1), (3, 1.0, 0)])
def test_glimpses_that_do_not_fit_are_refused(side, spacing, glimpses):
    with pytest.raises(UserError, match="expected at (most|least)"):
        Glimpses(nn.Identity(), (12, 15), glimpses, side, spacing)


def test_cost_does_not_depend_on_the_picture():
    small, large = (glimpse_wiring((size, size), 2, 5, nn.Identity(), condition_shape=(2, 2)) for size in (50, 5000))
    centres = torch.full((3, 2, 2), 20.0)
    for wiring in (small, large):
        weight = wiring(centres)
        assert weight.values.shape == (3, 2 * 25 * 4)
    assert torch.equal(small.eval()(centres).indices, large.eval()(centres).indices)
