"""A single row times a matrix as one chain, where the matrix can be read as it lies."""

from __future__ import annotations

import numpy as np

from fpsim.backend import numba as kernels, threads
from fpsim.numbers.rounding import Rounding
from fpsim.sums.packing import LANES, line_of
from fpsim.sums.schemes import Scheme


def can_read(a: np.ndarray, b: np.ndarray, rounding: Rounding, chosen: Scheme) -> bool:
    """Whether the kernel takes a (1, k) and b (k, n): of its carrier, rows or columns of b along memory, no draws, and
    rows of at least one panel.
    """
    size = chosen.dtype.itemsize
    along = a.strides[1] == size and size in b.strides
    regular = all(stride >= 0 and stride % size == 0 for stride in b.strides)
    fits = a.dtype == chosen.dtype == b.dtype and along and regular
    whole = b.strides[1] != size or b.shape[1] >= kernels.rows.VECTORS * LANES[chosen.element]
    return fits and rounding is not Rounding.STOCHASTIC and b.size > 0 and whole


def row_chain(
    a: np.ndarray, b: np.ndarray, chosen: Scheme, flags: int, rounding: Rounding
) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """a @ b, a chain from +0 in ascending k, and the row and column ranges whose magnitudes reached the limit."""
    leaves, columns = b.shape
    along_columns = b.strides[1] != b.itemsize
    vectors = kernels.rows.COLUMN_VECTORS if along_columns else kernels.rows.VECTORS
    width = vectors * LANES[chosen.element]
    far, near = (b.T, columns) if along_columns else (b, leaves)
    stride = far.strides[0] // b.itemsize
    matrix = line_of(far, (near - 1) * stride + far.shape[1])
    panels = -(-columns // width)
    out, overflowed = np.empty(panels * width, dtype=b.dtype), np.zeros(panels, dtype=np.uint8)
    function = kernels.rows.make_row_product(chosen.element, vectors, rounding.code, flags, along_columns)
    row = line_of(a, leaves)
    lead = kernels.rows.lead_of(matrix, stride, leaves) if along_columns else 0
    limit = b.dtype.type(chosen.limit)

    def task(first: int, last: int) -> None:
        function(row, matrix, stride, leaves, columns, out, first, last, chosen.row, limit, overflowed, lead)

    threads.run(task, threads.parts(panels, leaves * columns))
    if not along_columns:
        out[columns - width : columns] = out[-width:]
    starts = (panel * width if along_columns else min(panel * width, columns - width) for panel in range(panels))
    beyond = [(0, start, 1, width) for start, is_beyond in zip(starts, overflowed.tobytes(), strict=True) if is_beyond]
    return out[None, :columns], beyond
