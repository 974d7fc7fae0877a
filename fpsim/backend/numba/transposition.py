"""Small tiles transposed in registers: rows of an array become columns of a buffer in the cache."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim.backend.numba.processor import FEATURES
from fpsim.backend.numba.tiles import data_of, index, load_vector, vector_pointer

TILE_BYTES = 64 if "avx512f" in FEATURES else 32  # a row of a tile is a register


LINE_BYTES = 64  # of the cache
_LANE_BYTES = 16  # shuffles within lanes of a register are the cheap ones


def _shuffle(builder: Any, left: Any, right: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


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


def _lanes_transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """A square of lanes transposed: log2(lanes) perfect shuffles of the rows."""
    count, lanes = rows[0].type.count, len(rows)
    width, half = count // lanes, lanes // 2
    for _ in range(lanes.bit_length() - 1):
        places = [
            [(first + lane // 2 + lanes * (lane % 2)) * width + i for lane in range(lanes) for i in range(width)]
            for first in (0, half)
        ]
        rows = [_shuffle(builder, rows[i], rows[i + half], chosen) for i in range(half) for chosen in places]
    return rows


def _columns(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a square of registers of TILE_BYTES."""
    lanes = TILE_BYTES // _LANE_BYTES
    width = len(rows) // lanes
    # Some rows at a time, each lane by itself; then, of the registers of one place, whole lanes.
    blocks = [_transposed(builder, rows[first : first + width], width) for first in range(0, len(rows), width)]
    columns = [_lanes_transposed(builder, [block[place] for block in blocks]) for place in range(width)]
    return [columns[j % width][j // width] for j in range(len(rows))]


@intrinsic
def transpose_tile(
    typing_context: Any, source: Any, offset: Any, row_stride: Any, out: Any, out_offset: Any, out_stride: Any
) -> Any:
    """out[out_offset + j * out_stride + i] = source[offset + i * row_stride + j] for a full tile of flat arrays.

    A tile of rows of TILE_BYTES: 16 x 16 or 8 x 8 of float32, 8 x 8 or 4 x 4 of float64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        side = TILE_BYTES * 8 // signature.args[0].dtype.bitwidth
        data, target = (data_of(context, builder, array, arguments[i]) for i, array in ((0, source), (3, out)))

        def places(start: Any, stride: Any) -> list[Any]:
            return [builder.add(start, builder.mul(stride, index(row))) for row in range(side)]

        rows = [load_vector(builder, data, place, side).value for place in places(arguments[1], arguments[2])]
        for row, place in zip(_columns(builder, rows), places(arguments[4], arguments[5]), strict=True):
            builder.store(row, vector_pointer(builder, target, place, side)).align = 4
        return context.get_dummy_value()

    return types.void(source, offset, row_stride, out, out_offset, out_stride), generate
