"""A single row times a matrix as one chain, where the matrix can be read as it lies."""

from __future__ import annotations

import numpy as np

from fpsim import threads
from fpsim._product_jobs import LANES, line_of
from fpsim._product_plans import Scheme
from fpsim.rounding import Rounding

_VECTORS = {False: 4, True: 2}  # of a panel, by whether columns lie along memory: then each is a stream of its own


def can_read(a: np.ndarray, b: np.ndarray, rounding: Rounding, chosen: Scheme) -> bool:
    """Whether the kernel takes a (1, k) and b (k, n): of its carrier, rows or columns of b along memory, no draws, and
    at least one panel.
    """
    size = chosen.dtype.itemsize
    along = a.strides[1] == size and size in b.strides
    regular = all(stride >= 0 and stride % size == 0 for stride in b.strides)
    fits = a.dtype == chosen.dtype == b.dtype and along and regular
    return fits and rounding is not Rounding.STOCHASTIC and panels_in(b, chosen) > 0


def panels_in(b: np.ndarray, chosen: Scheme) -> int:
    """How many of b's columns `row_chain` takes: whole panels where they lie by rows."""
    width = _VECTORS[False] * LANES[chosen.element]
    return b.shape[1] if b.strides[1] != b.itemsize else b.shape[1] // width * width


def row_chain(
    a: np.ndarray, b: np.ndarray, chosen: Scheme, flags: int, rounding: Rounding
) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """a @ b, a chain from +0 in ascending k, and the row and column ranges whose magnitudes reached the limit.

    b has the columns that `panels_in` takes.
    """
    from fpsim._kernels.rows import make_row_product

    leaves, columns = b.shape
    along_columns = b.strides[1] != b.itemsize
    vectors = _VECTORS[along_columns]
    width = vectors * LANES[chosen.element]
    far, near = (b.T, columns) if along_columns else (b, leaves)
    stride = far.strides[0] // b.itemsize
    matrix = line_of(far, (near - 1) * stride + far.shape[1])
    panels = -(-columns // width)
    out, passed = np.empty(panels * width, dtype=b.dtype), np.zeros(panels, dtype=np.uint8)
    function = make_row_product(chosen.element, vectors, rounding.code, flags, along_columns)
    row = line_of(a, leaves)
    limit = b.dtype.type(chosen.limit)

    def task(first: int, last: int) -> None:
        function(row, matrix, stride, leaves, columns, out, first, last, chosen.row, limit, passed)

    threads.run(task, threads.parts(panels, leaves * columns))
    beyond = [(0, panel * width, 1, width) for panel, is_beyond in enumerate(passed.tobytes()) if is_beyond]
    return out[None, :columns], beyond
