"""Operands as product kernels read them, and the extents of their magnitudes: columns that lie along memory are transposed in
registers, tile by tile; rows are copied."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.copies import LANES, copy_lanes
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_and, int_max, int_min, int_sub, int_xor, prefer_wide_vectors
from fpsim.backend.numba.transposition import LINE_BYTES, TILE_BYTES, transpose_tile


@kernel
def pack_columns(source: Any, out: Any, width: int) -> None:
    """A (k, n) matrix as panels of `width` columns, (panel, k, column) flat, zeros beyond the last column."""
    leaves, columns = source.shape
    panels = (columns + width - 1) // width
    by_columns = source.strides[0] < source.strides[1]  # then a few terms of every column at a time, line by line
    for panel in range(panels):
        start = panel * width
        used = int_min(width, columns - start)
        base = panel * leaves * width
        if by_columns:
            for low in range(0, leaves, 16):
                high = int_min(low + 16, leaves)
                for j in range(used):
                    column = source[low:high, start + j]
                    for k in range(column.size):
                        out[base + (low + k) * width + j] = column[k]
        for k in range(leaves):
            target = out[base + k * width : base + (k + 1) * width]
            if not by_columns:
                line = source[k, start : start + used]
                for j in range(line.size):
                    target[j] = line[j]
            for j in range(used, width):
                target[j] = 0


@kernel
def pack_rows(source: Any, out: Any, rows: int, first: int, last: int) -> None:
    """A (m, k) matrix as groups of `rows` rows, (group, k, row) flat, zeros beyond the last row."""
    count, leaves = source.shape
    for group in range(first, last):
        base = group * rows * leaves
        for row in range(rows):
            i = group * rows + row
            if i < count:
                line = source[i]
                for k in range(leaves):
                    out[base + k * rows + row] = line[k]
            else:
                for k in range(leaves):
                    out[base + k * rows + row] = 0


@kernel
def pack_lines(line: Any, stride: int, columns: int, leaves: int, out: Any, width: int) -> None:
    """`pack_columns` for the matrix whose element (k, j) is line[j * stride + k].

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
    """`pack_columns` for the matrix whose element (k, j) is line[k * stride + j]."""
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
    """`pack_rows` in groups of four for the matrix whose element (i, k) is line[i * stride + k]."""
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


@kernel
def extent(values: Any) -> Any:
    """The largest magnitude (infinity for a NaN) and the smallest nonzero one (infinity if there is none)."""
    infinity = as_bits(values.dtype.type(np.inf))
    sign = as_bits(values.dtype.type(-0.0))
    largest = int_xor(sign, sign)
    smallest = infinity
    for i in range(values.size):
        bits = as_bits(values[i])
        magnitude = int_sub(bits, int_and(bits, sign))
        largest = int_max(largest, magnitude)
        smallest = int_min(smallest, magnitude if magnitude != 0 else infinity)
    return as_float(int_min(largest, infinity)), as_float(smallest)


@kernel
def extents(left: Any, right: Any) -> Any:
    """`extent` of both."""
    high, low = extent(left)
    highest, lowest = extent(right)
    return high, low, highest, lowest
