"""The curves of a page, thinned and packed for a browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ash.checks import require
from ash.plot.curves import array, pair_of

POINTS = 400
"""Points of a curve at most; of a longer one the lowest and the highest of every stretch are kept."""
RATIO = 50.0
"""Values above zero that differ by more than this factor stand on a logarithmic axis."""


@dataclass(frozen=True, eq=False)
class Chart:
    """Curves in one picture.

    Args:
        series: name: steps and values, one-dimensional and equally long, as for `ash.plot.curves`; NaN is a gap.
        bands: name of a series: (low, high) at its steps, drawn as a band behind it.
        logy: whether the axis is logarithmic; None: where all values are above zero and differ much.
        xlabel, ylabel: of the axes.
    """

    series: Mapping[str, tuple[Any, Any]]
    bands: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    logy: bool | None = None
    xlabel: str = "step"
    ylabel: str = ""

    def encode(self, most: int = POINTS) -> dict[str, Any]:
        """What the browser draws, at most `most` points a curve.

        Raises `UserError` for no series, lengths that differ, and a band of no series.
        """
        require(len(self.series) > 0, "series is empty; expected at least one name with its steps and values.")
        strange = sorted(set(self.bands) - set(self.series))
        require(not strange, f"bands for {strange}, which are no series; expected some of {sorted(self.series)}.")
        packed = [self._encode(name, max(most, 4)) for name in self.series]
        values = np.concatenate([pair_of(name, pair)[1] for name, pair in self.series.items()])
        logy = _spans(values) if self.logy is None else self.logy and bool((values > 0).any())
        return {"series": packed, "logy": logy, "xlabel": self.xlabel, "ylabel": self.ylabel}

    def _encode(self, name: str, most: int) -> dict[str, Any]:
        steps, values = pair_of(name, self.series[name])
        order = np.argsort(steps, kind="stable")
        places = order[_kept(values[order], most)]
        found = {"name": name, "x": _plain(steps[places]), "y": _plain(values[places])}
        if name in self.bands:
            band = [array(f"the band of {name!r}", each, 1) for each in self.bands[name]]
            require(all(len(each) == len(steps) for each in band), f"the band of {name!r} has not {len(steps)} values.")
            found |= {"low": _plain(band[0][places]), "high": _plain(band[1][places])}
        return found


def _spans(values: np.ndarray) -> bool:
    """Whether a logarithmic axis shows these values better."""
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and bool(finite.min() > 0 and finite.max() > RATIO * finite.min())


def _kept(values: np.ndarray, most: int) -> np.ndarray:
    """Places of the ends, and of the lowest and the highest value of each of so many stretches."""
    if len(values) <= most:
        return np.arange(len(values))
    finite = np.isfinite(values)
    low, high = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
    kept = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), max(1, most // 2 - 1)):
        kept |= {int(part[low[part].argmin()]), int(part[high[part].argmax()])}
    return np.array(sorted(kept))


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers of six digits, None for what is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
