"""Bounds of errors added up, upward, in one look at each result."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import int32

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_and, prefer_wide_vectors

# What the parts of an error are, in the order of arguments and weights.
NEAR, ABOVE, LOCAL, INNER, RESULT, LEAST, CONSTANT = range(7)

_UP, _TINY = 1 + 2.0**-46, 2.0**-1060  # for at most 16 roundings in float64


@lru_cache(maxsize=16)
def make_add_up(present: tuple[bool, ...]) -> Any:
    """The kernel `(result, near, above, local, inner, rest, weights, out) -> bits of the largest |result|`.

    All but rest are (m, n) arrays: result, near and above of float32, local of either, inner and out of float64; rest is (m,).

        out[i, j] >= (|near|, above, local, inner, power)[i, j] . weights[:LEAST] + rest[i] + weights[CONSTANT]

    with the power of two at or below |result|, or weights[LEAST] where that is larger, none but result and near negative,
    and inf where a sum is NaN. The parts that are not `present` count as zeros, whatever array is there. A NaN's bits are above
    infinity's.
    """
    with_near, with_above, with_local, with_inner = present

    @kernel
    def add_up(result: Any, near: Any, above: Any, local: Any, inner: Any, rest: Any, weights: Any, out: Any) -> Any:
        prefer_wide_vectors()
        by_near, by_above, by_local, by_inner = weights[NEAR], weights[ABOVE], weights[LOCAL], weights[INNER]
        by_result, least = weights[RESULT], weights[LEAST]
        largest = int32(0)
        for i in range(result.shape[0]):
            base = rest[i] + weights[CONSTANT]
            for j in range(result.shape[1]):
                bits = int_and(as_bits(result[i, j]), int32(0x7FFFFFFF))
                largest = max(largest, bits)
                total = base + max(np.float64(as_float(int_and(bits, int32(0x7F800000)))), least) * by_result
                if with_near:
                    total += abs(near[i, j]) * by_near
                if with_above:
                    total += above[i, j] * by_above
                if with_local:
                    total += local[i, j] * by_local
                if with_inner:
                    total += inner[i, j] * by_inner
                out[i, j] = total * _UP + _TINY if total >= 0 else np.inf
        return largest

    return add_up
