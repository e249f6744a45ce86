"""CPU kernels of the CSR product, its transpose and SDDMM for a batch that lies row by row; needs numba.

A block of `lanes` batch rows is turned into a (columns × lanes) buffer that stays in the cache where it can.
One entry of the matrix then is one vector operation; the side of the rows is turned a strip at a time. The
caller gives both buffers, 64-byte aligned and of the batch's type: `block` (columns, lanes), `strip`
(some rows, lanes), and `width`, a tuple as long as a row of them has registers: a number that the compiler knows.
All arrays are contiguous; the kernels check nothing and run without the GIL.
"""

# mypy: ignore-errors

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from ash.jit.kernel import kernel

REGISTER = 64
"""Bytes of the widest vector register; a row of a block is one or more."""
GROUP = 8
"""Batch rows that are transposed at once; more streams at a power-of-two distance evict each other."""
LINE = 16
"""Rows of a block that are turned back at once: a line of the cache in the result, which is written whole."""
QUAD = 4
"""Entries whose sums of products are folded together: two shuffles each instead of four."""
REORDER = ("contract", "reassoc")  # no flag that would let the compiler assume there is no NaN or infinity


class Lanes(types.Type):
    """One row of a block: a vector register, or several."""

    def __init__(self, dtype, width):
        self.dtype, self.register = dtype, 8 * REGISTER // dtype.bitwidth
        self.count = width.count * self.register
        super().__init__(name=f"Lanes({dtype}, {self.count})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """How LLVM holds it: as one vector."""

    def __init__(self, manager, kind):
        element = manager.lookup(kind.dtype).get_value_type()
        super().__init__(manager, kind, ir.VectorType(element, kind.count))


def _shuffle(builder, one, other, indices):
    """Elements of two vectors, numbered through."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices))
    return builder.shuffle_vector(one, other, mask)


def _splat(builder, number, kind):
    """A vector of that kind whose elements are all that number."""
    blank = ir.Constant(kind, ir.Undefined)
    return _shuffle(builder, builder.insert_element(blank, number, ir.IntType(32)(0)), blank, [0] * kind.count)


def _slice(builder, vector, begin, end):
    return _shuffle(builder, vector, ir.Constant(vector.type, ir.Undefined), range(begin, end))


def _fold(builder, vector, count):
    """Sums of the elements whose numbers are alike modulo count."""
    while vector.type.count > count:
        half = vector.type.count // 2
        halves = [_slice(builder, vector, i, i + half) for i in (0, half)]
        vector = builder.fadd(*halves, flags=REORDER)
    return vector


def _weave(builder, one, other, unit):
    """Neighbours, `unit` elements each, of either vector added up; what comes of the two takes turns."""
    count, starts = one.type.count, range(0, one.type.count, 2 * unit)
    low = [n + i for start in starts for n in (start, count + start) for i in range(unit)]
    halves = [_shuffle(builder, one, other, [n + shift for n in low]) for shift in (0, unit)]
    return builder.fadd(*halves, flags=REORDER)


def _products(builder, one, other, register):
    """One register of sums of products."""
    return _fold(builder, builder.fmul(one, other, flags=REORDER), register)


def _address(context, builder, signature, args, kind):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    row = context.cast(builder, args[1], signature.args[1], types.intp)
    start = builder.gep(array.data, [builder.mul(row, row.type(kind.count))])
    return builder.bitcast(start, context.get_value_type(kind).as_pointer())


@intrinsic
def load(typing, block, row, width):
    """One row of a block."""
    kind = Lanes(block.dtype, width)

    def generate(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args, kind), align=REGISTER)

    return kind(block, row, width), generate


@intrinsic
def store(typing, block, row, lanes):
    """Overwrite one row of a block."""

    def generate(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args, lanes), align=REGISTER)
        return context.get_dummy_value()

    return types.void(block, row, lanes), generate


@intrinsic
def zero(typing, block, width):
    """Lanes of zeros, of a block's type."""
    kind = Lanes(block.dtype, width)

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(block, width), generate


@intrinsic
def spread(typing, block, value, width):
    """Lanes that all hold a value of the block's type."""
    kind = Lanes(block.dtype, width)

    def generate(context, builder, signature, args):
        return _splat(builder, args[1], context.get_value_type(kind))

    return kind(block, block.dtype, width), generate


@intrinsic
def add(typing, one, other):
    """one + other."""

    def generate(context, builder, signature, args):
        return builder.fadd(*args, flags=REORDER)

    return one(one, other), generate


@intrinsic
def add_product(typing, total, factor, lanes):
    """total + factor · lanes."""

    def generate(context, builder, signature, args):
        factors = _splat(builder, args[1], args[2].type)
        return builder.fadd(args[0], builder.fmul(factors, args[2], flags=REORDER), flags=REORDER)

    return lanes(lanes, lanes.dtype, lanes), generate


