"""Operands as kernels read them: panels of columns and groups of rows, copied or read where they lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fpsim.backend.numba import packing

LANES = {"f4": 16, "f8": 8}
_LINE = 64  # bytes of a line of the cache
_LARGE = 2**17  # numbers of an operand that is packed from the beginning of a line
_NEAR = 32 << 10  # bytes that stay in the nearest cache


class Panels(NamedTuple):
    """Columns of an operand as a kernel reads them: a flat array, its strides, and which columns it holds."""

    data: np.ndarray
    panel_stride: int
    leaf_stride: int
    first_column: int
    columns: int


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """Room from the beginning of a line of the cache: a vector that lies in two lines is read twice."""
    room = np.empty(size * dtype.itemsize + _LINE, dtype=np.uint8)
    first = -room.ctypes.data % _LINE
    return room[first : first + size * dtype.itemsize].view(dtype)


def room_for(size: int, dtype: np.dtype) -> np.ndarray:
    """Room for a packed operand; where it is small, looking for a line of the cache would take longer than it saves."""
    return np.empty(size, dtype) if size < _LARGE else aligned(size, dtype)


def line_of(x: np.ndarray, count: int) -> np.ndarray:
    """The memory of x from its first element on, `count` elements that lie side by side."""
    return x.reshape(-1) if x.flags.c_contiguous else np.lib.stride_tricks.as_strided(x, (count,), (x.itemsize,))


def _is_of_lines(x: np.ndarray) -> bool:
    """Whether the elements of each row lie side by side, and rows follow each other in whole elements."""
    return x.strides[1] == x.itemsize and x.strides[0] >= 0 and x.strides[0] % x.itemsize == 0


def pack_columns(b: np.ndarray, dtype: np.dtype, width: int, rows: int) -> list[Panels]:
    """Panels of `width` columns: read in place where few rows would not repay a copy, or all of it is near anyway."""
    leaves, columns = b.shape
    whole = columns // width * width
    packed_parts = []
    in_place = (rows <= 4 or b.nbytes <= _NEAR) and whole and leaves and b.dtype == dtype
    if in_place and b.strides[1] == b.itemsize and b.strides[0] >= 0:
        leaf_stride, rest = divmod(b.strides[0], b.itemsize)
        if rest == 0:
            flat = line_of(b, (leaves - 1) * leaf_stride + columns)
            packed_parts.append(Panels(flat, width, leaf_stride, 0, whole))
            if whole == columns:
                return packed_parts
            b = b[:, whole:]
    start = columns - b.shape[1]
    panels = -(-b.shape[1] // width)
    packed = room_for(max(1, panels * leaves * width), dtype)
    stride, rest = divmod(b.strides[1], b.itemsize)
    if b.dtype == dtype and b.strides[0] == b.itemsize and stride >= leaves and not rest and b.size:
        packing.pack_lines(line_of(b.T, (b.shape[1] - 1) * stride + leaves), stride, b.shape[1], leaves, packed, width)
    elif b.dtype == dtype and b.size and _is_of_lines(b):
        stride = b.strides[0] // b.itemsize
        line = line_of(b, (leaves - 1) * stride + b.shape[1])
        packing.pack_lines_across(line, stride, b.shape[1], leaves, packed, width)
    else:
        packing.pack_columns(b, packed, width)
    packed_parts.append(Panels(packed, leaves * width, width, start, b.shape[1]))
    return packed_parts


def pack_rows(a: np.ndarray, dtype: np.dtype, rows: int) -> np.ndarray:
    count, leaves = a.shape
    if rows == 1 and a.dtype == dtype and a.flags.c_contiguous:
        return a.reshape(-1) if a.size else np.zeros(1, dtype)
    groups = -(-count // rows)
    packed = room_for(max(1, groups * rows * leaves), dtype)
    if rows == 4 and a.size and a.dtype == dtype and _is_of_lines(a):
        stride = a.strides[0] // a.itemsize
        packing.pack_four_lines(line_of(a, (count - 1) * stride + leaves), stride, count, leaves, packed)
    else:
        packing.pack_rows(a, packed, rows, 0, groups)
    return packed


def largest_and_smallest(packed: np.ndarray) -> tuple[float, float]:
    """The largest magnitude (infinity for a NaN) and the smallest nonzero one (infinity if there is none)."""
    high, low = packing.extent(packed)
    return float(high), float(low)


def extents_of_products(left: np.ndarray, right: list[np.ndarray]) -> tuple[float, float]:
    """The product of both operands' largest magnitudes, and that of their smallest nonzero ones; all flat."""
    high, low, highest, lowest = packing.extents(left, right[0])
    for part in right[1:]:
        more, less = largest_and_smallest(part)
        highest, lowest = max(highest, more), min(lowest, less)
    return high * highest, low * lowest
