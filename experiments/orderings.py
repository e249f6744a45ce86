"""Ways to learn keys from an order, as one interface: quicksort, a permutation layer, diffsort's networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash import Anneal
from ash.checks import choose, optional, require
from ash.sorting import PermutationWiring, Quicksort, RankHypernetwork, standardised
from ash.weight import SparseWeight


class Ordering(nn.Module, ABC):
    """What turns keys `(b, n)` (hyper: or features `(b, n, f)`) into an order, and the order asked for into a loss."""

    @abstractmethod
    def loss(self, keys: Float[Tensor, "b n ..."], target: Int64[Tensor, "b n"]) -> Float[Tensor, ""]:
        """Required. The loss where each element has the place `target`."""

    @abstractmethod
    def matrix(self, keys: Float[Tensor, "b n ..."]) -> Float[Tensor, "b n n"]:
        """Required. The permutation (place, element): soft in training, exact in evaluation."""

    def order(self, keys: Float[Tensor, "b n ..."]) -> Int64[Tensor, "b n"]:
        """Which element stands at each place, in evaluation."""
        return self.matrix(keys).argmax(-1)

    def ranks(self, keys: Float[Tensor, "b n ..."]) -> Float[Tensor, "b n"]:
        """Numbers in whose order the elements are sorted; the keys themselves by default. Without gradients."""
        return keys.detach()

    def at_step(self, step: int) -> None:
        """Be told how many optimizer steps there were; default: nothing depends on it."""
        return


class QuicksortOrdering(Ordering):
    """Quicksort from half-permutations; the loss is the log share of the places on the way to the target."""

    def __init__(self, n: int, scale: Anneal, kernel: str):
        super().__init__()
        self.sorter = Quicksort(n, kernel=kernel, scale=scale)

    def loss(self, keys: Tensor, target: Tensor) -> Tensor:
        return -self.sorter.log_shares(standardised(keys), target).mean()

    def matrix(self, keys: Tensor) -> Tensor:
        return self.sorter(standardised(keys)).product().to_dense()

    def at_step(self, step: int) -> None:
        self.sorter.step.fill_(step)


class HyperOrdering(Ordering):
    """One permutation layer; the loss is the log share of the target against the places beside it and sampled ones.

    Args:
        features: of each element; with 1 it has a key, which is standardised, otherwise pairs are compared by a
            small network.
    """

    def __init__(self, n: int, scale: Anneal, kernel: str, samples: int, features: int = 1):
        super().__init__()
        self.samples, self.features = samples, features
        compare = partial(RankHypernetwork, kernel=kernel, scale=scale)
        seen = n if features == 1 else (n, features)
        self.wiring = PermutationWiring(n, hypernetwork=compare, condition_shape=seen, scale=0.5)

    @property
    def compare(self) -> RankHypernetwork:
        """The hypernetwork of the layer."""
        assert isinstance(self.wiring.hypernetwork, RankHypernetwork)
        return self.wiring.hypernetwork

    def _seen(self, keys: Tensor) -> Tensor:
        return standardised(keys) if self.features == 1 else keys

    def loss(self, keys: Tensor, target: Tensor) -> Tensor:
        return -self.compare.log_shares(self._seen(keys), target, self.samples).mean()

    def matrix(self, keys: Tensor) -> Tensor:
        weight: SparseWeight = self.wiring(self._seen(keys))
        return weight.to_dense()

    @torch.no_grad()
    def ranks(self, keys: Tensor) -> Tensor:
        emitted: Tensor = self.compare(self._seen(keys))
        return emitted.squeeze(-1)

    def at_step(self, step: int) -> None:
        self.compare.step.fill_(step)


class DiffsortOrdering(Ordering):
    """diffsort's relaxed sorting network; the loss is the cross entropy of its permutation matrix and the true one.

    Source: Petersen et al., arXiv 2105.04019 and 2203.09630; package diffsort.
    """

    def __init__(
        self, n: int, network: str, steepness: float, distribution: str, loss: str, device: torch.device | str = "cpu"
    ):
        super().__init__()
        package: Any = optional("diffsort", "pip install diffsort")
        how = {"steepness": steepness, "distribution": distribution}
        self.sorter = package.DiffSortNet(network, n, device=str(device), **how)
        choose("loss", loss, {"categorical": None, "binary": None})
        self.kind = loss

    def loss(self, keys: Tensor, target: Tensor) -> Tensor:
        soft = self._soft(keys)
        if self.kind == "binary":
            truth = torch.zeros_like(soft).scatter(2, target.unsqueeze(-1), 1.0)
            return nn.functional.binary_cross_entropy(soft, truth)
        return -soft.gather(2, target.unsqueeze(-1)).log().mean()

    def _soft(self, keys: Tensor) -> Tensor:
        """The relaxed matrix (element, place), within (0, 1)."""
        soft: Tensor = self.sorter(keys)[1]
        return soft.clamp(1e-7, 1 - 1e-7)

    def matrix(self, keys: Tensor) -> Tensor:
        if self.training:
            return self._soft(keys).transpose(1, 2)
        order = keys.argsort(dim=-1, stable=True)
        return nn.functional.one_hot(order, keys.shape[1]).to(keys)


def check_size(method: str, n: int) -> None:
    """Raise `UserError` for a list that the method cannot sort."""
    require(n >= 2, f"--size {n}; expected at least 2 numbers in a list.")
    power = n & (n - 1) == 0
    require(
        method != "quicksort" or power,
        f"--method quicksort with --size {n}; expected a power of two (2, 4, 8, …); use --method hyper.",
    )
