"""`Rescue`: moves free tuples by other means than the gradient of their means. Every move is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ash.growth import Factors
from ash.wirings.base import RewireReport

if TYPE_CHECKING:
    from ash.wirings.gaussian import GaussianWiring


@dataclass(frozen=True)
class Rescue:
    """stub"""

    def __call__(self, wiring: GaussianWiring, score: Factors) -> RewireReport:
        raise SystemExit
