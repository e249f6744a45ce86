"""Kernels for GPUs, in Triton: a weight that is drawn, weighed and multiplied in one pass; the largest entries of a
sum of outer products; CSR products.

| file | content |
|---|---|
| `points.py` | the points of a draw, in plain torch: what the kernels draw, bit for bit |
| `drawing.py`, `shares.py`, `moving.py` | device functions: draw, weigh, multiply and add |
| `own.py`, `chunks.py` | the kernels of the contexts `"tuple"` and `"chunk"` |
| `product.py`, `weight.py` | from there to a differentiable product, and to `FusedWeight` |
| `top.py`, `candidates.py` | the largest entries of a sum of outer products |
| `csr.py`, `rows.py` | CSR product and SDDMM |

Nothing here is loaded with `import ash`. Without a GPU the kernels run in Triton's interpreter: set
`TRITON_INTERPRET=1` before they are imported.
"""
