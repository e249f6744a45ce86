"""Compiles every kernel for a GPU of compute capability 9.0, without one: `python tests/triton_compile.py`.

Prints a line for each: its name, and whether the machine code uses local memory (spills).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ash.backends.triton import candidates, chunks, own, rows

FLOATS = ("values", "residuals", "scales", "x", "y", "g", "d_values", "d_residuals", "d_scales", "d_x", "weights", "gt",
          "xt", "heights", "widths", "bar", "scores")  # fmt: skip
LONGS = ("anchors", "fixed", "seed", "order", "lines", "found", "ids")
INTS = ("crow", "col", "count")
DRAW: dict[str, Any] = {
    "STRIDES": ((1, 0), (0, 1)), "M": 3, "S": 1, "NU": 1.0, "FIXED": True, "REPEAT": False, "T": 128, "SPAN": 64,
    "P": 16, "E": 64,
}  # fmt: skip
WIDE, NARROW = ((1 << 20, 1 << 20), (0, 0), (0, 2, 1, 0), True), ((64, 48), (0, 5), (0, 1, 1, 1), False)
ROWS = {"KIND": tl.float32, "P": 32, "E": 64}
TILES = {"BY": 0, "PRECISION": "tf32", "WIDEN": False, "SPAN": 256, "M": 128, "N": 128, "K": 32, "GROUP": 8}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (own.multiply, {**DRAW, "PLACES": WIDE}),
    (own.multiply_back, {**DRAW, "PLACES": NARROW, "X": True}),
    (own.multiply_back, {**DRAW, "PLACES": NARROW, "X": False, "SPAN": 1, "E": 1, "NU": 2.5}),
    (chunks.multiply, {**DRAW, "PLACES": WIDE, "T": 32}),
    (chunks.multiply_back, {**DRAW, "PLACES": NARROW, "T": 32, "X": True, "NU": 0.0, "S": 2}),
    (candidates.collect, TILES),
    (candidates.score, {"SPAN": 256, "P": 32, "E": 64}),
    (rows.multiply, ROWS),
    (rows.sample, {**ROWS, "SPAN": 64}),
]


def compiled(kernel: Any, known: dict[str, Any]) -> Any:
    """The kernel for these constants, with pointers of the types that it is given."""
    wide = known.get("PLACES", NARROW)[3]
    kinds = {**dict.fromkeys(FLOATS, "*fp32"), **dict.fromkeys(LONGS, "*i64"), **dict.fromkeys(INTS, "*i32"),
             "table": "*fp64" if wide else "*fp32"}  # fmt: skip
    names = kernel.arg_names
    signature = {name: "constexpr" if name in known else kinds.get(name, "i32") for name in names}
    constants = {(place,): known[name] for place, name in enumerate(names) if name in known}
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})


if __name__ == "__main__":
    for kernel, known in CASES:
        code = compiled(kernel, known).asm["ptx"]
        print(kernel.fn.__module__, kernel.fn.__name__, "spills" if ".local" in code else "registers")
