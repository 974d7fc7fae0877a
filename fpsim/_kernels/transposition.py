"""Small tiles transposed in registers: rows of an array become columns of a buffer in the cache."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim._kernels.tiles import data_of, index, load_vector, vector_pointer

TILE_BYTES = 64  # a row of a tile


@intrinsic
def transpose_tile(
    typing_context: Any, source: Any, offset: Any, row_stride: Any, out: Any, out_offset: Any, out_stride: Any
) -> Any:
    """out[out_offset + j * out_stride + i] = source[offset + i * row_stride + j] for a full tile of flat arrays.

    A tile of 64-byte rows: 16 x 16 of float32, 8 x 8 of float64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        side = 512 // signature.args[0].dtype.bitwidth
        data, start = data_of(context, builder, source, arguments[0]), arguments[1]
        rows = [
            load_vector(builder, data, builder.add(start, builder.mul(arguments[2], index(i))), side).value
            for i in range(side)
        ]
        half, word = side // 2, ir.IntType(32)
        low = ir.Constant(ir.VectorType(word, side), [i // 2 + side * (i % 2) for i in range(side)])
        high = ir.Constant(ir.VectorType(word, side), [half + i // 2 + side * (i % 2) for i in range(side)])
        for _ in range(side.bit_length() - 1):  # log2(side) perfect shuffles of a matrix transpose it
            pairs = [(rows[i], rows[i + half]) for i in range(half)]
            rows = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in (low, high)]
        target = data_of(context, builder, out, arguments[3])
        for j, row in enumerate(rows):
            place = builder.add(arguments[4], builder.mul(arguments[5], index(j)))
            builder.store(row, vector_pointer(builder, target, place, side)).align = 4
        return context.get_dummy_value()

    return types.void(source, offset, row_stride, out, out_offset, out_stride), generate
