"""Products of two batches of matrices, pair by pair in one call: small ones cost more to hand over than to multiply."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import int_max, kernel, uninitialized, zeroed
from fpsim.backend.numba.observed import NOTHING
from fpsim.backend.numba.packing import pack_columns, pack_float_columns, pack_float_rows, pack_rows
from fpsim.backend.numba.products import make_product


@lru_cache(maxsize=64)
def make_batch(element: str, rows: int, vectors: int, mode: int, flags: int, observer: int = NOTHING) -> Any:
    """The kernel `(a, b, out, depth, first, last, program, row, limit, overflowed, kept) -> None` for pairs first ... last - 1.

    a is (n, i, k), b (n, k, j), of any strides, out (n, i, j). `kept`, for what is observed of each element, is (n, whole
    groups of rows, whole panels of columns), `overflowed` (n, panel, group). What is not named here is as in
    `products.make_product`, for which nothing is drawn.
    """
    product = make_product(element, rows, vectors, mode, flags, observer)
    width = vectors * (16 if element == "f4" else 8)
    to_rows, to_columns = (pack_float_rows, pack_float_columns) if element == "f4" else (pack_rows, pack_columns)

    @kernel
    def batch(
        a: Any, b: Any, out: Any, depth: int, first: int, last: int, program: Any, row: Any, limit: float, overflowed: Any,
        kept: Any,
    ) -> None:  # fmt: skip
        leaves, panels, groups = b.shape[1], overflowed.shape[1], overflowed.shape[2]
        columns = panels * width
        is_whole = groups * rows == out.shape[1] and columns == out.shape[2]
        room = uninitialized(0 if is_whole else groups * rows * columns, out.dtype)
        left = uninitialized(int_max(1, groups * rows * leaves), out.dtype)
        right = uninitialized(int_max(1, panels * leaves * width), out.dtype)
        stack = uninitialized(depth * rows * width, out.dtype)
        hashes = zeroed(1, np.uint32)
        for pair in range(first, last):
            to_rows(a[pair], left, rows, 0, groups)
            to_columns(b[pair], right, width)
            product(
                left, right, out[pair].reshape(-1) if is_whole else room, leaves, panels, leaves * width, width, 0, groups,
                columns, program, stack, row, hashes, limit, overflowed[pair], kept[pair].reshape(-1),
            )  # fmt: skip
            for i in range(0 if is_whole else out.shape[1]):
                line, target = room[i * columns : (i + 1) * columns], out[pair, i]
                for j in range(target.size):
                    target[j] = line[j]

    return batch