@intrinsic
def dot(typing, one, other):
    """Sum of the products of two rows."""

    def generate(context, builder, signature, args):
        return builder.extract_element(_fold(builder, builder.fmul(*args, flags=REORDER), 1), ir.IntType(32)(0))

    return one.dtype(one, other), generate


@intrinsic
def add_dots(typing, entries, place, fresh, row, a, b, c, d):
    """entries[place : place + QUAD] += sums of the products of a row and of each of the others; `fresh`: = sums."""

    def generate(context, builder, signature, args):
        each = [_products(builder, args[3], other, row.register) for other in args[4:]]
        pairs = [_weave(builder, *each[i : i + 2], 1) for i in (0, 2)]
        sums = _fold(builder, _weave(builder, *pairs, 2), QUAD)
        array = context.make_array(signature.args[0])(context, builder, args[0])
        start = builder.gep(array.data, [context.cast(builder, args[1], signature.args[1], types.intp)])
        address, align = builder.bitcast(start, sums.type.as_pointer()), row.dtype.bitwidth // 8
        before = builder.select(args[2], ir.Constant(sums.type, None), builder.load(address, align=align))
        builder.store(builder.fadd(before, sums), address, align=align)
        return context.get_dummy_value()

    return types.void(entries, place, fresh, row, a, b, c, d), generate


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
def _pack_all(x, start, block, size):
    for first in range(0, x.shape[1], size):
        _pack(x, start, first, block[first : first + size])


@kernel
def _unpack(block, start, first, y):
    width = min(block.shape[0], y.shape[1] - first)
    for low in range(0, width, LINE):
        for j in range(min(block.shape[1], y.shape[0] - start)):
            for r in range(low, min(low + LINE, width)):
                y[start + j, first + r] = block[r, j]


@kernel
def multiply(values, crow, col, bias, x, y, block, strip, width, begin, end):
    """y[begin:end] = x[begin:end] · Wᵀ + bias for x `(b, columns)` and y `(b, rows)`; an empty bias is none."""
    size = strip.shape[0]
    for start in range(begin, end, block.shape[1]):
        _pack_all(x, start, block, size)
        for first in range(0, crow.size - 1, size):
            for r in range(min(size, crow.size - 1 - first)):
                p, last = crow[first + r], crow[first + r + 1]
                total, other = zero(block, width), zero(block, width)  # two: an addition waits for the one before
                if bias.size:
                    total = spread(block, bias[first + r], width)
                while p + 1 < last:
                    total = add_product(total, values[p], load(block, col[p], width))
                    other = add_product(other, values[p + 1], load(block, col[p + 1], width))
                    p += 2
                if p < last:
                    total = add_product(total, values[p], load(block, col[p], width))
                store(strip, r, add(total, other))
            _unpack(strip, start, first, y)


@kernel
def multiply_back(values, crow, col, g, z, block, strip, width, begin, end):
    """z[begin:end] = g[begin:end] · W for g `(b, rows)` and z `(b, columns)`, by W's own structure."""
    size = strip.shape[0]
    for start in range(begin, end, block.shape[1]):
        block[:] = 0
        for first in range(0, crow.size - 1, size):
            _pack(g, start, first, strip)
            for r in range(min(size, crow.size - 1 - first)):
                row = load(strip, r, width)
                for p in range(crow[first + r], crow[first + r + 1]):
                    store(block, col[p], add_product(load(block, col[p], width), values[p], row))
        for first in range(0, z.shape[1], size):
            _unpack(block[first : first + size], start, first, z)


@kernel
def sample(g, x, crow, col, entries, block, strip, width, begin, end):
    """The entries of g[begin:end]ᵀ · x[begin:end] that W stores, in its order; some of the batch at least."""
    size, nothing = strip.shape[0], entries.dtype.type(0)
    for start in range(begin, end, block.shape[1]):
        _pack_all(x, start, block, size)
        for first in range(0, crow.size - 1, size):
            _pack(g, start, first, strip)
            for r in range(min(size, crow.size - 1 - first)):
                row = load(strip, r, width)
                p, last = crow[first + r], crow[first + r + 1]
                while p + QUAD <= last:
                    a, b = load(block, col[p], width), load(block, col[p + 1], width)
                    c, d = load(block, col[p + 2], width), load(block, col[p + 3], width)
                    add_dots(entries, p, start == begin, row, a, b, c, d)
                    p += QUAD
                while p < last:
                    before = nothing if start == begin else entries[p]
                    entries[p] = before + dot(row, load(block, col[p], width))
                    p += 1
