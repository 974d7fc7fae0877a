"""Counts of what rounding did while a product was accumulated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem
from fpsim.sums.columns import Columns
from fpsim.sums.lanes import LaneSums
from fpsim.sums.observers import counting
from fpsim.sums.observers.tally import Tally
from fpsim.sums.task import Draws, Sum

_Result = TypeVar("_Result")


class Counters(Tally):
    """What happened in the sums of products: pass one as ``counters=``, and every call adds to it.

    additions   rounded additions, those to the +0 that a chain starts from included
    swamped     additions that lost an addend: a nonzero leaf left its chain as it was, or one of two nonzero partial sums
                was the result. A product that underflowed to zero is no nonzero leaf.
    overflows   roundings (of products, of additions, and the last one to the result's format) that overflowed: of numbers
                whose rounding with an unbounded exponent exceeds the largest finite one, whether infinity, NaN or the
                largest number came of it. Infinities that were there before are not counted.
    underflows  such roundings that made a zero of what is not zero. Subnormal results are not counted.
    largest     the largest magnitude of a sum (infinity where one was reached); a NaN is passed over

    Counts do not depend on the number of threads. Calls at the same time may share an object.
    """

    # What a `SumObserver` is asked

    def product(self, task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws) -> np.ndarray:
        return self._told(counting.count_product, task, a, b, draws)

    def products(self, task: Sum, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        return self._told(counting.count_products, task, a, b)

    def lanes(self, sums: LaneSums) -> np.ndarray:
        return self._told(counting.count_lanes, sums)

    def columns(self, sums: Columns) -> np.ndarray | None:
        return None

    def addition(
        self, x: np.ndarray, y: np.ndarray, target: Format, rounding: Rounding, draws: Draws, node: int
    ) -> np.ndarray:
        return self._told(partial(counting.counted_add, addend_only=True), x, y, target, rounding, draws, node)

    def rounded(
        self, x: np.ndarray, result: np.ndarray, system: NumberSystem, rounding: Rounding, key: int, first: int
    ) -> None:
        self._told(counting.counted_rounding, x, result, system, rounding, key, first)

    def _told(self, compute: Callable[..., _Result], *given: Any) -> _Result:
        """What `compute(*given, counters)` gives; what it counts is added at its end, for others may be counting meanwhile."""
        counted = type(self)()
        result = compute(*given, counted)
        self.add(counted)
        return result


class SwampedAdditions(Counters):
    """`additions` and `swamped` alone, for less: nobody looks for what overflows or underflows."""

    is_whole = False

    def columns(self, sums: Columns) -> np.ndarray | None:
        return self._told(counting.count_chains, sums)
