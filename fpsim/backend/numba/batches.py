"""Products of two batches of matrices, pair by pair in one call: small ones cost more to hand over than to multiply."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
from numba import types

from fpsim.backend.numba.addresses import MachineCode, caller
from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import floats_at, int_max, int_min, uninitialized, zeroed
from fpsim.backend.numba.packing import pack_four_lines, pack_lines, pack_lines_across
from fpsim.backend.numba.products import make_product

_LINE, _NUMBER = types.Array(types.float32, 1, "C"), types.int64
_ROWS_TYPES = _LINE, _NUMBER, _NUMBER, _NUMBER, _LINE
_COLUMNS_TYPES = _LINE, _NUMBER, _NUMBER, _NUMBER, _LINE, _NUMBER
_pack_rows, _pack_columns = caller(_ROWS_TYPES), caller(_COLUMNS_TYPES)


@cache
def _packing(compiled: Any) -> MachineCode:
    return MachineCode(compiled, _ROWS_TYPES if compiled is pack_four_lines else _COLUMNS_TYPES)


@cache
def _product_types(element: str) -> tuple[Any, ...]:
    """The types of the arguments of a kernel of `products.make_product`, with one array of tallies."""
    kind = types.float32 if element == "f4" else types.float64
    line = types.Array(kind, 1, "C")
    return (
        line, line, line, *(_NUMBER,) * 7, types.Array(_NUMBER, 2, "C", readonly=True), line,
        types.Array(kind, 1, "C", readonly=True), types.Array(types.uint32, 1, "C"), kind, types.Array(types.uint8, 2, "C"),
        types.UniTuple(line, 1),
    )  # fmt: skip


@lru_cache(maxsize=64)
def product_code(element: str, *shape: int) -> MachineCode:
    """The code of a kernel of `products.make_product` that `make_batch`'s call."""
    return MachineCode(make_product(element, *shape), _product_types(element))


def matrices(x: np.ndarray) -> tuple[int, ...]:
    """How `make_batch`'s find the matrices of (n, i, j), float32, strides not negative, which has to outlive that: the address,
    and how many elements lie between two matrices, two rows and two columns."""
    return x.ctypes.data, *(stride // x.itemsize for stride in x.strides)


def packing_codes(element: str, rows: int, a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """The addresses of what packs matrices that lie like these by whole lines; 0 where nothing does."""
    if element != "f4" or not a.size or not b.size:
        return 0, 0
    left, right = (tuple(stride // x.itemsize for stride in x.strides[1:]) for x in (a, b))
    by_rows = rows == 4 and left[1] == 1 and left[0] >= a.shape[2]
    by_columns = right[0] == 1 and right[1] >= b.shape[1]
    across = right[1] == 1 and right[0] >= b.shape[2]
    kernels = (pack_four_lines if by_rows else None, pack_lines if by_columns else pack_lines_across if across else None)
    first, second = (0 if compiled is None else _packing(compiled).address for compiled in kernels)
    return first, second


@inlined
def _length(stride: int, lines: int, length: int) -> int:
    """How many numbers there are to the last of so many lines."""
    return int_max(1, (lines - 1) * stride + length)


@kernel
def _gather(source: Any, stride: int, step: int, lines: int, leaves: int, out: Any, width: int) -> None:
    """The element `leaf` of line i, at source[i * stride + leaf * step], packed in groups of `width` lines, zeros to fill."""
    place = 0
    for first in range(0, lines, width):
        used = int_min(width, lines - first)
        start = first * stride
        for _ in range(leaves):
            target = out[place : place + width]
            for i in range(used):
                target[i] = source[start + i * stride]
            for i in range(used, width):
                target[i] = 0
            place += width
            start += step


@cache
def make_pack_pair(is_single: bool) -> Any:
    """What packs the matrices (count, leaves) and (leaves, used) of a pair in groups of `rows` and panels of `width`: float32
    ones of batches that `matrices` tells of, and where that `is_single` too, by the code that `packing_codes` gives.
    """

    @inlined
    def pack_pair(
        packing: Any, a: Any, b: Any, pair: int, count: int, used: int, leaves: int, left: Any, right: Any, rows: int,
        width: int,
    ) -> None:  # fmt: skip
        ours, theirs = a[0] + 4 * pair * a[1], b[0] + 4 * pair * b[1]
        if is_single and packing[0] != 0:
            _pack_rows(packing[0], (floats_at(ours, _length(a[2], count, leaves)), a[2], count, leaves, left))
        else:
            _gather(floats_at(ours, 1), a[2], a[3], count, leaves, left, rows)
        if is_single and packing[1] != 0:
            stride = int_max(b[2], b[3])
            lines, length = (leaves, used) if b[3] == 1 else (used, leaves)
            _pack_columns(packing[1], (floats_at(theirs, _length(stride, lines, length)), stride, used, leaves, right, width))
        else:
            _gather(floats_at(theirs, 1), b[3], b[2], used, leaves, right, width)

    return pack_pair


@lru_cache(maxsize=16)
def make_batch(element: str, rows: int, vectors: int) -> Any:
    """The kernel `(product, packing, a, b, out, leaves, depth, first, last, program, row, limit, overflowed, kept) -> None` for
    pairs first ... last - 1, with the address of the product's code, which `product_code` gives, and `packing_codes`.

    a is (n, i, k), b (n, k, j), as `matrices` tells of them, out (n, i, j). `kept`, for what is observed of each element, is
    (n, whole groups of rows, whole panels of columns), `overflowed` (n, panel, group). What is not named here is as in
    `products.make_product`, for which nothing is drawn.
    """
    call = caller(_product_types(element))
    width = vectors * (16 if element == "f4" else 8)
    pack_pair = make_pack_pair(element == "f4")

    @kernel
    def batch(
        product: int, packing: Any, a: Any, b: Any, out: Any, leaves: int, depth: int, first: int, last: int, program: Any,
        row: Any, limit: float, overflowed: Any, kept: Any,
    ) -> None:  # fmt: skip
        count, used = out.shape[1], out.shape[2]
        panels, groups = overflowed.shape[1], overflowed.shape[2]
        columns = panels * width
        is_whole = groups * rows == count and columns == used
        room = uninitialized(0 if is_whole else groups * rows * columns, out.dtype)
        left = uninitialized(int_max(1, groups * rows * leaves), out.dtype)
        right = uninitialized(int_max(1, panels * leaves * width), out.dtype)
        stack = uninitialized(depth * rows * width, out.dtype)
        hashes = zeroed(1, np.uint32)
        for pair in range(first, last):
            pack_pair(packing, a, b, pair, count, used, leaves, left, right, rows, width)
            call(product, (
                left, right, out[pair].reshape(-1) if is_whole else room, leaves, panels, leaves * width, width, 0, groups,
                columns, program, stack, row, hashes, limit, overflowed[pair], (kept[pair].reshape(-1),),
            ))  # fmt: skip
            for i in range(0 if is_whole else count):
                line, target = room[i * columns : (i + 1) * columns], out[pair, i]
                for j in range(target.size):
                    target[j] = line[j]

    return batch
