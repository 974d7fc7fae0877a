"""Sums in float64 inside operations that round once: an order that vectors can follow, the same on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import uninitialized

LANES = 8


@inlined
def two_sum(a: Any, b: Any) -> Any:
    """(s, e) with s the nearest number to a + b and s + e = a + b exactly (Knuth's TwoSum)."""
    nearest = a + b
    part = nearest - a
    return nearest, (a - (nearest - part)) + (b - part)


@inlined
def total(terms: Any) -> Any:
    """The sum of float64 terms: eight strided partial sums, added in pairs, then what follows the last whole eight."""
    a = b = c = d = e = f = g = h = 0.0
    whole = terms.size // LANES * LANES
    for k in range(0, whole, LANES):
        a += terms[k]
        b += terms[k + 1]
        c += terms[k + 2]
        d += terms[k + 3]
        e += terms[k + 4]
        f += terms[k + 5]
        g += terms[k + 6]
        h += terms[k + 7]
    result = ((a + e) + (c + g)) + ((b + f) + (d + h))
    for k in range(whole, terms.size):
        result += terms[k]
    return result


@kernel
def sum_rows(x: Any, out: Any) -> None:
    """Sums of the rows of (rows, n), as `total` has them."""
    terms = uninitialized(x.shape[1], np.float64)
    for i in range(x.shape[0]):
        row = x[i]
        for k in range(row.size):
            terms[k] = row[k]
        out[i] = total(terms)


@kernel
def sum_squares_of_rows(x: Any, out: Any) -> None:
    """Sums of the squares of the rows of (rows, n), as `total` has them."""
    terms = uninitialized(x.shape[1], np.float64)
    for i in range(x.shape[0]):
        row = x[i]
        for k in range(row.size):
            value = np.float64(row[k])
            terms[k] = value * value
        out[i] = total(terms)
