"""Operands in the layout of the kernels of hardware units."""

from __future__ import annotations

import numpy as np

from fpsim.backend import numba as kernels, threads
from fpsim.backend.numba.packing import pack_columns, pack_rows
from fpsim.numbers.formats import Format
from fpsim.sums.packing import LANES

TILE = (4, 2)  # rows and vectors that a kernel holds in registers
_EXPONENT = {"f4": np.int32(0x7F800000), "f8": np.int64(0x7FF0000000000000)}


def padded(a: np.ndarray, b: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Both operands with zeros up to a whole number of blocks."""
    (rows, terms), columns = a.shape, b.shape[1]
    whole = terms + -terms % block
    if whole == terms:
        return a, b
    left, right = np.zeros((rows, whole), a.dtype), np.zeros((whole, columns), b.dtype)
    left[:, :terms], right[:terms] = a, b
    return left, right


class Packed:
    """Operands in the layout of the kernels."""

    def __init__(self, a: np.ndarray, b: np.ndarray, element: str):
        self.element = element
        (self.rows, self.leaves), self.columns = a.shape, b.shape[1]
        rows, width = TILE[0], TILE[1] * LANES[element]
        self.groups, self.panels = -(-self.rows // rows), -(-self.columns // width)
        self.a = np.empty(self.groups * rows * self.leaves, element)
        self.b = np.empty(self.panels * width * self.leaves, element)
        self.out = np.empty((self.groups * rows, self.panels * width), element)
        pack_rows(a, self.a, rows, 0, self.groups)
        pack_columns(b, self.b, width)

    def powers(self, formats: tuple[Format, Format]) -> list[np.ndarray]:
        """2^exponent of every element of both, in the same layout (see `backend/numba/blocks.py`)."""
        results = [np.empty_like(values) for values in (self.a, self.b)]
        for values, operand, out in zip((self.a, self.b), formats, results, strict=True):
            kernels.blocks.powers(values, _EXPONENT[self.element], values.dtype.type(2.0**operand.emin), out)
        return results

    def started(self, start: np.ndarray | None) -> np.ndarray:
        """The matrix that holds the addends and then the sums, in whole tiles; the same one every time."""
        self.out.fill(0)
        if start is not None:
            self.out[: self.rows, : self.columns] = start
        return self.out

    def parts(self) -> list[tuple[int, int]]:
        """Ranges of row groups for the threads."""
        return threads.parts(self.groups, 4 * self.rows * self.leaves * self.columns)
