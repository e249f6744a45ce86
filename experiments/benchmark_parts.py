"""What the benchmark is made of: its parts, and the layers of all of them by name."""

from __future__ import annotations

from experiments import (
    benchmark_crossover,
    benchmark_free,
    benchmark_gpu,
    benchmark_graph_rows,
    benchmark_hyper,
    benchmark_layers,
    benchmark_rigl,
)
from experiments.benchmark_case import Layer, Part

PARTS: tuple[Part, ...] = (
    benchmark_layers.PART,
    benchmark_crossover.PART,
    benchmark_free.PART,
    benchmark_hyper.PART,
    benchmark_rigl.PART,
    benchmark_gpu.PART,
    benchmark_graph_rows.PART,
)

LAYERS: dict[str, Layer] = {name: layer for part in PARTS for name, layer in part.layers.items()}
