"""What the benchmark is made of: its parts, and the layers of all of them by name."""

from __future__ import annotations

from experiments import (
    benchmark_cells,
    benchmark_crossover,
    benchmark_free,
    benchmark_gpu,
    benchmark_graph_rows,
    benchmark_hyper,
    benchmark_layers,
    benchmark_parallel,
    benchmark_rigl,
    benchmark_scale,
)
from experiments.benchmark_case import Layer, Part

PARTS: tuple[Part, ...] = (
    benchmark_layers.PART,
    benchmark_crossover.PART,
    benchmark_free.PART,
    benchmark_cells.PART,
    benchmark_cells.FAT_PART,
    benchmark_hyper.PART,
    benchmark_rigl.PART,
    benchmark_graph_rows.PART,
    benchmark_scale.PART,
    benchmark_gpu.PART,
    benchmark_parallel.PART,
)

LAYERS: dict[str, Layer] = {name: layer for part in PARTS for name, layer in part.layers.items()}
