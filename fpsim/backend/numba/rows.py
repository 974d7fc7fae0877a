"""One row times a matrix, as one chain: every element of the matrix is read once, so that reading it is what takes time.

Rows of the matrix are read along memory, some terms at a time, with the sums of all columns in the nearest cache meanwhile.
Columns that lie along memory are transposed into a buffer there, some cache lines of each at a time. What is read next is
asked for before: a processor follows fewer streams than there are rows or columns here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.intrinsics import int_max, int_min, prefer_wide_vectors, prefetch, uninitialized, zeroed
from fpsim.backend.numba.observed import NOTHING
from fpsim.backend.numba.processor import FEATURES
from fpsim.backend.numba.products import LEAF_STEPS, chain_tile, largest_lane
from fpsim.backend.numba.sums_rounding import TRACK, TRACK_SUMS, constants_of, restore_direction, set_direction
from fpsim.backend.numba.tiles import load_tile, store_tile, zero_tile
from fpsim.backend.numba.transposition import LINE_BYTES, TILE_BYTES, transpose_tile

VECTORS = 8  # of a panel: chains enough to hide how long each takes
COLUMN_VECTORS = 8 if "avx512f" in FEATURES else 2  # of one of columns along memory: transposing wants registers

_TERMS = 8  # read at a time where rows of the matrix lie along memory: few, so that memory is read in long runs
_PANELS_AHEAD = 6  # how many panels further in the order of reading is asked for
_LINES = 8  # of each column that lies along memory are asked for in a row, while those before are added
_TOGETHER = 2  # of them transposed before they are added, so that all stay in the nearest cache


def lead_of(matrix: np.ndarray, stride: int, leaves: int) -> int:
    """After how many terms of each column along memory a line of the cache begins, if the same for all."""
    size = matrix.itemsize
    same = stride * size % LINE_BYTES == 0 and leaves * size >= TILE_BYTES
    return -matrix.ctypes.data % LINE_BYTES // size if same else 0


@lru_cache(maxsize=128)
def make_row_product(element: str, vectors: int, mode: int, flags: int, along_columns: bool) -> Any:
    """The kernel for one carrier, width of a panel, mode and set of flags; no draws.

    Its arguments: the row, the matrix (flat), its stride from term to term or, with `along_columns`, from column to column,
    how many terms there are and columns it has, out (flat, whole panels), the range of panels, the row of constants, the
    limit on magnitudes, an array (panel) that receives 1 where the limit was reached, and with `along_columns` after how many
    terms of each column a line of the cache begins. Without it the last panel is that of the last columns, some of which may
    be another's too.
    """
    kind, width = (np.float32, vectors * 16) if element == "f4" else (np.float64, vectors * 8)
    itemsize = np.dtype(kind).itemsize
    side, step = TILE_BYTES // itemsize, LINE_BYTES // itemsize
    track = flags & (TRACK | TRACK_SUMS)
    at_once = _TOGETHER * step if along_columns else _TERMS
    asked = _LINES * step

    @kernel
    def row_product(
        row: Any, matrix: Any, stride: int, leaves: int, columns: int, out: Any, first: int, last: int, constants_row: Any,
        limit: float, overflowed: Any, lead: int,
    ) -> None:  # fmt: skip
        prefer_wide_vectors()
        previous = set_direction(mode, flags)
        constants = constants_of(constants_row)
        like = zero_tile(kind, 1, vectors)
        no_draws = uninitialized(1, np.uint32)
        buffer = zeroed(at_once * width, row.dtype)
        if along_columns:
            for panel in range(first, last):
                used = int_min(columns - panel * width, width)
                full = used // side * side
                buffer[:] = 0
                top, seen = like, zero_tile(kind, 1, 1)
                for block in range((leaves - lead + at_once - 1) // at_once + 1):
                    # Before the first line that is read whole a tile is read that it overlaps.
                    low = int_max(0, lead + (block - 1) * at_once)
                    high = int_min(lead + block * at_once, leaves)
                    start = panel * width * stride + low
                    whole = int_min(lead, 1) * side if block == 0 else (high - low) // side * side
                    for column in range(0, full, side):
                        for k in range(0, whole, side):
                            transpose_tile(matrix, start + column * stride + k, stride, buffer, k * width + column, width)
                    if full < used or whole < high - low:
                        for column in range(used):
                            for k in range(whole if column < full else 0, high - low):
                                buffer[k * width + column] = matrix[start + column * stride + k]
                    ahead = panel * width * stride + (low - lead) // asked * asked + lead + asked
                    line = (low - lead) % asked * (width // step)
                    for k in range(high - low):
                        for _ in range(width // step):
                            prefetch(matrix, ahead + line // _LINES * stride + line % _LINES * step, 2)
                            line += 1
                        top, seen = chain_tile(
                            top, seen, row, low + k, buffer, k * width, constants, no_draws, 0, 0, low + k + LEAF_STEPS,
                            low + k, no_draws, 0, mode, flags, NOTHING,
                        )  # fmt: skip
                store_tile(top, out, panel * width, 0)
                if track and not largest_lane(seen) < limit:
                    overflowed[panel] = 1
        else:
            for panel in range(first, last):
                store_tile(like, out, panel * width, 0)
            for low in range(0, leaves, at_once):
                high = int_min(low + at_once, leaves)
                for panel in range(first, last):
                    place = int_min(panel * width, columns - width)
                    ahead = panel + _PANELS_AHEAD
                    blocks = (ahead - first) // (last - first)
                    ahead = ((ahead - first) % (last - first) + first) * width + blocks * at_once * stride
                    top, seen = load_tile(like, out, panel * width, 0), zero_tile(kind, 1, 1)
                    for k in range(low, high):
                        for line in range(0, width, step):
                            prefetch(matrix, k * stride + ahead + line, 1)
                        top, seen = chain_tile(
                            top, seen, row, k, matrix, k * stride + place, constants, no_draws, 0, 0, k + LEAF_STEPS, k,
                            no_draws, 0, mode, flags, NOTHING,
                        )  # fmt: skip
                    store_tile(top, out, panel * width, 0)
                    if track and not largest_lane(seen) < limit:
                        overflowed[panel] = 1
        restore_direction(previous, mode, flags)

    return row_product
