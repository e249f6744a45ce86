"""The product of a weight with as many entries for each output, compiled for few instances; needs numba."""

# mypy: ignore-errors

from ash.jit.kernel import FAST, kernel


@kernel(fastmath=FAST - {"nnan"})
def multiply(x, index, values, y, begin, end):
    """y[begin:end] = Σ values · x[:, index] over each row of the tables (outputs, fan-in), x `(b, inputs)`.

    Four instances share what is read of the tables. Arrays are contiguous; nothing is checked.
    """
    zero = values.dtype.type(0)
    for o in range(begin, end):
        last = x.shape[0] - x.shape[0] % 4
        for b in range(0, last, 4):
            one, two, three, four = zero, zero, zero, zero
            for f in range(index.shape[1]):
                i, value = index[o, f], values[o, f]
                one += value * x[b, i]
                two += value * x[b + 1, i]
                three += value * x[b + 2, i]
                four += value * x[b + 3, i]
            y[b, o], y[b + 1, o], y[b + 2, o], y[b + 3, o] = one, two, three, four
        for b in range(last, x.shape[0]):
            one = zero
            for f in range(index.shape[1]):
                one += values[o, f] * x[b, index[o, f]]
            y[b, o] = one
