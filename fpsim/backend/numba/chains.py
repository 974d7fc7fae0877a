"""Chains of fused multiply-adds that start from an addend, as vector instructions of processors make them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.rounding import NEAREST_EVEN
from fpsim.backend.numba.sums_rounding import CAREFUL, EXACT_PRODUCTS, LENGTH, Arithmetic, constants_of
from fpsim.backend.numba.tile_operations import operand_pairs
from fpsim.backend.numba.tiles import SIGN, data_of, load_tile, splat, store_tile, tile_of, vectors_of, zero_tile


@intrinsic
def _fused_step(
    typing_context: Any, total: Any, a: Any, a_offset: Any, b: Any, b_offset: Any, constants: Any, least: Any
) -> Any:
    """total + a * b rounded once: by the carrier's instruction in float32, by the row of constants in float64.

    In float32 a magnitude below `least` becomes a signed zero.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a_data, b_data = data_of(context, builder, a, arguments[1]), data_of(context, builder, b, arguments[3])
        pairs = operand_pairs(builder, total, a_data, arguments[2], b_data, arguments[4])
        totals = vectors_of(builder, arguments[0], total.count)
        results = []
        if total.element.bitwidth == 32:
            bound = splat(builder, arguments[6], total.lanes)
            for old, (left, right) in zip(totals, pairs, strict=True):
                value = left.times_plus(right, old, fused=True)
                zero = (value.ints() & SIGN[32]).floats()
                results.append(value.absolute().compare("<", bound).select(zero, value))
        else:
            row = [builder.extract_value(arguments[5], i) for i in range(LENGTH)]
            arithmetic = Arithmetic(builder, total.lanes, row, NEAREST_EVEN, CAREFUL | EXACT_PRODUCTS)
            for old, pair in zip(totals, pairs, strict=True):
                results.append(arithmetic.chain(old, *pair, (None, None)))
        return tile_of(builder, arguments[0].type, results)

    return total(total, a, a_offset, b, b_offset, constants, least), generate


@lru_cache(maxsize=8)
def make_chain(element: str, rows: int, vectors: int) -> Any:
    """The kernel for one carrier ("f4" or "f8") and tile.

    Its arguments: a, b (flat, packed), out (flat; it holds the addends), leaves, panels, the range of row groups, out's
    row stride, the row of constants and the least magnitude that float32 results keep.
    """
    kind, width = (np.float32, vectors * 16) if element == "f4" else (np.float64, vectors * 8)

    @kernel
    def chain(
        a: Any, b: Any, out: Any, leaves: int, panels: int, first: int, last: int, out_stride: int, row: Any, least: Any
    ) -> None:
        constants = constants_of(row)
        for panel in range(panels):
            for group in range(first, last):
                a_start, b_start = group * leaves * rows, panel * leaves * width
                place = group * rows * out_stride + panel * width
                total = load_tile(zero_tile(kind, rows, vectors), out, place, out_stride)
                for k in range(leaves):
                    total = _fused_step(total, a, a_start + k * rows, b, b_start + k * width, constants, least)
                store_tile(total, out, place, out_stride)

    return chain
