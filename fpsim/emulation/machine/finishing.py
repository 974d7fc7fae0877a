"""The end of every operation: results counted and rounded to the format, block by block, split among threads.

What a rule computes in float64 passes through a buffer that stays in the cache; memory sees operands and float32 results.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fpsim.backend import threads
from fpsim.backend.numba import counting, passes
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.limits import counting_limits
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding, round_into, rounding_constants
from fpsim.numbers.system import NumberSystem

#: Elements that are computed in float64 at a time.
BLOCK = 1 << 14
_pointer = marks.pointer_to
_COST = 4  # of counting and rounding an element, in multiply-adds

Values = Callable[[int, int], np.ndarray]  # the float64 numbers of a range of elements


def by_rows(kernel: Callable[[slice, np.ndarray], None], size: int) -> Values:
    """The values of rows of `size` elements: `kernel(rows, out)` fills float64 `out`, (rows, size), with those of some."""

    def values(start: int, stop: int) -> np.ndarray:
        rows = slice(start // size, stop // size)
        out = np.empty((rows.stop - rows.start, size))
        kernel(rows, out)
        return out.reshape(-1)

    return values


class Finish:
    """Counting and rounding to one format in one mode. Draws of stochastic rounding are functions of key and element."""

    fmt: NumberSystem
    #: Whether kernels round to the format; else the number system does.
    has_kernels = True

    def __init__(self, fmt: Format, rounding: Rounding):
        self.fmt, self.rounding = fmt, rounding
        self.stochastic = rounding is Rounding.STOCHASTIC
        #: By the size of a carrier's numbers: the rounding's constants, and the limits of `counting.count_edges`.
        self._of: dict[int, tuple[np.ndarray | None, np.ndarray]] = {}
        for dtype in map(np.dtype, (np.float32, np.float64)):
            if self.stochastic:  # no threshold tells: what exceeds max_finite is counted
                with np.errstate(over="ignore"):  # float32's own next is infinity
                    limit = np.nextafter(dtype.type(fmt.max_finite), dtype.type(np.inf))
                limits = np.array([limit, -limit, 0, 0], dtype)
            else:
                limits = counting_limits(fmt, rounding, dtype)
            self._of[dtype.itemsize] = rounding_constants(fmt, rounding, dtype), limits
        plain = fmt.flush is None and fmt.has_negative_zero
        self._kernel = counting.make_count_and_round(rounding.code, plain)
        self._few = counting.make_round_few(rounding.code, plain)
        self._few_at_most = -1 if self.stochastic or self._of[4][0] is None else counting.BLOCK
        self._pass = passes.make_pass(rounding.code, plain)
        self._tanh_gradient = passes.make_tanh_gradient(rounding.code, plain)

    def limits(self, dtype: np.dtype) -> np.ndarray:
        """Where numbers of that carrier start to overflow, and to become zero: what `counting.count_edges` takes."""
        return self._of[dtype.itemsize][1]

    def count(self, flat: np.ndarray, row: np.ndarray) -> None:
        """Count what rounding these float32 or float64 numbers is about to do."""
        counting.count_edges(flat, self._of[flat.itemsize][1], row)

    def round(self, values: np.ndarray, out: np.ndarray, row: np.ndarray, key: int = 0) -> None:
        """out = the float32 or float64 values rounded, counted in `row`; flat, `out` float32, maybe the same array."""
        if values.size < BLOCK:
            self._round(values, out, row, key, 0)
            return
        self.split(values.size, _COST, BLOCK, row, lambda i, j, counts: self._round(values[i:j], out[i:j], counts, key, i))

    def round_few(self, tensor: torch.Tensor, row: np.ndarray) -> bool:
        """Round a float32 tensor in place if it is small and contiguous and a kernel serves; an operation's smallest cost."""
        size = tensor.numel()
        if size > self._few_at_most or not tensor.is_contiguous():
            return False
        constants, limits = self._of[4]
        self._few(_pointer(tensor), size, constants, limits, row)
        return True

    def compute(self, values: Values, out: np.ndarray, row: np.ndarray, key: int = 0, granule: int = 1, cost: int = 0) -> None:
        """out[i:j] = values(i, j) rounded, for ranges that start at multiples of `granule`; `cost` is an element's."""
        step = max(granule, BLOCK // granule * granule)

        def part(first: int, last: int, counts: np.ndarray) -> None:
            for start in range(first, last, step):
                stop = min(start + step, last)
                self._round(values(start, stop), out[start:stop], counts, key, start)

        self.split(out.size, _COST + cost, step, row, part)

    def one_pass(
        self, operation: int, arrays: tuple[np.ndarray, ...], factor: float, out: np.ndarray, row: np.ndarray
    ) -> None:
        """An operation of `backend/numba/passes.py` on flat float32 arrays, rounded into `out`: to nearest even only."""
        x, y, z = (*arrays, *arrays[-1:] * 2)[:3]
        constants, limits = self._of[4]
        single = np.float32(factor)

        def part(i: int, j: int, counts: np.ndarray) -> None:
            self._pass(operation, x[i:j], y[i:j], z[i:j], single, out[i:j], constants, limits, counts)

        self.split(x.size, _COST, BLOCK, row, part)

    def tanh_gradient(self, gradient: np.ndarray, result: np.ndarray, out: np.ndarray, row: np.ndarray) -> None:
        """out = gradient * (1 - result^2) in float64, rounded; flat float32 arrays; no stochastic rounding."""
        constants, limits = self._of[8]

        def part(i: int, j: int, counts: np.ndarray) -> None:
            self._tanh_gradient(gradient[i:j], result[i:j], out[i:j], constants, limits, counts)

        self.split(out.size, _COST, BLOCK, row, part)

    @staticmethod
    def split(
        size: int, cost: int, granule: int, row: np.ndarray, part: Callable[[int, int, np.ndarray], None]
    ) -> None:
        """`part` over ranges, one for each thread, each counting in a row of its own."""
        ranges = threads.parts(size, cost * size, granule)
        if len(ranges) == 1:
            part(*ranges[0], row)
            return
        rows = {start: np.zeros(row.size, row.dtype) for start, _ in ranges}
        threads.run(lambda first, last: part(first, last, rows[first]), ranges)
        for counts in rows.values():
            row += counts

    def _round(self, values: np.ndarray, out: np.ndarray, row: np.ndarray, key: int, first: int) -> None:
        constants, limits = self._of[values.dtype.itemsize]
        if constants is None:  # float32's own range is too small for what rounding to this format passes through
            values = values.astype(np.float64)
            constants, limits = self._of[8]
        if self.stochastic:
            rounded = np.empty_like(values)
            round_into(values, rounded, self.fmt, self.rounding, key, first)
            counting.count_change(values, rounded, values.dtype.type(self.fmt.max_finite), row)
            out[...] = rounded  # exact: float32 holds every value of the format
        else:
            self._kernel(values, out, constants, limits, row)
