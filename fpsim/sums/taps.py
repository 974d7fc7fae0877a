"""The matrix of a convolution's taps by positions, of which pieces are gathered: it is never whole in memory."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from fpsim.backend import numba as kernels, threads

COLUMNS = 64  # tiles are whole multiples of this many columns where they can be
_WIDE = 4  # times as many columns as rows: then threads share the tiles, else the rows of each
_GATHERED = 4  # what gathering an element costs, in multiply-adds


class Taps:
    """The matrix of taps by positions of one group, gathered piece by piece."""

    def __init__(self, source: np.ndarray, kernel: tuple[int, ...], grid: tuple[int, ...], axes: np.ndarray) -> None:
        if any(stride < 0 or stride % source.itemsize for stride in source.strides):
            source = np.ascontiguousarray(source)
        self.count = source.shape[1] * prod(kernel)
        self.positions = source.shape[0] * prod(grid)
        self.kernel, self.grid, self.axes = np.array(kernel), np.array(grid), axes
        self.sizes = np.array(source.shape[2:])
        self.strides = np.array(source.strides) // source.itemsize
        self.line = _as_line(source)

    def share(self, some: Callable[[int, int], None], tiles: int, rows: int, columns: int) -> None:
        """`some(first, last)` over the tiles, on several threads where that is better than to split each one's product."""
        several = self.sharers(rows, columns) > 1
        threads.run(some, threads.parts(tiles, threads.SPLIT_ABOVE) if several else [(0, tiles)] if tiles else [])

    def sharers(self, rows: int, columns: int) -> int:
        """How many threads share the tiles of a product of so many rows and columns."""
        work = self.count * self.positions * rows
        return len(threads.parts(columns, work, COLUMNS)) if columns >= _WIDE * rows else 1

    def buffer(self, size: int) -> np.ndarray:
        return np.empty(size, dtype=self.line.dtype)

    def gather(self, taps: slice, positions: slice, buffer: np.ndarray) -> np.ndarray:
        """A (taps, positions) piece in the buffer."""
        rows, columns = length_of(taps), length_of(positions)
        piece = buffer[: rows * columns].reshape(rows, columns)

        def some(first: int, last: int) -> None:
            where = (self.line, self.strides, self.sizes, piece[first:last])
            kernels.patches.gather_taps(*where, taps.start + first, positions.start, self.grid, self.kernel, self.axes)

        threads.run(some, threads.parts(rows, _GATHERED * piece.size) if piece.size else [])
        return piece


def _as_line(source: np.ndarray) -> np.ndarray:
    """All of the memory of an array with positive strides as one line of elements, from element (0, ..., 0) on."""
    if source.size == 0:
        return np.empty(0, dtype=source.dtype)
    reach = sum((size - 1) * stride for size, stride in zip(source.shape, source.strides, strict=True))
    count = reach // source.itemsize + 1
    return np.lib.stride_tricks.as_strided(source, (count,), (source.itemsize,), writeable=False)


def length_of(part: slice) -> int:
    return part.stop - part.start
