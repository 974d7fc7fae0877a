"""Products of two batches of float32 matrices, whose swamped additions alone are counted: see `seldom_swamped`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend.numba.batches import make_pack_pair
from fpsim.backend.numba.block_bounds import LANES, bounds_of_tiles, extents_of_fours, extents_of_panels, swamped_share
from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.counted import TALLIES
from fpsim.backend.numba.intrinsics import int_max, uninitialized, zeroed
from fpsim.backend.numba.products import make_product
from fpsim.backend.numba.seldom_swamped import SWAMPED_ALONE

ROWS, VECTORS = 4, 2  # of a tile


@lru_cache(maxsize=16)
def make_swamped_batch(mode: int, flags: int) -> Any:
    """The kernel `(packing, a, b, out, lines, used, leaves, depth, first, last, program, blocks, row, tallied) -> None` for
    pairs first ... last - 1.

    As `batches.make_batch`, for sums that cannot overflow, so many `lines` and `used` columns; `out` has whole groups of rows
    and panels of columns, `blocks` are those of the program's chains, and `tallied`, of float32 numbers, (n, tallies) receives
    what is counted of each pair.
    """
    product = make_product("f4", ROWS, VECTORS, mode, flags, SWAMPED_ALONE)
    width, share = VECTORS * 16, swamped_share(mode)
    pack_pair = make_pack_pair(True)

    @kernel
    def batch(
        packing: Any, a: Any, b: Any, out: Any, lines: int, used: int, leaves: int, depth: int, first: int, last: int,
        program: Any, blocks: Any, row: Any, tallied: Any,
    ) -> None:  # fmt: skip
        columns, count = out.shape[2], blocks.shape[0]
        groups, panels = out.shape[1] // ROWS, columns // width
        left = uninitialized(int_max(1, groups * ROWS * leaves), out.dtype)
        right = uninitialized(int_max(1, panels * leaves * width), out.dtype)
        least_a, places_a = np.empty((groups, count, LANES), out.dtype), np.empty((groups, LANES, count), out.dtype)
        least_b, places_b = np.empty((panels, count, LANES), out.dtype), np.empty((panels, LANES, count), out.dtype)
        norms_a, norms_b = np.empty((groups, count), out.dtype), np.empty((panels, count), out.dtype)
        ceilings, growths = np.empty((panels, groups, count), out.dtype), np.empty((panels, groups, count), out.dtype)
        overflowed = np.zeros((panels, groups), np.uint8)
        sums = depth * ROWS * width
        stack = uninitialized(sums + TALLIES * LANES, out.dtype)
        hashes = zeroed(1, np.uint32)
        is_dense = True
        for block in range(count):
            is_dense &= blocks[block, 2] == 1
        for pair in range(first, last):
            pack_pair(packing, a, b, pair, lines, used, leaves, left, right, ROWS, width)
            if is_dense:
                extents_of_fours(left, leaves, blocks, least_a, places_a, norms_a)
            else:
                extents_of_panels(left, ROWS * leaves, ROWS, ROWS, blocks, least_a, places_a, norms_a)
            extents_of_panels(right, leaves * width, width, width, blocks, least_b, places_b, norms_b)
            bounds_of_tiles(places_a, places_b, norms_a, norms_b, share, ceilings, growths)
            for place in range(TALLIES * LANES):
                stack[sums + place] = 0
            product(
                left, right, out[pair].reshape(-1), leaves, panels, leaves * width, width, 0, groups, columns, program, stack,
                row, hashes, np.inf, overflowed, least_a.reshape(-1), least_b.reshape(-1), ceilings, growths,
            )  # fmt: skip
            for place in range(TALLIES * LANES):
                tallied[pair, place] = stack[sums + place]

    return batch
