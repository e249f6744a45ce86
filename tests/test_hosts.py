"""The table of hosts: every wiring trains in every host, an empty one lets nothing through, figures, runs, resuming."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from ash import Rewirer, SparseWeight
from ash.layers.host import make_wiring
from ash.wirings.frozen import FrozenWiring
from experiments import hosts
from experiments.__main__ import main
from experiments.hosts import WIRINGS, cell
from experiments.hosts_nets import DENSITIES, HOSTS, EmptyWiring, Net, wirings


def start(out: Path, *arguments: object) -> int:
    return main(["hosts", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


def cells(test: Callable[..., None]) -> Any:
    """The test in every cell of the table: every wiring in every host."""
    return pytest.mark.parametrize("host", HOSTS)(pytest.mark.parametrize("wiring", WIRINGS)(test))


@pytest.mark.parametrize("host", HOSTS)
def test_an_empty_wiring_lets_nothing_of_the_picture_through(host: str) -> None:
    net = HOSTS[host](wirings(DENSITIES[host], 10)["empty"]).eval()
    with torch.no_grad():
        scores = net(torch.randn(5, 1, 8, 8))
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores, scores[:1].expand(5, -1), atol=1e-6, rtol=0)
    assert net.wiring.stored_entries() == 0


@cells
def test_the_picture_comes_through_every_wiring_and_its_gradient_comes_back(host: str, wiring: str) -> None:
    torch.manual_seed(0)
    net = HOSTS[host](wirings(DENSITIES[host], 10)[wiring])
    x = torch.randn(6, 1, 8, 8)
    scores = net(x)
    cross_entropy(scores, torch.arange(6)).backward()
    assert (scores - scores[:1]).abs().max() > 1e-4
    own = [p.grad for p in net.wiring.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in own) and any(g.any() for g in own)
    stem = [p.grad for p in net.stem.parameters()]
    assert all(g is not None and g.any() for g in stem)
    expected = DENSITIES[host] * net.wiring.admissible.count()
    assert abs(net.wiring.stored_entries() - expected) <= 1


def with_weight(net: Net, weight: SparseWeight) -> Net:
    """The same net with a fixed weight, every entry of which is stored, zeros too."""
    whole = weight.to_dense().detach()
    every = torch.ones_like(whole).nonzero()
    if not net.wiring.admissible.everything:
        every = every[net.wiring.admissible.contains(every)]
    other = copy.deepcopy(net)
    other.host.wiring = FrozenWiring(
        SparseWeight(every, whole[tuple(every.unbind(-1))], weight.out_shape, weight.in_shape))
    return other.eval()


@cells
def test_a_host_does_with_a_wiring_what_it_does_with_its_dense_weight(host: str, wiring: str) -> None:
    torch.manual_seed(1)
    net = HOSTS[host](wirings(DENSITIES[host], 10)[wiring]).eval()
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    scores = net(x)
    (gradient,) = torch.autograd.grad(scores.square().sum(), x)
    weight = net.wiring(x)
    for i in range(3):
        own = x[i : i + 1].detach().requires_grad_()
        expected = with_weight(net, weight.instance(i))(own)
        torch.testing.assert_close(scores[i : i + 1], expected, atol=1e-5, rtol=1e-4)
        if wiring != "hyper":  # an adaptive weight looks at x besides
            (by_oracle,) = torch.autograd.grad(expected.square().sum(), own)
            torch.testing.assert_close(gradient[i : i + 1], by_oracle, atol=1e-4, rtol=1e-3)


@cells
def test_a_state_brings_the_wiring_back(host: str, wiring: str) -> None:
    one, other = (HOSTS[host](wirings(DENSITIES[host], 10)[wiring]) for _ in range(2))
    x = torch.randn(3, 1, 8, 8)
    one(x)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.eval()(x), one.eval()(x))


def made(host: str, wiring: str) -> Net:
    torch.manual_seed(4)
    return HOSTS[host](wirings(DENSITIES[host], 10)[wiring])


def descend(net: Net, steps: int = 2, recompute: bool = False) -> list[Tensor]:
    """A few steps on random pictures; the parameters afterwards."""
    torch.manual_seed(11)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    like = next(net.parameters())
    for _ in range(steps):
        x = torch.randn(4, 1, 8, 8, dtype=like.dtype)
        optimizer.zero_grad()
        scores = checkpoint(net, x, use_reentrant=False) if recompute else net(x)
        cross_entropy(scores, torch.arange(4)).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def differ(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True) if a.numel())


@cells
def test_a_seed_decides_a_draw_and_an_evaluation_draws_nothing(host: str, wiring: str) -> None:
    net, x = made(host, wiring), torch.randn(3, 1, 8, 8)
    draws = []
    for _ in range(2):
        torch.manual_seed(2)
        draws.append(copy.deepcopy(net).train()(x))
    assert torch.equal(*draws)
    before = torch.get_rng_state()
    assert torch.equal(net.eval()(x), net(x))
    assert torch.equal(torch.get_rng_state(), before)


@cells
def test_copies_train_as_the_net_does_and_activation_checkpointing_changes_nothing(host: str, wiring: str) -> None:
    net = made(host, wiring)
    start = [p.detach().clone() for p in net.parameters()]
    copied, pickled, recomputed = copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net)
    after = descend(net)
    assert differ(after, start) > 1e-3
    assert differ(after, descend(copied)) == 0 and differ(after, descend(pickled)) == 0
    assert differ(after, descend(recomputed, recompute=True)) == 0


@cells
def test_training_works_after_an_evaluation_in_inference_mode(host: str, wiring: str) -> None:
    net, other = made(host, wiring), made(host, wiring)
    with torch.inference_mode():
        net.eval()(torch.randn(3, 1, 8, 8))
    assert differ(descend(net.train()), descend(other)) == 0


@cells
def test_another_type(host: str, wiring: str) -> None:
    net = made(host, wiring).double()
    assert all(torch.isfinite(p).all() for p in descend(net, steps=1))
    assert net.eval()(torch.randn(3, 1, 8, 8).double()).dtype == torch.float64


@pytest.mark.parametrize("wiring", ["set", "rigl"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_rewiring_moves_entries_in_every_host_and_keeps_their_number(host: str, wiring: str) -> None:
    net = HOSTS[host](wirings(DENSITIES[host], 10)[wiring])
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    rewirer = Rewirer(net, optimizer, every=1, end=9, fraction=0.5)
    before = {tuple(entry) for entry in net.wiring.indices.tolist()}
    net(torch.randn(4, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    event = rewirer.step()
    after = {tuple(entry) for entry in net.wiring.indices.tolist()}
    assert event is not None and event.moved == len(after - before) == len(before - after) > 0
    assert len(after) == len(before) == net.wiring.stored_entries()
    assert bool(net.wiring.admissible.contains(net.wiring.indices).all())


def test_an_empty_wiring_is_a_weight_of_zeros() -> None:
    weight = EmptyWiring((3,), (2, 2)).eval()()
    assert weight.to_dense().shape == (3, 2, 2)
    assert not weight.to_dense().any()
    assert isinstance(make_wiring(wirings(0.5, 1)["empty"], (3,), (4,), device="cpu"), EmptyWiring)


@pytest.mark.parametrize(("accuracies", "nothing", "beats"), [
    ([0.5, 0.7], [0.1, 0.1], True),
    ([0.2, 0.4], [0.1, 0.3], False),
    ([0.1, 0.1], [0.1, 0.1], False),
])
def test_a_cell_beats_the_empty_wiring_beyond_both_spreads(
    accuracies: list[float], nothing: list[float], beats: bool
) -> None:
    made = [{"accuracy": a, "entries": 3, "admissible": 12, "seconds": 1.0} for a in accuracies]
    figures = cell(made, [{"accuracy": a} for a in nothing])
    assert figures["beats_empty"] is beats
    assert figures["density"] == 0.25
    assert figures["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert figures["spread"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)


SMALL = ("--quick", "--wiring", "rigl", "gaussian", "--host", "linear", "layer_graph")


def test_a_quick_run_leaves_a_table_and_a_picture(tmp_path: Path) -> None:
    assert start(tmp_path, *SMALL) == 0
    summary = content(tmp_path)
    assert list(summary["cells"]) == ["rigl/linear", "rigl/layer_graph", "gaussian/linear", "gaussian/layer_graph"]
    figures = summary["cells"]["rigl/linear"]
    assert {"accuracy", "spread", "empty", "density", "beats_empty"} <= figures.keys()
    assert figures["empty"] < 0.2 and figures["density"] == pytest.approx(0.1, abs=0.01)
    assert summary["all_beat_empty"] == all(each["beats_empty"] for each in summary["cells"].values())
    assert summary["steps"] == 2 * 3 * 2
    lines = (tmp_path / "hosts.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| rigl", "| gaussian", "| empty"]
    assert (tmp_path / "hosts.png").stat().st_size > 0


def test_an_evaluation_judges_the_nets_of_a_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "heat_map", lambda *_, **__: None)
    assert start(tmp_path, *SMALL) == 0
    assert start(tmp_path, "--evaluate", tmp_path) == 0
    trained, judged = content(tmp_path)["cells"], content(tmp_path / "evaluation")["cells"]
    for name, figures in trained.items():
        assert judged[name]["accuracies"] == figures["accuracies"]
    assert judged["empty/linear"]["accuracy"] == trained["rigl/linear"]["empty"]
    assert start(tmp_path / "other", "--evaluate", tmp_path / "nowhere") == 2


def test_a_run_goes_on_after_the_nets_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setattr(hosts, "heat_map", lambda *_, **__: None)
    small = ("--quick", "--wiring", "rigl", "gaussian", "--host", "linear", "conv")
    assert start(whole, *small) == 0
    real, trained = hosts.train, []

    def stop(*given: Any) -> Any:
        trained.append(given[2:])
        if len(trained) == 4:
            raise RuntimeError("stopped")
        return real(*given)

    monkeypatch.setattr(hosts, "train", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        start(broken, *small)
    assert start(broken, *small, "--resume") == 0
    assert trained[4:6] == [("linear", "rigl", 1), ("linear", "gaussian", 0)]
    assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("given", "message"), [
    (("--seeds", 0), "--seeds=0"),
    (("--lr", -1), "--lr=-1"),
    (("--every", 20, "--steps", 10), "--every 20 of --steps 10"),
])
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, given: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, *given) == 2
    assert message in capsys.readouterr().err
