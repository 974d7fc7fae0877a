"""softmax, log_softmax, their gradients and logsumexp over the rows of (rows, n) float32 arrays, float64 inside.

Sums are in the order of `sums64.total`; nothing comes from a vector math library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import (
    as_bits,
    as_float,
    int_and,
    int_or,
    int_xor,
    prefer_wide_vectors,
    shift_down,
    uninitialized,
)
from fpsim.backend.numba.sums64 import total
from fpsim.backend.numba.transcendental import exp64, log64

_SINGLE = np.int32(31), np.int32(0x7FFFFFFF)  # the place of the sign, and the other bits
_DOUBLE = np.int64(63), np.int64(0x7FFFFFFFFFFFFFFF)


@inlined
def _ordered(bits: Any, carrier: Any) -> Any:
    """The bits of a float as an integer that grows with it, and back: a maximum of integers becomes vectors."""
    return int_xor(bits, int_and(shift_down(bits, carrier[0]), carrier[1]))


@inlined
def _exponentials(row: Any, out: Any) -> Any:
    """out = exp(row - max); returns the maximum, NaN if any element is."""
    best = _ordered(as_bits(np.float32(-np.inf)), _SINGLE)
    missing = np.int32(0)
    for k in range(row.size):
        value = _ordered(as_bits(row[k]), _SINGLE)
        best = value if value > best else best
        missing = int_or(missing, np.int32(row[k] != row[k]))
    largest = np.float64(as_float(_ordered(best, _SINGLE))) if missing == 0 else np.nan
    for k in range(row.size):
        out[k] = exp64(np.float64(row[k]) - largest)
    return largest


# What a row becomes: exp(x - max) / sum; x - max - log(sum); or the first, but zeros where all is -inf.
SOFTMAX, LOGARITHM, SAFE = range(3)


@kernel
def softmax(x: Any, kind: int, out: Any) -> None:
    """The rows unrounded in float64. Rows of -inf give NaN unless the kind is SAFE, as torch has it."""
    for i in range(x.shape[0]):
        row, target = x[i], out[i]
        largest = _exponentials(row, target)
        denominator = total(target)
        if kind == SAFE and largest == -np.inf:
            target[:] = 0.0
        elif kind == LOGARITHM:
            shift = log64(denominator)
            for k in range(row.size):
                target[k] = (np.float64(row[k]) - largest) - shift
        else:
            for k in range(row.size):
                target[k] /= denominator


@kernel
def softmax_gradient(gradient: Any, output: Any, kind: int, out: Any) -> None:
    """y (g - sum(g y)) for softmax, g - exp(y) sum(g) for log_softmax."""
    for i in range(output.shape[0]):
        g, y, target = gradient[i], output[i], out[i]
        if kind == LOGARITHM:
            for k in range(g.size):
                target[k] = g[k]
            summed = total(target)
            for k in range(g.size):
                target[k] = np.float64(g[k]) - exp64(np.float64(y[k])) * summed
        else:
            for k in range(g.size):
                target[k] = np.float64(g[k]) * np.float64(y[k])
            summed = total(target)
            for k in range(g.size):
                target[k] = np.float64(y[k]) * (np.float64(g[k]) - summed)


@kernel
def log_of_sum(x: Any, out: Any) -> None:
    """max + log(sum(exp(x - max))) of each row; max itself where it is infinite, -inf for n = 0."""
    terms = uninitialized(x.shape[1], np.float64)
    for i in range(x.shape[0]):
        largest = _exponentials(x[i], terms)
        out[i] = largest if abs(largest) == np.inf else largest + log64(total(terms))


@kernel
def attention_weights(rows: Any, scores: Any, factor: float, is_masked: bool, seen: Any, kept: Any, logarithms: Any) -> None:
    """rows = softmax(scores * factor + mask) in float64 over the first `seen[i]` columns; 0 beyond. Rows of -inf give zeros.

    `rows` holds the mask where there is one. `kept`, float32, receives the probabilities too, unless it has no elements, and
    `logarithms` log(sum(exp(x))) of each row.
    """
    prefer_wide_vectors()
    for i in range(rows.shape[0]):
        row, line = rows[i, : seen[i]], scores[i]
        rows[i, seen[i] :] = 0.0
        if not is_masked:
            row[:] = 0.0
        best, missing = _ordered(as_bits(-np.inf), _DOUBLE), np.int64(0)
        for k in range(row.size):
            value = np.float64(line[k]) * factor + row[k]
            row[k] = value
            order = _ordered(as_bits(value), _DOUBLE)
            best = order if order > best else best
            missing = int_or(missing, np.int64(value != value))
        largest = as_float(_ordered(best, _DOUBLE)) if missing == 0 else np.nan
        if largest == -np.inf:
            row[:] = 0.0
            logarithms[i] = largest
        else:
            for k in range(row.size):
                row[k] = exp64(row[k] - largest)
            denominator = total(row)
            for k in range(row.size):
                row[k] /= denominator
            logarithms[i] = largest + log64(denominator)
        if kept.size > 0:
            source, target = rows[i], kept[i]
            for k in range(target.size):
                target[k] = source[k]
