"""Packing operands whose columns lie along memory: transposed tile by tile in registers."""

from __future__ import annotations

from typing import Any

from fpsim._kernels.compiler import kernel, prefer_wide_vectors
from fpsim._kernels.transposition import TILE_BYTES, transpose_tile


@kernel
def pack_lines(line: Any, stride: int, columns: int, leaves: int, out: Any, width: int) -> None:
    """`products.pack_columns` for the matrix whose element (k, j) is line[j * stride + k].

    `width` is a multiple of a tile's side.
    """
    prefer_wide_vectors()
    side = TILE_BYTES // line.itemsize
    whole = leaves // side * side
    for panel in range((columns + width - 1) // width):
        base = panel * leaves * width
        for first in range(0, width, side):
            column = panel * width + first
            done = 0
            if column + side <= columns:
                for k in range(0, whole, side):
                    transpose_tile(line, column * stride + k, stride, out, base + k * width + first, width)
                done = whole
            for j in range(first, first + side):
                start = (panel * width + j) * stride
                given = panel * width + j < columns
                for k in range(done, leaves):
                    out[base + k * width + j] = line[start + k] if given else 0
