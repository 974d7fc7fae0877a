"""Bounds of the errors of products added up, upward, in one look at each result."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from numba import int32

from fpsim._kernels.compiler import as_bits, int_and, kernel, prefer_wide_vectors

# What the factors in `weights` belong to.
ABOVE, NEAR, OWN, RESULT, CONSTANT = range(5)

_UP, _TINY = 1 + 2.0**-46, 2.0**-1060  # for at most 16 roundings in float64


@lru_cache(maxsize=8)
def make_add_up(with_near: bool, with_own: bool) -> Any:
    """The kernel `(result, above, near, own, rest, weights, out) -> bits of the largest |result|`, a NaN's above infinity's.

    All but rest are (m, n) arrays: result, above and near of float32, own of either, out of float64; rest is (m,).

        out[i, j] >= weights . (above, |near|, own, |result|, 1)[i, j] + rest[i]

    for finite numbers, of which all but result's and near's are not negative. Without near or own any array stands for them.
    """

    @kernel
    def add_up(result: Any, above: Any, near: Any, own: Any, rest: Any, weights: Any, out: Any) -> Any:
        prefer_wide_vectors()
        by_above, by_near, by_own, by_result = weights[ABOVE], weights[NEAR], weights[OWN], weights[RESULT]
        largest = int32(0)
        for i in range(result.shape[0]):
            base = rest[i] + weights[CONSTANT]
            values, line, bounds = result[i], out[i], above[i]
            for j in range(values.size):
                largest = max(largest, int_and(as_bits(values[j]), int32(0x7FFFFFFF)))
                total = base + abs(values[j]) * by_result + bounds[j] * by_above
                if with_near:
                    total += abs(near[i, j]) * by_near
                if with_own:
                    total += own[i, j] * by_own
                line[j] = total * _UP + _TINY
        return largest

    return add_up
