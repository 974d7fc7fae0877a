"""Packing operands by vectors: columns that lie along memory are transposed in registers, tile by tile; rows are copied."""

from __future__ import annotations

from typing import Any

from fpsim.backend.numba.compiler import int_min, kernel, prefer_wide_vectors
from fpsim.backend.numba.copies import LANES, copy_lanes
from fpsim.backend.numba.transposition import LINE_BYTES, TILE_BYTES, transpose_tile


@kernel
def pack_lines(line: Any, stride: int, columns: int, leaves: int, out: Any, width: int) -> None:
    """`products.pack_columns` for the matrix whose element (k, j) is line[j * stride + k].

    `width` is a multiple of a tile's side.
    """
    prefer_wide_vectors()
    side = TILE_BYTES // line.itemsize
    step = LINE_BYTES // line.itemsize
    whole = leaves // step * step
    for panel in range((columns + width - 1) // width):
        base = panel * leaves * width
        full = int_min(columns - panel * width, width) // side * side  # columns in whole tiles
        for low in range(0, whole, step):  # a line of the cache is read once, and written while it is there
            for first in range(0, full, side):
                start = (panel * width + first) * stride
                for k in range(low, low + step, side):
                    transpose_tile(line, start + k, stride, out, base + k * width + first, width)
        for j in range(width):
            start = (panel * width + j) * stride
            is_inside = panel * width + j < columns
            for k in range(whole if j < full else 0, leaves):
                out[base + k * width + j] = line[start + k] if is_inside else 0


@kernel
def pack_lines_across(line: Any, stride: int, columns: int, leaves: int, out: Any, width: int) -> None:
    """`products.pack_columns` for the matrix whose element (k, j) is line[k * stride + j]."""
    for panel in range((columns + width - 1) // width):
        start, base = panel * width, panel * leaves * width
        used = int_min(width, columns - start)
        for _ in range(leaves):
            for j in range(0, width, LANES):
                copy_lanes(line, start + j, out, base + j, 0, used - j, width - j)
            start += stride
            base += width


@kernel
def pack_four_lines(line: Any, stride: int, rows: int, leaves: int, out: Any) -> None:
    """`products.pack_rows` in groups of four for the matrix whose element (i, k) is line[i * stride + k]."""
    prefer_wide_vectors()
    for first in range(0, rows, 4):
        group = out[first * leaves : (first + 4) * leaves]
        start = first * stride
        if first + 4 <= rows:
            one = line[start : start + leaves]
            two = line[start + stride : start + stride + leaves]
            three = line[start + 2 * stride : start + 2 * stride + leaves]
            four = line[start + 3 * stride : start + 3 * stride + leaves]
            for k in range(leaves):
                group[4 * k] = one[k]
                group[4 * k + 1] = two[k]
                group[4 * k + 2] = three[k]
                group[4 * k + 3] = four[k]
        else:
            for row in range(4):
                for k in range(leaves):
                    group[4 * k + row] = line[start + row * stride + k] if first + row < rows else 0
