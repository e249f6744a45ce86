"""What becomes of a net whose low gates are removed: as it is, trained on, and again from scratch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ash import GateWiring, LayerGraph
from experiments.gate_table import mean
from experiments.gate_training import Session, Trained

Make = Callable[[], nn.Module]


def retrain(session: Session, make: Make, mains: dict[int, Trained], prune: float, epochs: int) -> dict[str, object]:
    """Accuracies, means over the seeds, of nets without the share `prune` of their gates, and of those beside them.

    `mains`: the trained nets by seed, which `make` makes. Keys: see `experiments.gates`.
    """
    found: dict[str, list[float]] = {}
    left = []
    for seed, main in mains.items():
        gates = gates_of(main.net)
        order = gates.gate.gate(gates.logits.detach()).abs().argsort()
        removed = order[: round(prune * len(order))]
        left.append(len(order) - len(removed))
        weights = main.net.state_dict()
        pruned = without(make, removed, weights)
        found.setdefault("pruned", []).append(session.accuracy(pruned.to(session.run.device)))
        for name, (net, length) in beside(make, removed, weights, epochs, seed).items():
            found.setdefault(name, []).append(session.train(f"{name} {seed}", seed, net, length).test_accuracy)
    return {"pruned_connections": left} | {f"{name}_accuracy": mean(each) for name, each in found.items()}


def beside(
    make: Make, removed: Tensor, weights: dict[str, Tensor], epochs: int, seed: int
) -> dict[str, tuple[Make, int]]:
    """The nets that are trained after gates were removed: what makes each, and for how many epochs."""
    number = len(gates_of(make()).logits)
    other = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[: len(removed)]
    further = max(1, epochs // 3)
    return {
        "trained_on": (partial(without, make, removed, weights), further),
        "continued": (partial(without, make, removed[:0], weights), further),
        "scratch": (partial(without, make, removed), epochs),
        "random": (partial(without, make, other), epochs),
    }


def gates_of(net: nn.Module) -> GateWiring:
    """The gates of a net."""
    assert isinstance(net, LayerGraph) and isinstance(net.wiring, GateWiring)
    return net.wiring


def without(make: Make, removed: Tensor, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """A net, new or with these weights, without some of its gates."""
    net = make()
    if weights is not None:
        net.load_state_dict(weights)
    alive = gates_of(net).alive
    alive[removed.to(alive.device)] = False
    return net
