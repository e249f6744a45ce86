"""CPU kernels of the CSR product, its transpose and SDDMM for a batch that lies row by row; needs numba.

A block of `lanes` batch rows is turned into a (columns × lanes) buffer that stays in the cache where it can.
One entry of the matrix then is one vector operation; the side of the rows is turned a strip at a time. The
caller gives both buffers, 64-byte aligned and of the batch's type: `block` (columns, lanes), `strip`
(STRIP, lanes). All arrays are contiguous; the kernels check nothing and run without the GIL.
"""

# mypy: ignore-errors

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from ash.jit.kernel import kernel

BYTES = 128
"""Width of a block: 32 float32 or 16 float64. Wider ones spill out of the second-level cache sooner."""
GROUP = 8
"""Batch rows that are transposed at once; more streams at a power-of-two distance evict each other."""
STRIP = 1024
"""Rows or columns that are turned at once: 128 KB, which leave room for the block in the cache."""
ALIGNED = 64
REORDER = ("contract", "reassoc")  # no flag that would let the compiler assume there is no NaN or infinity


class Lanes(types.Type):
    """One row of a block: a vector register, or several."""

    def __init__(self, dtype):
        self.dtype, self.count = dtype, 8 * BYTES // dtype.bitwidth
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """How LLVM holds it: as one vector."""

    def __init__(self, manager, kind):
        element = manager.lookup(kind.dtype).get_value_type()
        super().__init__(manager, kind, ir.VectorType(element, kind.count))


def _constant(indices):
    return ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices))


def _address(context, builder, signature, args, kind):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    row = context.cast(builder, args[1], signature.args[1], types.intp)
    start = builder.gep(array.data, [builder.mul(row, row.type(kind.count))])
    return builder.bitcast(start, context.get_value_type(kind).as_pointer())


@intrinsic
def load(typing, block, row):
    """One row of a block."""
    kind = Lanes(block.dtype)

    def generate(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args, kind), align=ALIGNED)

    return kind(block, row), generate


@intrinsic
def store(typing, block, row, lanes):
    """Overwrite one row of a block."""

    def generate(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args, lanes), align=ALIGNED)
        return context.get_dummy_value()

    return types.void(block, row, lanes), generate


@intrinsic
def zero(typing, block):
    """Lanes of zeros, of a block's type."""
    kind = Lanes(block.dtype)

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(block), generate


@intrinsic
def add_product(typing, total, factor, lanes):
    """total + factor · lanes."""

    def generate(context, builder, signature, args):
        blank = ir.Constant(args[2].type, ir.Undefined)
        first = builder.insert_element(blank, args[1], ir.IntType(32)(0))
        factors = builder.shuffle_vector(first, blank, _constant([0] * lanes.count))
        return builder.fadd(args[0], builder.fmul(factors, args[2], flags=REORDER), flags=REORDER)

    return lanes(lanes, lanes.dtype, lanes), generate


@intrinsic
def dot(typing, one, other):
    """Sum of the products of two rows, half against half."""

    def generate(context, builder, signature, args):
        part, count = builder.fmul(*args, flags=REORDER), one.count
        while count > 1:
            count //= 2
            blank = ir.Constant(part.type, ir.Undefined)
            low, high = _constant(range(count)), _constant(range(count, 2 * count))
            halves = [builder.shuffle_vector(part, blank, half) for half in (low, high)]
            part = builder.fadd(*halves, flags=REORDER)
        return builder.extract_element(part, ir.IntType(32)(0))

    return one.dtype(one, other), generate


@kernel
def _pack(x, start, first, block):
    """Batch rows from `start` on and columns from `first` on, turned; lanes past the last row are zero."""
    width = min(block.shape[0], x.shape[1] - first)
    for low in range(0, block.shape[1], GROUP):
        if start + low + GROUP <= x.shape[0]:
            for c in range(width):
                for j in range(GROUP):
                    block[c, low + j] = x[start + low + j, first + c]
        else:
            for c in range(width):
                for j in range(low, low + GROUP):
                    block[c, j] = x[start + j, first + c] if start + j < x.shape[0] else 0


@kernel
def _pack_all(x, start, block):
    for first in range(0, x.shape[1], STRIP):
        _pack(x, start, first, block[first : first + STRIP])


@kernel
def _unpack(block, start, first, y):
    width = min(block.shape[0], y.shape[1] - first)
    for j in range(min(block.shape[1], y.shape[0] - start)):
        for r in range(width):
            y[start + j, first + r] = block[r, j]


@kernel
def multiply(values, crow, col, x, y, block, strip, begin, end):
    """y[begin:end] = x[begin:end] · Wᵀ for x `(b, columns)` and y `(b, rows)`."""
    for start in range(begin, end, block.shape[1]):
        _pack_all(x, start, block)
        for first in range(0, crow.size - 1, STRIP):
            for r in range(min(STRIP, crow.size - 1 - first)):
                total = zero(block)
                for p in range(crow[first + r], crow[first + r + 1]):
                    total = add_product(total, values[p], load(block, col[p]))
                store(strip, r, total)
            _unpack(strip, start, first, y)


@kernel
def multiply_back(values, crow, col, g, z, block, strip, begin, end):
    """z[begin:end] = g[begin:end] · W for g `(b, rows)` and z `(b, columns)`, by W's own structure."""
    for start in range(begin, end, block.shape[1]):
        block[:] = 0
        for first in range(0, crow.size - 1, STRIP):
            _pack(g, start, first, strip)
            for r in range(min(STRIP, crow.size - 1 - first)):
                row = load(strip, r)
                for p in range(crow[first + r], crow[first + r + 1]):
                    store(block, col[p], add_product(load(block, col[p]), values[p], row))
        for first in range(0, z.shape[1], STRIP):
            _unpack(block[first : first + STRIP], start, first, z)


@kernel
def sample(g, x, crow, col, entries, block, strip, begin, end):
    """entries += those of g[begin:end]ᵀ · x[begin:end] that W stores, in its order."""
    for start in range(begin, end, block.shape[1]):
        _pack_all(x, start, block)
        for first in range(0, crow.size - 1, STRIP):
            _pack(g, start, first, strip)
            for r in range(min(STRIP, crow.size - 1 - first)):
                row = load(strip, r)
                for p in range(crow[first + r], crow[first + r + 1]):
                    entries[p] += dot(row, load(block, col[p]))
