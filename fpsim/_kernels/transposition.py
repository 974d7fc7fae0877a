"""Small tiles transposed in registers: rows of an array become columns of a buffer in the cache."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim._kernels.processor import FEATURES
from fpsim._kernels.tiles import Vector, data_of, index, load_vector, vector_pointer

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


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
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
        data = data_of(context, builder, source, arguments[0])
        rows = tile_rows(builder, data, arguments[1], arguments[2], side)
        target = data_of(context, builder, out, arguments[3])
        store_rows(builder, transposed(builder, [row.value for row in rows]), target, arguments[4], arguments[5])
        return context.get_dummy_value()

    return types.void(source, offset, row_stride, out, out_offset, out_stride), generate


def _places(builder: Any, start: Any, stride: Any, count: int) -> list[Any]:
    return [builder.add(start, builder.mul(stride, index(row))) for row in range(count)]


def tile_rows(builder: Any, data: Any, start: Any, stride: Any, side: int) -> list[Vector]:
    return [load_vector(builder, data, place, side) for place in _places(builder, start, stride, side)]


def store_rows(builder: Any, rows: list[Any], data: Any, start: Any, stride: Any) -> None:
    for row, place in zip(rows, _places(builder, start, stride, len(rows)), strict=True):
        builder.store(row, vector_pointer(builder, data, place, len(rows))).align = 4
