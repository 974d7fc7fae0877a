"""Exact sums of products: fixed-point bins held in float64, one rounding at the end.

Products of operands with p <= 24 are exact in float64. Adding and taking away 1.5 * 2^52 quanta of a bin splits a product
into a multiple of the bin's quantum and a remainder, both exact; each bin's sum stays below 2^53 of its quanta, so
that it is exact too (the extraction of Rump, Ogita and Oishi's AccSum, SIAM J. Sci. Comput. 31, 2008).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float, uninitialized
from fpsim.backend.numba.sums64 import two_sum
from fpsim.backend.numba.tile_operations import operand_pairs
from fpsim.backend.numba.tiles import TileType, data_of, index, splat, tile_of, vectors_of, zero_tile

ROWS = 4
LANES = 8


@intrinsic(prefer_literal=True)
def _split_tile(
    typing_context: Any, sums: Any, a: Any, a_offset: Any, b: Any, b_offset: Any, shifts: Any, bins: Any
) -> Any:
    """The sums, bin after bin, with one more product each."""
    count = bins.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile = TileType(sums.element, ROWS, 1)
        a_data, b_data = data_of(context, builder, a, arguments[1]), data_of(context, builder, b, arguments[3])
        shift_data = data_of(context, builder, shifts, arguments[5])
        constants = [
            splat(builder, builder.load(builder.gep(shift_data, [index(i)])), tile.lanes) for i in range(count - 1)
        ]
        vectors = vectors_of(builder, arguments[0], ROWS * count)
        for row, (left, right) in enumerate(operand_pairs(builder, tile, a_data, arguments[2], b_data, arguments[4])):
            rest = left * right
            for place, constant in enumerate(constants):
                high = (rest + constant) - constant
                rest = rest - high
                vectors[place * ROWS + row] = vectors[place * ROWS + row] + high
            last = (count - 1) * ROWS + row
            vectors[last] = vectors[last] + rest
        return tile_of(builder, arguments[0].type, vectors)

    return sums(sums, a, a_offset, b, b_offset, shifts, bins), generate


@lru_cache(maxsize=32)
def make_exact(bins: int) -> Any:
    """The kernel that sums products in `bins` bins: out is (bin, row, column) flat, `bin_stride` from bin to bin.

    `shifts` holds 1.5 * 2^52 quanta for every bin but the last, whose quantum divides every product.
    """
    tall = ROWS * bins

    @kernel
    def exact(
        a: Any, b: Any, out: Any, leaves: int, panels: int, panel_stride: int, leaf_stride: int, first: int, last: int,
        out_stride: int, bin_stride: int, shifts: Any,
    ) -> None:  # fmt: skip
        for panel in range(panels):
            for group in range(first, last):
                a_offset = group * leaves * ROWS
                b_offset = panel * panel_stride
                sums = zero_tile(np.float64, tall, 1)
                for _ in range(leaves):
                    sums = _split_tile(sums, a, a_offset, b, b_offset, shifts, bins)
                    a_offset += ROWS
                    b_offset += leaf_stride
                _store_bins(sums, out, group * ROWS * out_stride + panel * LANES, out_stride, bin_stride, bins)

    return exact


@intrinsic(prefer_literal=True)
def _store_bins(
    typing_context: Any, sums: Any, out: Any, offset: Any, stride: Any, bin_stride: Any, bins: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = data_of(context, builder, out, arguments[1])
        vectors = vectors_of(builder, arguments[0], sums.count)
        kind = ir.VectorType(ir.DoubleType(), LANES).as_pointer()
        for position, vector in enumerate(vectors):
            place, row = divmod(position, ROWS)
            offset = builder.add(arguments[2], builder.mul(arguments[3], index(row)))
            offset = builder.add(offset, builder.mul(arguments[4], index(place)))
            builder.store(vector.value, builder.bitcast(builder.gep(data, [offset]), kind)).align = 4
        return context.get_dummy_value()

    return types.void(sums, out, offset, stride, bin_stride, bins), generate


@kernel
def combine(values: Any, high: Any, low: Any) -> None:
    """The exact sum of each column of `values` (terms, n) as high + low, |low| at most half an ulp of high.

    low's last bit is odd where more follows, so that its sign and its comparison with anything coarser are right. Terms
    join a non-overlapping expansion one by one (Shewchuk, Discrete Comput. Geom. 18, 1997, Grow-Expansion).
    """
    terms, count = values.shape
    parts = uninitialized(terms, np.float64)
    for i in range(count):
        for j in range(terms):
            carry = values[j, i]
            for k in range(j):
                carry, parts[k] = two_sum(carry, parts[k])
            parts[j] = carry
        total, rest = 0.0, 0.0
        j = terms - 1
        while j >= 0 and rest == 0.0:
            total, rest = two_sum(total, parts[j])
            j -= 1
        while j >= 0 and parts[j] == 0.0:
            j -= 1
        high[i] = total
        low[i] = rest if j < 0 else _odd(rest, parts[j])


@inlined
def _odd(x: float, residual: float) -> float:
    bits = as_bits(x)
    if (x < 0) != (residual < 0):
        bits -= 1
    return as_float(bits | 1)

