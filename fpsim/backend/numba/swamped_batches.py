"""Products of two batches of float32 matrices, whose swamped additions alone are counted: see `seldom_swamped`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend.numba.batches import make_pack_pair
from fpsim.backend.numba.block_bounds import LANES, extents
from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.counted import TALLIES, UNCHANGED
from fpsim.backend.numba.intrinsics import as_bits, int_max, int_min, uninitialized, zeroed
from fpsim.backend.numba.products import make_product
from fpsim.backend.numba.seldom_swamped import SWAMPED_ALONE

ROWS, VECTORS = 4, 2  # of a tile

#: Below it are the squares of an operand's elements, all together: then no sum of products is near float32's range, whatever
#: is lost where squares are added.
_SMALL = np.float32(2.0**100)


@lru_cache(maxsize=16)
def make_swamped_batch(mode: int, flags: int) -> Any:
    """The kernel `(packing, a, b, out, lines, used, leaves, depth, parts, first, last, at_once, program, blocks, row, swamped)
    -> None` for items first ... last - 1, of which each is one of so many `parts` of the groups of rows of a pair.

    As `batches.make_batch`, for chains, with so many `lines` and `used` columns; `out` has whole groups of rows and panels of
    columns, `blocks` are those of the program's chains, and in one panel `at_once` groups make no 2^32 additions. `swamped`
    (item) receives how many were swamped; -1, and nothing is computed, where operands are not finite or so large that sums
    might overflow.
    """
    product = make_product("f4", ROWS, VECTORS, mode, flags, SWAMPED_ALONE)
    width, pack_pair = VECTORS * 16, make_pack_pair(True)

    @kernel
    def batch(
        packing: Any, a: Any, b: Any, out: Any, lines: int, used: int, leaves: int, depth: int, parts: int, first: int,
        last: int, at_once: int, program: Any, blocks: Any, row: Any, swamped: Any,
    ) -> None:  # fmt: skip
        columns, count = out.shape[2], blocks.shape[0]
        whole, panels = out.shape[1] // ROWS, columns // width
        most = (whole + parts - 1) // parts
        left = uninitialized(int_max(1, most * ROWS * leaves), out.dtype)
        right = uninitialized(int_max(1, panels * leaves * width), out.dtype)
        least_a, norms_a = uninitialized(most * count * LANES, out.dtype), np.empty((most, count), out.dtype)
        least_b, norms_b = uninitialized(panels * count * LANES, out.dtype), np.empty((panels, count), out.dtype)
        overflowed = np.zeros((1, most), np.uint8)
        sums = depth * ROWS * width
        stack = uninitialized(sums + TALLIES * LANES, out.dtype)
        hashes = zeroed(1, np.uint32)
        for item in range(first, last):
            pair, part = item // parts, item % parts
            begin = whole * part // parts
            groups, start = whole * (part + 1) // parts - begin, begin * ROWS
            rows, here = int_min(lines - start, groups * ROWS), (a[0] + 4 * start * a[2], a[1], a[2], a[3])
            pack_pair(packing, here, b, pair, rows, used, leaves, left, right, ROWS, width)
            total = extents(left, ROWS * leaves, ROWS, ROWS, blocks, least_a, norms_a[:groups])
            other = extents(right, leaves * width, width, width, blocks, least_b, norms_b)
            swamped[item] = 0 if total < _SMALL and other < _SMALL else -1
            for panel in range(panels if swamped[item] == 0 else 0):
                numbers, target = right[panel * leaves * width :], out[pair].reshape(-1)[start * columns + panel * width :]
                least, norms = least_b[panel * count * LANES :], norms_b[panel : panel + 1]
                for low in range(0, groups, at_once):
                    for place in range(TALLIES * LANES):
                        stack[sums + place] = 0
                    product(
                        left, numbers, target, leaves, 1, 0, width, low, int_min(low + at_once, groups), columns, program,
                        stack, row, hashes, np.inf, overflowed, least_a, least, norms_a, norms,
                    )  # fmt: skip
                    for place in range(UNCHANGED * LANES, (UNCHANGED + 1) * LANES):
                        swamped[item] += np.uint32(as_bits(stack[sums + place]))

    return batch
