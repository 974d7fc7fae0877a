"""Small tiles transposed in registers: rows of an array become columns of a buffer in the cache."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim._kernels.compiler import FEATURES
from fpsim._kernels.tiles import data_of, index, load_vector, vector_pointer

TILE_BYTES = 64 if FEATURES.get("avx512f") else 32  # a row of a tile is a register


LINE_BYTES = 64  # of the cache
_LANE_BYTES = 16  # shuffles within lanes of a register are the cheap ones


def _shuffle(builder: Any, left: Any, right: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


def _beside(builder: Any, left: Any, right: Any) -> Any:
    """The elements of both."""
    return _shuffle(builder, left, right, list(range(2 * left.type.count)))


def _transposed(builder: Any, rows: list[Any], width: int) -> list[Any]:
    """Square blocks of `width` transposed in each lane: log2(width) perfect shuffles of the rows."""
    count, half = rows[0].type.count, width // 2
    for _ in range(width.bit_length() - 1):
        places = [
            [lane + (i // 2 + offset) % width + count * (i % 2) for lane in range(0, count, width) for i in range(width)]
            for offset in (0, half)
        ]
        rows = [_shuffle(builder, rows[i], rows[i + half], chosen) for i in range(half) for chosen in places]
    return rows


@intrinsic
def transpose_tile(
    typing_context: Any, source: Any, offset: Any, row_stride: Any, out: Any, out_offset: Any, out_stride: Any
) -> Any:
    """out[out_offset + j * out_stride + i] = source[offset + i * row_stride + j] for a full tile of flat arrays.

    A tile of rows of TILE_BYTES: 16 x 16 or 8 x 8 of float32, 8 x 8 or 4 x 4 of float64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        side = TILE_BYTES * 8 // signature.args[0].dtype.bitwidth
        data, start = data_of(context, builder, source, arguments[0]), arguments[1]
        parts = TILE_BYTES // _LANE_BYTES
        width = side // parts

        def load(row: int, part: int) -> Any:
            place = builder.add(builder.add(start, builder.mul(arguments[2], index(row))), index(part * width))
            return load_vector(builder, data, place, width).value

        rows = []
        for part in range(parts):  # lane l of register r of a part: what row l * width + r has there
            for row in range(width):
                lanes = [load(lane * width + row, part) for lane in range(parts)]
                while len(lanes) > 1:
                    lanes = [_beside(builder, *lanes[i : i + 2]) for i in range(0, len(lanes), 2)]
                rows.append(lanes[0])
        rows = [row for part in range(parts) for row in _transposed(builder, rows[part * width : (part + 1) * width], width)]
        target = data_of(context, builder, out, arguments[3])
        for j, row in enumerate(rows):
            place = builder.add(arguments[4], builder.mul(arguments[5], index(j)))
            builder.store(row, vector_pointer(builder, target, place, side)).align = 4
        return context.get_dummy_value()

    return types.void(source, offset, row_stride, out, out_offset, out_stride), generate
